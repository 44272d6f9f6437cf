"""Every operation that the analysis has a rule for runs in bands, or is named here with the reason why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network.operations import RULES
from tests.bands import WEIGHT, Function, compared, line, planes, recorded

aten: Any = torch.ops.aten

NEVER = {
    "is local nowhere": "grid_sampler grid_sampler_2d grid_sampler_3d pad dot mv _batch_norm_with_update "
    "_batch_norm_with_update_functional",
    "reads values in Python": "_local_scalar_dense item is_nonzero equal _is_all_true _is_any_true",
    "raises for a singular matrix, and has no rows": "_linalg_check_errors",
    "is refused by its own rule": "as_strided as_strided_scatter diagonal diagonal_scatter tril triu rot90 "
    "_cdist_forward _euclidean_dist nonzero nonzero_numpy masked_select _unique2 unique_dim unique_consecutive "
    "bincount",
    "is not on the CPU": "cudnn_batch_norm miopen_batch_norm convolution_overrideable mkldnn_convolution "
    "mkldnn_max_pool2d _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention _fused_rms_norm",
    "is told strides, which depend on the image's size": "_reshape_alias",
    "is never recorded": "_reshape_copy lift_fresh _native_batch_norm_legit rrelu_with_noise",
}  # fmt: skip
"""Names of rules for which running in bands has no meaning, by the reason."""


def breaks_down(name: str) -> bool:
    """Whether PyTorch runs other operations in the place of this one, before it could be recorded."""
    forms = [getattr(getattr(aten, name), form) for form in getattr(aten, name).overloads()] if known(name) else []
    names = [form.name() for form in forms if torch._C._dispatch_has_kernel(form.name())]
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(n, "CompositeImplicitAutograd") for n in names)


def known(name: str) -> bool:
    """Whether this PyTorch has the operation."""
    return hasattr(aten, name)


def last(function: Function) -> Function:
    """Works on channels as the last dimension."""
    return lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def matrices(function: Callable[[Tensor], Any]) -> Function:
    """Works on a matrix of 2 x 2 at each place, that can be inverted."""

    def run(x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1).unflatten(3, (2, 2))
        result = function(y @ y.mT + 30 * torch.eye(2, dtype=x.dtype))
        return result.unsqueeze(-1).flatten(3).permute(0, 3, 1, 2)

    return run


def tokens(function: Function) -> Function:
    """Works on places row after row: (1, y * x, channels)."""
    return lambda x: function(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def normed(name: str, *flags: Any, statistics: bool = True) -> Function:
    two = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    return lambda x: getattr(aten, name)(x, two, two, *((two, two) if statistics else ()), *flags)[0]


def attention(x: Tensor) -> Tensor:
    """Within the matrix at each place."""
    y = x.flatten(1, 2)
    return F.scaled_dot_product_attention(y, y, y).view(x.shape)


def grouped(x: Tensor) -> Tensor:
    """Groups of two channels at each place."""
    return F.group_norm(x[0].permute(1, 2, 0).flatten(0, 1), 2).t().unflatten(1, x.shape[2:])[None]


def chosen(x: Tensor) -> Tensor:
    """Numbers of channels, in another order at each place."""
    return x.argsort(1)


def complex_of(x: Tensor) -> Tensor:
    return torch.complex(x[:, :2], x[:, 2:])


def unpooled(x: Tensor) -> Tensor:
    values, places = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    return F.max_unpool2d(values, places, 3, 2, 1, output_size=x.shape[2:])


def written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 1:-1, 2:] = x[:, :, 2:, :-2]
    y[:, 1] = x[:, 0]
    return y


MIX = torch.arange(12.0, dtype=torch.float64).view(4, 3)
ALONG = ["cummax", "cummin", "sort"]
REDUCED = [
    "mean",
    "sum",
    "nansum",
    "amax",
    "amin",
    "argmax",
    "argmin",
    "all",
    "any",
    "prod",
    "logsumexp",
    "count_nonzero",
]

OPERATIONS: dict[str, Function] = {
    "_adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3])),
    "_adaptive_avg_pool3d": planes(lambda x: F.adaptive_avg_pool3d(x, (2, x.shape[3] // 2, x.shape[4] // 3))),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (x.shape[2] // 3, x.shape[3] // 2)),
    "adaptive_max_pool3d": planes(lambda x: F.adaptive_max_pool3d(x, (2, x.shape[3] // 2, x.shape[4]))),
    "convolution": lambda x: F.conv2d(x, WEIGHT, stride=(2, 1), padding=1),
    "_convolution": lambda x: aten._convolution(
        x, WEIGHT, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, False, False, True, True),
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool3d_with_indices": planes(lambda x: F.max_pool3d(x, (1, 2, 3), (1, 2, 1))),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "avg_pool3d": planes(lambda x: F.avg_pool3d(x, (2, 3, 2), (1, 2, 2), (0, 1, 1), True, False)),
    "max_unpool2d": unpooled,
    "im2col": lambda x: F.unfold(x, 3, padding=1).unflatten(1, (4, 9)).amax(2).unflatten(2, x.shape[2:]),
    "col2im": lambda x: F.fold(F.unfold(x, 4, 1, 1, 2).abs(), x.shape[2:], 4, 1, 1, 2),
    "unfold": lambda x: x.unfold(2, 4, 2).amax(-1),
    "constant_pad_nd": lambda x: F.pad(x, (1, 2, 3, -1)),
    "reflection_pad1d": line(lambda x: F.pad(x, (2, 1), mode="reflect")),
    "reflection_pad2d": lambda x: F.pad(x, (2, 1, 3, 1), mode="reflect"),
    "reflection_pad3d": planes(lambda x: F.pad(x, (2, 1, 3, 1, 1, 0), mode="reflect")),
    "replication_pad1d": line(lambda x: F.pad(x, (2, 1), mode="replicate")),
    "replication_pad2d": lambda x: F.pad(x, (2, 1, 3, 1), mode="replicate"),
    "replication_pad3d": planes(lambda x: F.pad(x, (2, 1, 3, 1, 1, 0), mode="replicate")),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 3),
    "upsample_nearest1d": line(lambda x: F.interpolate(x, scale_factor=2)),
    "upsample_nearest2d": lambda x: F.interpolate(x, scale_factor=(1.5, 2)),
    "upsample_nearest3d": planes(lambda x: F.interpolate(x, scale_factor=(1, 2, 3))),
    "_upsample_nearest_exact1d": line(lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    "_upsample_nearest_exact2d": lambda x: F.interpolate(x, scale_factor=0.5, mode="nearest-exact"),
    "_upsample_nearest_exact3d": planes(lambda x: F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest-exact")),
    "upsample_linear1d": line(lambda x: F.interpolate(x, scale_factor=2, mode="linear")),
    "upsample_bilinear2d": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "upsample_trilinear3d": planes(lambda x: F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear")),
    "upsample_bicubic2d": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "_upsample_bilinear2d_aa": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "_upsample_bicubic2d_aa": lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    "view": lambda x: x.view(1, 4, x.shape[2] // 2, 2, x.shape[3]).amax(3),
    "_unsafe_view": lambda x: aten._unsafe_view(x, [1, 2, 2, *x.shape[2:]]).flatten(1, 2),
    "view_copy": lambda x: aten.view_copy(x, [1, 2, 2, *x.shape[2:]]).flatten(1, 2),
    "permute": lambda x: x.permute(0, 1, 3, 2).permute(0, 1, 3, 2),
    "permute_copy": lambda x: aten.permute_copy(aten.permute_copy(x, [0, 3, 1, 2]), [0, 2, 3, 1]),
    "transpose": lambda x: x.transpose(1, 2).transpose(1, 2),
    "transpose_copy": lambda x: aten.transpose_copy(aten.transpose_copy(x, 1, 2), 1, 2),
    "t": lambda x: aten.t(aten.t(x[0, 0]))[None, None],
    "unsqueeze": lambda x: x[:, :1].unsqueeze(2)[:, 0],
    "unsqueeze_copy": lambda x: aten.unsqueeze_copy(x, 0)[0],
    "squeeze": lambda x: x[:, None].squeeze(1),
    "squeeze_copy": lambda x: aten.squeeze_copy(x[:, None], 1),
    "expand": lambda x: x[:, :, :, None].expand(-1, -1, -1, 3, -1).flatten(2, 3),
    "expand_copy": lambda x: aten.expand_copy(x[:, :1], [1, 3, *x.shape[2:]]),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "slice": lambda x: x[:, 1:, 1::2, :-2],
    "slice_copy": lambda x: aten.slice_copy(x, 2, 1, None, 2),
    "select": lambda x: x[:, 1][None],
    "select_copy": lambda x: aten.select_copy(x, 1, 2)[None],
    "unbind": lambda x: torch.stack(x.unbind(1)[1:], 1),
    "unbind_copy": lambda x: torch.stack(aten.unbind_copy(x, 1)[1:], 1),
    "split": lambda x: torch.cat(x.split(3, 1)[::-1], 1),
    "split_copy": lambda x: torch.cat(aten.split_copy(x, 3, 1)[::-1], 1),
    "split_with_sizes": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "split_with_sizes_copy": lambda x: torch.cat(aten.split_with_sizes_copy(x, [1, 3], 1)[::-1], 1),
    "cat": lambda x: torch.cat([x.new_ones(1, 4, 3, x.shape[3]), x, x.new_zeros(1, 4, 1, x.shape[3])], 2),
    "stack": lambda x: torch.stack([x, -x], 2).flatten(1, 2),
    "copy": lambda x: torch.empty_like(x).copy_(x),
    "slice_scatter": written,
    "select_scatter": written,
    "index_put": lambda x: x.index_put((x > 1,), torch.tensor(7.0, dtype=x.dtype)),
    "index": lambda x: x[:, :, torch.arange(1, x.shape[2], 2)[:, None], torch.arange(3 * x.shape[3])[None] // 3],
    "index_select": lambda x: x.index_select(2, torch.arange(2 * x.shape[2]) // 2),
    "gather": lambda x: x.gather(1, chosen(x)),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, chosen(x), x),
    "scatter_add": lambda x: x.scatter_add(1, chosen(x), x),
    "scatter_reduce": lambda x: x.scatter_reduce(1, chosen(x), x, "amax"),
    "embedding": lambda x: F.embedding(x[0, 0].clamp(0, 3).long(), MIX)[None].permute(0, 3, 1, 2),
    "mm": lambda x: (x[0].flatten(1).t() @ MIX).t().unflatten(1, x.shape[2:])[None],
    "addmm": lambda x: torch.addmm(MIX[0], x[0].flatten(1).t(), MIX).t().unflatten(1, x.shape[2:])[None],
    "addmv": lambda x: aten.addmv(x.new_zeros(1), x[0].flatten(1).t(), MIX[:, 1]).view(1, 1, *x.shape[2:]),
    "bmm": matrices(lambda x: x @ x),
    "baddbmm": tokens(lambda x: aten.baddbmm(x, x, torch.ones(1, 4, 4, dtype=x.dtype))),
    "_scaled_dot_product_flash_attention_for_cpu": matrices(attention),
    "_scaled_dot_product_attention_math": matrices(lambda x: aten._scaled_dot_product_attention_math(x, x, x)[0]),
    "_softmax": lambda x: x.softmax(1), "_log_softmax": lambda x: x.log_softmax(1),
    "_safe_softmax": lambda x: aten._safe_softmax(x, 1),
    "flip": lambda x: x.flip(1), "roll": lambda x: x.roll(1, 1), "glu": lambda x: F.glu(x, 1),
    "topk": lambda x: x.topk(2, 1).values, "kthvalue": lambda x: x.kthvalue(2, 1).values[:, None],
    "cumsum": lambda x: x.cumsum(1), "cumprod": lambda x: x.cumprod(1), "logcumsumexp": lambda x: x.logcumsumexp(1),
    "argsort": lambda x: aten.argsort(x, 1).double(),
    "_fft_r2c": lambda x: torch.fft.rfft(x, dim=1).abs(),
    "_fft_c2c": lambda x: torch.fft.fft(complex_of(x), dim=1).abs(),
    "_fft_c2r": lambda x: torch.fft.irfft(complex_of(x), dim=1),
    "max": lambda x: x.max(1).values[:, None], "min": lambda x: x.min(1).values[:, None],
    "median": lambda x: x.median(1).values[:, None], "nanmedian": lambda x: x.nanmedian(1).values[:, None],
    "mode": lambda x: x.mode(1).values[:, None], "aminmax": lambda x: torch.aminmax(x, dim=1, keepdim=True).max,
    "var": lambda x: x.var(1, keepdim=True), "std": lambda x: x.std(1, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, 1, keepdim=True)[0],
    "std_mean": lambda x: torch.std_mean(x, 1, keepdim=True)[0],
    "norm": lambda x: aten.norm(x, 2, [1], True),
    "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, 2, 1, True),
    "native_layer_norm": last(lambda x: F.layer_norm(x, (4,))),
    "native_group_norm": grouped,
    "native_batch_norm": normed("native_batch_norm", False, 0.1, 1e-5),
    "_native_batch_norm_legit_functional": normed("_native_batch_norm_legit_functional", False, 0.1, 1e-5),
    "_native_batch_norm_legit_no_training": normed("_native_batch_norm_legit_no_training", 0.1, 1e-5),
    "_batch_norm_no_update": normed("_batch_norm_no_update", 0.1, 1e-5),
    "_linalg_solve_ex": matrices(lambda m: aten._linalg_solve_ex(m, m[..., 0])[0]),
    "linalg_inv_ex": matrices(lambda m: aten.linalg_inv_ex(m)[0]),
    "_linalg_det": matrices(lambda m: aten._linalg_det(m)[0]),
    "_linalg_slogdet": matrices(lambda m: aten._linalg_slogdet(m)[1]),
    "linalg_cholesky_ex": matrices(lambda m: aten.linalg_cholesky_ex(m)[0]),
    "_linalg_eigh": matrices(lambda m: aten._linalg_eigh(m)[0]),
    "_linalg_svd": matrices(lambda m: aten._linalg_svd(m)[1]),
    "linalg_solve_triangular": matrices(lambda m: aten.linalg_solve_triangular(m, m, upper=True)),
    "linalg_lu_factor_ex": matrices(lambda m: aten.linalg_lu_factor_ex(m)[0]),
    "linalg_matrix_exp": matrices(lambda m: aten.linalg_matrix_exp(m / 40)),
    "complex": lambda x: complex_of(x).abs(), "polar": lambda x: torch.polar(x.abs(), x).angle(),
    "_conj": lambda x: complex_of(x).conj().angle(), "_neg_view": lambda x: aten._neg_view(x).clone(),
    "_prelu_kernel": lambda x: F.prelu(x, torch.tensor(0.5, dtype=x.dtype)),
    "hardswish": F.hardswish, "log_sigmoid_forward": F.logsigmoid, "rsub": lambda x: aten.rsub(x, 1),
    "rrelu_with_noise_functional": F.rrelu, "floor_divide": lambda x: x.floor_divide(2),
    "_to_copy": lambda x: x.to(torch.int32).double(), "clone": lambda x: x.clone(), "alias": aten.alias,
    "detach": lambda x: x.detach(),
    "fill": lambda x: x + aten.fill(x, 2), "zero": lambda x: x + aten.zero(x),
    "zeros_like": lambda x: x + torch.zeros_like(x), "ones_like": lambda x: x + torch.ones_like(x),
    "full_like": lambda x: x.maximum(torch.full_like(x, torch.nan).nan_to_num(1)),
    "empty_like": lambda x: torch.empty_like(x).copy_(x),
    "where": lambda x: torch.where(x > 0, x, 2), "native_dropout": lambda x: aten.native_dropout(x, 0.5, False)[0],
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([1.0], dtype=x.dtype)).double(),
    **{name: lambda x, name=name: getattr(torch, name)(x, dim=1)[0] for name in ALONG},
    **{name: lambda x, name=name: getattr(torch, name)(x, dim=1)[:, None].double() for name in REDUCED},
}  # fmt: skip
"""One network for each operation: the whole of it, but for what brings its operands into shape."""


def test_every_rule_has_an_operation_that_runs_in_bands_or_a_reason_not_to() -> None:
    never = " ".join(NEVER.values()).split()
    rest = {name for name in RULES if known(name) and not breaks_down(name)} - OPERATIONS.keys()
    assert not rest - set(never), "neither is tried here nor has a reason"
    assert not set(never) - RULES.keys() and not OPERATIONS.keys() & set(never)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_some_rows_gives_those_of_the_whole(name: str) -> None:
    program = recorded(OPERATIONS[name])
    if not breaks_down(name):
        assert name in {step.node.name for step in program.steps}
    for result, whole in compared(program, OPERATIONS[name]):
        torch.testing.assert_close(result, whole, rtol=1e-12, atol=1e-12, equal_nan=True)
