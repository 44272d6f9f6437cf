"""Every block of code in README.md and docs/*.md does what its reader will try: it is run.

The blocks of one document run one after another in one temporary folder that holds small stand-ins for the images
that the text speaks of: Python as in a notebook, in this process, bash in a shell. `make` there only shows what it
would do.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import warm

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = {"bash", "python"}
SHOWN_ONLY = {"text", "yaml", "console"}
"""Of these, tests/test_jobs.py runs `console`: it needs a Ray cluster."""


def blocks(document: Path) -> list[tuple[int, str, str]]:
    """(line, language, code) of each fenced block."""
    text = document.read_text()
    return [
        (text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in re.finditer(r"^```(.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def tissue(height: int, width: int, seed: int) -> np.ndarray:
    """Dark round spots on a bright ground, (y, x, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), (236, 214, 230), np.float64)
    for cy, cx in random.uniform(0, (height, width), (height * width // 900, 2)):
        image[np.hypot(y - cy, x - cx) < random.uniform(5, 9)] = (96, 64, 140)
    return (image + random.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def stand_ins(folder: Path) -> None:
    """big.tif (tiled, deflate), a.tif and b.tif, photos/*.jpg, volume.npy (c, z, y, x), the jobs, an environment."""
    (folder / "jobs").symlink_to(ROOT / "jobs")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    for number, (name, size) in enumerate({"big": (200, 280), "a": (90, 70), "b": (64, 100)}.items()):
        pixels = tissue(*size, seed=number)
        tifffile.imwrite(folder / f"{name}.tif", pixels, bigtiff=True, tile=(128, 128), compression="zlib")
    (folder / "photos").mkdir()
    for number in range(3):
        Image.fromarray(tissue(80, 96, seed=number)).save(folder / "photos" / f"{number}.jpg")
    np.save(folder / "volume.npy", np.stack([tissue(60, 50, seed=z) for z in range(2)]).transpose(3, 0, 1, 2))


def environment(folder: Path) -> dict[str, str]:
    """The tests' Python as `python`, and a `make` that prints what the real one would run."""
    programs = folder / ".programs"
    programs.mkdir()
    for name, command in {
        "make": f'exec "{shutil.which("make")}" -n -C "{ROOT}" "$@"',
        "python": f'exec "{warm.python()}" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (programs / name).chmod((programs / name).stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


def in_shell(code: str, folder: Path, variables: dict[str, str]) -> None:
    words = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.no_cover
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_block_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins(tmp_path)
    variables = environment(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line, language, code in blocks(document):
        if language == "bash":
            in_shell(code, tmp_path, variables)
        elif language == "python":  # its line numbers are the document's
            exec(compile("\n" * line + code, document.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_no_block_escapes(document: Path) -> None:
    """Each fence names its language, so that what can be run is run."""
    assert document.read_text().count("```") == 2 * len(blocks(document))
    assert {language for _, language, _ in blocks(document)} <= RUN | SHOWN_ONLY


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), target


def test_readme_opens_with_the_two_commands() -> None:
    opening = (ROOT / "README.md").read_text().split("```")
    assert opening[0].count("\n") < 8
    assert [line.split("#")[0].strip() for line in opening[1].splitlines()[1:]] == ["make demo", "make test"]


def test_contributing_names_tests_that_exist() -> None:
    names = re.findall(r"(?:tests|pipeline|benchmarks)/[\w/]+\.py", (ROOT / "CONTRIBUTING.md").read_text())
    assert names and [name for name in names if not (ROOT / name).exists()] == []
