"""A step: a pure function of settings and input artifacts, whose result is an artifact.

A step whose artifact is committed is skipped and says so; one without is computed, and takes up
whatever finished parts it finds. Each step of a pipeline is a child run in MLflow, keyed by the
artifact's address: doing it again, or skipping it, completes that run and makes no second one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muva.data.artifacts import Artifact
from tracking.names import ARTIFACT_TAG
from workflows.progress import say
from workflows.session import Session

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run


MEANT_BY_NAME = ("datasets", "models")
"""Kinds of which people give names: the name means what was asked for last."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What makes a step: its artifact, and what the artifact is made from."""

    label: str
    artifact: Artifact
    format_version: int
    config: Mapping[str, Any]
    """The settings that the address is a hash of."""
    inputs: Mapping[str, str]
    """Role -> address of an input artifact."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished step."""

    artifact: Artifact
    summary: dict[str, Any]
    seconds: float
    """What computing it took; nothing but the look-up when it was there already."""
    computed: bool


@dataclass(frozen=True)
class Tell:
    """Writes to a step's run while the work goes on; nowhere where nothing is tracked."""

    run: Run | None

    def __call__(self, metrics: Mapping[str, float], epoch: int | None) -> None:
        """Metrics, and the epoch that they are of."""
        if self.run is not None:
            self.run.log_metrics_buffered(metrics, epoch)


def do_step(
    step: Step,
    *,
    session: Session,
    work: Callable[[Tell], dict[str, Any]],
    report: Callable[[Run, dict[str, Any]], None] = lambda run, summary: None,
    spent_s: float = 0.0,
) -> Done:
    """The step's artifact: found, or made by `work`, which returns the manifest's summary.

    `spent_s`: seconds that it took before, where several steps are computed together.

    `report` writes into the step's run what the finished summary holds, also when the step is
    skipped, so that a run which lost something on the way is completed.
    """
    shared = session.shared
    manifest = step.artifact.manifest(format_version=step.format_version)
    waits = manifest is None and shared is not None
    with (
        shared.claim(step.artifact.address) if waits and shared else nullcontext(),
        session.run(
            step.label,
            key=step.artifact.address,
            params=step.config,
            tags={ARTIFACT_TAG: step.artifact.address},
        ) as run,
    ):
        started_at = time.monotonic() - spent_s
        if waits:  # another may have made it meanwhile
            manifest = step.artifact.manifest(format_version=step.format_version)

        if manifest is not None:
            say(f"{step.label}: exists, {step.artifact.address}")
            summary, took_s = manifest["summary"], manifest["seconds"]
        else:
            summary = work(Tell(run))
            took_s = round(time.monotonic() - started_at, 2)
            step.artifact.commit(
                format_version=step.format_version,
                config=dict(step.config),
                inputs=dict(step.inputs),
                summary=summary,
                seconds=took_s,
            )
        if shared is not None:
            shared.note(step.label, step.artifact.address, took_s or 0.0)
        if step.artifact.kind in MEANT_BY_NAME:
            step.artifact.be_meant()
        if run is not None:
            report(run, summary)
    return Done(
        artifact=step.artifact,
        summary=summary,
        seconds=time.monotonic() - started_at,
        computed=manifest is None,
    )
