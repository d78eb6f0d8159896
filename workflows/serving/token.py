"""The token of a service: from the environment, or from a file that only its owner may read.

Replicas know its SHA-256 alone. The page's cookie holds a key derived from the token, which does
not reveal it, and cannot be made from what replicas know.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from muva.errors import MuvaError, SettingsError
from muva.file_lock import locked
from workflows.serving.settings import Access

TOKEN_VARIABLE = "MUVA_SERVE_TOKEN"
SHORTEST = 16
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_PURPOSE = b"muva serve: session of the page"


def token_file() -> Path:
    """Where the token is kept if the environment has none."""
    return Path.home() / ".muva" / "serve-token"


def service_token() -> tuple[str, str]:
    """The token, which is made if there is none, and where it is.

    Raises:
        SettingsError: it is too short to resist guessing.
        MuvaError: its file cannot be read or written.
    """
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return _checked(token, TOKEN_VARIABLE), f"the environment variable {TOKEN_VARIABLE}"
    file = token_file()
    try:
        with locked(file.with_suffix(".lock")):
            if not file.exists():
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as opened:
                    opened.write(f"{secrets.token_urlsafe(32)}\n")
        file.chmod(0o600)
        return _checked(file.read_text().strip(), str(file)), str(file)
    except OSError as error:
        raise MuvaError(
            f"The token of the service, {file}, cannot be read or written: {error.strerror}. Give "
            f"one in {TOKEN_VARIABLE}"
        ) from error


def _checked(token: str, where: str) -> str:
    if len(token) < SHORTEST or not token.isascii() or any(c.isspace() for c in token):
        raise SettingsError(
            f"{where}: expected a token of {SHORTEST} or more ASCII characters without spaces, "
            f"found {len(token)} characters. `openssl rand -hex 32` makes one"
        )
    return token


def access_by(token: str, *, hosts: tuple[str, ...] | None) -> Access:
    """Access for those who know a token, to a service that is reached by these names."""
    return Access(
        token_sha256=sha256_of(token), session_sha256=sha256_of(session_key(token)), hosts=hosts
    )


def session_key(token: str) -> str:
    """The value of the page's cookie."""
    return hmac.new(token.encode(), _PURPOSE, hashlib.sha256).hexdigest()


def is_secret(given: str, sha256: str) -> bool:
    """Whether this is the text with the hash; takes equally long whether it is or not."""
    return hmac.compare_digest(sha256_of(given), sha256)


def sha256_of(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
