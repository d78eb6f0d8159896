"""What a training's processes tell the driver as they go, and what the driver makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from tracking.names import grouped
from workflows.progress import Track, say
from workflows.runtime.messages import Board
from workflows.steps.step import Tell

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run


OnJudged = Callable[[int, Mapping[str, float]], None]
"""Gets an epoch and what it reached on held-out sources."""


def follow(
    progress: Track, tell: Tell, stage: str, epochs: int, on_judged: OnJudged | None = None
) -> Callable[[tuple[str, Any]], None]:
    """What the driver does with a training's messages: shows them, and writes epochs to MLflow."""
    epoch = 0

    def on_message(message: tuple[str, Any]) -> None:
        nonlocal epoch
        kind, content = message
        if kind == "mistake":
            raise content
        if kind == "note":
            say(content)
            return
        if kind == "epoch":
            epoch = content["epoch"]
            tell(grouped(stage, _metrics(content)), epoch)
            progress.update(epoch, epochs, note=f"loss {content['loss']:.3f}")
        elif kind == "verdict":
            tell(_metrics(content), content["epoch"])
            if on_judged is not None:
                on_judged(content["epoch"], _metrics(content))
        else:
            done, total = content["done"], content["total"]
            progress.update(epoch, epochs, note=f"{kind} {done} of {total}")

    return on_message


def posting(board: Board, kind: str) -> Callable[[int, int], None]:
    """A progress function that tells the driver, once a second at most."""
    told_at = 0.0

    def post(done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > 1:
            told_at = time.monotonic()
            board.post((kind, {"done": done, "total": total}))

    return post


def report_epochs(stage: str) -> Callable[[Run, dict[str, Any]], None]:
    """What a finished stage's run holds: the metrics of its epochs."""

    def report(run: Run, summary: dict[str, Any]) -> None:
        for epoch in summary["history"]:
            run.log_metrics(grouped(stage, _metrics(epoch)), epoch["epoch"])
        for verdict in summary.get("verdicts", ()):
            run.log_metrics(_metrics(verdict), verdict["epoch"])

    return report


def _metrics(epoch: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in epoch.items() if name != "epoch"}


def device_here() -> torch.device:
    """Where a training process computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
