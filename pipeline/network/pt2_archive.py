"""What is inside a .pt2, looked at without running any of it: records that are pickled or are code are refused.

`torch.export.load` unpickles, evaluates and imports what the archive tells it to: pickled weights, constants, custom
objects and example inputs; expressions (`sympify`), guards (`exec`), operators by their dotted names. So the file is
read as a zip, its records are checked, and only those that hold numbers or describe the graph are handed on.
"""

from __future__ import annotations

import ast
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLAIN = re.compile(
    r"models/model\.json|archive_(format|version)|byteorder|version|\.data/\w+|extra/.*"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
"""Records that hold numbers, JSON or text."""
INPUTS = "data/sample_inputs/model.pt"
OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+\.\w+|torch\.ops\.\w+\.\w+|_operator\.\w+|math\.\w+|torch\.sym_\w+")
FORBIDDEN_OPERATOR = re.compile(r"__|_operator\.(call|methodcaller|attrgetter)|\.(from_file|save|load_library)\b")
NAME = re.compile(r"[\w.\-/: ]*")
FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|floor|ceiling|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality"
    r"|(Strict)?(Less|Greater)Than|And|Or|Not|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilDiv|[LR]Shift"
    r"|(Ceil|Floor|Trunc|Round)ToInt|RoundDecimal|(Trunc)?ToFloat|PowByNatural|FloatPow|(Float|Int)TrueDiv|Identity"
    r"|IsNonOverlappingAndDenseIndicator"
)
"""What an expression over sizes may call."""
SYMBOL = re.compile(r"[a-z]\w*\d+|true|false|oo")
TREES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
TENSOR_PARTS = re.compile(
    r"torch \w+Storage|torch\.storage \w+|torch(\.serialization)? (Size|device|float\w+|int\w+|_get_layout)"
    r"|torch\._utils _rebuild_\w+|torch\._export\.serde\.serialize _reconstruct_fake_tensor|collections OrderedDict"
)
"""What the pickle of a tensor names."""


def plain_archive(path: Path) -> io.BytesIO:
    """The .pt2 again, with nothing in it that could run: no example inputs, no guards, no stack traces.

    Raises: ValueError for what is no .pt2 of torch.export, or holds a pickle or code, naming the record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive, path.stat().st_size)
            copied = {name: archive.read(member) for name, member in records.items() if PLAIN.fullmatch(name)}
            inputs = archive.read(records[INPUTS]) if INPUTS in records else b""
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a .pt2 of torch.export, or damaged: {error}") from None
    for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        _check_payloads(name, _json(copied, name))
    _check_example_inputs(inputs)
    copied["models/model.json"] = json.dumps(_plain_model(_json(copied, "models/model.json"))).encode()
    return _written(copied)


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by their names below the archive's one folder."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    if sum(member.file_size for member in members) > 100 * size:
        raise ValueError("damaged: its records unpack to more than 100 times its size")
    records: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename.partition("/")[2]
        if name in records:
            raise ValueError(f"record {name!r} is there twice")
        records[name] = member
    if "models/model.json" not in records:
        hint = "an older torch wrote it: save it again" if "version" in {m.filename for m in members} else "none inside"
        raise ValueError(f"not a program saved by torch.export.save ({hint})")
    for name in records:
        if name != INPUTS and not PLAIN.fullmatch(name):
            raise ValueError(f"record {name!r} is not opened: it may hold a pickle or code, a network needs none")
    return records


def _json(records: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        data = json.loads(records[name])
    except KeyError:
        raise ValueError(f"record {name!r} is missing") from None
    except ValueError as error:
        raise ValueError(f"record {name!r} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"record {name!r} does not hold an object")
    return data


def _check_payloads(name: str, config: dict[str, Any]) -> None:
    """Weights and constants must be stored as numbers."""
    for key, entry in config.get("config", {}).items():
        if entry.get("use_pickle") is not False:
            raise ValueError(f"{key!r} in {name!r} is pickled and not opened: save it as a plain tensor")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise ValueError(f"{key!r} in {name!r} is no tensor ({entry.get('path_name')!r}): it is not opened")


def _check_example_inputs(data: bytes) -> None:
    """They are never loaded; a pickle of more than tensors shows a file to keep away from."""
    if not data:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        named = [name for pickled in pickles for name in _globals(pickled)]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError):
        raise ValueError(f"example inputs ({INPUTS!r}) are no saved tensors: they are not opened") from None
    if strange := next((name for name in named if not TENSOR_PARTS.fullmatch(name)), None):
        raise ValueError(f"example inputs ({INPUTS!r}) hold a pickle of {strange!r}: it is not opened")


def _globals(pickled: bytes) -> Iterator[str]:
    """ "module name" of all that the pickle would import; opcodes that hide the name give their own."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX"):
            yield opcode.name


def _plain_model(model: dict[str, Any]) -> dict[str, Any]:
    """The program without guards and metadata; every text in it that torch would interpret is checked."""
    _check_texts(model)
    for node in _nodes(model):
        stack = (node.get("metadata") or {}).get("nn_module_stack")
        node["metadata"] = {"nn_module_stack": stack} if stack and NAME.fullmatch(re.sub("[,;]", "", stack)) else {}
    return {**model, "guards_code": []}


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All nodes of the graph and of graphs within it."""
    for part in _objects(value):
        if "target" in part and "inputs" in part:
            yield part


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _check_texts(model: dict[str, Any]) -> None:
    for part in _objects(model):
        for key, text in part.items():
            if key in ("in_spec", "out_spec"):
                _check_tree(text)
            for word in text if isinstance(text, list) else [text]:
                if isinstance(word, str):
                    _check_text(key, word)


def _check_text(key: str, text: str) -> None:
    if key == "expr_str":
        _check_expression(text)
    elif key == "target":
        if not OPERATOR.fullmatch(text) or FORBIDDEN_OPERATOR.search(text):
            raise ValueError(f"operation {text!r} is not one of torch.ops: it is not run")
    elif (key.endswith(("name", "names", "fqn")) or key.startswith("as_name")) and not NAME.fullmatch(text):
        raise ValueError(f"name {text!r} holds more than letters, digits and dots: the program is not run")


def _check_expression(text: str) -> None:
    """Sizes: numbers, symbols, arithmetic and FUNCTION; torch hands the text to `eval`."""
    try:
        parsed = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        raise ValueError(f"expression {text!r} is none over sizes: it is not evaluated") from None
    arithmetic = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop)
    for node in ast.walk(parsed):
        allowed = (
            isinstance(node, (*arithmetic, ast.keyword, ast.Load))
            or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and FUNCTION.fullmatch(node.func.id))
            or (isinstance(node, ast.Name) and (FUNCTION.fullmatch(node.id) or SYMBOL.fullmatch(node.id)))
            or (isinstance(node, ast.Constant) and re.fullmatch(r"-?[\w.]+", str(node.value)))
        )
        if not allowed:
            raise ValueError(f"expression {text!r} is none over sizes: it is not evaluated")


def _check_tree(text: str) -> None:
    """How inputs and outputs are packed: plain containers with plain keys."""
    try:
        schema = json.loads(text)
    except ValueError:
        raise ValueError(f"packing {text[:80]!r} is not valid JSON") from None
    for part in _objects(schema):
        if part.get("type") not in TREES or not re.fullmatch(r'[\w\s",.\[\]-]*', str(part.get("context"))):
            raise ValueError(
                f"inputs or outputs are packed in {part.get('type')!r}: export with tensors, tuples, dicts"
            )


def _written(records: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**records, INPUTS: b""}.items():
            archive.writestr(f"program/{name}", data)
    buffer.seek(0)
    return buffer
