"""Object stores through obstore: S3, Google Cloud Storage, Azure. Credentials come from the environment.

    s3://bucket/folder/big.zarr     AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...
    gs://bucket/folder/big.zarr     GOOGLE_APPLICATION_CREDENTIALS, ...
    az://container/folder/big.zarr  AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, ...

A request that fails for a passing reason is repeated with growing pauses: for 45 s in the middle of a run, for
some seconds when it begins, so that a wrong name or an endpoint that is down shows at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

SCHEMES = {"s3", "s3a", "gs", "az", "azure", "abfs", "abfss"}
PATIENT = (10, timedelta(seconds=45))
HASTY = (3, timedelta(seconds=10))
"""Most repetitions of a request and the time after which it is not repeated."""


class StoreError(ValueError):
    """What an object store refuses or does not answer."""


def connect(url: str, *, hasty: bool = False) -> Any:
    """The store of obstore whose keys begin below the URL. Raises StoreError where it cannot be."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise StoreError(f"{url}: a URL begins with s3://, gs://, az:// or file://")
    if not rest.split("/")[0]:
        raise StoreError(f"{url} names no bucket")
    try:
        from obstore.store import from_url
    except ImportError:
        raise StoreError(f"{url}: object stores need one more package: pip install obstore") from None
    retries, span = HASTY if hasty else PATIENT
    pauses = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2}
    retry: Any = {"max_retries": retries, "retry_timeout": span, "backoff": pauses}
    with answering(url):
        return from_url(url.rstrip("/"), retry_config=retry)  # client options would hide those of the environment


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Turns an error of the store into a StoreError of one line; FileNotFoundError says that an object is not there."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: there is no such object{_bucket(str(error))}") from None
    except (BaseError, OSError) as error:
        raise StoreError(f"{url}: {_reason(str(error))}") from error


def _bucket(text: str) -> str:
    return ", and no such bucket" if "NoSuchBucket" in text else ""


def _reason(text: str) -> str:
    """What an error of obstore says, without its requests and retries."""
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return "no credentials in the environment (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    said = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text, re.DOTALL)
    if said:
        return f"{said[2].rstrip('.')} ({said[1]})"
    if "builder error" in text:
        return "the endpoint is not https: set AWS_ALLOW_HTTP=true if that is meant"
    if "sending request" in text:
        host = re.search(r"\b(https?://[^/\s]+)", text)
        return f"{host[1] if host else 'the endpoint'} does not answer"
    if "403 Forbidden" in text or "401 Unauthorized" in text:
        return "access is denied with the credentials in the environment"
    return " ".join(text.split("Debug source")[0].split())[:300]
