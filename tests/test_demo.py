"""`make demo`: installs once, draws, predicts, verifies, and says what to look at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INTERPRETER = f"""#!/bin/sh
# Stands for the interpreter of the machine and of the environment that it makes; only notes what would be installed.
case "$*" in
  "-m venv "*) echo "venv" >> "$NOTES"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo "$*" >> "$NOTES" ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make demo` needs of a checkout, with a small image in the place of the large one."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pipeline", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "python").write_text(INTERPRETER)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"NOTES": str(checkout / "notes"), "PYTHONPATH": str(ROOT), "MAKEFLAGS": ""}
    variables.pop("MAKELEVEL", None)  # of `make test`, below which make would name itself make[1]
    return subprocess.run(
        ["make", f"PYTHON={checkout}/python", *arguments],
        cwd=checkout,
        env=variables,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_demo_from_an_empty_checkout_and_again(checkout: Path) -> None:
    draw = [sys.executable, ROOT / "benchmarks" / "draw.py", checkout / "big.tif", "--size", "600"]
    subprocess.run(draw, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    done = make(checkout, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Look at big.preview.png" in done.stdout
    assert (checkout / "big.preview.png").stat().st_size > 10_000 and (checkout / "big.zarr" / "0").is_dir()
    installed = (checkout / "notes").read_text().splitlines()
    assert installed[0] == "venv" and installed[1].endswith("-c constraints.txt -e .") and len(installed) == 2

    again = make(checkout, "demo")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (checkout / "notes").read_text().splitlines() == installed


def test_old_python_is_refused_in_one_line(checkout: Path) -> None:
    (checkout / "python").write_text("#!/bin/sh\nexit 1\n")
    done = make(checkout, "demo")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert line.startswith(f"error: {checkout}/python is not Python 3.11 or newer")


def test_help_names_every_target(checkout: Path) -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = [line for line in text.splitlines() if line.startswith(".PHONY:")]
    shown = make(checkout).stdout
    assert [t for t in phony.split()[1:] if t != "help" and f"make {t} " not in shown] == []


def test_ci_runs_make_test_and_nothing_more() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make test"]


def test_versions_are_pinned_for_any_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line.count("==") == 1 for line in lines) and "torch==2.13.0" in lines
    assert not [line for line in lines if "+" in line or "nvidia" in line or "cuda" in line]
