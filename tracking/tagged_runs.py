"""Which runs have a tag: asked of MLflow without importing it where that is possible.

Importing MLflow's client takes two seconds and opening a database through it another, for what is
one SQL query. A SQLite file whose schema is one of `_SCHEMAS` is therefore read directly, and never
written to. MLflow's client answers for everything else: servers, other databases, other schemas,
and files that cannot be read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.uris import absolute_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_SCHEMAS = frozenset({"dc11669786a5"})
"""Revisions of MLflow's schema on which the query below was compared with the client's answer; the
one of MLflow 3.17. A newer one costs time until it is added here: a test compares the two."""

_WORKSPACES = "MLFLOW_ENABLE_WORKSPACES"
"""Where it is set, MLflow shows the runs of one workspace alone."""

_QUERY = """
    SELECT COALESCE(NULLIF(runs.name, ''), names.value, ''),
           tags.value, runs.experiment_id, runs.run_uuid
    FROM tags
    JOIN runs ON runs.run_uuid = tags.run_uuid
    JOIN experiments ON experiments.experiment_id = runs.experiment_id
    LEFT JOIN tags AS names ON names.run_uuid = runs.run_uuid AND names.key = 'mlflow.runName'
    WHERE tags.key = :tag AND tags.value IS NOT NULL AND (:value IS NULL OR tags.value = :value)
          AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
    ORDER BY runs.start_time IS NULL, runs.start_time, runs.run_uuid
"""

_RUNS_A_PAGE = 1000


@dataclass(frozen=True)
class RunRef:
    """Where a run is: small, picklable, enough to write to it from another process."""

    tracking_uri: str = field(repr=False)  # may hold a database's password
    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class TaggedRun:
    """A run that has a certain tag."""

    name: str
    value: str
    """Of the tag."""
    ref: RunRef


def runs_with_tag(
    tracking_uri: str | None, tag: str, *, value: str | None = None
) -> list[TaggedRun]:
    """The runs of all experiments that have the tag, with this value if one is given.

    The oldest run is first. None where nothing has been tracked yet.
    """
    if tracking_uri is None:
        return []
    uri = absolute_uri(tracking_uri)
    file = sqlite_file(uri)
    if file is not None:
        if not file.exists():
            return []
        found = _read_directly(file, uri, tag, value)
        if found is not None:
            return found
    return _ask_client(uri, tag, value)


def _read_directly(file: Path, uri: str, tag: str, value: str | None) -> list[TaggedRun] | None:
    """The answer of the database's file; None where only MLflow's client should be trusted."""
    if _WORKSPACES in os.environ:
        return None
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            schema = database.execute("SELECT version_num FROM alembic_version").fetchall()
            if {revision for (revision,) in schema} - _SCHEMAS or not schema:
                return None
            rows = database.execute(_QUERY, {"tag": tag, "value": value}).fetchall()
    except sqlite3.Error:  # locked, damaged or of another kind: the client says what is wrong
        return None
    return [
        TaggedRun(name=name, value=found, ref=RunRef(uri, str(experiment), run_id))
        for name, found, experiment, run_id in rows
    ]


def _ask_client(uri: str, tag: str, value: str | None) -> list[TaggedRun]:
    from tracking.addresses import failures_explained, reached_client

    with failures_explained(uri):
        client = reached_client(uri)
        experiments = [found.experiment_id for found in client.search_experiments()]
        wanted = f"tags.`{tag}` LIKE '%'" if value is None else f"tags.`{tag}` = '{value}'"
        return [
            TaggedRun(
                name=run.info.run_name or "",
                value=run.data.tags[tag],
                ref=RunRef(uri, run.info.experiment_id, run.info.run_id),
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
            max_results=_RUNS_A_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=page.token if page is not None else None,
        )
        yield from page
