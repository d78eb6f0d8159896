"""Any verb as a job on a Ray cluster, followed until it ends."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.data.artifacts import fingerprint
from muva.errors import MuvaError
from tracking.redaction import redact
from tracking.source import COMMIT_VARIABLE, JOB_LINK_VARIABLE, JOB_VARIABLE, commit
from workflows.jobs.client import address_of_environment, answering, jobs_client
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.jobs.follow import follow_job
from workflows.jobs.shipping import code_fingerprint, code_folder, ship
from workflows.progress import say
from workflows.runtime.autoscaling import WAIT_LIMIT_VARIABLE, WAIT_VARIABLE

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


PASSED_ON = (
    *("MUVA_HOME", "MUVA_STORE", "MLFLOW_TRACKING_URI", "MUVA_PEOPLE"),
    WAIT_LIMIT_VARIABLE,
)
"""Variables that mean the same to the job as they do here."""


COMMAND, COMMIT, KEY, ATTEMPT, TRACKING = (
    f"muva.{name}" for name in ("command", "commit", "key", "attempt", "tracking_uri")
)
"""What a job's metadata tells. Ray takes it at submission and never changes it, so the MLflow run,
which is not there yet, is found by its tag that names the job."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job on a cluster."""

    client: JobSubmissionClient
    job: str
    started: bool
    """False: the same thing ran there already."""


def submit_and_follow(
    argv: Sequence[str],
    *,
    cluster: ClusterSettings | None = None,
    upload: bool | None = None,
) -> int:
    """Runs `muva ARGV` as a job, prints what it says, and returns its exit code.

    Arguments and errors are those of `submit_job`.
    """
    submission = submit_job(argv, cluster=cluster, upload=upload)
    return follow_job(submission.client, submission.job)


def submit_job(
    argv: Sequence[str],
    *,
    cluster: ClusterSettings | None = None,
    upload: bool | None = None,
) -> Submission:
    """Runs `muva ARGV` as a job, or finds the one that does so already.

    upload: the code is copied to the cluster, and the job runs in that copy; otherwise the job runs
    in this folder with this environment, which must be the cluster's machine. None uploads when an
    address is given.

    Raises:
        MuvaError: the cluster does not answer or refuses, or the command holds a secret.
    """
    cluster = cluster or ClusterSettings()
    typed = shlex.join(argv)
    if redact(typed) != typed:
        raise MuvaError(
            f"Not submitted: `muva {redact(typed)}` holds what looks like a secret, and a job's "
            "command is shown to everyone who sees the cluster. Put it into the cluster's "
            "environment instead."
        )
    elsewhere = bool(cluster.address or address_of_environment())
    chosen = upload if upload is not None else cluster.upload
    copied = elsewhere if chosen is None else chosen
    client = jobs_client(cluster)
    variables = _passed_on(cluster)
    key = _key(argv, variables, copied=copied)
    job, attempt, earlier = _next_job(client, f"muva-{argv[0]}-{key}")
    if earlier == _RUNNING:
        say(f"Job {job} at {redact(client.get_address())} runs this already: not started again.")
        return Submission(client=client, job=job, started=False)
    if earlier is not None:
        say(f"The same command has run here before ({earlier}): this is attempt {attempt}.")
    metadata = {
        COMMAND: f"muva {typed}",
        KEY: key,
        ATTEMPT: str(attempt),
        TRACKING: _tracking_uri(argv, variables, copied=copied),
        COMMIT: commit(),
    }
    environment = _environment(job, client, variables)
    with tempfile.TemporaryDirectory(prefix="muva-job-") as folder:
        if copied:
            runtime_env = {"working_dir": str(ship(argv, into=Path(folder)))}
            command = f"python -m workflows.cli {typed}"
        else:
            runtime_env = {}
            here = shlex.quote(str(Path.cwd()))
            command = f"cd {here} && exec {shlex.quote(sys.executable)} -m workflows.cli {typed}"
            environment["PYTHONPATH"] = _path_with(code_folder())
        started = _submit(
            client,
            job,
            command,
            runtime_env={**runtime_env, "env_vars": environment},
            metadata={name: value for name, value in metadata.items() if value},
        )
    say(f"Job {job} at {redact(client.get_address())}")
    return Submission(client=client, job=job, started=started)


_RUNNING = "running"


def _key(argv: Sequence[str], variables: Mapping[str, str], *, copied: bool) -> str:
    """16 hex characters that stand for all that decides what the job does."""
    place = None if copied else [str(Path.cwd()), sys.executable]
    return fingerprint([list(argv), dict(variables), code_fingerprint(argv), place])


def _next_job(client: JobSubmissionClient, name: str) -> tuple[str, int, str | None]:
    """The id to submit under, its attempt, and how the one before it ended, or that it runs."""
    attempts = {}
    with answering(client):
        jobs = client.list_jobs()
    for found in jobs:
        match = re.fullmatch(rf"{re.escape(name)}-(\d+)", found.submission_id or "")
        if match:
            attempts[int(match.group(1))] = found.status
    if not attempts:
        return f"{name}-1", 1, None
    last = max(attempts)
    if not attempts[last].is_terminal():
        return f"{name}-{last}", last, _RUNNING
    return f"{name}-{last + 1}", last + 1, attempts[last].value.lower()


def _submit(
    client: JobSubmissionClient,
    job: str,
    command: str,
    *,
    runtime_env: dict[str, Any],
    metadata: dict[str, str],
) -> bool:
    """Whether it was submitted; False where another command did so in this moment."""
    with answering(client):
        try:
            client.submit_job(
                entrypoint=command, submission_id=job, runtime_env=runtime_env, metadata=metadata
            )
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            raise MuvaError(
                f"The Ray cluster at {redact(client.get_address())} did not take the job: "
                f"{redact(str(error))}"
            ) from error
    return True


def _passed_on(cluster: ClusterSettings) -> dict[str, str]:
    """What the job is told. It is kept with the job, so a variable with a secret stays here."""
    here = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    passed = {}
    if cluster.wait_for:
        here[WAIT_VARIABLE] = ",".join(f"{name}={n}" for name, n in cluster.wait_for.items())
    for name, value in {**here, **cluster.variables()}.items():
        if redact(value) == value:
            passed[name] = value
        else:
            say(f"{name} holds a secret and stays here: set it on the cluster.")
    return passed


def _environment(
    job: str, client: JobSubmissionClient, variables: Mapping[str, str]
) -> dict[str, str]:
    own = {
        JOB_VARIABLE: job,
        JOB_LINK_VARIABLE: f"{redact(client.get_address())}/#/jobs/{job}",
        "PYTHONUNBUFFERED": "1",
    }
    if revision := commit():
        own[COMMIT_VARIABLE] = revision
    return {**own, **variables}


def _tracking_uri(argv: Sequence[str], variables: Mapping[str, str], *, copied: bool) -> str | None:
    """Where the job's runs are, as far as can be told here."""
    if uri := _typed(argv, "--tracking-uri") or variables.get("MLFLOW_TRACKING_URI"):
        return uri
    home = _typed(argv, "--home") or variables.get("MUVA_HOME") or "runs"
    return None if copied else f"sqlite:///{Path(home).absolute() / 'mlflow.db'}"


def _typed(argv: Sequence[str], option: str) -> str | None:
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _path_with(folder: Path) -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(folder), inherited]) if inherited else str(folder)
