"""Tracking addresses as text: understood without MLflow, which takes two seconds to import."""

from __future__ import annotations

from pathlib import Path

from muva.errors import SettingsError
from tracking.redaction import redact

_SQLITE = "sqlite:///"


def absolute_uri(tracking_uri: str) -> str:
    """The address such that it means the same in any folder.

    Raises:
        MuvaError: not a database or a server.
    """
    scheme = tracking_uri.split(":", 1)[0].split("+", 1)[0]
    if scheme in {"http", "https", "postgresql", "mysql", "mssql"}:
        return tracking_uri
    file = sqlite_file(tracking_uri)
    if file is None:
        raise SettingsError(
            f"Tracking address {redact(tracking_uri)}: expected sqlite:///FILE, a server's "
            "http://HOST:PORT, or a database's postgresql://...; MLflow keeps no runs in plain "
            "folders any more."
        )
    return f"sqlite:///{file}"


def sqlite_file(tracking_uri: str) -> Path | None:
    """The database's file, or None when the address is not SQLite's."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    file, _, _ = tracking_uri.removeprefix(_SQLITE).partition("?")
    return Path(file).absolute() if file else None
