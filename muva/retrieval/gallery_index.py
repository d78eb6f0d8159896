"""The index of a large gallery: how it is built, and how much of it a search looks at.

The index is Lance's IVF_RQ: partitions by k-means, and in them each feature in four bits per
dimension by RaBitQ (Gao and Long, SIGMOD 2024), of which the best are compared again by the
features themselves. How many partitions a search has to look at depends on the features: those of
people form groups, and random ones none. So this is measured: some of the gallery's own images are
searched for, exactly and with the index, and a search looks at as many partitions as find
`RECALL` of their ten nearest images.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muva.retrieval.gallery_rows import FEATURE

if TYPE_CHECKING:
    from lance import LanceDataset

RECALL = 0.98
"""The share of the ten nearest images that an index shall find of those it was measured with."""
REFINED = 10
"""How many times as many images as asked for are compared by the features themselves."""
PARTITION_ROWS = 4096
_BITS = 4
_SAMPLE = 100
_FEWEST_PROBES = 8
"""Queries from outside the gallery lie less in the middle of a partition than its own images."""
_NEAREST = 10
_GROWN = 2
"""An index is built anew when the gallery has grown by this factor."""
_UNINDEXED = 0.02
"""The share of images outside the index, which are compared one by one, above which it is brought
up to date."""
_NAME = "muva"


@dataclass(frozen=True, kw_only=True)
class Index:
    """The index of a gallery."""

    rows: int
    """The images when it was built."""
    partitions: int
    probes: int
    """The partitions that a search looks at."""
    recall: float
    """The share of the ten nearest images that it found when it was built."""

    @classmethod
    def of(cls, dataset: LanceDataset) -> Index | None:
        """The index of a gallery; None if it has none."""
        stored = dataset.metadata.get(_NAME)
        return None if stored is None else cls(**json.loads(stored))


def keep_indexed(
    dataset: LanceDataset, *, exact_rows: int, on_progress: Callable[[str], None]
) -> Index | None:
    """Build an index where a gallery has outgrown exact search, or bring it up to date."""
    rows, index = dataset.count_rows(), Index.of(dataset)
    if rows <= exact_rows:
        return index
    if index is None or rows > _GROWN * index.rows:
        return _built(dataset, on_progress)
    unindexed = dataset.stats.index_stats(_NAME)["num_unindexed_rows"]
    if unindexed > _UNINDEXED * rows:
        on_progress(f"index {unindexed:,} new images")
        dataset.optimize.optimize_indices()
    return index


def _built(dataset: LanceDataset, on_progress: Callable[[str], None]) -> Index:
    rows = dataset.count_rows()
    partitions = max(1, rows // PARTITION_ROWS)
    on_progress(f"index {rows:,} images")
    dataset.create_index(
        FEATURE,
        "IVF_RQ",
        name=_NAME,
        metric="dot",
        replace=True,
        num_partitions=partitions,
        num_bits=_BITS,
    )
    on_progress("measure what the index finds")
    queries, expected = _sample(dataset)
    probes, recall = min(_FEWEST_PROBES, partitions), 0.0
    while True:
        recall = float(
            np.mean(
                [_recall(dataset, q, probes, e) for q, e in zip(queries, expected, strict=True)]
            )
        )
        if recall >= RECALL or probes == partitions:
            break
        probes = min(2 * probes, partitions)
    index = Index(rows=rows, partitions=partitions, probes=probes, recall=recall)
    dataset.update_metadata({_NAME: json.dumps(asdict(index))})
    return index


def _sample(dataset: LanceDataset) -> tuple[np.ndarray, list[set[int]]]:
    """Some features (S, F), and the row ids of the nearest images of each."""
    rows = dataset.count_rows()
    chosen = np.random.default_rng(0).choice(rows, min(_SAMPLE, rows), replace=False)
    queries = _matrix(dataset.take(np.sort(chosen).tolist(), columns=[FEATURE])[FEATURE])
    best = np.full((len(queries), _NEAREST), -np.inf, np.float32)
    ids = np.full((len(queries), _NEAREST), -1, np.int64)
    for batch in dataset.scanner([FEATURE], with_row_id=True, batch_size=8192).to_batches():
        cosines = queries @ _matrix(batch[FEATURE]).T
        both = np.concatenate([best, cosines], axis=1)
        names = np.broadcast_to(batch["_rowid"].to_numpy().astype(np.int64), cosines.shape)
        kept = np.argpartition(-both, _NEAREST - 1, axis=1)[:, :_NEAREST]
        best = np.take_along_axis(both, kept, axis=1)
        ids = np.take_along_axis(np.concatenate([ids, names], axis=1), kept, axis=1)
    return queries, [set(row.tolist()) for row in ids]


def _recall(dataset: LanceDataset, query: np.ndarray, probes: int, expected: set[int]) -> float:
    found = dataset.scanner(
        columns=["_rowid", "_distance"],
        nearest={
            "column": FEATURE,
            "q": query,
            "k": _NEAREST,
            "nprobes": probes,
            "refine_factor": REFINED,
        },
        with_row_id=True,
    ).to_table()
    return len(expected & set(found["_rowid"].to_pylist())) / len(expected)


def _matrix(column: Any) -> np.ndarray:
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return array.flatten().to_numpy().reshape(-1, array.type.list_size)
