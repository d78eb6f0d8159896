"""Searches in one version of a gallery: exact ones, and ones that an index proposes images for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muva.retrieval.gallery_index import REFINED, Index
from muva.retrieval.gallery_rows import FEATURE
from muva.retrieval.similar import most_similar

if TYPE_CHECKING:
    from lance import LanceDataset, LanceScanner


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Some images of a gallery."""

    features: np.ndarray
    """(M, F) float32."""
    rows: pa.Table
    """All other columns."""


class ExactSearch:
    """Computes all cosines. The features of a small gallery stay in memory between searches."""

    def __init__(self, *, kept_rows: int):
        self._kept_rows = kept_rows
        self._loaded: dict[tuple[int, int], Fragment] = {}
        """By the number of a fragment and its number of deletions."""

    def nearest(
        self,
        dataset: LanceDataset,
        feature: np.ndarray,
        top: int,
        condition: pc.Expression | None,
    ) -> Fragment:
        """The most similar images of each fragment, exactly."""
        best = []
        for fragment in self._fragments(dataset):
            allowed = None if condition is None else _holds(condition, fragment.rows)
            nearest, _ = most_similar(fragment.features, feature, top=top, allowed=allowed)
            best.append(
                Fragment(features=fragment.features[nearest], rows=fragment.rows.take(nearest))
            )
        if not best:
            return _read(dataset, dataset.scanner(), 0)
        return Fragment(
            features=np.concatenate([one.features for one in best]),
            rows=pa.concat_tables([one.rows for one in best]),
        )

    def _fragments(self, dataset: LanceDataset) -> Iterator[Fragment]:
        """The images of each fragment; those of a gallery that needs no index stay in memory."""
        keep = dataset.count_rows() <= self._kept_rows
        before, now = self._loaded, {}
        for fragment in dataset.get_fragments():
            key = fragment.fragment_id, fragment.num_deletions
            found = before.get(key)
            if found is None or len(found.rows.schema) + 1 < len(dataset.schema):
                found = _read(
                    dataset, fragment.scanner(columns=dataset.schema.names), fragment.count_rows()
                )
            if keep:
                now[key] = found
            yield found
        self._loaded = now

    def clear(self) -> None:
        """Keep nothing in memory."""
        self._loaded = {}


def proposed(
    dataset: LanceDataset,
    index: Index,
    feature: np.ndarray,
    top: int,
    condition: pc.Expression | None,
) -> Fragment:
    """What the index proposes: `top` images, where there are so many.

    What a condition leaves may be anywhere, so all partitions are looked at then.
    """
    probes = index.probes if condition is None else index.partitions
    found = dataset.scanner(
        columns=[*dataset.schema.names, "_distance"],
        nearest={
            "column": FEATURE,
            "q": feature.astype(np.float32),
            "k": top,
            "nprobes": probes,
            "refine_factor": REFINED,
        },
        filter=condition,
        prefilter=True,
    )
    return _read(dataset, found, top)


def _read(dataset: LanceDataset, scanner: LanceScanner, most: int) -> Fragment:
    """What a scanner returns, of at most so many rows."""
    features = np.empty((most, dataset.schema.field(FEATURE).type.list_size), np.float32)
    names = [name for name in dataset.schema.names if name != FEATURE]
    rows, filled = [], 0
    for batch in scanner.to_batches():
        features[filled : filled + len(batch)] = matrix(batch[FEATURE])
        rows.append(batch.select(names))
        filled += len(batch)
    schema = pa.schema([dataset.schema.field(name) for name in names])
    return Fragment(features=features[:filled], rows=pa.Table.from_batches(rows, schema))


def matrix(column: pa.Array) -> np.ndarray:
    """The features of a column, (M, F) float32, without a copy."""
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


def _holds(condition: pc.Expression, rows: pa.Table) -> np.ndarray:
    """(M,) bool, for which rows a condition holds."""
    numbered = rows.append_column("_row", pa.array(np.arange(len(rows))))
    held = np.zeros(len(rows), bool)
    held[numbered.filter(condition)["_row"].to_numpy()] = True
    return held
