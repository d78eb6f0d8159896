from __future__ import annotations

from typing import Any

import pytest

from workflows import progress
from workflows.progress import time_left, track
from workflows.steps.prompt_tasks import _Epochs
from workflows.steps.training_messages import BATCHES, training_message_handler


@pytest.mark.parametrize(
    ("seconds", "done", "remaining", "said"),
    [
        (10.0, 100, 50, ", 5 s left"),
        (60.0, 10, 1000, ", 100 min left"),
        (10.0, 0, 50, ""),
        (10.0, 100, 0, ""),
    ],
)
def test_what_is_left_is_told_at_the_pace_so_far(
    seconds: float, done: int, remaining: int, said: str
) -> None:
    assert time_left(seconds, done, remaining) == said


def test_what_was_done_before_says_nothing_of_the_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with track("ground town") as shown:
        shown.update(900, 1000)
        for done in (920, 940):
            now[0] += 6
            shown.update(done, 1000, note="so far")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "ground town …",
        "ground town: 920 of 1000 after 6 s, 24 s left so far",
        "ground town: 940 of 1000 after 12 s, 18 s left so far",
        "ground town: done in 12.0 s",
    ]


def ignored(*_: object) -> None:
    """Instead of MLflow."""


def test_batches_count_in_the_time_left_and_preparations_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with track("train") as shown:
        logger: Any = ignored
        on_message = training_message_handler(shown, logger, "stage2", 5)
        for at_s, message in (
            (6, ("features", {"done": 1, "total": 9})),
            (100, (BATCHES, {"done": 0, "total": 4})),
            (110, (BATCHES, {"done": 1, "total": 4})),
            (120, (BATCHES, {"done": 2, "total": 4})),
            (140, ("epoch", {"epoch": 1, "loss": 0.5})),
            (290, (BATCHES, {"done": 3, "total": 4})),
        ):
            now[0] = at_s
            on_message(message)
    assert capsys.readouterr().err.splitlines()[1:-1] == [
        "train: 0 of 5 after 6 s features 1 of 9",
        "train: 0 of 5 after 100 s batches 0 of 4",
        "train: 0 of 5 after 110 s, 190 s left batches 1 of 4",
        "train: 0 of 5 after 120 s, 180 s left batches 2 of 4",
        "train: 1 of 5 after 140 s, 160 s left loss 0.500",
        "train: 1 of 5 after 290 s, 353 s left batches 3 of 4",
    ]


def test_shares_that_are_learned_one_after_the_other_advance_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with track("prompts") as shown:
        logger: Any = ignored
        epochs = _Epochs(2, shown, logger, 2)
        epochs.add_batches(0, 0, 10)
        now[0] = 10
        epochs.add_batches(0, 5, 10)
        now[0] = 20
        epochs.add(0, [{"epoch": 1, "loss": 1.0}])
        now[0] = 40
        epochs.add(0, [{"epoch": 2, "loss": 1.0}])
        now[0] = 60
        epochs.add(1, [{"epoch": 1, "loss": 1.0}])
    assert capsys.readouterr().err.splitlines()[1:-1] == [
        "prompts: 0 of 2 after 10 s, 70 s left share 1 of 2: epoch 1 of 2, batches 5 of 10",
        "prompts: 0 of 2 after 20 s, 60 s left share 1 of 2: epoch 1 of 2",
        "prompts: 0 of 2 after 40 s, 40 s left share 1 of 2: epoch 2 of 2",
        "prompts: 1 of 2 after 60 s, 20 s left loss 2.000",
    ]
