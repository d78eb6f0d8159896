"""What is known about a public data set besides its layout: licence, rules, and published counts.

The counts are compared when a tree is imported. Otherwise a missing folder, another version, or an
interrupted copy would only show up as different results.
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
    """Number of images, identities and cameras of a split."""

    images: int | None
    """None if unpublished."""
    identities: int
    """Distractors included, junk excluded."""
    cameras: int | None
    """0 if cameras are unknown, None if their number is unpublished."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One of several random splits of a small data set; results are averaged over all of them."""

    query: tuple[str, ...]
    """Image ids, as in `gallery`."""
    gallery: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A public data set: what users need to know about it, and the counts of a complete copy."""

    title: str
    layout: str
    """Name of the reader for its tree."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the reader for this data set."""
    paper: str
    source: str
    """Where its authors distribute it."""
    licence: str
    status: str
    """Whether it is still available."""
    rules: str
    """Its camera, junk and distractor rules, and how the reader applies them."""
    lists: str
    """Where the official splits come from."""
    distractors: frozenset[int] = frozenset()
    """Pids that stand for distractors, not for a person; they are never trained on."""
    counts: Mapping[Split, Counts]
    counts_from: str
    """Who published the counts."""
    trials: Callable[[Sequence[Record], Path], list[Trial]] | None = None
    """For data sets that are evaluated on random splits: computes these from the records and the
    root of their tree."""


def count(records: Iterable[Record]) -> dict[Split, Counts]:
    """The counts of each split."""
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
    """Whether a tree has the published counts of the data set."""
    return all(expected == found for _, _, expected, found in _compared(benchmark, records))


def counts_differ(benchmark: Benchmark, records: Sequence[Record], *, where: str) -> MuvaError:
    """The error for an incomplete tree: expected and found counts, and the remedy."""
    lines = [f"{'':8} {'':10} {'expected':>9} {'found':>9}"]
    for split, name, expected, found in _compared(benchmark, records):
        if expected or found:
            mark = "" if expected == found else "  differs"
            lines.append(f"{split:8} {name:10} {expected:9} {found:9}{mark}")
    return MuvaError(
        f"{benchmark.title} at {where}: expected the counts of {benchmark.counts_from}, found "
        "others:\n" + "\n".join(lines) + "\nIs the copy complete, and is it this version? Use "
        "--accept-counts to import it anyway; it is then marked as altered"
    )


def _compared(
    benchmark: Benchmark, records: Sequence[Record]
) -> Iterator[tuple[Split, str, int, int]]:
    """Split, counted quantity, published count and actual count, for all published counts."""
    actual = count(records)
    empty = Counts(images=0, identities=0, cameras=0)
    for split in SPLITS:
        published, of_copy = benchmark.counts.get(split, empty), actual.get(split, empty)
        for name in ("images", "identities", "cameras"):
            if getattr(published, name) is not None:
                yield split, name, getattr(published, name), getattr(of_copy, name)
