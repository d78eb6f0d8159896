"""A job as plain data, and the MLflow runs that it wrote."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.jobs.submit import ATTEMPT, COMMAND, COMMIT, KEY, TRACKING

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


def job_data(details: JobDetails) -> dict[str, Any]:
    """A job as plain data. Times are ISO 8601 in UTC."""
    metadata = details.metadata or {}
    return {
        "job": details.submission_id,
        "status": details.status.value.lower(),
        "exit_code": details.driver_exit_code,
        "message": redact(details.message or ""),
        "started": _time(details.start_time),
        "ended": _time(details.end_time),
        "command": redact(metadata.get(COMMAND) or details.entrypoint),
        "attempt": metadata.get(ATTEMPT),
        "key": metadata.get(KEY),
        "commit": metadata.get(COMMIT),
        "tracking_uri": metadata.get(TRACKING),
    }


def runs_of_job(job: str, tracking_uri: str | None) -> tuple[list[dict[str, str]], str]:
    """The job's runs, and the reason if they cannot be listed."""
    if tracking_uri is None:
        return [], "MLflow's address is unknown here; give it with --tracking-uri"
    from tracking.source import JOB_TAG
    from tracking.tagged_runs import runs_with_tag
    from tracking.ui import run_link

    try:
        tagged_runs = runs_with_tag(tracking_uri, JOB_TAG, value=job)
    except MuvaError as error:
        return [], str(error)
    served = tracking_uri.startswith("http")
    runs = []
    for run in tagged_runs:
        location = f"{run.ref.run_id} at {redact(tracking_uri)}"
        link = run_link(tracking_uri, run.ref) if served else location
        runs.append({"name": run.name, "run_id": run.ref.run_id, "link": link})
    return runs, ""


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
