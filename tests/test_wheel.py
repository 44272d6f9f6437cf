"""The wheel, installed outside the checkout, does what the checkout does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "pipeline", source / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", source / "dist", ".", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_wheel_holds_all_that_the_package_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    files = [path for path in (ROOT / "pipeline").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {str(path.relative_to(ROOT)) for path in files} == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("nuclei/weights.safetensors") for name in names)
    assert any(name.endswith("LICENSE") for name in names)


def test_installed_wheel_predicts_with_the_bundled_network(wheel: Path, tmp_path: Path) -> None:
    """And its other commands run, each in a Python that has imported nothing yet."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=work)
    pixels = np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(work / "small.png")
    where = "import pipeline.infer; print(pipeline.infer.__file__)"
    assert run(sys.executable, "-c", where, cwd=work, PYTHONPATH=str(site)).startswith(str(site))
    run(sys.executable, "-m", "pipeline.infer", "small.png", cwd=work, PYTHONPATH=str(site))
    shape = "import zarr; print(zarr.open('small.zarr')['0'].shape)"
    assert run(sys.executable, "-c", shape, cwd=work).strip() == "(130, 170)"
    for words in (
        ("verify", "small.zarr"),
        ("convert", "small.png", "small.ome.zarr"),
        ("export", "unet-tiny", "n.pt2"),
    ):
        run(sys.executable, "-m", f"pipeline.{words[0]}", *words[1:], cwd=work, PYTHONPATH=str(site))
    assert (work / "small.ome.zarr").is_dir() and (work / "n.pt2").is_file()
