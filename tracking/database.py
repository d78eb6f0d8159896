"""MLflow's database on its first use: one process creates it, and a copied one stays in its home.

MLflow creates its tables without a lock, so that several first commands at once fail. It also
records the files of runs with absolute paths: commands on a copied or moved home would write their
files into the original one.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import create_engine, text

from muva.file_lock import locked
from tracking.uris import sqlite_file

ARTIFACTS = "mlartifacts"
"""The folder next to a SQLite database that holds the files of its runs."""
_LOCK = 0x6D757661
"""The number of the lock in PostgreSQL: "muva" in ASCII."""
_LOCKS = {
    "postgresql": (f"SELECT pg_advisory_lock({_LOCK})", f"SELECT pg_advisory_unlock({_LOCK})"),
    "mysql": (f"SELECT GET_LOCK('{_LOCK}', 600)", f"SELECT RELEASE_LOCK('{_LOCK}')"),
}
"""SQL that takes and releases a lock of the session, by the name of the dialect."""
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""The columns of MLflow's tables in which locations of files are recorded. MLflow 3.17."""
_BUSY_S = 60.0


@contextmanager
def one_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Let only one process at a time run the block for this database; the others wait."""
    file = sqlite_file(tracking_uri)
    if file is not None:
        # A file of its own: on NFS, a lock of the database itself would be SQLite's.
        with locked(file.with_name(f"{file.name}.lock")):
            yield
        return
    dialect = re.split(r"[:+]", tracking_uri, maxsplit=1)[0]
    if dialect not in _LOCKS:
        yield
        return
    take, release = _LOCKS[dialect]
    engine = create_engine(tracking_uri)
    try:
        with engine.connect() as connection:
            connection.execute(text(take))
            try:
                yield
            finally:
                connection.execute(text(release))
    finally:
        engine.dispose()


def artifact_location(
    tracking_uri: str, experiment: str, *, home: Path | None = None
) -> str | None:
    """An experiment's artifact location: next to a SQLite database, else in the home.

    None if a server decides it, or if no home is known. MLflow itself would use the current folder.
    """
    file = sqlite_file(tracking_uri)
    folder = file.parent if file is not None else home
    if folder is None or tracking_uri.startswith("http"):
        return None
    return (folder.absolute() / ARTIFACTS / re.sub(r"[^\w.-]+", "-", experiment)).as_uri()


def adopt_copy(file: Path) -> None:
    """Record the files of runs next to a SQLite database that was copied or moved with its home.

    Only locations that this program gave to an experiment are changed. Nothing is changed if the
    old and the new path lead to the same folder, or if the database cannot be written to.
    """
    if not file.is_file() or not os.access(file, os.W_OK):
        return
    try:
        with closing(sqlite3.connect(file, timeout=_BUSY_S)) as database:
            found = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            if "experiments" not in found:
                return
            rows = database.execute("SELECT name, artifact_location FROM experiments").fetchall()
            roots = {root for name, location in rows if (root := _elsewhere(file, name, location))}
            for root in sorted(roots):
                _relocate(database, found, old=root, new=(file.parent / ARTIFACTS).as_uri())
            database.commit()
    except sqlite3.Error:  # damaged or of another schema: MLflow's client explains it
        return
    for root in sorted(roots):
        logging.getLogger(__name__).warning(
            "%s was copied or moved from %s: its runs now name their files next to it. The "
            "original is not changed.",
            file,
            _path(root).parent,
        )


def _elsewhere(file: Path, experiment: str, location: str | None) -> str | None:
    """The folder of files, as a URI, if the experiment's is ours but not next to the database."""
    expected = artifact_location(f"sqlite:///{file}", experiment)
    assert expected is not None
    if not location or not location.startswith("file:") or location == expected:
        return None
    root, _, name = location.rpartition("/")
    if name != expected.rpartition("/")[2] or not root.endswith(f"/{ARTIFACTS}"):
        return None
    here, there = file.parent, _path(root).parent
    same = there.exists() and there.samefile(here)
    return None if same else root


def _relocate(database: sqlite3.Connection, tables: set[str], *, old: str, new: str) -> None:
    for table, column in _LOCATIONS:
        if table in tables:
            database.execute(
                f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                f"WHERE substr({column}, 1, length(:old) + 1) = :old || '/'",
                {"old": old, "new": new},
            )


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
