"""The source of a run: git commit, command, Ray job and process."""

from __future__ import annotations

import functools
import getpass
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from tracking.redaction import redact

COMMIT_VARIABLE = "MUVA_COMMIT"
"""The commit of code submitted to a cluster without its repository; `-dirty` if modified."""
JOB_VARIABLE = "MUVA_JOB"
"""The submission id of the Ray job that the process runs in."""
JOB_LINK_VARIABLE = "MUVA_JOB_LINK"
"""The URL of the job's page in Ray's dashboard, as seen from the machine that submitted it."""
JOB_TAG = "muva.ray_job"
JOB_LINK_TAG = "muva.ray_job_link"

_CODE = Path(__file__).resolve().parent.parent
_HOST_TAG = "muva.host"
_PROCESS_TAG = "muva.process"
_NAMESPACE_TAG = "muva.process_namespace"


def source_tags() -> dict[str, str]:
    """Tags with the source of the runs of this process."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": command(),
        _HOST_TAG: socket.gethostname(),
        _PROCESS_TAG: str(os.getpid()),
        _NAMESPACE_TAG: _pid_namespace(),
    }
    revision = commit()
    if revision:
        tags["mlflow.source.git.commit"] = revision.removesuffix("-dirty")
        tags["muva.uncommitted_changes"] = str(revision.endswith("-dirty")).lower()
    if job := os.environ.get(JOB_VARIABLE):
        tags["mlflow.source.type"] = "JOB"
        tags[JOB_TAG] = job
        if link := os.environ.get(JOB_LINK_VARIABLE):
            tags[JOB_LINK_TAG] = link
    return tags


def job_in_markdown() -> str | None:
    """A Markdown link to the Ray job that the process runs in; None outside of a job."""
    job, link = os.environ.get(JOB_VARIABLE), os.environ.get(JOB_LINK_VARIABLE)
    return f"[{job}]({link})" if job and link else job


def command() -> str:
    """The command line of this process, without secrets."""
    program, *arguments = sys.argv
    verb = ["muva"] if Path(program).name in {"muva", "cli.py"} else ["python", program]
    return redact(shlex.join([*verb, *arguments]))


@functools.cache
def commit() -> str | None:
    """The git commit of the running code, with `-dirty` if files were changed; None if unknown.

    The repository's root must be the code's own folder: a package installed inside another
    project's folder does not belong to that project's commit.
    """
    if sent := os.environ.get(COMMIT_VARIABLE):
        return sent
    if not (_CODE / ".git").exists():
        return None
    revision = _git("rev-parse", "HEAD")
    if revision is None:
        return None
    return f"{revision}-dirty" if _git("status", "--porcelain") else revision


def opened_by_dead_process(tags: dict[str, str]) -> bool:
    """Whether the run with these tags was opened on this machine by a process that has ended.

    Containers may have the host's name, but number their processes on their own: nothing is known
    about those of another namespace.
    """
    process = tags.get(_PROCESS_TAG, "")
    if tags.get(_HOST_TAG) != socket.gethostname() or not process.isdigit():
        return False
    if tags.get(_NAMESPACE_TAG, _pid_namespace()) != _pid_namespace():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _pid_namespace() -> str:
    """The namespace in which process ids are unique (pid_namespaces(7)); empty if unknown."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_CODE, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        return str(os.getuid())
