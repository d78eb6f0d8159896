"""Training and test sets: pooled sources with consecutive labels, trials, and held-out queries.

Identities of different domains are different people, so a pool relabels all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from muva.data.artifacts import Artifact
from muva.data.benchmarks import BENCHMARKS
from muva.data.benchmarks.benchmark import Trial
from muva.data.records import JUNK_PID, SPLITS, first_per_camera
from muva.data.shards import Dataset
from muva.data.store import MissingKeyError
from muva.errors import MuvaError

TRIALS = "trials.json"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The training images of several domains combined: M images of N identities."""

    datasets: tuple[Dataset, ...]
    labels: np.ndarray
    """(M,) int64 in 0..N-1, ordered by domain as given, then by pid."""
    identities: tuple[tuple[str, int], ...]
    """Label -> (domain, pid)."""
    dataset_index: np.ndarray
    """(M,) index of the image's data set."""
    rows: np.ndarray
    """(M,) row of the image in its data set."""
    image_ids: tuple[str, ...]
    """(M,): `domain/image_id`."""

    def image_ids_of(self, dataset: Dataset) -> list[str]:
        """The image ids of one data set, without its name, in the order of the pool."""
        positions = np.flatnonzero(self.dataset_index == self.datasets.index(dataset))
        return [self.image_ids[position].removeprefix(f"{dataset.name}/") for position in positions]


def pool(
    datasets: Sequence[Dataset],
    *,
    all_splits: bool = False,
    excluded: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Pool:
    """Combine the train splits; MuvaError if a domain is repeated or has no training images.

    With `all_splits`, the identities of query and gallery are included too, but never junk or
    distractors. `excluded` maps domains to pids that are left out.
    """
    names = [dataset.name for dataset in datasets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        raise MuvaError(
            f"sources: expected one or more different data sets, found {', '.join(names) or 'none'}"
        )
    identities: list[tuple[str, int]] = []
    image_ids: list[str] = []
    labels, dataset_index, rows = [], [], []
    for index, dataset in enumerate(datasets):
        table = dataset.rows(["image_id", "pid"], splits=SPLITS if all_splits else ["train"])
        ignored = [*_non_identities(dataset), *excluded.get(dataset.name, ())]
        table = table.filter(pa.array(~np.isin(table["pid"].to_numpy(), ignored)))
        if not len(table):
            raise MuvaError(
                f"{dataset.name} has no training images (splits: "
                f"{', '.join(dataset.summary.splits)}). It can only be used as a target"
            )
        pids, local_labels = np.unique(table["pid"].to_numpy(), return_inverse=True)
        labels.append(local_labels + len(identities))
        identities += [(dataset.name, int(pid)) for pid in pids]
        image_ids += [f"{dataset.name}/{image_id}" for image_id in table["image_id"].to_pylist()]
        dataset_index.append(np.full(len(table), index))
        rows.append(table["row"].to_numpy())
    return Pool(
        datasets=tuple(datasets),
        labels=np.concatenate(labels).astype(np.int64),
        identities=tuple(identities),
        dataset_index=np.concatenate(dataset_index),
        rows=np.concatenate(rows),
        image_ids=tuple(image_ids),
    )


def _non_identities(dataset: Dataset) -> list[int]:
    benchmark = BENCHMARKS.get(dataset.name)
    return [JUNK_PID, *(benchmark.distractors if benchmark else ())]


def write_trials(artifact: Artifact, trials: Sequence[Trial]) -> None:
    """Store the random splits of a data set beside its shards."""
    text = json.dumps([asdict(trial) for trial in trials])
    artifact.store.write(artifact.key(TRIALS), text.encode())


def read_trials(dataset: Dataset) -> list[Trial]:
    """The random splits that a data set's results are averaged over; empty for most data sets."""
    artifact = dataset.artifact
    try:
        text = artifact.store.read(artifact.key(TRIALS))
    except MissingKeyError:
        return []
    try:
        return [
            Trial(**{name: tuple(ids) for name, ids in stored.items()})
            for stored in json.loads(text)
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise MuvaError(
            f"{artifact.uri}: {TRIALS} is damaged ({error}). Delete the folder {artifact.address} "
            "of the store and import the data set again"
        ) from error


def query_gallery(rows: pa.Table) -> pa.Table:
    """Divide the rows into queries (the first image of each pid and camera) and gallery.

    For validation on identities that were held out of training.
    """
    first = first_per_camera(rows["pid"].to_pylist(), rows["camid"].to_pylist())
    splits = pa.array(["query" if is_first else "gallery" for is_first in first])
    return rows.set_column(rows.column_names.index("split"), "split", splits)
