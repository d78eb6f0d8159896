"""Progress of long-running work: a live bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY_S = 5.0
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

console = Console(stderr=True, highlight=False)
"""Status messages go to standard error, results to standard output."""


class Track:
    """The progress of one piece of work; `update` reports how much of it is done."""

    def __init__(self, label: str, bar: Progress | None) -> None:
        self._label = label
        self._bar = bar
        self._task = bar.add_task(label, total=None, note="") if bar else None
        self._logged_at = time.monotonic()
        self._started_at = self._logged_at
        self._first: tuple[float, float] | None = None

    def update(
        self,
        done: int,
        total: int,
        note: str = "",
        *,
        finer: float | None = None,
        paced: bool = True,
    ) -> None:
        """Report that `done` of `total` units are finished; `note` is shown after the numbers.

        Args:
            finer: the same with the finished part of further units, such as 3.4 of 5 epochs, from
                which the time left follows; by default `done`.
            paced: False for preparations, whose time says nothing about the pace of the units.
        """
        reached = done if finer is None else finer
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=reached, total=total, note=note)
            return
        now = time.monotonic()
        if self._first is None and paced:  # what was done before says nothing about the pace
            self._first = now, reached
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            elapsed_s = now - self._started_at
            left = ""
            if self._first is not None:
                left = time_left(now - self._first[0], reached - self._first[1], total - reached)
            say(f"{self._label}: {done} of {total} after {elapsed_s:.0f} s{left} {note}".rstrip())


def time_left(seconds: float, done: float, remaining: float) -> str:
    """The remaining time at the pace so far, as `, 38 s left`; empty while the pace is unknown."""
    if done <= 0 or remaining <= 0:
        return ""
    left_s = seconds / done * remaining
    return f", {left_s:.0f} s left" if left_s < 600 else f", {left_s / 60:.0f} min left"


def say(text: str) -> None:
    """Prints a status message line by line, without interpreting markup in it."""
    console.print(escaped(text), markup=False, soft_wrap=True)


def escaped(text: str) -> str:
    """The text with control characters as escapes, except for newlines and tabs.

    File names can contain sequences that change a terminal's colours, title or clipboard.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


@contextmanager
def track(label: str) -> Iterator[Track]:
    """Shows the progress of the block while it runs, then prints how long it took."""
    started_at = time.monotonic()
    if sys.stderr.isatty():
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        ) as bar:
            yield Track(label, bar)
    else:
        say(f"{label} …")
        yield Track(label, None)
    say(f"{label}: done in {time.monotonic() - started_at:.1f} s")
