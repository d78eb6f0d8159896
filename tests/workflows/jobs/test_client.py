"""Looking at jobs starts no cluster."""

from __future__ import annotations

import json
from typing import NoReturn

import pytest
from click.testing import CliRunner

from muva.errors import MuvaError
from workflows.jobs.client import NoClusterError
from workflows.verbs.jobs import jobs_verb
from workflows.verbs.submit import submit_verb


@pytest.fixture(autouse=True)
def no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        pytest.fail("a head was started")

    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("workflows.jobs.client.find_head", lambda: None)
    monkeypatch.setattr("workflows.jobs.client.start_head", refuse)


def test_without_a_head_there_are_no_jobs_to_list() -> None:
    done = CliRunner().invoke(jobs_verb, ["list"])
    assert done.exit_code == 0, done.output
    assert "No jobs: No Ray head of this account runs on this machine" in done.stdout
    assert json.loads(CliRunner().invoke(jobs_verb, ["list", "--json"]).stdout) == []


@pytest.mark.parametrize("words", [["show", "j"], ["logs", "j"], ["stop", "j"]])
def test_without_a_head_there_is_no_job_to_look_at(words: list[str]) -> None:
    done = CliRunner().invoke(jobs_verb, words)
    assert isinstance(done.exception, NoClusterError)


def test_without_a_head_there_is_no_job_to_follow() -> None:
    done = CliRunner().invoke(submit_verb, ["--attach", "j"])
    assert isinstance(done.exception, MuvaError)
