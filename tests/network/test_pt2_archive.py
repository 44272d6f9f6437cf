"""Hostile and damaged .pt2 files: nothing in them is run, and each is refused by name."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.network.loading import load_network

MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class Plain(nn.Module):
    """With weights, a constant and sizes that are expressions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        self.shift = torch.ones(1, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(self.first(x), 2) + self.shift


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "harmless.pt2"
    dynamic = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(Plain().eval(), (torch.rand(1, 3, 32, 48),), dynamic_shapes=dynamic), path)
    return path


def test_the_harmless_archive_opens(harmless: Path) -> None:
    assert load_network(harmless).module(torch.rand(1, 3, 8, 6)).shape == (1, 2, 4, 3)


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def changed(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of the archive with other records."""
    with zipfile.ZipFile(source) as archive:
        names = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        root = archive.namelist()[0].partition("/")[0]
    change(names)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in names.items():
            archive.writestr(f"{root}/{name}", data)
    return target


def saved_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def edit(records: dict[str, bytes], name: str, change: Callable[[Any], None]) -> None:
    data = json.loads(records[name])
    change(data)
    records[name] = json.dumps(data).encode()


def hostile_weight(records: dict[str, bytes], mark: Path) -> None:
    records["data/weights/weight_0"] = saved_pickle(Hostile(mark))
    edit(records, WEIGHTS, lambda d: d["config"]["first.weight"].update(use_pickle=True))


def hostile_constant(records: dict[str, bytes], mark: Path) -> None:
    records["data/constants/tensor_0"] = saved_pickle(Hostile(mark))
    edit(records, CONSTANTS, lambda d: next(iter(d["config"].values())).update(use_pickle=True))


def constant_at(name: str, pack: Callable[[object], bytes]) -> Callable[[dict[str, bytes], Path], None]:
    def change(records: dict[str, bytes], mark: Path) -> None:
        records[f"data/constants/{name}"] = pack(Hostile(mark))
        entry = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        edit(records, CONSTANTS, lambda d: d["config"].update(extra=entry))

    return change


def record_at(name: str, pack: Callable[[object], bytes]) -> Callable[[dict[str, bytes], Path], None]:
    def change(records: dict[str, bytes], mark: Path) -> None:
        records[name] = pack(Hostile(mark))

    return change


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes], Path], None], str]] = {
    "weight": (hostile_weight, r"'first\.weight' .*pickled"),
    "constant": (hostile_constant, "pickled"),
    "custom object": (constant_at("custom_obj_0", pickle.dumps), "custom_obj_0"),
    "opaque object": (constant_at("opaque_obj_0", pickle.dumps), "opaque_obj_0"),
    "legacy weights": (record_at("data/weights/model.pt", saved_pickle), r"data/weights/model\.pt"),
    "legacy constants": (record_at("data/constants/model.pt", saved_pickle), r"data/constants/model\.pt"),
    "example inputs": (record_at(INPUTS, saved_pickle), r"example inputs .* pickle of '__builtin__ exec'"),
    "example inputs, bare": (record_at(INPUTS, pickle.dumps), "example inputs"),
    "compiled code": (record_at("data/aotinductor/model/model.so", pickle.dumps), r"model\.so"),
    "another program": (record_at("models/other.json", pickle.dumps), r"models/other\.json"),
}


@pytest.mark.parametrize("place", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name_and_not_run(tmp_path: Path, harmless: Path, place: str) -> None:
    change, said = HOSTILE[place]
    mark = tmp_path / "ran"
    path = changed(harmless, tmp_path / "hostile.pt2", lambda records: change(records, mark))
    with pytest.raises(ValueError, match=rf"hostile\.pt2: .*{said}") as caught:
        load_network(path)
    assert not mark.exists()
    assert "\n" not in str(caught.value)


def first_node(data: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = data["graph_module"]["graph"]["nodes"][0]
    return node


def set_expression(mark: Path) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        values = data["graph_module"]["graph"]["tensor_values"]
        size = next(s for value in values.values() for s in value["sizes"] if "as_expr" in s)
        size["as_expr"]["expr_str"] = f"exec(\"open('{mark}', 'w').close()\")"

    return change


def set_guard(mark: Path) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update(guards_code=[f"open({str(mark)!r}, 'w').close() is None"])


TEXTS: dict[str, tuple[Callable[[Path], Callable[[dict[str, Any]], None]], str | None]] = {
    "expression": (set_expression, "none over sizes"),
    "guard": (set_guard, None),
    "operator": (lambda mark: lambda data: first_node(data).update(target="torch.os.system"), "torch.os.system"),
    "operator of ops": (lambda mark: lambda data: first_node(data).update(target="torch.ops.load_library.x"), "ops"),
    "dunder": (lambda mark: lambda data: first_node(data).update(target="torch.ops.aten.__class__"), "__class__"),
    "file": (lambda mark: lambda data: first_node(data).update(target="torch.ops.aten.from_file.default"), "from_file"),
    "argument name": (
        lambda mark: (
            lambda data: data["graph_module"]["module_call_graph"][0]["signature"].update(
                forward_arg_names=[f"x=open({str(mark)!r}, 'w')"]
            )
        ),
        "letters, digits and dots",
    ),
    "packing": (
        lambda mark: (
            lambda data: data["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec='[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
            )
        ),
        "packed in 'collections.defaultdict'",
    ),
}


@pytest.mark.parametrize("place", TEXTS)
def test_text_that_torch_would_evaluate(tmp_path: Path, harmless: Path, place: str) -> None:
    make, said = TEXTS[place]
    mark = tmp_path / "ran"
    path = changed(harmless, tmp_path / "text.pt2", lambda records: edit(records, MODEL, make(mark)))
    if said is None:
        load_network(path).module(torch.rand(1, 3, 8, 8))
    else:
        with pytest.raises(ValueError, match=rf"text\.pt2: .*{said}"):
            load_network(path)
    assert not mark.exists()


def test_these_files_are_dangerous_to_torch_itself(tmp_path: Path, harmless: Path) -> None:
    """Else the tests above would show nothing."""
    code = [
        "import torch",
        "def attempt(path):",
        "    try: torch.export.load(path).module()(torch.rand(1, 3, 32, 48))",
        "    except Exception: pass",
    ]
    places = ["weight", "opaque object", "example inputs", "legacy weights", "expression", "guard"]
    for place in places:
        mark, path = tmp_path / place, tmp_path / f"{place}.pt2"
        if place in HOSTILE:
            changed(harmless, path, lambda records, place=place, mark=mark: HOSTILE[place][0](records, mark))
        else:
            changed(harmless, path, lambda records, place=place, mark=mark: edit(records, MODEL, TEXTS[place][0](mark)))
        code.append(f"attempt({str(path)!r})")
    subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, timeout=200)
    assert [place for place in places if not (tmp_path / place).exists()] == []


def drop(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda records: records.pop(name) and None


DAMAGED: dict[str, Callable[[dict[str, bytes]], None]] = {
    "no program": drop(MODEL),
    "no weights": drop(WEIGHTS),
    "no JSON": lambda records: records.update({MODEL: b"{"}),
    "an array": lambda records: records.update({MODEL: b"[]"}),
    "empty program": lambda records: records.update({MODEL: b"{}"}),
    "short weight": lambda records: records.update({"data/weights/weight_0": b"123"}),
    "no weight": drop("data/weights/weight_0"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_archives(tmp_path: Path, harmless: Path, what: str) -> None:
    path = changed(harmless, tmp_path / "damaged.pt2", DAMAGED[what])
    with pytest.raises(ValueError, match=r"damaged\.pt2: ") as caught:
        load_network(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip", pickle.dumps([1])])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pt2: not a \.pt2"):
        load_network(path)


def test_truncated(tmp_path: Path, harmless: Path) -> None:
    path = tmp_path / "truncated.pt2"
    path.write_bytes(harmless.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"truncated\.pt2: "):
        load_network(path)


def test_a_torch_save_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "saved.pt2"
    torch.save(Hostile(tmp_path / "ran"), path)
    with pytest.raises(ValueError, match=r"saved\.pt2: not a program saved by torch\.export\.save"):
        load_network(path)
    assert not (tmp_path / "ran").exists()
