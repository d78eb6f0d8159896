"""Jobs on a real Ray head with token authentication, one for all tests here."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from ray.job_submission import JobDetails, JobSubmissionClient

from muva.errors import MuvaError
from tests.workflows.commands import PATIENCE_S, heeding_ctrl_c
from workflows.jobs import follow
from workflows.jobs.client import job_details, jobs_client
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.jobs.follow import follow_job
from workflows.jobs.head import (
    Head,
    _delete_folder_of_dead_head,
    find_head,
    stale_variables,
    start_head,
)
from workflows.jobs.shipping import code_folder, ship
from workflows.jobs.submit import submit_and_follow, submit_job
from workflows.runtime.authentication import authorisation
from workflows.runtime.local import new_ray_folder
from workflows.verbs.jobs import jobs_verb
from workflows.verbs.submit import submit_verb


def at(head: Head) -> ClusterSettings:
    return ClusterSettings(address=head.address)


CLI = [sys.executable, "-m", "workflows.cli"]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A person's home folder, with nothing in it; its path is short for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="mv", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ADDRESS", "API_SERVER_ADDRESS", "AUTH_MODE", "AUTH_TOKEN", "AUTH_TOKEN_PATH"):
            patch.delenv(f"RAY_{name}", raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_TMPDIR", str(home))
        yield


@pytest.fixture(scope="module")
def head(home: Path, environment: None) -> Iterator[Head]:
    started = start_head()
    yield started
    os.kill(started.pid, signal.SIGTERM)
    os.waitpid(started.pid, 0)
    assert find_head() != started.address


@pytest.fixture(scope="module")
def jobs(head: Head) -> Iterator[dict[str, str]]:
    """Jobs of any command, submitted with Ray's own client; at once, as each takes its seconds."""
    scripts = {
        "success": "echo first; sleep 1; echo last",
        "failure": "echo first; echo last; exit 7",
        "killed": "echo first; echo last; kill -9 $$",
        "endless": "echo first; sleep 600",
        "stopped": "sleep 600",
    }
    client = jobs_client(at(head))
    submitted = {name: client.submit_job(entrypoint=script) for name, script in scripts.items()}
    yield submitted
    client.stop_job(submitted["endless"])
    while not client.get_job_status(submitted["endless"]).is_terminal():
        time.sleep(0.2)


def test_the_head_takes_nothing_without_the_token(head: Head, home: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.address}/api/jobs/")
    assert find_head() == head.address
    token = home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0


def test_who_listens_as_another_user_is_asked_nothing(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "workflows.jobs.head.http_status", lambda address, *_: asked.append(address)
    )
    monkeypatch.setattr("os.getuid", lambda: -1)
    assert find_head() is None
    assert asked == []


def test_the_folder_of_a_dead_head_is_deleted_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    folder, record = Path(new_ray_folder()), tmp_path / ".muva" / "ray-head.json"
    record.parent.mkdir()
    monkeypatch.setattr("workflows.jobs.head._record", lambda: record)
    for pid, is_kept in ((os.getpid(), True), (2**22 + 1, False)):  # the second cannot exist
        record.write_text(json.dumps({"address": "http://h", "pid": pid, "folder": f"{folder}"}))
        _delete_folder_of_dead_head()
        assert folder.parent.exists() == is_kept


def test_variables_that_jobs_get_from_the_head_with_other_values_are_named(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stale_variables(head.address) == ([], head.pid)
    monkeypatch.setenv("AWS_PROFILE", "people")
    monkeypatch.setenv("MUVA_STORE", "/each/job/gets/its/own")
    assert stale_variables(head.address) == (["AWS_PROFILE"], head.pid)
    assert stale_variables("http://another.example.org:8265") == ([], 0)


def test_a_head_that_takes_another_token_is_not_ours(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another-persons-token")
    assert find_head() != head.address
    with pytest.raises(MuvaError, match="refuses the token"):
        jobs_client(at(head))


@pytest.mark.parametrize(("name", "code"), [("success", 0), ("failure", 7), ("killed", 137)])
def test_the_log_is_shown_whole_and_the_exit_code_is_the_jobs(
    head: Head, jobs: dict[str, str], capsys: pytest.CaptureFixture, name: str, code: int
) -> None:
    client = jobs_client(at(head))
    assert follow_job(client, jobs[name]) == code
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line in {"first", "last"}] == ["first", "last"]
    assert shown == client.get_job_logs(jobs[name])


def test_a_verb_runs_in_this_folder_and_returns_its_code(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my runs").mkdir()
    # No database there: the verb fails after it has looked in the right folder.
    assert submit_and_follow(["ui", "--home", "my runs"], cluster=at(head), upload=False) == 1
    assert f"No runs at {tmp_path}/my runs/mlflow.db" in capsys.readouterr().out


def test_a_verb_runs_in_a_copy_of_the_code_with_the_recipe_it_names(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUVA_STORE", "s3://people/store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@db/mlflow")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "people.jpg").write_bytes(b"x" * 1000)
    code = submit_and_follow(["ui", "--home", "recipes/mine.yaml"], cluster=at(head))
    said = capsys.readouterr()
    assert code == 2
    # The file is there, in the copy; the verb complains that it is not a folder.
    assert "Directory 'recipes/mine.yaml' is a file" in said.out
    client = jobs_client(at(head))
    job = max(client.list_jobs(), key=lambda job: job.start_time or 0)
    assert job.runtime_env is not None
    variables = job.runtime_env["env_vars"]
    assert variables["MUVA_STORE"] == "s3://people/store"
    assert variables["MUVA_JOB"] == job.submission_id
    assert "hunter2" not in str(job)
    assert "MLFLOW_TRACKING_URI contains a secret" in said.err


def test_ctrl_c_ends_the_following_and_not_the_job(head: Head, jobs: dict[str, str]) -> None:
    job = jobs["endless"]
    command = [*CLI, "submit", "--address", head.address, "--attach", job]
    follower = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_ctrl_c,
    )
    assert follower.stdout is not None
    while (line := follower.stdout.readline()) != "first\n":
        assert line, "the log ended early"
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130
    assert f"--attach {job}" in said
    assert f"jobs stop --address {head.address} {job}" in said
    assert jobs_client(at(head)).get_job_status(job).value == "RUNNING"


def test_a_stopped_job_is_a_failure(head: Head, jobs: dict[str, str]) -> None:
    client = jobs_client(at(head))
    while client.get_job_status(jobs["stopped"]).value == "PENDING":
        time.sleep(0.2)
    client.stop_job(jobs["stopped"])
    assert follow_job(client, jobs["stopped"]) == 1


def test_a_job_that_ray_has_lost_is_to_be_submitted_again(
    head: Head, capfd: pytest.CaptureFixture
) -> None:
    client = jobs_client(at(head))
    entrypoint = "echo begun; sleep 600"
    job = client.submit_job(entrypoint=entrypoint)
    while "begun" not in client.get_job_logs(job):
        time.sleep(0.2)
    (shell,) = [
        one
        for one in psutil.Process(head.pid).children(recursive=True)
        if one.cmdline()[-1:] == [entrypoint]
    ]
    supervisor = shell.parent()
    assert supervisor is not None
    supervisor.kill()
    assert follow_job(client, job) == 1
    assert "Submit the same command again" in capfd.readouterr().err


def test_without_an_address_the_running_head_is_found(head: Head) -> None:
    done = CliRunner().invoke(submit_verb, ["--detach", "--json", "--", "ui", "--help"])
    assert done.exit_code == 0, done.output
    assert "starting" not in done.stderr
    job = re.search(rf"^Job (muva-ui-\w+-1) at {head.address}$", done.stderr, re.MULTILINE)
    assert job is not None
    assert json.loads(done.stdout) == {
        "job": job.group(1),
        "address": head.address,
        "started": True,
    }
    assert job.group(1) in {
        details.submission_id for details in jobs_client(ClusterSettings()).list_jobs()
    }


def test_the_same_thing_twice_is_one_job_while_it_runs_and_another_attempt_afterwards(
    head: Head, capfd: pytest.CaptureFixture
) -> None:
    command = ["data", "list", "--store", "s3://people/store-of-the-same-thing"]
    first = submit_job(command, cluster=at(head))
    again = submit_job(command, cluster=at(head))
    assert first.started
    assert not again.started
    assert again.job == first.job
    assert "already runs this command" in capfd.readouterr().err
    assert submit_job([*command, "--json"], cluster=at(head)).job != first.job
    code = follow_job(first.client, first.job)
    assert code == 1  # there is no such bucket
    later = submit_job(command, cluster=at(head))
    assert later.started
    assert (first.job[-2:], later.job) == ("-1", f"{first.job[:-2]}-2")
    assert "(failed): this is attempt 2" in capfd.readouterr().err
    metadata = later.client.get_job_info(later.job).metadata
    assert metadata is not None
    assert metadata["muva.command"] == f"muva {' '.join(command)}"
    assert metadata["muva.attempt"] == "2"


def test_of_two_who_submit_in_the_same_moment_one_starts_the_job(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["experts", "--json"]
    first = submit_job(command, cluster=at(head))
    # Neither has seen the other's job when it looks.
    monkeypatch.setattr(
        "workflows.jobs.submit._next_job", lambda client, name: (first.job, 1, None)
    )
    second = submit_job(command, cluster=at(head))
    assert (second.job, second.started) == (first.job, False)


def jobs_output(*words: str) -> Any:
    done = CliRunner().invoke(jobs_verb, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_jobs_are_listed_shown_and_stopped(head: Head) -> None:
    client = jobs_client(at(head))
    job = client.submit_job(entrypoint="echo hello; sleep 600")
    where = ("--address", head.address, "--json")
    assert job in {each["job"] for each in jobs_output("list", *where)}
    while "hello" not in jobs_output("logs", *where, job)["log"]:
        time.sleep(0.2)
    shown = jobs_output("show", *where, job)
    assert shown["status"] == "running"
    assert shown["runs"] == []
    assert "--tracking-uri" in shown["complaint"]
    elsewhere = jobs_output("show", *where, "--tracking-uri", "http://me:s3cr3t@127.0.0.1:9", job)
    assert "s3cr3t" not in json.dumps(elsewhere)
    assert jobs_output("stop", *where, job)["status"] == "stopped"
    stopped = CliRunner().invoke(jobs_verb, ["stop", "--address", head.address, job])
    assert "stopped already" in stopped.stdout


def test_jobs_verbs_name_a_job_that_is_not_there(head: Head) -> None:
    for verb in ("logs", "show", "stop"):
        with pytest.raises(MuvaError, match=r"No job muva-none at .*`muva jobs list`"):
            jobs_output(verb, "--address", head.address, "muva-none")


def test_the_token_is_neither_printed_nor_kept_with_a_job(
    head: Head, capfd: pytest.CaptureFixture
) -> None:
    token = authorisation()["Authorization"].removeprefix("Bearer ")
    assert len(token) == 64
    submit_job(["ui", "--help"], cluster=at(head))
    shown = capfd.readouterr()
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers=authorisation())
    with urllib.request.urlopen(request) as answer:
        kept = answer.read().decode()
    assert "muva-ui-" in kept
    assert token not in shown.out + shown.err + kept


def test_an_unknown_job_is_named(head: Head) -> None:
    with pytest.raises(MuvaError, match=f"No job muva-none at {head.address}"):
        follow_job(jobs_client(at(head)), "muva-none")


def test_a_job_that_the_cluster_has_lost_is_to_be_submitted_again(head: Head) -> None:
    client = jobs_client(at(head))
    with pytest.raises(MuvaError, match=r"was restarted.*muva-none.*Submit the same command"):
        follow._details(client, "muva-none")


def test_a_head_that_falls_silent_ends_the_following(
    head: Head, jobs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.jobs.follow.UNAVAILABLE_S", 2.0)
    monkeypatch.setattr("workflows.jobs.follow.RETRY_S", 0.2)
    patient = jobs_client(at(head))
    monkeypatch.setattr("workflows.jobs.client.TIMEOUTS_S", (5.0, 5.0))
    client = jobs_client(at(head))
    dashboard = _dashboard(head)

    def answer_once(client: JobSubmissionClient, job: str) -> JobDetails:
        found = job_details(client, job)
        dashboard.suspend()  # as a machine that is lost: nothing refuses
        monkeypatch.setattr("workflows.jobs.client.TIMEOUTS_S", (0.5, 0.5))
        return found

    monkeypatch.setattr("workflows.jobs.follow.job_details", answer_once)
    try:
        with pytest.raises(MuvaError, match=r"not responded for 2 s.*Submit the same command"):
            follow_job(client, jobs["endless"])
        with pytest.raises(MuvaError, match=r"No Ray cluster accepts jobs at .*timed out"):
            submit_job(["ui", "--help"], cluster=at(head))
    finally:
        dashboard.resume()
    assert not patient.get_job_status(jobs["endless"]).is_terminal()


def _dashboard(head: Head) -> psutil.Process:
    found = []
    for process in psutil.Process(head.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if any(word.endswith("dashboard/dashboard.py") for word in process.cmdline()):
                found.append(process)
    (dashboard,) = found
    return dashboard


def test_a_cluster_that_is_not_there_is_named(environment: None) -> None:
    with pytest.raises(MuvaError, match=r"No Ray cluster accepts jobs at http://127\.0\.0\.1:9"):
        submit_and_follow(["ui"], cluster=ClusterSettings(address="127.0.0.1:9"))


def test_a_secret_in_the_command_is_not_sent() -> None:
    with pytest.raises(MuvaError, match=r"Not submitted: .*--hub-token '?\*\*\*") as refusal:
        submit_and_follow(
            ["train", "--hub-token", "hunter2"], cluster=ClusterSettings(address="127.0.0.1:9")
        )
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("command", [[], ["--", "trian"], ["--attach", "job", "--", "train"]])
def test_a_command_that_is_no_verb_is_a_usage_error(command: list[str]) -> None:
    assert CliRunner().invoke(submit_verb, command).exit_code == 2


def test_only_the_packages_and_the_recipe_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "store").mkdir(parents=True)
    (here / "store" / "people.parquet").write_bytes(b"x")
    (here / "mine.yaml").write_text("name: mine\n")
    monkeypatch.chdir(here)
    shipped = ship(["run", "--recipe=mine.yaml", "--home", "store"], into=tmp_path / "job")
    assert {path.name for path in shipped.iterdir()} == {
        "muva",
        "workflows",
        "tracking",
        "mine.yaml",
        "requirements.lock",
    }
    assert (shipped / "workflows" / "cli.py").read_bytes() == (
        code_folder() / "workflows" / "cli.py"
    ).read_bytes()
    everything = [path.name for path in shipped.rglob("*")]
    assert not {"__pycache__", ".git", ".venv", "people.parquet"} & set(everything)
    archive = Path(shutil.make_archive(str(tmp_path / "job"), "zip", shipped))
    assert archive.stat().st_size < 32 * 1024**2
    assert zipfile.is_zipfile(archive)


def test_a_recipe_that_the_copy_would_not_hold_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\n")
    with pytest.raises(MuvaError, match=r"mine\.yaml: the cluster cannot read this file"):
        ship(["run", str(recipe)], into=tmp_path / "job")


def test_rays_variables_are_as_they_were_once_a_client_is_made(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert jobs_client(at(head)).get_address() == head.address
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"
    assert "RAY_AUTH_MODE" not in os.environ
