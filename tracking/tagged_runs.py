"""Finding runs by their tags, without importing MLflow where that is possible.

Importing MLflow's client takes two seconds and opening a database through it another, for what is
one SQL query. A SQLite file whose schema is one of `_SCHEMAS` is therefore read directly, and never
written to. Everything else is left to MLflow's client: servers, other databases, other schemas, and
files that cannot be read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.uris import absolute_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

KEY_TAG = "muva.key"
"""Identifies the work of a run, so that resumed work reuses it."""
LOGGED_TAG = "muva.logged"
"""Set last of all, on a run in which everything of a finished step has been logged."""
PARENT_TAG = "mlflow.parentRunId"

_SCHEMAS = frozenset({"dc11669786a5", "f4a9b2c7d1e6"})
"""Revisions of MLflow's schema on which the query below was compared with the client's results: of
MLflow 3.17 and 3.18. With a newer schema the client is used, which is slower, until the revision is
added here: a test compares the two."""

_WORKSPACES = "MLFLOW_ENABLE_WORKSPACES"
"""If this is set, MLflow shows only the runs of one workspace."""

_QUERY = """
    SELECT COALESCE(NULLIF(runs.name, ''), names.value, ''), wanted.value, runs.status,
           runs.experiment_id, runs.run_uuid, tags.key, tags.value
    FROM tags AS wanted
    JOIN runs ON runs.run_uuid = wanted.run_uuid
    JOIN experiments ON experiments.experiment_id = runs.experiment_id
    JOIN tags ON tags.run_uuid = wanted.run_uuid
    LEFT JOIN tags AS names ON names.run_uuid = runs.run_uuid AND names.key = 'mlflow.runName'
    WHERE wanted.key = :tag AND wanted.value IS NOT NULL
          AND (:value IS NULL OR wanted.value = :value)
          AND (:experiment IS NULL OR experiments.name = :experiment)
          AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
    ORDER BY runs.start_time IS NULL, runs.start_time, runs.run_uuid
"""

_RUNS_PER_PAGE = 1000


@dataclass(frozen=True)
class RunRef:
    """A picklable reference to a run, sufficient to write to it from another process."""

    tracking_uri: str = field(repr=False)  # may contain the password of a database
    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class TaggedRun:
    """A run found by a tag."""

    name: str
    value: str
    """The value of the tag."""
    status: str
    """MLflow's: RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    ref: RunRef
    tags: Mapping[str, str] = field(repr=False)
    """All of its tags."""


def runs_with_tag(
    tracking_uri: str | None,
    tag: str,
    *,
    value: str | None = None,
    experiment: str | None = None,
) -> list[TaggedRun]:
    """The runs that have a tag, the oldest first.

    Empty if nothing has been tracked yet.

    Args:
        tag: its name.
        value: only runs whose tag has this value.
        experiment: only runs of the experiment with this name.
    """
    if tracking_uri is None:
        return []
    uri = absolute_uri(tracking_uri)
    file = sqlite_file(uri)
    if file is not None:
        if not file.exists():
            return []
        found = _read_directly(file, uri, tag, value, experiment)
        if found is not None:
            return found
    return _ask_client(uri, tag, value, experiment)


def has_logged(tracking_uri: str, experiment: str, key: str, *, parent: RunRef | None) -> bool:
    """Whether a run with this key under this parent finished after `Run.mark_logged`."""
    return any(
        run.status == "FINISHED"
        and run.tags.get(LOGGED_TAG) == "1"
        and run.tags.get(PARENT_TAG) == (parent.run_id if parent else None)
        for run in runs_with_tag(tracking_uri, KEY_TAG, value=key, experiment=experiment)
    )


def _read_directly(
    file: Path, uri: str, tag: str, value: str | None, experiment: str | None
) -> list[TaggedRun] | None:
    """The runs as the file of the database has them; None if only MLflow's client can tell."""
    if _WORKSPACES in os.environ:
        return None
    wanted = {"tag": tag, "value": value, "experiment": experiment}
    # In a folder that cannot be written to, SQLite cannot make the files that it needs beside a
    # database in WAL mode, and reads it only if it is said not to change.
    modes = ["mode=ro"] if os.access(file.parent, os.W_OK) else ["mode=ro", "mode=ro&immutable=1"]
    for mode in modes:
        try:
            with closing(sqlite3.connect(f"{file.as_uri()}?{mode}", uri=True)) as database:
                schema = database.execute("SELECT version_num FROM alembic_version").fetchall()
                if {revision for (revision,) in schema} - _SCHEMAS or not schema:
                    return None
                rows = database.execute(_QUERY, wanted).fetchall()
                break
        except sqlite3.Error:  # locked, damaged or something else: the client explains it
            continue
    else:
        return None
    runs: dict[str, TaggedRun] = {}
    tags: dict[str, dict[str, str]] = {}
    for name, found, status, experiment_id, run_id, key, text in rows:
        if run_id not in runs:
            ref = RunRef(uri, str(experiment_id), run_id)
            tags[run_id] = {}
            runs[run_id] = TaggedRun(
                name=name, value=found, status=status, ref=ref, tags=tags[run_id]
            )
        tags[run_id][key] = text
    return list(runs.values())


def _ask_client(uri: str, tag: str, value: str | None, experiment: str | None) -> list[TaggedRun]:
    from tracking.connection import failures_explained, reached_client

    with failures_explained(uri):
        client = reached_client(uri, writes=False)
        experiments = [
            found.experiment_id
            for found in client.search_experiments()
            if experiment in (None, found.name)
        ]
        if not experiments:
            return []
        wanted = f"tags.`{tag}` LIKE '%'" if value is None else f"tags.`{tag}` = '{value}'"
        return [
            TaggedRun(
                name=run.info.run_name or "",
                value=run.data.tags[tag],
                status=run.info.status,
                ref=RunRef(uri, run.info.experiment_id, run.info.run_id),
                tags=run.data.tags,
            )
            for run in search_runs(client, experiments, wanted)
        ]


def search_runs(client: MlflowClient, experiments: list[str], filters: str) -> Iterator[MlflowRun]:
    """All runs that match MLflow's filter, the oldest first, however many pages they fill."""
    page = None
    while page is None or page.token:
        page = client.search_runs(
            experiments,
            filter_string=filters,
            max_results=_RUNS_PER_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=page.token if page is not None else None,
        )
        yield from page
