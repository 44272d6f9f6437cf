"""Rules for operations that combine all elements along a dimension: sums, norms, products, attention.

Along channels they are local; along rows or columns they see the whole image.
"""

from __future__ import annotations

from pipeline.network.layouts import Dimension, NotLocal, Tracked, Unknown, axes_of, broadcast, plain
from pipeline.network.operations import Call, Lost, Outputs, rule

ATTENTION = "attention over the image: every place is compared with every other"


def _dims(call: Call, tensor: Tracked, name: str = "dim") -> list[int]:
    """The dimensions that the operation works on; all where it names none."""
    dims = call.get(name)
    if dims is None or dims == []:
        return list(range(tensor.ndim))
    return [d % max(1, tensor.ndim) for d in ([dims] if isinstance(dims, int) else dims)]


@rule(
    "mean", "sum", "nansum", "amax", "amin", "aminmax", "argmax", "argmin", "max", "min", "prod", "all", "any", "var",
    "std", "var_mean", "std_mean", "logsumexp", "median", "nanmedian", "mode", "kthvalue", "norm", "linalg_vector_norm",
    "count_nonzero",
)  # fmt: skip
def reduce(call: Call) -> Outputs:
    tensor = call.tracked("self")
    dims = _dims(call, tensor)
    if axes := tensor.axes(dims):
        over = " and ".join({"y": "rows", "x": "columns"}[a] for a in ("y", "x") if a in axes)
        call.not_local(f"global pooling: {call.name} over all {over} of the image")
    return [tensor.without(dims, bool(call.get("keepdim")))] * call.outputs


@rule(
    "_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp",
    "sort", "argsort", "topk", "flip", "roll", "glu", "_fft_r2c", "_fft_c2c", "_fft_c2r", "_safe_softmax",
)  # fmt: skip
def along(call: Call) -> Outputs:
    """Every element is computed from all elements along some dimensions, which stay."""
    tensor = call.tracked("self")
    dims = _dims(call, tensor, {"flip": "dims", "roll": "dims"}.get(call.name, "dim"))
    if tensor.axes(dims):
        call.not_local(f"{_VERBS.get(call.name.strip('_'), 'works')} along all rows or columns of the image")
        return [tensor] * call.outputs
    shape = call.shape()
    layout = [plain(shape[d]) if d in dims else dimension for d, dimension in enumerate(tensor.layout)]
    return [tensor.arranged(layout)] * call.outputs


_VERBS = {
    "softmax": "normalises", "log_softmax": "normalises", "safe_softmax": "normalises", "flip": "mirrors",
    "roll": "rolls", "sort": "sorts", "argsort": "sorts", "topk": "sorts", "cumsum": "sums up",
    "fft_r2c": "Fourier transform", "fft_c2c": "Fourier transform", "fft_c2r": "Fourier transform",
}  # fmt: skip


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(call: Call) -> Outputs:
    tensor = call.tracked("input")
    count = len(call.get("normalized_shape"))
    dims = range(tensor.ndim - count, tensor.ndim)
    if tensor.axes(dims):
        call.not_local("normalises over the whole image")
    statistics = tensor.without(dims, keep=True)
    return [tensor, statistics, statistics][: call.outputs]


@rule("native_group_norm", "group_norm")
def group_norm(call: Call) -> Outputs:
    tensor = call.tracked("input")
    if tensor.axes(range(1, tensor.ndim)):
        call.not_local("group norm: normalises over the whole image")
    return [tensor, *[tensor.without(range(2, tensor.ndim), keep=False)] * (call.outputs - 1)]


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_with_update",
    "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_functional",
    "_batch_norm_with_update_functional",
)  # fmt: skip
def batch_norm(call: Call) -> Outputs:
    tensor = call.tracked("input")
    trains = call.get("training", "with_update" in call.name)
    if trains and tensor.axes([0, *range(2, tensor.ndim)]):
        if "InstanceNorm" in call.module:
            reason = "instance norm"
        elif call.get("running_mean") is None:
            reason = "batch norm without running statistics, or instance norm"
        else:
            reason = "batch norm in training mode"
        call.not_local(f"{reason}: normalises over the whole image")
    channels = tensor.arranged([tensor.layout[1]])
    return [tensor, *[channels] * (call.outputs - 1)]


def _contract(call: Call, a: Tracked, b: Tracked, m: int, k: tuple[int, int], n: int) -> None:
    """Finds sums over rows or columns, and products of rows with rows."""
    summed = a.axes([k[0]]) | b.axes([k[1]])
    if summed and a.sizes[k[0]] == b.sizes[k[1]]:
        # the other one, which is no constant, runs over the whole image already, after what was found to be not local
        sides = zip(_factors(call), (a, b), k, strict=True)
        follows = [call.is_tracked(name) and t.sizes[d][0] != t.sizes[d][1] and not t.axes([d]) for name, t, d in sides]
        if not any(follows):
            call.not_local("sums over all rows or columns of the image")
    if axes_of(a.layout[m]) & axes_of(b.layout[n]):
        call.not_local(ATTENTION)


@rule("mm", "addmm", "mv", "addmv", "dot", "matmul", "linear")
def product(call: Call) -> Outputs:
    a, b = (call.any_tensor(call.pair(n)) for n in _factors(call))
    if a.ndim != 2 or b.ndim > 2:
        raise Unknown("multiplies tensors of unusual shape")
    if b.ndim == 1:
        b = Tracked((*b.layout, ()), b.rows)
        _contract(call, a, b, 0, (1, 0), 1)
        result = _joined(call, [a.layout[0]], a, b)
    else:
        _contract(call, a, b, 0, (1, 0), 1)
        result = _joined(call, [a.layout[0], b.layout[1]], a, b)
    if call.is_tracked("self") and call.name.startswith("add"):
        return broadcast([result, call.tracked("self")])
    return result


def _factors(call: Call) -> tuple[str, str]:
    names = {"addmm": ("mat1", "mat2"), "addmv": ("mat", "vec"), "mv": ("self", "vec"), "dot": ("self", "tensor"),
             "baddbmm": ("batch1", "batch2")}  # fmt: skip
    return names.get(call.name, ("self", "mat2"))


def _joined(call: Call, layout: list[Dimension], a: Tracked, b: Tracked) -> Tracked:
    """A product's layout, in which an axis that would appear twice stays only where it is first."""
    seen: set[str] = set()
    for i, dimension in enumerate(layout):
        if axes_of(dimension) & seen:
            layout[i] = plain(call.shape()[i])
        seen |= axes_of(dimension)
    rows = {**b.rows, **a.rows}
    return Tracked(tuple(layout), {axis: rows[axis] for axis in seen if axis in rows})


@rule("bmm", "baddbmm")
def batched_product(call: Call) -> Outputs:
    a, b = (call.any_tensor(call.pair(n)) for n in _factors(call))
    _contract(call, a, b, 1, (2, 1), 2)
    batch = broadcast([t.arranged([t.layout[0]]) for t in (a, b)])
    for tensor in (a, b):
        if axes_of(batch.layout[0]) & tensor.axes([1, 2]):
            call.not_local(ATTENTION)
    result = _joined(call, [batch.layout[0], a.layout[1], b.layout[2]], a, b)
    result = result.arranged(result.layout, batch.rows)
    if call.is_tracked("self") and call.name == "baddbmm":
        return broadcast([result, call.tracked("self")])
    return result


@rule(
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
def attention(call: Call) -> Outputs:
    query, key, value = (call.any_tensor(call.pair(n)) for n in ("query", "key", "value"))
    if query.axes([-1]) or key.axes([-1]):
        call.not_local("sums over all rows or columns of the image")
    if query.axes([-2]) or key.axes([-2]) or value.axes([-2]):
        call.not_local(ATTENTION)
    leading = broadcast([t.arranged(t.layout[:-2]) for t in (query, key, value)])
    result = _joined(call, [*leading.layout, query.layout[-2], value.layout[-1]], query, value)
    result = result.arranged(result.layout, leading.rows)
    for name in ("attn_mask", "attn_bias"):
        if call.get(name) is not None and not call.is_tracked(name):
            call.combined([result.arranged([*result.layout[:-1], ()])], [call.pair(name)])
    return [result, *[result.without([-1], keep=False)] * (call.outputs - 1)]


@rule(
    "_linalg_solve_ex", "linalg_inv_ex", "_linalg_det", "_linalg_slogdet", "linalg_cholesky_ex", "_linalg_eigh",
    "_linalg_svd", "linalg_solve_triangular", "linalg_lu_factor_ex", "linalg_matrix_exp",
)  # fmt: skip
def matrices(call: Call) -> Outputs:
    """Functions of a matrix in the last two dimensions, at each place, and of vectors with one dimension less."""
    tensors = call.operands()[0]
    if not tensors:
        raise Lost
    matrix = max(t.ndim for t in tensors)
    counts = [2 if t.ndim == matrix else 1 for t in tensors]
    if any(t.axes(range(-n, 0)) for t, n in zip(tensors, counts, strict=True)):
        raise NotLocal("solves for all rows or columns of the image at once")
    leading = broadcast([t.arranged(t.layout[:-n]) for t, n in zip(tensors, counts, strict=True)])
    shapes = [call.shape(i) for i in range(call.outputs)]
    return [leading.arranged([*leading.layout, *map(plain, s[leading.ndim :])]) for s in shapes]


@rule("_linalg_check_errors")
def check_errors(call: Call) -> Outputs:
    """Raises for singular matrices, and has no result otherwise."""
    return [None] * call.outputs


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> Outputs:
    if any(t.rows for t in call.operands()[0]):
        raise NotLocal("compares every place of the image with others")
    raise Unknown("its dimensions cannot be followed")
