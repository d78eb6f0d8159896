"""Tables of Lance, on a disk or S3: how they are found and opened, and what its errors mean."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from muva.errors import MuvaError

if TYPE_CHECKING:
    from lance import LanceDataset


def lance_library() -> Any:
    """The module `lance`; MuvaError if it is not installed."""
    # It warns of empty partitions and coming changes, to whoever reads the standard error.
    os.environ.setdefault("LANCE_LOG", "error")
    # Ray's processes are started by a fork, but execute another program at once.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    try:
        import lance
    except ImportError as error:
        raise MuvaError(
            'galleries that grow need the package pylance: pip install "muva[gallery]"'
        ) from error
    return lance


def opened_table(uri: str, *, before: LanceDataset | None = None) -> LanceDataset:
    """The latest version of a table.

    before: an earlier version, whose caches the new one shares, the index among them.
    """
    session = None if before is None else before.session()
    return lance_library().dataset(uri, storage_options=storage_options(uri), session=session)


def table_exists(uri: str) -> bool:
    """Whether there is a table at this place."""
    if "://" not in uri:
        return (Path(uri) / "_versions").is_dir()
    try:
        opened_table(uri)
    except ValueError as error:
        if "not found" in str(error).lower():  # and otherwise the place cannot be read
            return False
        raise
    return True


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors of Lance into a MuvaError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        said = str(error).splitlines()[0].partition(", /home/runner")[0] if str(error) else ""
        raise MuvaError(
            f"gallery {uri}: {said or type(error).__name__}. Does the place exist, with room and "
            "permission to read and write it?"
        ) from error


def storage_options(uri: str) -> dict[str, str] | None:
    """What Lance needs to reach a bucket as boto3 does, beyond what it finds itself.

    Lance reads the environment and asks instances and containers for credentials, but knows neither
    the files in ~/.aws nor endpoints that are given there.
    """
    if not uri.startswith("s3://"):
        return None
    from boto3.session import Session

    session = Session(region_name=os.environ.get("AWS_REGION", "").strip() or None)
    endpoint = session.client("s3", region_name=session.region_name or "us-east-1").meta
    options = {"region": session.region_name or "us-east-1"}
    if not endpoint.endpoint_url.endswith(".amazonaws.com"):
        options["endpoint"] = endpoint.endpoint_url
        options["allow_http"] = str(endpoint.endpoint_url.startswith("http:")).lower()
    credentials = session.get_credentials()
    if credentials is not None and "file" in credentials.method:
        frozen = credentials.get_frozen_credentials()
        options |= {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            **({"session_token": frozen.token} if frozen.token else {}),
        }
    return options
