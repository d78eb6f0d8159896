"""What is known of a public data set besides its layout: licence, rules, and how much there is.

Counts are compared when a tree is imported: a missing folder, another version or an interrupted
copy would otherwise show as nothing but other results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muva.data.records import JUNK_PID, SPLITS, Record, Split
from muva.errors import MuvaError


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much one split holds."""

    images: int | None
    """None where nobody has published it."""
    identities: int
    """Distractors' included, junk left out."""
    cameras: int | None
    """0 where they are unknown, None where nobody has published how many there are."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One of several random splits of a small data set; figures are means over them."""

    query: tuple[str, ...]
    """Image ids."""
    gallery: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A public data set: what its users must know, and what a complete copy holds."""

    title: str
    layout: str
    """The reader of its tree."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The reader's, for this data set."""
    paper: str
    source: str
    """Where its owners give it away."""
    licence: str
    status: str
    """Whether it still can be had."""
    rules: str
    """Its camera, junk and distractor rules, and what its reader makes of them."""
    lists: str
    """Where the official splits come from."""
    distractors: frozenset[int] = frozenset()
    """Pids that are no person but distractors: never learned from."""
    counts: Mapping[Split, Counts]
    counts_from: str
    """Who published the counts."""
    trials: Callable[[Sequence[Record], Path], list[Trial]] | None = None
    """From records and their tree: the random splits to average over, where it is judged so."""


def count(records: Iterable[Record]) -> dict[Split, Counts]:
    """How much each split holds."""
    of_split: dict[Split, list[Record]] = {}
    for record in records:
        of_split.setdefault(record.split, []).append(record)
    return {
        split: Counts(
            images=len(of_split[split]),
            identities=len({record.pid for record in of_split[split]} - {JUNK_PID}),
            cameras=len({record.camid for record in of_split[split]} - {None}),
        )
        for split in SPLITS
        if split in of_split
    }


def is_complete(benchmark: Benchmark, records: Sequence[Record]) -> bool:
    """Whether a tree holds what was published of the data set."""
    return all(expected == found for _, _, expected, found in _compared(benchmark, records))


def counts_differ(benchmark: Benchmark, records: Sequence[Record], *, where: str) -> MuvaError:
    """What to say of a tree that is not complete: both tables, and what to do."""
    lines = [f"{'':8} {'':10} {'expected':>9} {'found':>9}"]
    for split, name, expected, found in _compared(benchmark, records):
        if expected or found:
            mark = "" if expected == found else "  differs"
            lines.append(f"{split:8} {name:10} {expected:9} {found:9}{mark}")
    return MuvaError(
        f"{benchmark.title} at {where}: expected the counts of {benchmark.counts_from}, found "
        "others:\n" + "\n".join(lines) + "\nIs the copy complete, and of this version? "
        "--accept-counts goes on, and marks the data set as altered"
    )


def _compared(
    benchmark: Benchmark, records: Sequence[Record]
) -> Iterator[tuple[Split, str, int, int]]:
    """Split, what is counted, its published count and the one here; none where none is known."""
    actual = count(records)
    empty = Counts(images=0, identities=0, cameras=0)
    for split in SPLITS:
        published, of_copy = benchmark.counts.get(split, empty), actual.get(split, empty)
        for name in ("images", "identities", "cameras"):
            if getattr(published, name) is not None:
                yield split, name, getattr(published, name), getattr(of_copy, name)
