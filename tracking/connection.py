"""The tracking URI of MLflow: a SQLite file, a database server, or a tracking server.

Only drivers create a SQLite database; of several at once, one does, and the others wait for it.
"""

from __future__ import annotations

import errno
import functools
import http.client
import importlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    CUSTOMER_UNAUTHORIZED,
    ENDPOINT_NOT_FOUND,
    PERMISSION_DENIED,
    UNAUTHENTICATED,
    ErrorCode,
)
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests import HTTPError
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from muva.errors import MuvaError
from tracking.capabilities import has_logged_models
from tracking.database import adopt_copy, one_at_a_time
from tracking.redaction import first_line, redact
from tracking.uris import absolute_uri, sqlite_file

_LONGEST_REASON = 300
_SQLITE_HEADER = b"SQLite format 3\0"
_ANSWER_S = 10.0
"""Timeout of the health check of a tracking server, in seconds."""
_ASKED_EVERY_S = 2.0
_NO_CREDENTIALS = [ErrorCode.Name(one) for one in (CUSTOMER_UNAUTHORIZED, UNAUTHENTICATED)]
_NO_PERMISSION, _NO_ENDPOINT = map(ErrorCode.Name, (PERMISSION_DENIED, ENDPOINT_NOT_FOUND))
_GATEWAY_ERRORS = (502, 503, 504)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


def reached_client(
    tracking_uri: str, *, within_s: float = 0.0, writes: bool = True
) -> MlflowClient:
    """A client of a server that responds, or of a database; a SQLite database is created.

    within_s: how long to wait for a server that does not respond.
    writes: whether the caller writes, for which the file of a SQLite database must be writable.

    Raises:
        MuvaError: the server does not respond, or the database cannot be opened.
    """
    if tracking_uri.startswith("http"):
        _await_answer(tracking_uri, within_s)
        return _client(tracking_uri)
    file = sqlite_file(tracking_uri)
    try:
        if file is not None:
            _check_file(file, writes=writes)
        else:
            _check_database(tracking_uri)
        return _client(tracking_uri)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        if isinstance(error, OSError) and error.errno in _NO_ACCESS:
            raise MuvaError(
                f"MLflow's database {redact(tracking_uri)}: {error.strerror}. Expected a file in a "
                "folder that this account can write to: set another folder with --home, or another "
                "database with --tracking-uri"
            ) from error
        raise MuvaError(
            f"MLflow's database {redact(tracking_uri)} cannot be opened: {first_line(error)}. "
            "Expected a writable database of this MLflow version: set another one with "
            "--tracking-uri, or migrate an older one with `mlflow db upgrade`."
        ) from error


def check_reachable(tracking_uri: str) -> bool:
    """Check the tracking URI without creating an experiment or a database.

    Returns whether models can be recorded there: see `tracking.capabilities`.

    Raises:
        MuvaError: the server does not respond, or the database is not writable.
    """
    uri = absolute_uri(tracking_uri)
    file = sqlite_file(uri)
    if file is not None:
        place = file if file.exists() else next(p for p in file.parents if p.exists())
        if not os.access(place, os.W_OK):
            raise MuvaError(
                f"MLflow's database {file}: {place} is not writable. Set another location with "
                "--tracking-uri"
            )
        if file.exists() and file.stat().st_size:
            with failures_explained(uri):
                reached_client(uri).search_experiments(max_results=1)
        return True
    with failures_explained(uri):
        if uri.startswith("http"):
            _check_answer(uri)
            _client(uri).search_experiments(max_results=1)
            return has_logged_models(_client(uri))
        try:
            with create_engine(uri).connect():
                return True
        except ImportError as error:
            raise MuvaError(
                f"MLflow's database {redact(uri)}: {error}. Install the database driver, or run "
                "`mlflow server` in front of it"
            ) from error


def attached_client(tracking_uri: str) -> MlflowClient:
    """A client of a server or database that the driver has already opened; creates nothing.

    Raises:
        MuvaError: the SQLite database does not exist.
    """
    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        raise MuvaError(
            f"MLflow's database {file} does not exist. The driver creates it, but a process on "
            "another machine cannot access it: on a cluster, use a tracking server "
            "(--tracking-uri http://HOST:PORT)."
        )
    return _client(tracking_uri)


@contextmanager
def failures_explained(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's and the database's exceptions inside the block into a MuvaError."""
    with _explained(tracking_uri, MlflowException, SQLAlchemyError):
        yield


@contextmanager
def uploads_explained(tracking_uri: str) -> Iterator[None]:
    """Like `failures_explained` for uploads, which can also raise OSError, as on a full disk."""
    with _explained(tracking_uri, MlflowException, SQLAlchemyError, OSError):
        yield


@contextmanager
def _explained(tracking_uri: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise MuvaError(
            f"MLflow at {redact(tracking_uri)} failed: {first_line(error)[:_LONGEST_REASON]}. "
            f"{_remedy_of(error)} Finished work is kept; run the same command again to resume."
        ) from error


def _remedy_of(error: Exception) -> str:
    code = error.error_code if isinstance(error, MlflowException) else ""
    if isinstance(error, HTTPError) and getattr(error.response, "status_code", 0) in (401, 403):
        return "Expected an account that may upload files to this experiment."
    if code in _NO_CREDENTIALS:
        return (
            "Expected this server's credentials in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or in MLFLOW_TRACKING_TOKEN."
        )
    if code == _NO_PERMISSION:
        return "Expected an account that may write to this experiment: ask who runs the server."
    if code == _NO_ENDPOINT:
        return "Expected a tracking URI with the server's path, such as https://HOST/mlflow."
    return "Expected the MLflow server or database to keep responding."


def _check_file(file: Path, *, writes: bool) -> None:
    """Raises OSError if the file cannot be a database: MLflow itself would retry for minutes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b" if writes or not file.exists() else "rb") as database:
        database.seek(0)
        if database.read(len(_SQLITE_HEADER)) not in (b"", _SQLITE_HEADER):
            raise OSError("the file is not a SQLite database")


def _check_database(tracking_uri: str) -> None:
    """Connect once: MLflow itself would retry for minutes."""
    engine = create_engine(tracking_uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


@functools.lru_cache(maxsize=8)
def _client(tracking_uri: str) -> MlflowClient:
    # The first connection to a database logs dozens of migrations, and each failure a traceback,
    # although it is raised as well.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if tracking_uri.startswith("http"):
        return _client_of(tracking_uri)
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")  # seconds, before the lock
    with one_at_a_time(tracking_uri):
        if (file := sqlite_file(tracking_uri)) is not None:
            adopt_copy(file)
        return _client_of(tracking_uri)


def _client_of(tracking_uri: str) -> MlflowClient:
    """A client whose registry is that of the same server, whatever MLFLOW_REGISTRY_URI names.

    A model version refers to a logged model, which another server does not have.
    """
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _await_answer(server: str, within_s: float) -> None:
    ends_at, warned = time.monotonic() + within_s, False
    while True:
        try:
            return _check_answer(server)
        except MuvaError as silence:
            if time.monotonic() >= ends_at:
                raise
            if not warned:
                warned = True
                logging.getLogger(__name__).warning(
                    "Waiting up to %.0f s for the MLflow server: %s", within_s, silence
                )
            time.sleep(_ASKED_EVERY_S)


def _check_answer(server: str) -> None:
    """Check once: MLflow's own client would retry for minutes.

    The request is MLflow's, so that certificates, credentials and proxies are those of its client.
    """
    try:
        response = http_request(
            get_default_host_creds(server),
            "/health",
            "GET",
            max_retries=0,
            timeout=_ANSWER_S,
            raise_on_status=False,
        )
    except (MlflowException, OSError, ValueError, http.client.HTTPException) as error:
        raise _no_answer(server, str(error.__cause__ or error)) from error
    assert response is not None  # MLflow declares no type
    if response.status_code in _GATEWAY_ERRORS:  # a proxy answers, not the server behind it
        raise _no_answer(server, f"status {response.status_code} {response.reason}")
    if response.ok and response.text.lstrip().startswith("<"):
        raise MuvaError(
            f"{redact(server)} is not an MLflow server: it responds with a web page, perhaps that "
            "of a login or a proxy. Expected an address that programs can use, with the "
            "credentials that MLflow reads: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    # Any other response is the server's, though it may require authentication.


def _no_answer(server: str, reason: str) -> MuvaError:
    return MuvaError(
        f"No MLflow server responds at {redact(server)} ({redact(reason)[:_LONGEST_REASON]}). "
        "Start one with `muva ui` or `mlflow server`, or set another tracking URI with "
        "--tracking-uri."
    )
