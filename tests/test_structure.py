"""The shape of the package: which part may import which, also inside functions. Standard library only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COMMANDS = {"infer", "train", "verify", "convert", "export", "__main__"}
PARTS = {"tiling", "storage", "network", "stitching", "engines"}
"""What lies at the bottom. Of these, only tiling is known to the others."""

ARROWS = {
    "tiling": set[str](),
    "engines": set[str](),
    "storage": {"tiling"},
    "network": {"tiling"},
    "stitching": {"tiling"},
    "keywords": set[str](),
    "jobfile": {"network"},
    "config": {"tiling", "jobfile"},
    "training_job": {"config", "jobfile"},
    "previewing": {"storage", "stitching", "tiling"},
    "worker": {"previewing", "storage", "network", "stitching", "tiling"},
    "training": {"worker", "network", "storage", "tiling"},
    "reporting": {"training", "network", "stitching", "storage", "tiling"},
    "analysis": {"config", "worker", "network", "storage", "tiling"},
    "planning": {"analysis", "config", "worker", "network", "storage", "tiling"},
    "describing": {"config", "analysis", "stitching", "storage", "tiling"},
    "naming": {"storage"},
    "ledgers": {"stitching", "storage"},
    "stored": {"config", "storage", "tiling"},
    "preflight": {"storage"},
    "turns": {"previewing", "ledgers", "worker", "storage", "stitching", "tiling"},
    "running": {"turns", "engines", "preflight", "worker", "storage"},
    "lazy": {"analysis", "planning", "worker", "network", "storage", "tiling"},
    "checking": {"worker", "network", "storage", "stitching", "tiling"},
    "training_task": {"", "analysis", "config", "network", "planning", "storage", "tiling", "training", "training_job"},
    "training_run": {"training_task", "engines", "network", "reporting", "storage", "training", "training_job"},
    "api": {
        "jobfile",
        "training_run",
        "analysis",
        "planning",
        "previewing",
        "describing",
        "ledgers",
        "naming",
        "stored",
        "running",
        "turns",
        "lazy",
        "checking",
        "reporting",
        "config",
        "training_job",
        "worker",
        "training",
        *PARTS,
    },
    "": {"api", "keywords", "training_run", "storage", "network", "tiling"},
    "printing": set[str](),
    "commands": {"api", "printing"},
    "command": {"", "api", "config", "training_job", "jobfile", "commands"},
    "jobs": {"", "api", "config", "training_job", "jobfile", "commands"},
}
"""What each part may import, beside itself; "" is the package's own __init__."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package and of the jobs."""
    files = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def part_of(module: str) -> str:
    """The part that a module belongs to: the folder or file directly below the package."""
    package, _, rest = module.partition(".")
    if package == "jobs":
        return "jobs"
    name = rest.split(".")[0]
    return "command" if name in COMMANDS else name


def imports(name: str, source: str, is_package: bool) -> Iterator[str]:
    """Dotted names of everything that the source imports, at any depth, by statement or by name."""
    known = modules()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def against_the_arrows(name: str, source: str, is_package: bool = False) -> list[str]:
    """The imports of a module that its part may not make."""
    part = part_of(name)
    allowed = ARROWS[part] | {part} - {"command"}
    return [
        target
        for target in imports(name, source, is_package)
        if target.split(".")[0] in ("pipeline", "jobs") and part_of(target) not in allowed
    ]


@pytest.mark.parametrize("name", sorted(modules()))
def test_arrows_point_down(name: str) -> None:
    assert part_of(name) in ARROWS, f"{name} belongs to no part: give it its arrows here"
    path = modules()[name]
    assert against_the_arrows(name, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pipeline.storage.image", "def f():\n    from pipeline.network import loading"),
        ("pipeline.network.loading", "import pipeline.stitching.ledger as ledger"),
        ("pipeline.network.loading", "from ..stitching import ledger"),
        ("pipeline.network.loading", "import importlib; importlib.import_module('pipeline.storage.image')"),
        ("pipeline.engines.local", "from pipeline.tiling.grid import Grid"),
        ("pipeline.engines.local", "import pipeline"),
        ("pipeline.tiling.grid", "from pipeline import __version__"),
        ("pipeline.api", "from pipeline import verify\nimport pipeline.verify"),
        ("pipeline.verify", "import pipeline.infer"),
        ("pipeline.infer", "from pipeline.worker import Worker"),
    ],
)
def test_an_arrow_that_points_up_is_found(name: str, source: str) -> None:
    assert against_the_arrows(name, source)


def test_bottom_parts_do_not_know_each_other() -> None:
    for part in PARTS:
        assert ARROWS[part] <= {"tiling"}


def test_tiling_needs_nothing_but_the_standard_library() -> None:
    for name, path in modules().items():
        if part_of(name) == "tiling":
            for target in imports(name, path.read_text(), path.name == "__init__.py"):
                assert target.split(".")[0] in sys.stdlib_module_names | {"pipeline"}, f"{name} imports {target}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_modules_are_named_for_what_they_do(name: str) -> None:
    assert not {"utils", "util", "common", "helpers", "helper", "base", "misc"} & set(name.split("."))


def test_no_folder_holds_a_single_file() -> None:
    for folder in {path.parent for path in modules().values()} - {ROOT / "jobs"}:
        assert len(list(folder.iterdir())) > 1, folder


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_takes_nothing_heavy_with_it() -> None:
    heavy = ["torch", "ray", "dask", "distributed", "zarr", "tifffile", "numpy", "pydantic", "rich"]
    assert run(f"import sys, pipeline; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_public_functions_stay_functions_after_everything_was_imported() -> None:
    """Importing pipeline.verify, the command, would put the module in the function's place."""
    names = [name for name in modules() if part_of(name) not in ("command", "jobs")]
    code = f"import importlib, pipeline\nfor name in {sorted(names)}: importlib.import_module(name)\n"
    assert run(code + "print([n for n in pipeline.__all__ if not callable(getattr(pipeline, n))])") == "[]"


def test_everything_that_is_promised_is_there() -> None:
    assert run("import pipeline; print([n for n in pipeline.__all__ if not hasattr(pipeline, n)])") == "[]"


def test_what_is_raised_and_returned_is_known_by_its_public_name() -> None:
    code = "import pipeline.api as a, pipeline as p; print([p.TilesFailed is a.TilesFailed, p.Result is a.Result, "
    code += "p.Report is a.Report, hasattr(p, 'nothing'), issubclass(p.TilesFailed, RuntimeError)])"
    assert run(code) == "[True, True, True, False, True]"
