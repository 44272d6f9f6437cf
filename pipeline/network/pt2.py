"""A network from a .pt2 of `torch.export.save`, for images of any size."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_unflatten

from pipeline.network.prepare import tensors_of
from pipeline.network.pt2_archive import plain_archive

HINT = "export it with dynamic height and width (torch.export.Dim)"


def read_pt2(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The program as a module, and a card with its name and channels.

    A program that was exported for one size runs on any other as long as no size is written into its graph.

    Raises: ValueError for a file that holds pickles or code, for a program with other inputs than one image, one
    exported in training mode, or one that works at its own size only.
    """
    try:
        module, card = from_program(_load(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return module, {"name": path.stem, **card}


def from_program(program: torch.export.ExportedProgram) -> tuple[nn.Module, dict[str, Any]]:
    """The same of a program that is loaded already; the card has the channels only."""
    image = _image(program)
    module = _module(program)
    _check_mode(module)
    _check_sizes(module, image)
    return module, {"channels": int(image.shape[1])}


def _load(path: Path) -> torch.export.ExportedProgram:
    archive = plain_archive(path)
    try:
        with _quiet("torch.export"):
            return torch.export.load(archive)
    except Exception as error:  # a damaged program fails in torch's depths, in any way
        text = str(error).strip().partition("\n")[0]
        raise ValueError(f"torch cannot load the program: {type(error).__name__}: {text}") from None


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without torch's own report, of many lines, about what is reported in one."""
    log = logging.getLogger(name)
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _image(program: torch.export.ExportedProgram) -> Tensor:
    """The program's one input, as it was traced."""
    names = program.graph_signature.user_inputs
    found = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(names) != 1 or len(found) != 1:
        raise ValueError(f"program takes {len(names)} inputs ({', '.join(map(str, names))}): one image is given")
    image = found[0].meta["val"]
    if not isinstance(image, Tensor) or image.dim() != 4 or not isinstance(image.shape[1], int):
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"program takes {shape}: an input of (n, c, y, x) with fixed channels is needed")
    return image


def _module(program: torch.export.ExportedProgram) -> nn.Module:
    """A plain graph module: the exported one refuses .eval(), checks sizes and packs its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        exported = program.module()
        graph = copy.deepcopy(exported.graph)
    for node in [n for n in graph.nodes if n.op == "call_module" and n.target == "_guards_fn"]:
        graph.erase_node(node)
    result = next(node for node in graph.nodes if node.op == "output")
    assert program.call_spec.out_spec is not None
    result.args = (tree_unflatten(list(result.args[0]), program.call_spec.out_spec),)
    graph.set_codegen(CodeGen())
    return GraphModule(exported, graph, class_name="ExportedNetwork").eval()


def _check_mode(module: nn.Module) -> None:
    assert isinstance(module, GraphModule)
    for node in module.graph.nodes:
        if node.op == "call_function" and _acts_in_training(node):
            raise ValueError(f"{node.name} was exported in training mode: call .eval() before torch.export.export")


def _acts_in_training(node: Node) -> bool:
    """Whether the operation's own flag says so."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    if name in ("dropout", "feature_dropout", "alpha_dropout", "native_dropout"):
        return node.args[2] is True and node.args[1] not in (0, 0.0)
    norms = ("batch_norm", "cudnn_batch_norm", "native_batch_norm", "_native_batch_norm_legit")
    return name in norms and node.args[5] is True and node.args[3] is not None


def _check_sizes(module: nn.Module, image: Tensor) -> None:
    """At once, twice and three times the traced size the output must grow by the same amount."""
    own = [int(n) if isinstance(n, int) else 64 for n in image.shape[2:]]
    if any(not isinstance(n, int) for n in image.shape[2:]):
        return
    shapes = []
    for factor in (1, 2, 3):
        try:
            with _quiet("torch._subclasses.fake_tensor"), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
                x = torch.zeros(1, image.shape[1], *(n * factor for n in own), dtype=image.dtype)
                shapes.append([tuple(t.shape[-2:]) for t in tensors_of(module(x)).values()])
        except Exception as error:  # a size that is written into the graph fails in any way
            if factor == 1:
                return
            text = str(error).strip().partition("\n")[0]
            raise ValueError(f"program works at {own[0]} x {own[1]} only ({text}): {HINT}") from None
    for first, second, third in zip(*shapes, strict=True):
        if any(not 0 < b - a == c - b for a, b, c in zip(first, second, third, strict=True)):
            raise ValueError(f"program has the size {own[0]} x {own[1]} written into it: {HINT}")
