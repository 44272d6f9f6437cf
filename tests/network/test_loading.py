"""Modules, folders and names: what is loaded, what of the caller's stays as it is, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.network.loading import Network, choose_device, load_network
from pipeline.network.names import BUNDLED
from pipeline.network.prepare import infer_channels
from pipeline.network.receptive_field import receptive_field


def small(classes: int = 2) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, classes, 1)
    ).eval()


class Outputs(nn.Module):
    """Returns whatever `pack` makes of two tensors."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 2, 1)
        self.two = nn.Conv2d(3, 5, 1)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.one(x), self.two(x))


def test_a_module_is_taken_as_it_is() -> None:
    module = small()
    network = load_network(module)
    assert network.module is module
    assert (network.name, network.channels, network.classes, network.activation) == ("Sequential", 3, 2, "softmax")
    assert load_network(small(classes=1)).activation == "sigmoid"
    assert load_network(network).identity == network.identity


def test_nothing_of_the_callers_module_is_changed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.BatchNorm2d(2, track_running_stats=False))
    module[0].requires_grad_(False)
    state = copy.deepcopy(module.state_dict())
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    network = load_network(module, scale=0.5)
    network.to("cpu", torch.float64)(torch.zeros(1, 3, 9, 9, dtype=torch.float64))
    assert all(part.training for part in module.modules())
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_training_mode_without_layers_that_act_is_evaluated_on_a_copy() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout(0.0)).train()
    network = load_network(module)
    assert network.module is not module
    assert not any(part.training for part in network.module.modules())
    assert network.module[0].weight is module[0].weight


@pytest.mark.parametrize("lazy", [lambda: nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d])
def test_a_lazy_module_is_to_run_once_before(lazy: Callable[[], nn.Module]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), lazy()).eval()
    kind = type(module[1]).__name__
    with pytest.raises(ValueError, match=rf"^1 \({kind}\) is lazy and has no weights yet: run the network once"):
        load_network(module)
    assert type(module[1]).__name__ == kind
    module(torch.rand(1, 3, 8, 8))
    assert load_network(module).classes == 2


def test_a_script_is_no_module_to_look_into_but_a_trace_is() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()
    with pytest.raises(ValueError, match=r"is of torch\.jit\.script, which cannot be analysed: give the module"):
        load_network(torch.jit.script(module))
    assert receptive_field(load_network(torch.jit.trace(module, torch.rand(1, 3, 8, 8))).module, 3).is_local


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.BatchNorm2d(2), r"inner\.1 \(BatchNorm2d\)"),
        (nn.Dropout(0.1), r"inner\.1 \(Dropout\)"),
        (nn.Dropout2d(0.1), r"inner\.1 \(Dropout2d\)"),
        (nn.InstanceNorm2d(2, track_running_stats=True), r"inner\.1 \(InstanceNorm2d\)"),
        (nn.RReLU(), r"inner\.1 \(RReLU\)"),
    ],
)
def test_training_mode_that_acts_is_refused(layer: nn.Module, said: str) -> None:
    module = nn.Sequential()
    module.add_module("inner", nn.Sequential(nn.Conv2d(3, 2, 1), layer))
    with pytest.raises(ValueError, match=rf"training mode, where {said}.*call \.eval\(\)"):
        load_network(module)
    assert load_network(module.eval()).classes == 2
    layer.train()
    with pytest.raises(ValueError, match=said):
        load_network(module)


def test_weight_norm_and_lazy_layers() -> None:
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Conv2d(3, 2, 3))
    normed(torch.rand(1, 3, 8, 8))
    network = load_network(nn.Sequential(normed))
    assert network.to("cpu", torch.float64)(torch.rand(1, 3, 8, 8, dtype=torch.float64)).shape == (1, 2, 6, 6)
    assert infer_channels(nn.Sequential(nn.LazyConv2d(3, 3))) is None


class Keeping(nn.Module):
    """Keeps a grid of the last image's size."""

    grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.zeros(x.shape[-2:])
        return x + self.grid


def test_the_trial_leaves_nothing_behind() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), Keeping()).eval()
    assert load_network(module).classes == 2
    assert module[1].grid is None


def test_a_compiled_module_is_unwrapped() -> None:
    module = small()
    assert load_network(torch.compile(module)).module is module  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pack", "output", "classes"),
    [
        (lambda a, b: {"out": a, "aux": b}, "out", 2),
        (lambda a, b: {"out": a, "aux": b}, "aux", 5),
        (lambda a, b: (a, b), 1, 5),
        (lambda a, b: [a, b], "0", 2),
        (lambda a, b: {"only": b}, None, 5),
        (lambda a, b: (b, None), None, 5),
    ],
)
def test_outputs_by_key(pack: Callable[[Tensor, Tensor], Any], output: Any, classes: int) -> None:
    network = load_network(Outputs(pack).eval(), output=output)
    assert network.classes == classes
    assert network.module(torch.rand(1, 3, 8, 8)).shape == (1, classes, 8, 8)


def test_outputs_must_be_named() -> None:
    module = Outputs(lambda a, b: {"out": a, "aux": b}).eval()
    with pytest.raises(ValueError, match=r"returns 'out' .*, 'aux' .*: name one, as in --key out, or .*output='out'"):
        load_network(module)
    with pytest.raises(ValueError, match="no output 'main': it returns 'out'"):
        load_network(module, output="main")
    with pytest.raises(ValueError, match="no tensor"):
        load_network(Outputs(lambda a, b: {}).eval())


def test_stored_values_are_normalised_first() -> None:
    module = small()
    network = load_network(module, scale=1 / 255, mean=[0.5, 0.4, 0.3], std=np.array([0.2, 0.2, 0.1]))
    image = torch.randint(0, 256, (1, 3, 8, 8)).float()
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.2, 0.1])[:, None, None]
    with torch.no_grad():
        assert torch.allclose(network.module(image), module((image / 255 - mean) / std), atol=1e-5)
    assert network.card["normalise"] == {"scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    assert network.identity != load_network(module).identity


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": [0.5, 0.5]}, "mean has 2 numbers, but the network takes 3 channels"),
        ({"std": 0}, "std 0: give finite numbers"),
        ({"scale": 0.0}, "scale 0.0: give finite numbers, and for scale and std none that is 0"),
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": "big"}, "scale 'big': give one number"),
    ],
)
def test_normalisation_that_does_not_fit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_network(small(), **given)


def test_a_network_with_a_card_has_its_own_normalisation() -> None:
    with pytest.raises(ValueError, match="nuclei has its own normalisation"):
        load_network("nuclei", scale=1 / 255)
    assert load_network("unet-tiny", scale=1 / 255).card["normalise"] == {"scale": 1 / 255}


@pytest.mark.parametrize("net", [3, [1], np.zeros(3), torch.zeros(3)])
def test_what_is_no_network(net: Any) -> None:
    with pytest.raises(ValueError, match="is no network"):
        load_network(net)


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device 'gpu': one of auto, cpu, cuda"):
        load_network(small(), device="gpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(ValueError, match="no GPU"):
            load_network(small(), device="cuda")


def test_the_bundled_network_is_the_default_and_has_a_full_card() -> None:
    network = load_network(None)
    assert (network.name, network.channels, network.classes) == ("nuclei", 3, 2)
    assert network.card["class_names"] == ["background", "nucleus"]
    assert {"data", "metrics", "limits", "licence", "normalise"} <= set(network.card)
    assert sum(path.stat().st_size for path in (BUNDLED / "nuclei").iterdir()) <= 2_000_000


def test_the_bundled_network_finds_a_dark_blot_on_pink() -> None:
    y, x = np.mgrid[:64, :64]
    blot = np.hypot(y - 30, x - 34) < 9
    image = np.where(blot[None], np.array([95, 60, 150])[:, None, None], np.array([228, 178, 212])[:, None, None])
    image = image + np.random.default_rng(0).normal(0, 3, (3, 64, 64))
    with torch.no_grad():
        found = load_network("nuclei").module(torch.tensor(image)[None].float()).argmax(dim=1)[0].numpy() == 1
    assert (found & blot).sum() / (found | blot).sum() > 0.8


def test_an_untrained_network_says_so() -> None:
    assert "untrained" in load_network("unet-tiny").card["data"]


def test_what_is_not_there_and_what_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nucleii: no such file or folder, nor a built-in: nuclei, "):
        load_network("nucleii")
    with pytest.raises(FileNotFoundError, match=r"^builtin:nucleii: no such built-in: nuclei, "):
        load_network("builtin:nucleii")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt2"):
        load_network(tmp_path / "gone.pt2")
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: not a network: give a \.pt2"):
        load_network(tmp_path / "weights.pth")


def test_a_network_of_another_kind_is_still_a_network() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    network = load_network(Doubling().eval())
    assert isinstance(network, Network)
    assert (network.channels, network.classes, network.activation) == (None, None, None)
