"""Ray's token on the first use."""

from __future__ import annotations

import errno
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from muva.errors import MuvaError
from workflows.runtime.authentication import (
    AUTH_MODE,
    TOKEN,
    TOKEN_PATH,
    authorisation,
    ensure_token,
)


def test_of_several_first_commands_one_generates_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (AUTH_MODE, TOKEN, TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    generated: list[Any] = []
    run = subprocess.run

    def counted(*words: Any, **settings: Any) -> Any:
        generated.append(words)
        return run(*words, **settings)

    monkeypatch.setattr(subprocess, "run", counted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_token(), range(4)))
    assert len(generated) == 1
    token = tmp_path / ".ray" / "auth_token"
    assert token.read_text().strip()
    assert token.stat().st_mode & 0o077 == 0


def test_where_no_token_can_be_kept_the_remedy_is_another_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (AUTH_MODE, TOKEN, TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    with pytest.raises(MuvaError, match=rf"cannot write to {tmp_path}.*: set HOME.*or {TOKEN}"):
        ensure_token()


def test_a_token_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "token").touch()
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setenv(TOKEN_PATH, str(tmp_path / "token"))
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MuvaError, match=rf"{tmp_path}/token cannot be read: Permission denied"):
        authorisation()
