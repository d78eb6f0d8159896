"""Galleries that grow: features and what is known of their images, in a table of Lance.

Lance is the storage and search library of LanceDB. A table is a folder or an `s3://` prefix. Each
change makes a new version, so that a search sees all of a change or nothing of it, and adding works
while others search. docs/galleries.md compares it with FAISS.

Up to `EXACT_ROWS` images a search computes all cosines; above, it looks into an index
(`muva.retrieval.gallery_index`) and recomputes the cosines of what that proposes. Either way the
cosines are exact; only an index may miss an image.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muva.errors import MuvaError
from muva.file_lock import locked
from muva.retrieval.gallery import EmbeddingSource
from muva.retrieval.gallery_index import Index, keep_indexed
from muva.retrieval.gallery_rows import (
    FEATURE,
    KNOWN,
    GalleryFilter,
    GalleryRow,
    GallerySummary,
    Match,
    as_rows,
    as_table,
    new_columns,
    of_people,
)
from muva.retrieval.gallery_search import ExactSearch, Fragment, matrix, proposed
from muva.retrieval.lance_tables import (
    explained,
    lance_library,
    opened_table,
    storage_options,
    table_exists,
)

if TYPE_CHECKING:
    from lance import LanceDataset

FORMAT = 1
EXACT_ROWS = 100_000
"""The largest gallery that is searched without an index: its features take 200 MB at 512 dimensions
and a search 10 ms; see `python -m benchmarks.gallery`."""
_METADATA = b"muva"
FRAGMENT_ROWS = 131_072
"""The rows of a file, and of what is added at once. Removing a person writes the files anew that
they are in."""
_MANY_FRAGMENTS = 64
_JOINED_BYTES = 32 * 2**20
_KEPT = timedelta(hours=1)
"""How long the versions before a change stay, for searches that look at them."""
_TRIES = 3
_AFTER_REMOVAL = "muva-after-removal"
_NOT_UNIT = 1e-3

T = TypeVar("T")


class GalleryTable:
    """A gallery that grows. All processes and threads may use it at the same time."""

    def __init__(self, uri: str, dataset: LanceDataset, source: EmbeddingSource):
        self.uri = uri
        self.name = uri.rstrip("/").rpartition("/")[2].removesuffix(".lance")
        self.source = source
        self._dataset = dataset
        self._refreshing = threading.Lock()
        self._exact = ExactSearch(kept_rows=EXACT_ROWS)
        self._summary: tuple[int, GallerySummary] | None = None

    def __len__(self) -> int:
        return self._reading(lambda dataset: dataset.count_rows())

    def add(self, features_mf: np.ndarray, rows: Sequence[GalleryRow]) -> None:
        """Add images; one whose id the gallery has replaces that.

        Args:
            features_mf: (M, F) of unit length, by the gallery's model.
            rows: M images with different ids.

        Raises:
            MuvaError: the features are of another size or not of unit length, ids repeat, or a
                value does not fit its column. Nothing has been added then.
        """
        features = self._checked(features_mf, rows)
        with self._writing() as dataset:
            added = new_columns(rows, dataset.schema)
            others = [field for field in dataset.schema if field.name != FEATURE]
            known = as_table(rows, pa.schema([*others, *added]))
            if added:
                dataset.add_columns(added)
            for first in range(0, len(rows), FRAGMENT_ROWS):
                some = slice(first, first + FRAGMENT_ROWS)
                written = known.slice(first, FRAGMENT_ROWS).append_column(
                    dataset.schema.field(FEATURE), _vectors(features[some])
                )
                _write(dataset, written.select(dataset.schema.names))
            if len(dataset.get_fragments()) > _MANY_FRAGMENTS:
                _tidy(dataset, kept=_KEPT)
                keep_indexed(dataset, exact_rows=EXACT_ROWS)

    def optimise(self, *, on_progress: Callable[[str], None] = lambda text: None) -> Index | None:
        """Join small files and bring the index up to date; the index, None if none is needed.

        Searches go on meanwhile. Called after much was added; `add` does the same now and then.
        """
        with self._writing() as dataset:
            _tidy(dataset, kept=_KEPT)
            return keep_indexed(dataset, exact_rows=EXACT_ROWS, on_progress=on_progress)

    def search(
        self,
        feature: np.ndarray,
        *,
        top: int,
        only: GalleryFilter | None = None,
        exclude: str | None = None,
    ) -> list[Match]:
        """The images most similar to a feature (F,) of unit length, most similar first.

        Args:
            top: the greatest number of images.
            only: which images to look at.
            exclude: the id of an image that is left out.
        """
        if feature.shape != (self.source.feature_dim,):
            raise MuvaError(
                f"gallery {self.uri}: expected a feature of {self.source.feature_dim} values, "
                f"found the shape {feature.shape}"
            )
        condition = (only or GalleryFilter()).expression()
        if exclude is not None:
            other = pc.field("image_id") != pc.scalar(exclude)
            condition = other if condition is None else condition & other

        def found(dataset: LanceDataset) -> Fragment:
            index = Index.of(dataset)
            if index is None or dataset.count_rows() <= EXACT_ROWS:
                return self._exact.nearest(dataset, feature, top, condition)
            return proposed(dataset, index, feature, top, condition)

        candidates = self._reading(found)
        cosines = candidates.features.astype(np.float64) @ feature.astype(np.float64)
        order = np.argsort(-cosines, kind="stable")[:top]
        rows = as_rows(candidates.rows.take(order))
        return [
            Match(row=row, cosine=float(cosines[i])) for row, i in zip(rows, order, strict=True)
        ]

    def forget(self, *, pids: Sequence[int] = (), image_ids: Sequence[str] = ()) -> int:
        """Delete images for good: those of people, and those with ids. Returns how many.

        Their features leave the disk, in earlier versions too. A search that began before may fail.
        """
        return self.forget_where(of_people(pids, image_ids))

    def forget_where(self, condition: pc.Expression | None) -> int:
        """Delete the images that a condition on the columns holds for; see `forget`.

        condition: None to delete only what an interrupted removal has left on the disk.
        """
        with self._writing() as dataset:
            deleted = 0
            if condition is not None:
                deleted = dataset.delete(condition)["num_deleted_rows"]
            # The version after a removal names what was removed: it must not be the latest one.
            dataset.update_metadata({_AFTER_REMOVAL: str(dataset.version)})
            _tidy(dataset, kept=timedelta(0), no_other="://" not in self.uri)
        self._exact.clear()
        return deleted

    def count(self, condition: pc.Expression) -> int:
        """How many images a condition on the columns holds for."""
        return self._reading(lambda dataset: dataset.count_rows(condition))

    def row(self, image_id: str) -> GalleryRow | None:
        """What is known of an image; None if it is not in the gallery."""
        rows = self._rows_of(image_id, with_feature=False)
        return as_rows(rows)[0] if len(rows) else None

    def feature(self, image_id: str) -> np.ndarray | None:
        """The feature (F,) of an image; None if it is not in the gallery."""
        rows = self._rows_of(image_id, with_feature=True)
        return matrix(rows[FEATURE].combine_chunks())[0] if len(rows) else None

    def ids(self, condition: pc.Expression | None = None) -> set[str]:
        """The ids of the images that a condition on the columns holds for, or of all."""
        return self._values("image_id", condition)

    def datasets(self) -> set[str]:
        """The addresses of the data sets that images are from."""
        return self._values("dataset", None) - {None}

    def summary(self) -> GallerySummary:
        """What is in the gallery."""

        def read(dataset: LanceDataset) -> GallerySummary:
            if self._summary is not None and self._summary[0] == dataset.version:
                return self._summary[1]
            table = dataset.to_table(["pid", "camid", "place", "time"])
            different = {
                name: sorted(table[name].unique().drop_null().to_pylist())
                for name in ("pid", "camid", "place")
            }
            times = table.group_by([]).aggregate([("time", "min"), ("time", "max")])
            summary = GallerySummary(
                images=len(table),
                people=sum(pid >= 0 for pid in different["pid"]),
                camids=tuple(different["camid"]),
                places=tuple(different["place"]),
                first=times["time_min"][0].as_py(),
                last=times["time_max"][0].as_py(),
            )
            self._summary = dataset.version, summary
            return summary

        return self._reading(read)

    def index(self) -> Index | None:
        """The index; None if there is none."""
        return self._reading(Index.of)

    def folders(self, condition: pc.Expression) -> set[str]:
        """The folders of the images that a condition on the columns holds for."""
        return self._values("folder", condition) - {None}

    def _values(self, column: str, condition: pc.Expression | None) -> set[Any]:
        def read(dataset: LanceDataset) -> pa.Table:
            return dataset.to_table([column], filter=condition)

        return set(self._reading(read)[column].unique().to_pylist())

    def _rows_of(self, image_id: str, *, with_feature: bool) -> pa.Table:
        def read(dataset: LanceDataset) -> pa.Table:
            names = [name for name in dataset.schema.names if with_feature or name != FEATURE]
            return dataset.to_table(names, filter=pc.field("image_id") == pc.scalar(image_id))

        return self._reading(read)

    def _reading(self, read: Callable[[LanceDataset], T]) -> T:
        """What `read` returns for the latest version.

        Its files may be deleted meanwhile, where somebody is forgotten; then for the next one.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                with explained(self.uri):
                    return read(self._latest())
            except MuvaError as error:
                if tries_left == 0 or "Not found" not in str(error.__cause__):
                    raise
        raise AssertionError("the last try returns or raises")

    def _latest(self) -> LanceDataset:
        """The latest version. A handle is one version, which several threads may read."""
        with self._refreshing:
            if self._dataset.latest_version != self._dataset.version:
                self._dataset = opened_table(self.uri, before=self._dataset)
            return self._dataset

    @contextmanager
    def _writing(self) -> Iterator[LanceDataset]:
        """The latest version, to be changed by one process of this machine at a time."""
        lock = nullcontext() if "://" in self.uri else locked(Path(f"{self.uri}.lock"))
        with lock, explained(self.uri):
            yield opened_table(self.uri)

    def _checked(self, features: np.ndarray, rows: Sequence[GalleryRow]) -> np.ndarray:
        if features.shape != (len(rows), self.source.feature_dim):
            raise MuvaError(
                f"gallery {self.uri}: expected features of the shape ({len(rows)}, "
                f"{self.source.feature_dim}), found {features.shape}"
            )
        lengths = np.linalg.norm(features.astype(np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < _NOT_UNIT))
        if len(wrong):
            raise MuvaError(
                f"gallery {self.uri}: expected features of unit length, found {lengths[wrong[0]]:g}"
                f" for {rows[wrong[0]].image_id}"
            )
        for row in rows:
            row.check()
        ids = [row.image_id for row in rows]
        if len(set(ids)) < len(ids):
            repeated = next(one for one in ids if ids.count(one) > 1)
            raise MuvaError(f"gallery {self.uri}: expected different ids, found {repeated} twice")
        return np.ascontiguousarray(features, dtype=np.float32)


def create_gallery(uri: str, source: EmbeddingSource) -> GalleryTable:
    """A new, empty gallery in a folder or at `s3://bucket/prefix`.

    Raises:
        MuvaError: there is one already, or the place cannot be written to.
    """
    lance = lance_library()
    described = json.dumps({"format_version": FORMAT, **asdict(source)})
    feature = pa.field(FEATURE, pa.list_(pa.float32(), source.feature_dim), nullable=False)
    schema = pa.schema([*KNOWN, feature], metadata={_METADATA: described})
    with explained(uri):
        if "://" not in uri:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        if table_exists(uri):
            raise MuvaError(
                f"gallery {uri} exists already. Add images to it, or choose another name"
            )
        dataset = lance.write_dataset(
            schema.empty_table(),
            uri,
            max_rows_per_file=FRAGMENT_ROWS,
            storage_options=storage_options(uri),
        )
    return GalleryTable(uri, dataset, source)


def open_gallery(uri: str) -> GalleryTable:
    """The gallery in a folder or at `s3://bucket/prefix`.

    Raises:
        MuvaError: there is none, or it is of an unknown format.
    """
    lance_library()
    with explained(uri):
        if not table_exists(uri):
            raise MuvaError(
                f"gallery {uri}: there is none. `muva gallery list` lists galleries, and `muva "
                "gallery create` makes one"
            )
        dataset = opened_table(uri)
    try:
        described = json.loads((dataset.schema.metadata or {})[_METADATA])
        found = described.pop("format_version")
        if found != FORMAT:
            raise MuvaError(
                f"gallery {uri}: expected format {FORMAT}, found {found}. Use the version of muva "
                "that wrote it, or make it anew"
            )
        source = EmbeddingSource(**described)
    except (KeyError, TypeError, ValueError) as error:
        raise MuvaError(
            f"gallery {uri}: expected a table of `muva gallery create`, found one that is not "
            "muva's"
        ) from error
    return GalleryTable(uri, dataset, source)


def _write(dataset: LanceDataset, rows: pa.Table) -> None:
    """Add rows, in place of those with the same ids.

    Lance joins both in 300 MB of memory. Many rows are therefore appended where none replaces
    another, and joined in parts where one does.
    """
    joined = max(1, _JOINED_BYTES // max(1, rows.nbytes // max(1, len(rows))))
    if len(rows) > joined and not _any_known(dataset, rows["image_id"]):
        dataset.insert(rows, max_rows_per_file=FRAGMENT_ROWS)
        return
    for first in range(0, len(rows), joined):
        (
            dataset.merge_insert("image_id")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .execute(rows.slice(first, joined))
        )


def _any_known(dataset: LanceDataset, ids: pa.ChunkedArray) -> bool:
    wanted = pc.field("image_id").isin(ids.combine_chunks())
    batches = dataset.to_batches(["image_id"])
    return any(len(pa.Table.from_batches([batch]).filter(wanted)) for batch in batches)


def _tidy(dataset: LanceDataset, *, kept: timedelta, no_other: bool = False) -> None:
    """Write files anew that are small or hold deleted rows; delete versions of before `kept`.

    no_other: no other process writes, so files of no version are what an interrupted one has left.
    """
    dataset.optimize.compact_files(
        target_rows_per_fragment=FRAGMENT_ROWS, materialize_deletions_threshold=0.0
    )
    dataset.cleanup_old_versions(older_than=kept, delete_unverified=no_other)


def _vectors(features: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
