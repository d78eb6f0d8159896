"""Tracking URIs as text, handled without MLflow, which takes two seconds to import."""

from __future__ import annotations

from pathlib import Path

from muva.errors import SettingsError
from tracking.redaction import redact

_SQLITE = "sqlite:///"


def absolute_uri(tracking_uri: str) -> str:
    """The tracking URI with an absolute path, so that it is valid in any working directory.

    Raises:
        SettingsError: it is neither a database nor a server.
    """
    scheme = tracking_uri.split(":", 1)[0].split("+", 1)[0]
    if scheme in {"http", "https", "postgresql", "mysql", "mssql"}:
        return tracking_uri
    file = sqlite_file(tracking_uri)
    if file is None:
        raise SettingsError(
            f"Tracking URI {redact(tracking_uri)}: expected sqlite:///FILE, a server's "
            "http://HOST:PORT, or a database's postgresql://...; MLflow no longer stores runs in "
            "plain folders."
        )
    return f"sqlite:///{file}"


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a SQLite database; None for any other tracking URI."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    file, _, _ = tracking_uri.removeprefix(_SQLITE).partition("?")
    return Path(file).absolute() if file else None
