"""Runs in MLflow that can be opened again: a key names a run, so resumed work makes no second one.

The driver opens and closes every run through a `Tracker`; nothing else creates an experiment or,
with SQLite, the database. What another process of the same work is given is a `RunRef`, which
`log_metrics` takes. Only MLflow's client is used, not its module-wide active run: a process that
writes to two runs could not tell them apart.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import matplotlib.figure
import numpy as np
import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from muva.errors import MuvaError
from tracking.addresses import (
    artifact_location,
    attached_client,
    failures_explained,
    reached_client,
    uploads_explained,
)
from tracking.lineage import Context, UsedDataset, UsedModel, log_model
from tracking.privacy import people
from tracking.recordable import recordable_params, recordable_settings, recordable_tags
from tracking.redaction import redact
from tracking.source import left_behind, source_tags
from tracking.tagged_runs import RunRef, runs_with_tag, search_runs
from tracking.uris import absolute_uri

Status = Literal["FINISHED", "FAILED", "KILLED"]
Item = TypeVar("Item")

KEY_TAG = "muva.key"
REASON_TAG = "muva.reason"
ATTEMPT_TAG = "muva.attempt"
_PARENT_TAG = "mlflow.parentRunId"
_DESCRIPTION_TAG = "mlflow.note.content"

_PARAMS_A_BATCH = 100
_METRICS_A_BATCH = 1000
_FIGURE_DPI = 150
_FAILURES = (MuvaError, MlflowException, SQLAlchemyError, OSError)
"""What MLflow's silence comes as."""
_PICTURES = (".png", ".jpg", ".jpeg", ".html")
"""What a run's files with pictures of people end with; pages have them inside."""


class Tracker:
    """The runs of one experiment."""

    def __init__(self, tracking_uri: str, experiment: str, *, within_s: float = 0.0) -> None:
        """Creates the experiment (and a SQLite database) where there is none.

        Runs that a dead process of this machine left open are closed as failed.

        within_s: how long a server that is away may take to come back.

        Raises:
            MuvaError: the server does not answer, or the address is of a kind MLflow cannot use.
        """
        self.tracking_uri = absolute_uri(tracking_uri)
        self._client = reached_client(self.tracking_uri, within_s=within_s)
        self.experiment_id = self._experiment(experiment)
        self._close_abandoned()

    def open(
        self,
        *,
        name: str,
        key: str,
        parent: RunRef | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        description: str | None = None,
    ) -> Run:
        """The run with this key under this parent: the one that is there, or a new one.

        A child gets its parent's tags besides its own, because MLflow's filters look at each run
        alone; those of the namespaces `muva.` and `mlflow.` describe the parent alone and stay.
        Params may be nested sections; a value that differs from an earlier attempt's goes into a
        tag, because MLflow never changes a param.
        """
        if not re.fullmatch(r"[^'\"`\\]+", key):
            raise ValueError(f"A run's key has no quotes or backslashes: {key!r}")
        earlier = self._find(key, parent)
        attempt = 1 if earlier is None else int(earlier.data.tags.get(ATTEMPT_TAG, "1")) + 1
        own = {**source_tags(), **(tags or {}), KEY_TAG: key, ATTEMPT_TAG: str(attempt)}
        all_tags = recordable_tags({**self._inherited(parent), **own})
        if earlier is None:
            run_id = self._client.create_run(
                self.experiment_id, run_name=name, tags=all_tags
            ).info.run_id
        else:
            run_id = earlier.info.run_id
            self._client.update_run(run_id, status="RUNNING", name=name)
            if REASON_TAG in earlier.data.tags:
                self._client.delete_tag(run_id, REASON_TAG)
        run = Run(RunRef(self.tracking_uri, self.experiment_id, run_id), self._client)
        if earlier is not None:
            run.tags(all_tags)
        if params:
            run.params(params)
        if description is not None:
            run.describe(description)
        return run

    def _inherited(self, parent: RunRef | None) -> dict[str, str]:
        if parent is None:
            return {}
        tags = self._client.get_run(parent.run_id).data.tags
        shared = {
            name: value for name, value in tags.items() if not name.startswith(("muva.", "mlflow."))
        }
        return {**shared, _PARENT_TAG: parent.run_id}

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(
                    name, artifact_location=artifact_location(self.tracking_uri, name)
                )
            except MlflowException:
                # Another driver may have created it since; if not, the error is the real one.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise MuvaError(
                f"MLflow at {redact(self.tracking_uri)}: the experiment {name} was deleted, and "
                "its name is still taken. Restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or give the recipe another name."
            )
        return found.experiment_id

    def _find(self, key: str, parent: RunRef | None) -> MlflowRun | None:
        filters = [f"tags.`{KEY_TAG}` = '{key}'"]
        if parent is not None:
            filters.append(f"tags.`{_PARENT_TAG}` = '{parent.run_id}'")
        for run in self._search(" and ".join(filters)):
            if parent is not None or _PARENT_TAG not in run.data.tags:
                return run
        return None

    def _search(self, filters: str) -> Iterator[MlflowRun]:
        return search_runs(self._client, [self.experiment_id], filters)

    def _close_abandoned(self) -> None:
        for found in list(self._search("attributes.status = 'RUNNING'")):
            if left_behind(found.data.tags):
                ref = RunRef(self.tracking_uri, self.experiment_id, found.info.run_id)
                Run(ref, self._client).finish(
                    "FAILED", reason="Its process ended without closing it (killed, or power lost)."
                )


class Run:
    """An open run. As a context manager it is closed by how the block ends.

    End of the block: FINISHED; an exception: FAILED with its message; Ctrl-C: KILLED.
    """

    def __init__(self, ref: RunRef, client: MlflowClient) -> None:
        self.ref = ref
        self._client = client
        self._kept: list[Callable[[], None]] = []
        self._kept_figures: list[Metric] = []

    def metrics(
        self,
        values: Mapping[str, float],
        step: int | None = None,
        *,
        model_id: str | None = None,
        dataset: UsedDataset | None = None,
    ) -> None:
        """Writes metrics; see `log_metrics`. They are also those of the model on the data set."""
        _log_metrics(self._client, self.ref.run_id, values, step, model_id, dataset)

    def tell(self, values: Mapping[str, float], step: int | None) -> None:
        """Writes metrics while work goes on, which no silence of MLflow shall end.

        What cannot be written now is kept, and written with what comes later, or at the end.
        """
        self._keep(partial(self.metrics, dict(values), step))

    def show(self, path: str, picture: np.ndarray | Image.Image) -> None:
        """Writes a picture of people as `tell` writes metrics; see `picture`."""
        self._keep(partial(self.picture, path, picture))

    def _keep(self, write: Callable[[], None]) -> None:
        self._kept.append(write)
        try:
            reached_client(self.ref.tracking_uri)  # asks a server once, and does not wait for it
            self._write_kept()
        except _FAILURES as error:
            if len(self._kept) == 1:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logging.getLogger(__name__).warning(
                    "MLflow takes no metrics at the moment; they are kept and written later: %s",
                    redact(reason),
                )

    def _write_kept(self) -> None:
        while self._kept:
            self._kept[0]()
            del self._kept[0]

    def system_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Writes what a machine is doing, under the names that MLflow has a page for.

        They are kept as those of `tell` are, with the time at which they came.
        """
        now = int(time.time() * 1000)
        self._kept_figures += [
            Metric(f"system/{key}", value, now, step) for key, value in values.items()
        ]
        with contextlib.suppress(*_FAILURES):
            reached_client(self.ref.tracking_uri)
            self._write_kept_figures()

    def _write_kept_figures(self) -> None:
        while batch := self._kept_figures[:_METRICS_A_BATCH]:
            self._client.log_batch(self.ref.run_id, metrics=batch, synchronous=True)
            del self._kept_figures[: len(batch)]

    def used(self, *datasets: UsedDataset, context: Context) -> None:
        """Notes the data sets as the run's inputs; once, however often it is said."""
        self._client.log_inputs(self.ref.run_id, [one.as_input(context) for one in datasets])

    def model(self, model: UsedModel, *, made: bool) -> str:
        """Notes a model as the run's output (`made`) or input; the id of its logged model."""
        return log_model(
            self._client,
            model,
            experiment_id=self.ref.experiment_id,
            run_id=self.ref.run_id,
            made=made,
        )

    def tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, over earlier values."""
        for batch in _batches(list(recordable_tags(tags).items()), _PARAMS_A_BATCH):
            self._client.log_batch(
                self.ref.run_id, tags=[RunTag(key, value) for key, value in batch], synchronous=True
            )

    def params(self, params: Mapping[str, Any]) -> None:
        """Writes params, nested sections as `section.setting`.

        MLflow refuses a second value of a param: it becomes the tag `muva.changed.<param>`.
        """
        flat = recordable_params(params)
        earlier = self._client.get_run(self.ref.run_id).data.params
        new = [Param(key, value) for key, value in flat.items() if key not in earlier]
        for batch in _batches(new, _PARAMS_A_BATCH):
            self._client.log_batch(self.ref.run_id, params=batch, synchronous=True)
        self.tags(
            {
                f"muva.changed.{key}": value
                for key, value in flat.items()
                if earlier.get(key, value) != value
            }
        )

    def describe(self, markdown: str) -> None:
        """Sets the description that MLflow shows on top of the run."""
        self.tags({_DESCRIPTION_TAG: markdown})

    def text(self, path: str, content: str) -> None:
        """Writes a text file among the run's artifacts; one of that path is replaced."""
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_text(self.ref.run_id, redact(content), path)

    def yaml(self, path: str, value: Any) -> None:
        """Writes settings (mappings, pydantic sections) as a YAML file."""
        settings = recordable_settings(value)
        self.text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def figure(self, path: str, figure: matplotlib.figure.Figure) -> None:
        """Writes a matplotlib figure as a picture."""
        look = {"dpi": _FIGURE_DPI, "facecolor": "white"}
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_figure(self.ref.run_id, figure, path, save_kwargs=look)

    def picture(self, path: str, picture: np.ndarray | Image.Image) -> None:
        """Writes a picture of people, PIL or uint8 (H, W, 3), unless none shall be shown."""
        if people() == "hidden":
            return
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_image(self.ref.run_id, picture, artifact_file=path)

    def artifact(self, file: Path | str, folder: str | None = None) -> None:
        """Copies a file among the run's artifacts, into a folder of them if one is named."""
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_artifact(self.ref.run_id, str(file), folder)

    def finish(self, status: Status = "FINISHED", *, reason: str | None = None) -> None:
        """Closes the run, with the reason if it did not end well."""
        self._write_kept()
        self._write_kept_figures()
        if reason is not None:
            self.tags({REASON_TAG: reason})
        self._client.set_terminated(self.ref.run_id, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.finish()
            return
        try:
            self._fail(error)
        except _FAILURES as failure:
            # What stopped the work matters more than that MLflow could not be told.
            logging.getLogger(__name__).warning(
                "MLflow was not told of the failure: %s", redact(str(failure))
            )

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.finish("KILLED", reason="Interrupted with Ctrl-C; the same command goes on.")
        elif isinstance(error, MuvaError):
            self.finish("FAILED", reason=str(error))
        else:
            self.finish("FAILED", reason=f"{type(error).__name__}: {error}")
            self.text("failure.txt", "".join(traceback.format_exception(error)))


def log_metrics(ref: RunRef, values: Mapping[str, float], *, step: int | None = None) -> None:
    """Writes metrics to a run that a driver has opened.

    A value at a step that has one already is not written again: MLflow keeps every write, and a
    resumed training would draw each repeated epoch twice. Without a step (a final number) a value
    that differs is written, and the newest is the one shown.

    Raises:
        MuvaError: the SQLite database is gone; only a driver creates one.
    """
    _log_metrics(attached_client(ref.tracking_uri), ref.run_id, values, step)


def artifacts_of_run(tracking_uri: str | None, reference: str, *, tag: str) -> list[str]:
    """The values of a tag on the run of this id, or the newest of this name, and on its children.

    None where there is no such run.
    """
    runs = runs_with_tag(tracking_uri, KEY_TAG)
    named = [one for one in runs if reference in (one.ref.run_id, one.name)]
    if not named:
        return []
    run = named[-1]
    assert tracking_uri is not None
    with failures_explained(run.ref.tracking_uri):
        client = reached_client(run.ref.tracking_uri)
        found, waiting = [], [client.get_run(run.ref.run_id)]
        while waiting:
            one = waiting.pop()
            if tag in one.data.tags:
                found.append(one.data.tags[tag])
            below = f"tags.`{_PARENT_TAG}` = '{one.info.run_id}'"
            waiting += search_runs(client, [one.info.experiment_id], below)
        return found


def has_pictures(ref: RunRef) -> bool:
    """Whether there is a picture among a run's artifacts."""
    client = attached_client(ref.tracking_uri)
    waiting: list[str | None] = [None]
    while waiting:
        for file in client.list_artifacts(ref.run_id, waiting.pop()):
            if file.is_dir:
                waiting.append(file.path)
            elif Path(file.path).suffix in _PICTURES:
                return True
    return False


def _log_metrics(
    client: MlflowClient,
    run_id: str,
    values: Mapping[str, float],
    step: int | None,
    model_id: str | None = None,
    dataset: UsedDataset | None = None,
) -> None:
    metrics = [
        metric
        for key, value in values.items()
        if (metric := _unwritten(client, run_id, key, float(value), step))
    ]
    if model_id is not None or dataset is not None:
        metrics = [
            Metric(
                one.key,
                one.value,
                one.timestamp,
                one.step,
                model_id=model_id,
                dataset_name=dataset.name if dataset else None,
                dataset_digest=dataset.fingerprint if dataset else None,
            )
            for one in metrics
        ]
    for batch in _batches(metrics, _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=batch, synchronous=True)


def _unwritten(
    client: MlflowClient, run_id: str, key: str, value: float, step: int | None
) -> Metric | None:
    history = client.get_metric_history(run_id, key)
    now = int(time.time() * 1000)
    if step is not None:
        written = any(point.step == step for point in history)
        return None if written else Metric(key, value, now, step)
    if not history:
        return Metric(key, value, now, 0)
    shown = max(history, key=lambda point: (point.step, point.timestamp))
    if shown.value == value or (math.isnan(shown.value) and math.isnan(value)):
        return None
    # Of two values in one millisecond MLflow shows the larger, not the later.
    return Metric(key, value, max(now, shown.timestamp + 1), shown.step)


def _batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
