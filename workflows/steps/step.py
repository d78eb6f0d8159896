"""A step: a pure function of settings and input artifacts, whose result is an artifact.

A step declares its kind, name, format version, settings and inputs; its artifact's address follows
from these, and is computed here and nowhere else. A step whose artifact is complete is skipped
after a single look-up; any other is computed, reusing the parts that an interrupted attempt
finished. Each step of a pipeline is a child run in MLflow, keyed by the artifact's address, so that
repeating or skipping the step completes that run instead of creating a second one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from muva.data.artifacts import Artifact, fingerprint
from muva.data.lineage import Inputs, inputs_on_disk, node_at
from muva.data.store import Store
from muva.errors import MuvaError
from muva.file_lock import alone, holders
from tracking.names import ARTIFACT_TAG, DATASETS_TAG
from workflows.progress import say
from workflows.session import Session

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

NAMED_BY_USERS = ("datasets", "models")
"""Kinds whose names users give: a name refers to the artifact last requested under it."""
_LOCKS = "locks"
"""The folder of a home with a file for each step that is being computed."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The declaration of a step."""

    title: str
    """Its name in progress messages and in MLflow."""
    store: Store
    kind: str
    name: str
    format_version: int
    """One of `muva.data.formats`."""
    settings: Mapping[str, Any]
    """Everything that changes the result, in addition to the inputs."""
    inputs: Inputs = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Recorded in the manifest, for tables and comparisons; not part of the address."""
    known_artifact: Artifact | None = None
    """An existing artifact that is its result, if an earlier command made it."""

    @cached_property
    def artifact(self) -> Artifact:
        """The artifact of its result; this is the only place that computes an address."""
        if self.known_artifact is not None:
            return self.known_artifact
        made_from = {
            f"{role}": [_identity(artifact) for artifact in artifacts]
            for role, artifacts in self.inputs.items()
        }
        address = fingerprint([self.format_version, self.settings, made_from])
        return Artifact(self.store, self.kind, self.name, address)

    def start(self) -> None:
        """Record in the store that the step is being computed, and from what."""
        self.artifact.start(**self._stored())

    def _stored(self) -> dict[str, Any]:
        """What the note and the manifest record of how it was made."""
        return {
            "format_version": self.format_version,
            "config": dict(self.settings),
            "inputs": inputs_on_disk(self.inputs),
            "facts": {**self.facts, "datasets": self.datasets},
        }

    @cached_property
    def datasets(self) -> list[str]:
        """The names of the data sets that the result is made from, directly or indirectly."""
        if self.kind == "datasets":
            return [self.name]
        names = set()
        for artifact in (one for artifacts in self.inputs.values() for one in artifacts):
            if artifact.kind == "datasets":
                names.add(artifact.name)
            else:
                names.update(node_at(artifact.store, artifact.address).facts.get("datasets", ()))
        return sorted(names)

    def commit(self, *, summary: Mapping[str, Any], seconds: float) -> None:
        """Write the manifest, which makes the artifact complete."""
        self.artifact.commit(**self._stored(), summary=summary, seconds=seconds)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of its artifact; None if that is unfinished."""
        return self.artifact.manifest(format_version=self.format_version)


def _identity(artifact: Artifact) -> str:
    """What an input contributes to an address; for a data set its content, whatever its source."""
    if artifact.kind != "datasets":
        return artifact.address
    from muva.data.shards import open_dataset

    dataset = open_dataset(artifact)
    return f"{dataset.name}/{dataset.fingerprint}"


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A finished step."""

    artifact: Artifact
    summary: dict[str, Any]
    seconds: float
    """How long computing it took this time; next to nothing if it was skipped."""
    computed: bool


@dataclass(frozen=True)
class MetricLogger:
    """Logs metrics to a step's run during the work; does nothing without tracking."""

    run: Run | None

    def __call__(self, metrics: Mapping[str, float], epoch: int | None) -> None:
        """Log metrics, and the epoch that they belong to."""
        if self.run is not None:
            self.run.log_metrics_buffered(metrics, epoch)


def run_step(
    step: Step,
    *,
    session: Session,
    work: Callable[[MetricLogger], dict[str, Any]],
    log: Callable[[Run, dict[str, Any]], None] = lambda run, summary: None,
    spent_s: float = 0.0,
) -> StepResult:
    """Skip the step if its artifact is complete; otherwise call `work`, which returns the summary.

    `log` logs the summary to the step's run. A run in which everything has been logged is not
    opened again; one that is incomplete, because MLflow was unavailable or the process was killed,
    is completed even if the step is skipped. `spent_s` are seconds that were spent on the step
    earlier, if several steps are computed together.
    """
    artifact, shared = step.artifact, session.shared
    manifest = step.manifest()
    started_at = time.monotonic() - spent_s
    with _claim(step, session) if manifest is None else nullcontext():
        if manifest is None:  # another process may have made it while this one was waiting
            manifest = step.manifest()
        if manifest is not None:
            say(f"{step.title}: exists, {artifact.address}")
            summary, took_s = manifest["summary"], manifest["seconds"]
            if not session.has_logged(artifact.address):
                with _run_of(step, session) as run:
                    _log(run, log, summary)
        else:
            with _run_of(step, session) as run:
                started_at = time.monotonic() - spent_s
                step.start()
                summary = work(MetricLogger(run))
                took_s = round(time.monotonic() - started_at, 2)
                step.commit(summary=summary, seconds=took_s)
                _log(run, log, summary)
        if shared is not None:
            shared.note(step.title, artifact.address, took_s or 0.0)
        if artifact.kind in NAMED_BY_USERS:
            artifact.set_latest()
    return StepResult(
        artifact=artifact,
        summary=summary,
        seconds=time.monotonic() - started_at,
        computed=manifest is None,
    )


def found_step(artifact: Artifact, *, format_version: int) -> StepResult:
    """The result of a step that was finished earlier, from its manifest."""
    manifest = artifact.manifest(format_version=format_version)
    assert manifest is not None, artifact.address
    return StepResult(artifact=artifact, summary=manifest["summary"], seconds=0.0, computed=False)


def check_idle(session: Session) -> None:
    """Check that no other command in this home computes a step, before artifacts are deleted.

    Raises:
        MuvaError: one does.
    """
    for name, process in holders(session.home / _LOCKS).items():
        raise MuvaError(
            f"Nothing was deleted: another command (process {process}) is computing {name} in "
            f"{session.home}, and may use what would be deleted. Wait for its end, or stop it"
        )


def _claim(step: Step, session: Session) -> AbstractContextManager[None]:
    """A block during which no other trial, and no other command in this home, computes the step."""
    address = step.artifact.address
    if session.shared is not None:
        return session.shared.claim(address)
    if session.tracking_uri is None:
        return nullcontext()
    return alone(
        session.home / _LOCKS / address.replace("/", "-"),
        on_wait=lambda process: say(
            f"{step.title}: another command (process {process}) is computing it; waiting for that …"
        ),
    )


def _run_of(step: Step, session: Session) -> Any:
    address = step.artifact.address
    tags = {ARTIFACT_TAG: address, DATASETS_TAG: ",".join(step.datasets)}
    return session.run(step.title, key=address, params=step.settings, tags=tags)


def _log(run: Run | None, log: Callable[[Run, Any], None], summary: dict[str, Any]) -> None:
    if run is not None:
        log(run, summary)
        run.mark_logged()
