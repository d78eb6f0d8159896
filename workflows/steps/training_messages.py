"""The messages of training processes, and how the driver handles them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tracking.names import grouped
from workflows.progress import Track, say
from workflows.steps.step import MetricLogger

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    import torch

    from tracking.runs import Run
    from workflows.runtime.messages import MessageQueue

OnValidated = Callable[[int, Mapping[str, float]], None]
"""Called with an epoch and its metrics on held-out sources."""
OnMessage = Callable[[tuple[str, Any]], None]

BATCHES = "batches"
"""The kind of message that reports the finished batches of an epoch."""


def training_message_handler(
    progress: Track,
    log_metrics: MetricLogger,
    stage: str,
    epochs: int,
    on_validated: OnValidated | None = None,
    *,
    reached: Callable[[], float] | None = None,
) -> OnMessage:
    """A handler for the driver, which shows progress and logs epochs to MLflow.

    `reached` tells how many epochs are finished in finer steps, where several tasks compute them.
    """
    epoch = 0

    def on_message(message: tuple[str, Any]) -> None:
        nonlocal epoch
        kind, content = message
        if kind == "error":
            raise content
        if kind == "note":
            say(content)
        elif kind == "epoch":
            epoch = content["epoch"]
            log_metrics(grouped(stage, _metrics(content)), epoch)
            finer = None if reached is None else reached()
            progress.update(epoch, epochs, note=f"loss {content['loss']:.3f}", finer=finer)
        elif kind == "validation":
            log_metrics(_metrics(content), content["epoch"])
            if on_validated is not None:
                on_validated(content["epoch"], _metrics(content))
        else:
            done, total = content["done"], content["total"]
            note = f"{kind} {done} of {total}"
            if kind == BATCHES:
                progress.update(epoch, epochs, note=note, finer=epoch + done / total)
            else:  # features, before the first epoch
                progress.update(epoch, epochs, note=note, paced=False)

    return on_message


def progress_sender(
    queue: MessageQueue, kind: str, *, share: int | None = None
) -> Callable[[int, int], None]:
    """A progress function that sends messages to the driver, at most one per second.

    `share` is the index of the share of stage 1 that makes the progress.
    """
    sent_at = 0.0

    def send(done: int, total: int) -> None:
        nonlocal sent_at
        if time.monotonic() - sent_at > 1:
            sent_at = time.monotonic()
            queue.send((kind, {"done": done, "total": total, "share": share}))

    return send


def log_epochs(stage: str) -> Callable[[Run, dict[str, Any]], None]:
    """Log a finished stage to its run: the metrics of its epochs and of their validation."""

    def log(run: Run, summary: dict[str, Any]) -> None:
        for epoch in summary["history"]:
            run.log_metrics(grouped(stage, _metrics(epoch)), epoch["epoch"])
        for result in summary.get("verdicts", ()):
            run.log_metrics(_metrics(result), result["epoch"])

    return log


def _metrics(epoch: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in epoch.items() if name != "epoch"}


def default_device() -> torch.device:
    """The device on which a training process computes."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
