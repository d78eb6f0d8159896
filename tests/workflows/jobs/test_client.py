"""Looking at jobs starts no cluster."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from muva.errors import MuvaError
from workflows.jobs.client import (
    NoClusterError,
    address_of_environment,
    dashboard_of_environment,
    jobs_client,
)
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.jobs.head import Head, _environment_of_head, http_status
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


def test_several_first_commands_start_one_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heads: list[str] = []

    def start() -> Head:
        time.sleep(0.3)
        heads.append("http://127.0.0.1:1")
        return Head(address=heads[-1], pid=1)

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("workflows.jobs.client.find_head", lambda: heads[-1] if heads else None)
    monkeypatch.setattr("workflows.jobs.client.start_head", start)
    with ThreadPoolExecutor(3) as commands:
        errors = [commands.submit(jobs_client, ClusterSettings()).exception() for _ in range(3)]
    assert all(isinstance(error, MuvaError) for error in errors), "nothing listens there"
    assert len(heads) == 1


def test_a_head_does_not_keep_the_variables_that_each_job_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUVA_STORE", "/data/store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:5000")
    monkeypatch.setenv("AWS_PROFILE", "people")
    environment = _environment_of_head()
    assert "MUVA_STORE" not in environment
    # Jobs do not get these from the command that submits them.
    assert environment["MLFLOW_TRACKING_URI"] == "http://user:secret@host:5000"
    assert environment["AWS_PROFILE"] == "people"


@pytest.mark.parametrize(
    ("variables", "cluster", "dashboard"),
    [
        ({}, None, None),
        ({"RAY_ADDRESS": "local"}, None, None),
        ({"RAY_ADDRESS": "h:6379"}, "h:6379", None),
        ({"RAY_ADDRESS": "http://h:8265"}, "http://h:8265", "http://h:8265"),
        (
            {"RAY_ADDRESS": "h:6379", "RAY_API_SERVER_ADDRESS": "http://h:1"},
            "http://h:1",
            "http://h:1",
        ),
    ],
)
def test_variables_of_ray_name_the_same_cluster_for_all_verbs(
    variables: dict[str, str],
    cluster: str | None,
    dashboard: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert address_of_environment() == cluster
    assert dashboard_of_environment() == dashboard


def test_a_program_that_speaks_no_http_is_no_head() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(bytes(range(20)) + b"\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert http_status(f"http://127.0.0.1:{server.getsockname()[1]}") is None
        thread.join()
