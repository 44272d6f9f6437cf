"""Another node must see the very image and output that the run was started with."""

from __future__ import annotations

import pickle
import socket
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.preflight import preflight
from pipeline.storage.image import open_image
from pipeline.storage.reference import refer


def test_what_is_seen_is_no_objection_and_leaves_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 9, 9)))
    (tmp_path / "o.zarr").mkdir()
    with closing(preflight([refer(tmp_path / "a.npy")], [str(tmp_path / "o.zarr")])) as check:
        assert check() is None
    assert not list((tmp_path / "o.zarr/ledger").iterdir())


def test_a_folder_of_the_same_name_elsewhere_is_not_the_output(tmp_path: Path) -> None:
    (tmp_path / "o.zarr").mkdir()
    with closing(preflight([refer(np.zeros((1, 9, 9)))], [str(tmp_path / "o.zarr")])) as check:
        (tmp_path / "o.zarr/ledger/token").write_text("another run's")
        assert "is not seen: give a folder that all nodes share" in str(check())
        (tmp_path / "o.zarr/ledger/token").unlink()
        assert "is not seen" in str(check())


def test_an_image_of_the_same_name_elsewhere_is_not_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the same image may be a copy, made at another time."""
    np.save(tmp_path / "a.npy", np.zeros((1, 9, 9)))
    with open_image(tmp_path / "a.npy") as image:
        image.identity()
        sent = pickle.dumps(preflight([refer(image)], []))
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    np.save(tmp_path / "a.npy", np.zeros((1, 9, 9)))
    assert pickle.loads(sent)() is None
    np.save(tmp_path / "a.npy", np.ones((1, 9, 9)))
    assert "is not the image of that name" in str(pickle.loads(sent)())


def test_a_copy_that_only_this_machine_has_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    image = refer(np.zeros((1, 4200, 4200), np.uint8))
    copy = image.share(image.open(), elsewhere=True)
    sent = pickle.dumps(preflight([image], []))
    assert len(sent) < 4200 and pickle.loads(sent)() is None
    assert copy is not None
    copy.remove()  # as if it were another machine's
    with pytest.raises(ValueError, match=r"the image was copied to .*, which is not seen here: store it in tiles"):
        pickle.loads(sent)()


@pytest.mark.parametrize("count", [1, 31, 33, 1000])
def test_of_many_some_are_asked_for(tmp_path: Path, count: int) -> None:
    image = refer(np.zeros((1, 9, 9)))
    outputs = [str(tmp_path / f"{n}.zarr") for n in range(count)]
    with closing(preflight([image] * count, outputs)) as check:
        assert 1 <= len(check.outputs) <= 32
