"""Ray's token on the first use."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from workflows.runtime.authentication import AUTH_MODE, TOKEN, TOKEN_PATH, ensure_token


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
