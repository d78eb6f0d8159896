"""Submits any verb as a job to a Ray cluster and follows it until it ends."""

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
from workflows.jobs.client import address_of_environment, cluster_errors_explained, jobs_client
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.jobs.follow import follow_job
from workflows.jobs.head import PASSED_VARIABLES, stale_variables
from workflows.jobs.shipping import code_fingerprint, code_folder, ship
from workflows.progress import say
from workflows.runtime.autoscaling import WAIT_VARIABLE

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


COMMAND, COMMIT, KEY, ATTEMPT, TRACKING = (
    f"muva.{name}" for name in ("command", "commit", "key", "attempt", "tracking_uri")
)
"""Keys of a job's metadata. Ray accepts metadata only at submission, before the MLflow run exists,
so the run is found by its tag that names the job."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job on a cluster."""

    client: JobSubmissionClient
    job: str
    started: bool
    """False: the same command was already running."""


def submit_and_follow(
    argv: Sequence[str],
    *,
    cluster: ClusterSettings | None = None,
    upload: bool | None = None,
) -> int:
    """Runs `muva ARGV` as a job, prints its log, and returns its exit code.

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
    """Runs `muva ARGV` as a job, or finds the job that already runs it.

    upload: the code is copied to the cluster, and the job runs in that copy. Otherwise the job runs
    in this folder with this environment, and this must be the cluster's machine. None uploads if
    there is an address.

    Raises:
        MuvaError: the cluster does not respond or refuses, or the command contains a secret.
    """
    cluster = cluster or ClusterSettings()
    command_line = shlex.join(argv)
    if redact(command_line) != command_line:
        raise MuvaError(
            f"Not submitted: `muva {redact(command_line)}` seems to contain a secret, and a job's "
            "command is visible to everyone who can see the cluster. Set it in the cluster's "
            "environment instead."
        )
    if upload is None:
        upload = cluster.upload
    if upload is None:
        upload = bool(cluster.address or address_of_environment())
    client = jobs_client(cluster)
    _warn_of_stale_variables(client)
    variables = _job_variables(cluster)
    key = _key(argv, variables, upload=upload)
    job, attempt, earlier = _next_job(client, f"muva-{argv[0]}-{key}")
    if earlier == _RUNNING:
        say(f"Job {job} at {redact(client.get_address())} already runs this command: following it.")
        return Submission(client=client, job=job, started=False)
    if earlier is not None:
        say(f"The same command ran here before ({earlier}): this is attempt {attempt}.")
    metadata = {
        COMMAND: f"muva {command_line}",
        KEY: key,
        ATTEMPT: str(attempt),
        TRACKING: _tracking_uri(argv, variables, upload=upload),
        COMMIT: commit(),
    }
    environment = _environment(job, client, variables)
    with tempfile.TemporaryDirectory(prefix="muva-job-") as folder:
        if upload:
            runtime_env = {"working_dir": str(ship(argv, into=Path(folder)))}
            entrypoint = f"python -m workflows.cli {command_line}"
        else:
            runtime_env = {}
            python = f"{shlex.quote(sys.executable)} -P -m workflows.cli"
            entrypoint = f"cd {shlex.quote(str(Path.cwd()))} && exec {python} {command_line}"
            environment["PYTHONPATH"] = _path_with(code_folder())
        started = _submit(
            client,
            job,
            entrypoint,
            runtime_env={**runtime_env, "env_vars": environment},
            metadata={name: value for name, value in metadata.items() if value},
        )
    say(f"Job {job} at {redact(client.get_address())}")
    return Submission(client=client, job=job, started=started)


_RUNNING = "running"


def _key(argv: Sequence[str], variables: Mapping[str, str], *, upload: bool) -> str:
    """A hash of everything that determines what the job does, 16 hex characters."""
    place = None if upload else [str(Path.cwd()), sys.executable]
    return fingerprint([list(argv), dict(variables), code_fingerprint(argv), place])


def _next_job(client: JobSubmissionClient, name: str) -> tuple[str, int, str | None]:
    """The job's id, its attempt, and the status of the previous attempt, `_RUNNING` if it runs."""
    attempts = {}
    with cluster_errors_explained(client):
        jobs = client.list_jobs()
    for details in jobs:
        match = re.fullmatch(rf"{re.escape(name)}-(\d+)", details.submission_id or "")
        if match:
            attempts[int(match.group(1))] = details.status
    if not attempts:
        return f"{name}-1", 1, None
    last = max(attempts)
    if not attempts[last].is_terminal():
        return f"{name}-{last}", last, _RUNNING
    return f"{name}-{last + 1}", last + 1, attempts[last].value.lower()


def _submit(
    client: JobSubmissionClient,
    job: str,
    entrypoint: str,
    *,
    runtime_env: dict[str, Any],
    metadata: dict[str, str],
) -> bool:
    """Submits a job; returns False if another command submitted the same job just now."""
    with cluster_errors_explained(client):
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env=runtime_env,
                metadata=metadata,
            )
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            raise MuvaError(
                f"The Ray cluster at {redact(client.get_address())} did not accept the job: "
                f"{redact(str(error))}"
            ) from error
    return True


def _warn_of_stale_variables(client: JobSubmissionClient) -> None:
    names, head = stale_variables(client.get_address())
    if names:
        say(
            f"The Ray head on this machine was started with other values of {', '.join(names)}, "
            "and jobs get those. To submit with the present ones, stop it first, which ends its "
            f"jobs: kill {head}"
        )


def _job_variables(cluster: ClusterSettings) -> dict[str, str]:
    """The job's environment variables, without secrets, because Ray stores them with the job."""
    local = {name: os.environ[name] for name in PASSED_VARIABLES if os.environ.get(name)}
    passed = {}
    if cluster.wait_for:
        local[WAIT_VARIABLE] = ",".join(f"{name}={n}" for name, n in cluster.wait_for.items())
    for name, value in {**local, **cluster.variables()}.items():
        if redact(value) == value:
            passed[name] = value
        else:
            say(f"{name} contains a secret and is not passed on: set it on the cluster.")
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


def _tracking_uri(argv: Sequence[str], variables: Mapping[str, str], *, upload: bool) -> str | None:
    """The address of the job's runs, or None if it depends on the cluster."""
    if uri := _option_value(argv, "--tracking-uri") or variables.get("MLFLOW_TRACKING_URI"):
        return uri
    home = _option_value(argv, "--home") or variables.get("MUVA_HOME") or "runs"
    return None if upload else f"sqlite:///{Path(home).expanduser().absolute() / 'mlflow.db'}"


def _option_value(argv: Sequence[str], option: str) -> str | None:
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _path_with(folder: Path) -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(folder), inherited]) if inherited else str(folder)
