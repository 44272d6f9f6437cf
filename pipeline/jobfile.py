"""A job: a YAML file and `key=value` overrides, validated together; what is wrong is one line that names it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from pipeline.network.names import resolve

Model = TypeVar("Model", bound=BaseModel)


class Text(str):
    """Text of a job that knows which folder a relative path in it starts from."""

    folder: str

    def __new__(cls, text: str, folder: str) -> Text:
        self = super().__new__(cls, text)
        self.folder = folder
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # pickled, as part of what workers are given
        return Text, (str(self), self.folder)


def submitted() -> bool:
    """Whether this process was started by `ray job submit`, and so runs on the head in an unpacked copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _located(value: Any) -> Any:
    """The path as an absolute one, as the system spells it; URLs and what is no path stay as they are."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or "://" in value or not value:
        return value
    if "\0" in value:
        raise ValueError("no path holds a null character")
    if os.path.isabs(value):
        return os.path.normpath(value)
    if submitted():
        raise ValueError("in a submitted job give an absolute path or a URL that every node sees")
    return os.path.abspath(os.path.join(getattr(value, "folder", ""), value))


def _located_or_named(value: Any) -> Any:
    """A built-in's name says that it is one, a path is made absolute."""
    if not isinstance(value, str | os.PathLike):
        return value
    found = resolve(value, getattr(value, "folder", ""))
    return _located(value) if os.path.isabs(found) else found


DataPath = Annotated[str, BeforeValidator(_located)]
"""A path or URL; relative to the folder of the job file that it is written in, in an override to the working one."""
NetworkPath = Annotated[str, BeforeValidator(_located_or_named)]
"""The same, or the name of a built-in network."""


class _Loader(yaml.SafeLoader):
    """Plain YAML whose strings know their folder; a key that is given twice is an error."""

    folder = ""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=True)


def _text(loader: _Loader, node: yaml.ScalarNode) -> Text:
    return Text(loader.construct_scalar(node), loader.folder)


_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def _parse(text: str, folder: str) -> Any:
    loader = _Loader(text)
    loader.folder = folder
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def load_job(model: type[Model], file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Model:
    """The settings of a job file with `key=value` or `key.sub=value` laid over them.

    A key without a value is as good as not there. Paths come out absolute: see DataPath.
    Raises FileNotFoundError for a missing file and ValueError for everything else that is wrong with it.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such job file")
    try:
        settings = _parse(path.read_text(), str(path.parent))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a job file: it is no text") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # a control character; what looks like a date or number and is none
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: a job file is lines of key: value")
    for override in overrides:
        _lay_over(settings, override)
    return validated(model, _given(settings), f"{path}: ")


def _lay_over(settings: dict[Any, Any], override: str) -> None:
    name, sign, text = override.partition("=")
    if not sign or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise ValueError(f"{override!r} is no override: write key=value, or key.sub=value")
    try:
        value = _parse(text, "")
    except (yaml.YAMLError, ValueError) as error:
        if text[:1] in ("{", "[") and (": " in text or ", " in text):
            raise ValueError(f"{override}: not YAML: {getattr(error, 'problem', error)}") from None
        value = text  # as in *.tif, {name}.png or 2024-99-99
    if isinstance(value, str) and text[:1] not in "'\"":
        value = text  # as in 'part #1.tif', where YAML would see a comment
    *above, last = name.split(".")
    for depth, key in enumerate(above):
        inner = settings.get(key)
        if inner is None:
            inner = settings[key] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"{override}: {'.'.join(above[: depth + 1])} is {inner!r}, which has nothing below it")
        settings = inner
    settings[last] = value


def _given(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Only the keys that have a value, at every depth."""
    return {
        str(key): _given(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value is not None
    }


def validated(model: type[Model], values: Mapping[str, Any], where: str = "") -> Model:
    """The values as a model. Raises ValueError of one line: where, the key, its value and what is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        worst = ("extra_forbidden", "value_error")  # the first of these says most, where a union tried several things
        first = min(error.errors(), key=lambda e: worst.index(e["type"]) if e["type"] in worst else len(worst))
        name, reason = _named(first["loc"], values, first["type"]), first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{where}unknown option {name!r}{_meant(model, name)}") from None
        if first["type"] == "missing":
            raise ValueError(f"{where}{name} is missing: give {name}=...") from None
        value = first["input"]
        shown = f"{name}={value}" if isinstance(value, str) else f"{name}={value!r}"
        raise ValueError(f"{where}option {shown}: {reason[0].lower()}{reason[1:]}") from None


def _named(loc: Sequence[int | str], values: Any, kind: str) -> str:
    """a.b.0 of where an error lies, without pydantic's own names for the branches of a union."""
    parts = []
    for number, part in enumerate(loc):
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            if kind != "missing" or number < len(loc) - 1:
                continue
        parts.append(str(part))
    return ".".join(parts)


def _meant(model: type[BaseModel], name: str) -> str:
    """What there is instead of an unknown name, where the settings around it are of one kind."""
    *above, last = name.split(".")
    for part in above:
        field = model.model_fields.get(part)
        inner = [] if part.isdigit() else _models(field.annotation if field else None)
        if not part.isdigit() and len(inner) != 1:
            return ""
        model = inner[0] if inner else model
    names = sorted(model.model_fields)
    close = get_close_matches(last, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of that type may be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
