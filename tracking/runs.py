"""MLflow runs that can be reopened: a run is identified by a key, so resumed work reuses its run.

The driver opens and closes every run through a `Tracker`; nothing else creates an experiment or a
SQLite database. Other processes get a `RunRef`, which `log_metrics` accepts. Only `MlflowClient` is
used, not MLflow's global active run, because a process may write to two runs at the same time.
"""

from __future__ import annotations

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
from tracking.capabilities import has_logged_models, warn_of_missing_models
from tracking.connection import (
    attached_client,
    failures_explained,
    reached_client,
    uploads_explained,
)
from tracking.database import artifact_location
from tracking.lineage import Context, UsedDataset, UsedModel, log_model
from tracking.names import MODEL_TAG
from tracking.privacy import people
from tracking.recordable import recordable_params, recordable_settings, recordable_tags
from tracking.redaction import first_line, redact
from tracking.source import opened_by_dead_process, source_tags
from tracking.tagged_runs import (
    KEY_TAG,
    LOGGED_TAG,
    PARENT_TAG,
    RunRef,
    runs_with_tag,
    search_runs,
)
from tracking.uris import absolute_uri

Status = Literal["FINISHED", "FAILED", "KILLED"]
Item = TypeVar("Item")

REASON_TAG = "muva.reason"
ATTEMPT_TAG = "muva.attempt"
_DESCRIPTION_TAG = "mlflow.note.content"

_PARAMS_A_BATCH = 100
_METRICS_A_BATCH = 1000
_FIGURE_DPI = 150
_PAUSE_PER_ATTEMPT = 9.0
_FAILURES = (MuvaError, MlflowException, SQLAlchemyError, OSError)
"""The exceptions raised when MLflow is unavailable."""
_PICTURES = (".png", ".jpg", ".jpeg", ".html")
"""Suffixes of artifacts that may contain pictures of people; HTML pages embed them."""


class Tracker:
    """The runs of one experiment."""

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        *,
        within_s: float = 0.0,
        home: Path | None = None,
    ) -> None:
        """Open the experiment; create it, and a SQLite database, if it does not exist.

        Runs left open by dead processes on this machine are closed as failed.

        Args:
            within_s: how long to wait for a server that does not respond.
            home: the folder for the files of runs in a database that is not a file of its own.

        Raises:
            MuvaError: the server does not respond, or MLflow does not support the tracking URI.
        """
        self.tracking_uri = absolute_uri(tracking_uri)
        self._client = reached_client(self.tracking_uri, within_s=within_s)
        location = artifact_location(self.tracking_uri, experiment, home=home)
        self.experiment_id = self._experiment(experiment, location)
        warn_of_missing_models(self._client)
        self._close_orphaned()

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
        """Open the run with this key under this parent; create it if it does not exist.

        A child inherits its parent's tags, because MLflow's filters look only at a run itself. Tags
        with the prefixes `muva.` and `mlflow.` describe only the parent and are not inherited.
        Params may be nested sections. A value that differs from an earlier attempt's becomes a tag,
        because params in MLflow cannot be changed.
        """
        if not re.fullmatch(r"[^'\"`\\]+", key):
            raise ValueError(f"The key of a run must not contain quotes or backslashes: {key!r}")
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
        is_logged = earlier is not None and LOGGED_TAG in earlier.data.tags
        ref = RunRef(self.tracking_uri, self.experiment_id, run_id)
        run = Run(ref, self._client, is_logged=is_logged)
        if earlier is not None:
            run.set_tags(all_tags)
        if params:
            run.log_params(params)
        if description is not None:
            run.set_description(description)
        return run

    def _inherited(self, parent: RunRef | None) -> dict[str, str]:
        if parent is None:
            return {}
        tags = self._client.get_run(parent.run_id).data.tags
        shared = {
            name: value for name, value in tags.items() if not name.startswith(("muva.", "mlflow."))
        }
        return {**shared, PARENT_TAG: parent.run_id}

    def _experiment(self, name: str, location: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except MlflowException:
                # Another driver may have created it in the meantime; if not, raise the error.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise MuvaError(
                f"MLflow at {redact(self.tracking_uri)}: the experiment {name} was deleted, but "
                "its name is still in use. Restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or give the recipe another name."
            )
        return found.experiment_id

    def _find(self, key: str, parent: RunRef | None) -> MlflowRun | None:
        filters = [f"tags.`{KEY_TAG}` = '{key}'"]
        if parent is not None:
            filters.append(f"tags.`{PARENT_TAG}` = '{parent.run_id}'")
        for run in self._search(" and ".join(filters)):
            if parent is not None or PARENT_TAG not in run.data.tags:
                return run
        return None

    def _search(self, filters: str) -> Iterator[MlflowRun]:
        return search_runs(self._client, [self.experiment_id], filters)

    def _close_orphaned(self) -> None:
        for found in list(self._search("attributes.status = 'RUNNING'")):
            if opened_by_dead_process(found.data.tags):
                ref = RunRef(self.tracking_uri, self.experiment_id, found.info.run_id)
                Run(ref, self._client).finish(
                    "FAILED",
                    reason="The process ended without closing the run (killed, or lost power).",
                )


class Run:
    """An open run. As a context manager, it is closed at the end of the block.

    Its status is then FINISHED, after an exception FAILED with the message, after Ctrl-C KILLED.
    """

    def __init__(self, ref: RunRef, client: MlflowClient, *, is_logged: bool = False) -> None:
        """`is_logged`: whether an earlier attempt has called `mark_logged`."""
        self.ref = ref
        self.is_logged = is_logged
        self._client = client
        self._retry_at = 0.0
        self._buffered: list[Callable[[], None]] = []
        self._buffered_system_metrics: list[Metric] = []

    def log_metrics(
        self,
        values: Mapping[str, float],
        step: int | None = None,
        *,
        model_id: str | None = None,
        dataset: UsedDataset | None = None,
    ) -> None:
        """Log metrics, optionally of a model on a data set; see the function `log_metrics`."""
        if dataset is not None and not has_logged_models(self._client):
            dataset = None  # such a server does not link metrics either
        _log_metrics(self._client, self.ref.run_id, values, step, model_id, dataset)

    def log_metrics_buffered(self, values: Mapping[str, float], step: int | None) -> None:
        """Log metrics without failing if MLflow is unavailable.

        Metrics that cannot be written are buffered, and written with later ones or at the end.
        """
        self._buffer(partial(self.log_metrics, dict(values), step))

    def log_image_buffered(self, path: str, picture: np.ndarray | Image.Image) -> None:
        """Log a picture of people, buffered like the metrics of `log_metrics_buffered`."""
        self._buffer(partial(self.log_image, path, picture))

    def _buffer(self, write: Callable[[], None]) -> None:
        self._buffered.append(write)
        error = self._attempt(self._flush)
        if error is not None and len(self._buffered) == 1:
            logging.getLogger(__name__).warning(
                "MLflow is unavailable; metrics are buffered and written later: %s",
                first_line(error),
            )

    def _attempt(self, flush: Callable[[], None]) -> Exception | None:
        """Write what is buffered, unless an attempt has just failed; returns why it failed.

        A failing attempt can take minutes, in which the work waits for it: attempts are at most a
        tenth of the time.
        """
        began = time.monotonic()
        if began < self._retry_at:
            return None
        try:
            reached_client(self.ref.tracking_uri)  # checks the server once, without waiting for it
            flush()
        except _FAILURES as error:
            ended = time.monotonic()
            self._retry_at = ended + _PAUSE_PER_ATTEMPT * (ended - began)
            return error
        return None

    def _flush(self) -> None:
        while self._buffered:
            self._buffered[0]()
            del self._buffered[0]

    def log_system_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log system metrics under the names that MLflow's page for them expects.

        They are buffered like those of `log_metrics_buffered`, with their timestamps.
        """
        now = int(time.time() * 1000)
        self._buffered_system_metrics += [
            Metric(f"system/{key}", value, now, step) for key, value in values.items()
        ]
        self._attempt(self._flush_system_metrics)

    def _flush_system_metrics(self) -> None:
        while batch := self._buffered_system_metrics[:_METRICS_A_BATCH]:
            self._client.log_batch(self.ref.run_id, metrics=batch, synchronous=True)
            del self._buffered_system_metrics[: len(batch)]

    def log_datasets(self, *datasets: UsedDataset, context: Context) -> None:
        """Log data sets as inputs of the run; repeated calls have no effect."""
        self._client.log_inputs(self.ref.run_id, [one.as_input(context) for one in datasets])

    def log_model(self, model: UsedModel, *, made: bool) -> str | None:
        """Log a model as an output (`made`) or input; returns the id of its logged model.

        None where the server has no logged models: only a tag names the model then.
        """
        if not has_logged_models(self._client):
            self.set_tags({MODEL_TAG: model.address})
            return None
        return log_model(
            self._client,
            model,
            experiment_id=self.ref.experiment_id,
            run_id=self.ref.run_id,
            made=made,
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing earlier values."""
        for batch in _batches(list(recordable_tags(tags).items()), _PARAMS_A_BATCH):
            self._client.log_batch(
                self.ref.run_id, tags=[RunTag(key, value) for key, value in batch], synchronous=True
            )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params; nested sections become `section.setting`.

        MLflow rejects a second value of a param, which becomes the tag `muva.changed.<param>`.
        """
        flat = recordable_params(params)
        earlier = self._client.get_run(self.ref.run_id).data.params
        new = [Param(key, value) for key, value in flat.items() if key not in earlier]
        for batch in _batches(new, _PARAMS_A_BATCH):
            self._client.log_batch(self.ref.run_id, params=batch, synchronous=True)
        self.set_tags(
            {
                f"muva.changed.{key}": value
                for key, value in flat.items()
                if earlier.get(key, value) != value
            }
        )

    def set_description(self, markdown: str) -> None:
        """Set the description that MLflow shows at the top of the run."""
        self.set_tags({_DESCRIPTION_TAG: markdown})

    def log_text(self, path: str, content: str) -> None:
        """Log a text file as an artifact of the run, replacing a file with the same path."""
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_text(self.ref.run_id, redact(content), path)

    def log_yaml(self, path: str, value: Any) -> None:
        """Log settings (mappings, pydantic models) as a YAML file."""
        settings = recordable_settings(value)
        self.log_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def log_figure(self, path: str, figure: matplotlib.figure.Figure) -> None:
        """Log a matplotlib figure as an image."""
        look = {"dpi": _FIGURE_DPI, "facecolor": "white"}
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_figure(self.ref.run_id, figure, path, save_kwargs=look)

    def log_image(self, path: str, picture: np.ndarray | Image.Image) -> None:
        """Log a picture of people, PIL or uint8 (H, W, 3), unless `MUVA_PEOPLE` is hidden."""
        if people() == "hidden":
            return
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_image(self.ref.run_id, picture, artifact_file=path)

    def log_artifact(self, file: Path | str, folder: str | None = None) -> None:
        """Log a file as an artifact of the run, optionally in a folder."""
        with uploads_explained(self.ref.tracking_uri):
            self._client.log_artifact(self.ref.run_id, str(file), folder)

    def mark_logged(self) -> None:
        """Record that everything of a finished step has been logged: see `has_logged`."""
        self._flush()
        self.set_tags({LOGGED_TAG: "1"})

    def finish(self, status: Status = "FINISHED", *, reason: str | None = None) -> None:
        """Close the run, with a reason if it was not successful."""
        self._flush()
        self._flush_system_metrics()
        if reason is not None:
            self.set_tags({REASON_TAG: reason})
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
            # The original error matters more than failing to log it.
            logging.getLogger(__name__).warning(
                "The failure could not be logged to MLflow: %s", first_line(failure)
            )

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.finish(
                "KILLED", reason="Interrupted with Ctrl-C; run the same command again to resume."
            )
        elif isinstance(error, MuvaError):
            self.finish("FAILED", reason=str(error))
        else:
            self.finish("FAILED", reason=f"{type(error).__name__}: {error}")
            self.log_text("failure.txt", "".join(traceback.format_exception(error)))


def log_metrics(ref: RunRef, values: Mapping[str, float], *, step: int | None = None) -> None:
    """Log metrics to a run that the driver has opened.

    A metric that already has a value at this step is skipped: MLflow keeps every write, so a
    resumed training would plot each repeated epoch twice. Without a step, for final results, a
    value that differs is written, and MLflow shows the latest.

    Raises:
        MuvaError: the SQLite database does not exist; only the driver creates it.
    """
    _log_metrics(attached_client(ref.tracking_uri), ref.run_id, values, step)


def artifacts_of_run(tracking_uri: str | None, reference: str, *, tag: str) -> list[str]:
    """The values of a tag on a run, given by id or name, and on its descendants.

    Of several runs with this name, the newest counts. Empty if there is no such run.
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
            below = f"tags.`{PARENT_TAG}` = '{one.info.run_id}'"
            waiting += search_runs(client, [one.info.experiment_id], below)
        return found


def has_pictures(ref: RunRef) -> bool:
    """Whether the artifacts of a run include a picture."""
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
    # Of two values with the same timestamp, MLflow shows the larger one, not the later one.
    return Metric(key, value, max(now, shown.timestamp + 1), shown.step)


def _batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
