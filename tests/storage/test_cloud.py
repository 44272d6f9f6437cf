"""What is wrong with a bucket, its name, its credentials or its endpoint is one line, soon, and exit status 2."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.storage import cloud
from pipeline.storage.disk import OutputError
from pipeline.storage.location import location_of

IMAGE = np.zeros((3, 40, 40), np.uint8)


def refused(output: str, match: str) -> None:
    began = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
        pipeline.predict(IMAGE, output=output, workers=1)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert time.monotonic() - began < 30
    began = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        pipeline.open_image(output + "/a.tif")
    assert "\n" not in str(error.value) and time.monotonic() - began < 30


def test_no_such_bucket(bucket: str) -> None:
    refused("s3://nowhere/o.zarr", r"s3://nowhere/o\.zarr: The specified bucket does not exist \(NoSuchBucket\)")


def test_an_endpoint_that_is_down(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    refused("s3://b/o.zarr", rf"s3://b/o\.zarr: http://127\.0\.0\.1:{port} does not answer")


def test_plain_http_must_be_meant(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    refused(f"{bucket}/o.zarr", "set AWS_ALLOW_HTTP=true")


class Refusing(BaseHTTPRequestHandler):
    """Answers as S3 does to a key that it does not know."""

    def answer(self) -> None:
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key is not known.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = answer

    def log_message(self, *_: object) -> None: ...


def test_wrong_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        refused("s3://b/o.zarr", r"s3://b/o\.zarr: The key is not known \(InvalidAccessKeyId\)")
        server.shutdown()


def test_no_credentials() -> None:
    text = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 6 ms - HTTP error"
    assert "no credentials in the environment" in cloud._reason(text)


def test_addresses_that_mean_nothing() -> None:
    for url, words in (
        ("http://host/a.tif", "a URL begins with s3://"),
        ("s3:///a.tif", "names no bucket"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline.open_image(url)
    with pytest.raises(ValueError, match="is a whole bucket: name a folder in it"):
        location_of("s3://bucket")
    with pytest.raises(ValueError, match="Account must be specified"):
        location_of("az://container/o.zarr")


def test_a_bucket_that_goes_away_in_the_middle_stops_the_run(bucket: str) -> None:
    location = location_of(f"{bucket}/o.zarr")
    location.write("0/c/0/0", [b"a", b"b"])
    assert location.length("0/c/0/0") == 2 and location.names() == ["0"]
    location.store = cloud.connect("s3://nowhere/o.zarr")  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"cannot write s3://.*no such bucket"):
        location.write("0/c/0/0", [b"a"])


def test_the_command_without_the_extra(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "obstore").mkdir()
    (tmp_path / "obstore/__init__.py").write_text("raise ImportError('not installed')")
    code = "import runpy; runpy.run_module('pipeline.convert', run_name='__main__')"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    command = [sys.executable, "-c", code, f"{bucket}/a.tif", str(tmp_path / "o.zarr")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "need one more package: pip install obstore" in done.stderr
    assert done.stderr.count("\n") == 1
