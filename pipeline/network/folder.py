"""A network folder: network.json says what it is, weights.safetensors holds the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.network.builtin import build
from pipeline.network.names import CARD
from pipeline.network.normalise import check_normalisation

WEIGHTS = "weights.safetensors"


def read_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The module in eval mode and the card.

    Raises: FileNotFoundError for a missing file; ValueError for a card or weights that do not fit, naming what.
    """
    card = _read_card(folder / CARD)
    arguments = card.get("arguments", {})
    try:
        if not isinstance(arguments, dict):
            raise ValueError(f"arguments is {arguments!r}: it must be an object")
        if not isinstance(given := card.get("normalise") or {}, dict):
            raise ValueError(f"normalise is {given!r}: it must be an object")
        normalise = check_normalisation(given, arguments.get("channels", 3))
        _check_weights(_outline(str(card.get("architecture")), arguments), folder / WEIGHTS)
        module = build(str(card.get("architecture")), arguments, normalise)
        _load_weights(module, folder / WEIGHTS)
        _check_counts(card, module)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return module, {"name": folder.name, **card}


def save_network(
    folder: str | os.PathLike[str], architecture: str, arguments: Mapping[str, Any], module: nn.Module, **card: Any
) -> None:
    """Writes the network folder; `card` holds its other entries (name, normalise, class_names, data, ...).

    An existing folder's two files are replaced, each in one step. Raises ValueError where there is no room for them.
    """
    folder = Path(folder)
    full = {"name": folder.name, "architecture": architecture, "arguments": dict(arguments), **card}
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{WEIGHTS}.partial").write_bytes(save(weights))
        (folder / f"{CARD}.partial").write_text(json.dumps(full, indent=2) + "\n")
        for name in (WEIGHTS, CARD):
            os.replace(folder / f"{name}.partial", folder / name)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from error


def _read_card(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent}: not a network folder, it has no {path.name}")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(card, dict):
        raise ValueError(f"{path}: must hold an object")
    return card


def _outline(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """The network without memory for its weights, however large the card says they are."""
    with torch.device("meta"):
        return build(architecture, arguments)


def _check_weights(outline: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent}: the network folder has no {path.name}")
    try:
        with safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    expected = {key: tuple(tensor.shape) for key, tensor in outline.state_dict().items()}
    if missing := next((key for key in expected if key not in shapes), None):
        raise ValueError(f"{path.name} lacks {missing!r}, which the architecture has")
    for key, shape in shapes.items():
        if key not in expected:
            raise ValueError(f"{path.name} has {key!r}, which the architecture lacks")
        if shape != expected[key]:
            raise ValueError(f"{path.name}: {key!r} has shape {shape}, but the architecture wants {expected[key]}")


def _load_weights(module: nn.Module, path: Path) -> None:
    weights = load_file(path)
    if any(_is_double(tensor) for tensor in weights.values()):
        module.double()
    module.load_state_dict(weights)


def _is_double(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() == 8


def _check_counts(card: dict[str, Any], module: nn.Module) -> None:
    """Where the card repeats what the arguments say, both must agree."""
    arguments = card.get("arguments", {})
    for key, default in (("channels", 3), ("classes", 2)):
        built = arguments.get(key, default)
        if card.setdefault(key, built) != built:
            raise ValueError(f"{CARD} says {card[key]!r} {key}, but its arguments build {built}")
    names, counts = card.get("class_names"), (1, 2) if card["classes"] == 1 else (card["classes"],)
    if names is not None and (not isinstance(names, list) or len(names) not in counts):
        raise ValueError(f"class_names {names!r}: {' or '.join(map(str, counts))} names are needed")
    if card.get("activation") not in (None, "softmax", "sigmoid", "none"):
        raise ValueError(f"activation {card['activation']!r}: one of softmax, sigmoid, none")
