"""`muva submit`: any verb as a job on a Ray cluster, followed until it ends.

Ray is imported inside the functions: it decides at its first import whether it uses tokens, and
what calls these functions may have to say so first.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muva.errors import MuvaError
from tracking.redaction import redact
from tracking.source import COMMIT_VARIABLE, JOB_VARIABLE, commit
from workflows.cli import VERBS
from workflows.follow import follow_job, how_to_return
from workflows.progress import console
from workflows.ray_head import AUTH_MODE, TOKEN_PLACES, authorisation, find_head, start_head
from workflows.session import json_option, print_result
from workflows.shipping import code_folder, ship

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
PASSED_ON = ("MUVA_HOME", "MUVA_STORE", "MLFLOW_TRACKING_URI", "MUVA_PEOPLE")
"""Variables that mean the same to the job as they do here."""
_CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""What tells of every request and upload."""


@click.command("submit", context_settings={"ignore_unknown_options": True})
@click.option(
    "--address", help="The cluster's dashboard, http://HOST:PORT. [RAY_ADDRESS, or local]"
)
@click.option("--follow/--detach", default=True, show_default=True, help="Stay until the job ends.")
@click.option(
    "--upload/--in-place",
    default=None,
    help="Send this code along, or run it where it is. [--upload with an address]",
)
@click.option("--attach", metavar="JOB", help="Follow a job that was submitted before.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def submit_verb(
    address: str | None,
    follow: bool,
    upload: bool | None,
    attach: str | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run a verb as a job on a Ray cluster; starts one here when there is none.

    The exit code is the job's. On a cluster of other machines, name stores and MLflow by addresses
    that they can reach: s3://bucket/prefix, http://host:port.

    \b
    muva submit -- run demo
    muva submit --detach --json -- run demo
    muva submit --address http://head:8265 -- train --sources a,b --store s3://people/store
    muva submit --attach muva-run-1a2b3c4d
    """
    if as_json and (follow or attach is not None):
        raise click.UsageError(
            "--json tells of a job that is left alone, with --detach. What a followed job prints "
            "is its verb's: give --json to the verb, after --."
        )
    if attach is not None:
        if command:
            raise click.UsageError("--attach follows a job that exists: it takes no verb.")
        raise click.exceptions.Exit(follow_job(jobs_client(address), attach))
    if not command or command[0] not in VERBS:
        said = f"{command[0]} is no verb" if command else "Which verb?"
        raise click.UsageError(f"{said}: expected one of {', '.join(VERBS)} after --")
    if follow:
        raise click.exceptions.Exit(submit_and_follow(command, address=address, upload=upload))
    client, job = submit_job(command, address=address, upload=upload)
    told = {"job": job, "address": redact(client.get_address())}
    print_result(told, as_json=as_json, text=how_to_return(client, job))


def submit_and_follow(
    argv: Sequence[str], *, address: str | None = None, upload: bool | None = None
) -> int:
    """Runs `muva ARGV` as a job, prints what it says, and returns its exit code.

    Arguments and errors are those of `submit_job`.
    """
    return follow_job(*submit_job(argv, address=address, upload=upload))


def submit_job(
    argv: Sequence[str], *, address: str | None = None, upload: bool | None = None
) -> tuple[JobSubmissionClient, str]:
    """Runs `muva ARGV` as a job; gives the cluster's client and the job's id.

    address: a dashboard's URL; None takes `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS`, else a head on
    this machine, which is started if need be.
    upload: the code is copied to the cluster, and the job runs in that copy; otherwise the job runs
    in this folder with this environment, which must be the cluster's machine. None uploads when an
    address is given.

    Raises:
        MuvaError: the cluster does not answer or refuses, or the command holds a secret.
    """
    typed = shlex.join(argv)
    if redact(typed) != typed:
        raise MuvaError(
            f"Not submitted: `muva {redact(typed)}` holds what looks like a secret, and a job's "
            "command is shown to everyone who sees the cluster. Put it into the cluster's "
            "environment instead."
        )
    elsewhere = bool(address or address_of_environment())
    client = jobs_client(address)
    job = f"muva-{argv[0]}-{secrets.token_hex(4)}"
    environment = _environment(job)
    if elsewhere if upload is None else upload:
        with tempfile.TemporaryDirectory(prefix="muva-job-") as folder:
            shipped = ship(argv, into=Path(folder))
            command = f"python -m workflows.cli {typed}"
            _submit(client, job, command, {"working_dir": str(shipped), "env_vars": environment})
    else:
        here = shlex.quote(str(Path.cwd()))
        command = f"cd {here} && exec {shlex.quote(sys.executable)} -m workflows.cli {typed}"
        environment["PYTHONPATH"] = _path_with(code_folder())
        _submit(client, job, command, {"env_vars": environment})
    console.print(f"Job {job} at {redact(client.get_address())}", soft_wrap=True)
    return client, job


def jobs_client(address: str | None) -> JobSubmissionClient:
    """The client of a cluster's Jobs API, with the token; see `submit_and_follow` for the address.

    Raises:
        MuvaError: nothing answers there, or it refuses the token.
    """
    import requests

    if address is None:
        # As Ray understands its own variables: HOST:PORT is not the dashboard's there.
        url = address_of_environment() or find_head() or _started_head()
    else:
        url = address if "://" in address else f"http://{address}"
    headers = authorisation()
    with _ray_environment(token=bool(headers)):
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
        try:
            return JobSubmissionClient(url, headers=headers)
        except AuthenticationError as error:
            complaint = "refuses the token" if headers else "asks for a token, and there is none"
            raise MuvaError(
                f"The Ray cluster at {redact(url)} {complaint}: expected the cluster's own "
                f"{TOKEN_PLACES}."
            ) from error
        except (OSError, RuntimeError, ValueError, requests.RequestException) as error:
            raise MuvaError(
                f"No Ray cluster takes jobs at {redact(url)}: {redact(str(error))} Expected its "
                "dashboard's address, http://HOST:8265 unless it was changed. Start one on this "
                "machine with `muva submit` without --address."
            ) from error


def _started_head() -> str:
    console.print("No Ray cluster on this machine: starting one …")
    head = start_head()
    console.print(
        f"Ray runs at {head.address}, guarded by your Ray token, and goes on after this command. "
        f"Stop it with: kill {head.pid}",
        soft_wrap=True,
    )
    return head.address


def _submit(
    client: JobSubmissionClient, job: str, command: str, runtime_env: dict[str, Any]
) -> None:
    try:
        client.submit_job(entrypoint=command, submission_id=job, runtime_env=runtime_env)
    except RuntimeError as error:
        raise MuvaError(
            f"The Ray cluster at {redact(client.get_address())} did not take the job: "
            f"{redact(str(error))}"
        ) from error


def _environment(job: str) -> dict[str, str]:
    """The job's variables. They are kept with the job, so one with a secret stays here."""
    variables = {JOB_VARIABLE: job, "PYTHONUNBUFFERED": "1"}
    if revision := commit():
        variables[COMMIT_VARIABLE] = revision
    for name in PASSED_ON:
        if value := os.environ.get(name):
            if redact(value) == value:
                variables[name] = value
            else:
                console.print(f"{name} holds a secret and stays here: set it on the cluster.")
    return variables


def address_of_environment() -> str | None:
    """The cluster that Ray's own variables name."""
    return next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)


def _path_with(folder: Path) -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(folder), inherited]) if inherited else str(folder)


@contextmanager
def _ray_environment(*, token: bool) -> Iterator[None]:
    """What Ray reads of the environment while a client is made; afterwards it is as it was.

    Ray lets its address variables win over the address that it is given. Whether it uses tokens it
    decides when it is first imported, or when it starts a cluster: a variable that stayed would
    tell a cluster that is started later something else than the process that starts it.
    """
    kept = {name: os.environ.get(name) for name in (*ADDRESS_VARIABLES, AUTH_MODE)}
    for name in ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    if token:
        os.environ.setdefault(AUTH_MODE, "token")
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
