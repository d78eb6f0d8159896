from __future__ import annotations

import pytest

from workflows import progress
from workflows.progress import time_left, track


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
