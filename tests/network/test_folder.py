"""Network folders: saved and loaded again, and each way in which one may not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.network.builtin import build, build_untrained
from pipeline.network.folder import read_folder, save_network
from pipeline.network.loading import load_network

ARGUMENTS = {"base": 4, "depth": 1, "channels": 3, "classes": 2}


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    module = build_untrained("unet-tiny")
    normalise = {"scale": 1 / 255, "mean": [0.1, 0.2, 0.3]}
    arguments = {"base": 4, "depth": 2}
    save_network(tmp_path / "net", "unet", arguments, module, normalise=normalise, class_names=["a", "b"])
    network = load_network(tmp_path / "net")
    assert network.name == "net"
    assert network.card["arguments"] == arguments
    assert network.card["class_names"] == ["a", "b"]
    weights = load_file(tmp_path / "net" / "weights.safetensors")
    state = network.module.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[key], state[key]) for key in weights)
    assert {t.dtype for t in weights.values()} == {torch.float32, torch.int64}
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["network.json", "weights.safetensors"]
    image = torch.rand(1, 3, 8, 8) * 255
    by_hand = image / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    with torch.no_grad():
        assert torch.allclose(network.module(image), module(by_hand), atol=1e-5)


def test_double_weights_stay_double(tmp_path: Path) -> None:
    save_network(tmp_path, "unet", ARGUMENTS, build("unet", ARGUMENTS).double())
    assert {p.dtype for p in load_network(tmp_path).module.parameters()} == {torch.float64}


def change_card(folder: Path, **entries: Any) -> None:
    card = json.loads((folder / "network.json").read_text())
    (folder / "network.json").write_text(json.dumps({**card, **entries}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "weights.safetensors")
    change(weights)
    save_file(weights, folder / "weights.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "architecture": (lambda f: change_card(f, architecture="vnet"), "architecture 'vnet' is unknown"),
    "argument": (lambda f: change_card(f, arguments={"bass": 3}), "no argument 'bass'"),
    "no arguments": (lambda f: change_card(f, arguments=3), "arguments is 3"),
    "wider": (lambda f: change_card(f, arguments={"base": 8, "depth": 1}), "has shape"),
    "deeper": (lambda f: change_card(f, arguments={"base": 4, "depth": 2}), "lacks 'down.2.0.weight'"),
    "shallower": (lambda f: change_card(f, arguments={"base": 4, "depth": 0}), "which the architecture lacks"),
    "channels": (lambda f: change_card(f, channels=4), "says 4 channels, but its arguments build 3"),
    "classes": (lambda f: change_card(f, classes=3), "says 3 classes, but its arguments build 2"),
    "names": (lambda f: change_card(f, class_names=["one"]), "class_names ['one']: 2 names are needed"),
    "activation": (lambda f: change_card(f, activation="relu"), "activation 'relu': one of"),
    "normalise": (lambda f: change_card(f, normalise={"sclae": 1}), "unknown key 'sclae'"),
    "normalise numbers": (lambda f: change_card(f, normalise={"mean": [1, 2]}), "mean has 2 numbers"),
    "JSON": (lambda f: (f / "network.json").write_text("{"), "not valid JSON"),
    "array": (lambda f: (f / "network.json").write_text("[]"), "must hold an object"),
    "damaged": (lambda f: (f / "weights.safetensors").write_bytes(b"12345678901"), "weights.safetensors is damaged"),
    "pickle": (lambda f: torch.save({}, f / "weights.safetensors"), "weights.safetensors is damaged"),
    "missing weight": (lambda f: change_weights(f, lambda w: w.pop("classify.bias")), "lacks 'classify.bias'"),
    "extra weight": (lambda f: change_weights(f, lambda w: w.update(a=torch.zeros(1))), "has 'a', which"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_does_not_fit(tmp_path: Path, what: str) -> None:
    change, said = BROKEN[what]
    save_network(tmp_path, "unet", ARGUMENTS, build("unet", ARGUMENTS))
    change(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_network(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "count", "needed"), [(3, 2, "3"), (1, 3, "1 or 2"), (1, 2, ""), (1, 1, ""), (3, 3, "")]
)
def test_classes_have_as_many_names_and_a_single_one_may_name_the_ground_too(
    tmp_path: Path, classes: int, count: int, needed: str
) -> None:
    arguments = {**ARGUMENTS, "classes": classes}
    save_network(tmp_path, "unet", arguments, build("unet", arguments), class_names=["a", "b", "c"][:count])
    if not needed:
        assert len(load_network(tmp_path).card["class_names"]) == count
        return
    with pytest.raises(ValueError, match=rf"class_names .*: {needed} names are needed$"):
        load_network(tmp_path)


@pytest.mark.parametrize("name", ["network.json", "weights.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_network(tmp_path, "unet", ARGUMENTS, build("unet", ARGUMENTS))
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name}"):
        load_network(tmp_path)


@pytest.mark.parametrize("changed", [{"depth": 16, "base": 100000}, {"depth": 10000}, {"base": 10**30}])
def test_a_card_of_a_network_beyond_all_memory_is_one_line(changed: dict[str, int], tmp_path: Path) -> None:
    save_network(tmp_path, "unet", {"base": 4, "depth": 2} | changed, build("unet", {"base": 4, "depth": 2}))
    with pytest.raises(ValueError, match=r"weights.safetensors|needs more memory than there is"):
        read_folder(tmp_path)


def test_a_folder_is_read_without_pytorchs_compiler() -> None:
    """Which takes a second to import, for each command and each worker."""
    code = """
import sys, torch
from pipeline.network.loading import load_network
known = set(sys.modules)
load_network(None)
print("torch._dynamo" in sys.modules or "sympy" in set(sys.modules) - known)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "False\n", done.stderr
