"""Ray's authentication token, which every cluster of ours requires."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from muva.errors import MuvaError
from muva.file_lock import locked

AUTH_MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts")


TOKEN_PLACES = f"in {TOKEN}, in the file that {TOKEN_PATH} names, or in ~/.ray/auth_token"


def authorisation() -> dict[str, str]:
    """The header that carries the token; empty without one.

    Raises:
        MuvaError: there is a file for it that cannot be read.
    """
    token = os.environ.get(TOKEN, "").strip()
    file = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    try:
        if not token and file.is_file():
            token = file.read_text().strip()
    except OSError as error:
        raise MuvaError(
            f"Ray's token file {file} cannot be read: {error.strerror}. Expected one that this "
            f"account may read: correct its permissions, or {TOKEN_PATH}"
        ) from error
    return bearer(token) if token else {}


def bearer(token: str) -> dict[str, str]:
    """The header that carries this token."""
    return {"Authorization": f"Bearer {token}"}


def ensure_token() -> None:
    """Let Ray generate a token if there is none, without showing the one that Ray prints.

    Only the owner may read Ray's token file, whichever program wrote it. Of several first commands
    one generates the token: the clusters of the others could not use one that is replaced.
    """
    ours = Path.home() / ".ray" / "auth_token"
    if ours.is_file() and ours.stat().st_uid == os.getuid() and ours.stat().st_mode & 0o077:
        ours.chmod(0o600)
    if authorisation():
        return
    with locked(ours.with_name("muva.lock")):
        if not authorisation():  # another first command may have generated it meanwhile
            subprocess.run(
                [*RAY, "get-auth-token", "--generate"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                umask=0o077,
                check=False,
            )
    if not authorisation():
        folder = next(parent for parent in ours.parents if parent.exists())
        remedy = (
            "Make one with `ray get-auth-token --generate`"
            if os.access(folder, os.W_OK)
            else f"This account cannot write to {folder}: set HOME to a folder to which it can, or "
            f"{TOKEN} to a long random secret"
        )
        raise MuvaError(f"No Ray token: expected one {TOKEN_PLACES}. {remedy}.")
