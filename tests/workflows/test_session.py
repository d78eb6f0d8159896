"""Where the store and the runs are."""

from __future__ import annotations

from pathlib import Path

import pytest

from muva.errors import SettingsError
from workflows.session import open_session


def test_a_tilde_in_the_home_is_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    session = open_session(home="~/runs")
    assert session.home == tmp_path / "runs"
    assert session.store.uri == f"{tmp_path}/runs/store"
    assert session.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_home_that_would_cut_the_databases_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="without a question mark"):
        open_session(home=tmp_path / "what?")
    server = "http://127.0.0.1:5000"
    assert open_session(home=tmp_path / "what?", tracking_uri=server).tracking_uri == server
