"""Where MLflow keeps runs: a SQLite file, a database server, or a tracking server.

The driver alone creates a SQLite database: its first start migrates the schema, and a second writer
in that moment fails.
"""

from __future__ import annotations

import functools
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from muva.errors import MuvaError
from tracking.redaction import redact
from tracking.uris import absolute_uri, sqlite_file

_LONGEST_REASON = 300
_SQLITE_HEADER = b"SQLite format 3\0"
_ANSWER_S = 10.0
"""How long a tracking server may take to say that it is there."""
_ASKED_EVERY_S = 2.0


def reached_client(tracking_uri: str, *, within_s: float = 0.0) -> MlflowClient:
    """The client of a server that answers, or of a database, created when it is SQLite.

    within_s: how long a server may take until it answers.
    """
    if tracking_uri.startswith("http"):
        _await_answer(tracking_uri, within_s)
        return _client(tracking_uri)
    file = sqlite_file(tracking_uri)
    try:
        if file is not None:
            _check_file(file)
        else:
            _check_database(tracking_uri)
        return _client(tracking_uri)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise MuvaError(
            f"MLflow's database {redact(tracking_uri)} cannot be opened: {redact(reason)}. "
            "Expected one of this MLflow version that can be written to; name another with "
            "--tracking-uri, or bring an older one up to date with `mlflow db upgrade`."
        ) from error


def check_reachable(tracking_uri: str) -> None:
    """Asks without changing anything: no experiment, no database is made.

    Raises:
        MuvaError: nothing answers there, or the place cannot be written to.
    """
    uri = absolute_uri(tracking_uri)
    file = sqlite_file(uri)
    if file is not None:
        place = file if file.exists() else next(p for p in file.parents if p.exists())
        if not os.access(place, os.W_OK):
            raise MuvaError(
                f"MLflow's database {file}: {place} cannot be written to. Name another place with "
                "--tracking-uri"
            )
        return
    with failures_explained(uri):
        if uri.startswith("http"):
            _check_answer(uri)
            _client(uri).search_experiments(max_results=1)
            return
        try:
            with create_engine(uri).connect():
                return
        except ImportError as error:
            raise MuvaError(
                f"MLflow's database {redact(uri)}: {error}. Install its driver, or put `mlflow "
                "server` before it"
            ) from error


def attached_client(tracking_uri: str) -> MlflowClient:
    """The client of what a driver has reached before; creates nothing.

    Raises:
        MuvaError: the SQLite database is not there.
    """
    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        raise MuvaError(
            f"MLflow's database {file} is not there. The driver creates it; a process on another "
            "machine cannot see it: on a cluster, use a server (--tracking-uri http://HOST:PORT)."
        )
    return _client(tracking_uri)


def artifact_location(tracking_uri: str, experiment: str) -> str | None:
    """Beside a SQLite database; elsewhere the server decides."""
    file = sqlite_file(tracking_uri)
    if file is None:
        return None
    folder = re.sub(r"[^\w.-]+", "-", experiment)
    return (file.parent / "mlartifacts" / folder).as_uri()


@contextmanager
def failures_explained(tracking_uri: str) -> Iterator[None]:
    """What goes wrong at MLflow's end within the block, as a MuvaError."""
    with _explained(tracking_uri, MlflowException, SQLAlchemyError):
        yield


@contextmanager
def uploads_explained(tracking_uri: str) -> Iterator[None]:
    """The same where files go to MLflow: a refusal or a full disk comes as an OSError then."""
    with _explained(tracking_uri, MlflowException, SQLAlchemyError, OSError):
        yield


@contextmanager
def _explained(tracking_uri: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MuvaError(
            f"MLflow at {redact(tracking_uri)} failed: {redact(reason)[:_LONGEST_REASON]}. "
            "Expected an MLflow server or database that goes on answering. What was finished is "
            "kept; the same command goes on from there."
        ) from error


def _check_file(file: Path) -> None:
    """Raises OSError for what cannot be a database: MLflow itself tries for minutes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as database:
        database.seek(0)
        if database.read(len(_SQLITE_HEADER)) not in (b"", _SQLITE_HEADER):
            raise OSError("the file is no SQLite database")


def _check_database(tracking_uri: str) -> None:
    """Connects once: MLflow itself tries for minutes."""
    engine = create_engine(tracking_uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


@functools.lru_cache(maxsize=8)
def _client(tracking_uri: str) -> MlflowClient:
    # The first start of a database is told in dozens of migrations otherwise.
    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri)


def _await_answer(server: str, within_s: float) -> None:
    ends_at, told = time.monotonic() + within_s, False
    while True:
        try:
            return _check_answer(server)
        except MuvaError as silence:
            if time.monotonic() >= ends_at:
                raise
            if not told:
                told = True
                logging.getLogger(__name__).warning(
                    "Waiting %.0f s at most for MLflow's server: %s", within_s, silence
                )
            time.sleep(_ASKED_EVERY_S)


def _check_answer(server: str) -> None:
    """Asks once: MLflow's own client retries for minutes before it gives up."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"1", "true"}:
        return
    address = re.sub(r"//[^/@]*@", "//", server.rstrip("/"))  # no route takes credentials so
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=_ANSWER_S):
            return
    except urllib.error.HTTPError:
        return  # a server, though one that wants more than this question holds
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise MuvaError(
            f"No MLflow server answers at {redact(server)} ({reason}). Start one with `muva ui` or "
            "`mlflow server`, or name another place for the runs with --tracking-uri."
        ) from error
