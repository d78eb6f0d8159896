"""What learning and choosing may open of the world: the training images of source domains.

Whoever holds `Sources` reaches no target: it names source domains alone, and of those it gives data
sets in which only the images to learn from can be read. Some may be held out of learning, to judge
by: a share of every domain's identities, or a domain as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from muva.config import ExperimentConfig
from muva.data.artifacts import Artifact, open_artifact
from muva.data.protocols import Pool, pool, query_gallery
from muva.data.records import SPLITS
from muva.data.shards import Dataset, open_dataset
from muva.data.store import Store
from muva.errors import MuvaError

MIN_HELD_OUT_IDENTITIES = 2
"""Identities of a domain to judge by: with one, every answer is right."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """People of a source domain that nothing is learned from."""

    dataset: Dataset
    """Only its images to learn from can be read."""
    rows: pa.Table
    """image_id, pid, camid, row and split: the first image of each pid and camera is a query."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Source domains by address, and who of them is held out."""

    domains: tuple[str, ...]
    """URIs of the data sets to learn from, in order."""
    all_splits: bool = False
    """Learn from the people of query and gallery too."""
    held_out_share: float = 0.0
    """Share of each domain's training identities to judge by instead."""
    held_out_domain: str | None = None
    """URI of a further source domain to judge by."""

    @classmethod
    def of(cls, datasets: Sequence[Artifact], config: ExperimentConfig) -> Sources:
        """These data sets as an experiment's section `validation` divides them."""
        settings = config.validation
        domains = {open_dataset(dataset).name: dataset.uri for dataset in datasets}
        held_out = None
        if settings is not None and settings.domain:
            if settings.domain not in domains or len(domains) < 2:
                raise MuvaError(
                    f"validation.domain is {settings.domain}: expected one of two sources or more, "
                    f"found {', '.join(domains)}"
                )
            held_out = domains.pop(settings.domain)
        return cls(
            domains=tuple(domains.values()) if held_out else tuple(d.uri for d in datasets),
            all_splits=config.train_on == "all",
            held_out_share=settings.identities if settings and not held_out else 0.0,
            held_out_domain=held_out,
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Sources:
        """Undo `as_json`."""
        fields = {("all_splits" if name == "everyone" else name): stored[name] for name in stored}
        return cls(**{**fields, "domains": tuple(fields["domains"])})

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON; `all_splits` is stored under its first name, `everyone`."""
        return {("everyone" if name == "all_splits" else name): v for name, v in vars(self).items()}

    def pool(self) -> Pool:
        """The images to learn from; MuvaError as `muva.data.protocols.pool`."""
        datasets = [self._open(uri) for uri in self.domains]
        held_out = {dataset.name: self._held_out_pids(dataset) for dataset in datasets}
        return pool(datasets, all_splits=self.all_splits, excluded=held_out)

    def identities(self) -> int:
        """How many there are to learn."""
        return len(self.pool().identities)

    def held_out(self) -> list[HeldOut]:
        """Those to judge by, a domain each, in order; empty where nobody is held out.

        Raises MuvaError where a domain has too few people to hold out.
        """
        if self.held_out_domain is not None:
            dataset = self._open(self.held_out_domain)
            return [HeldOut(dataset=dataset, rows=query_gallery(_training_rows(dataset)))]
        if not self.held_out_share:
            return []
        sets = []
        for uri in self.domains:
            dataset = self._open(uri)
            rows = _training_rows(dataset)
            is_held_out = np.isin(rows["pid"].to_numpy(), self._held_out_pids(dataset))
            sets.append(HeldOut(dataset=dataset, rows=query_gallery(rows.filter(is_held_out))))
        return sets

    def _open(self, uri: str) -> Dataset:
        visible = SPLITS if self.all_splits and uri in self.domains else ("train",)
        return replace(open_dataset(open_artifact(uri)), visible=visible)

    def _held_out_pids(self, dataset: Dataset) -> np.ndarray:
        """A share of those whom another camera has seen, drawn by a hash of domain and pid.

        So they are the same whatever else is pooled, and with whatever seed.
        """
        if not self.held_out_share:
            return np.empty(0, np.int64)
        rows = _training_rows(dataset)
        pids = np.unique(rows["pid"].to_numpy())
        count = max(MIN_HELD_OUT_IDENTITIES, round(self.held_out_share * len(pids)))
        eligible = _pids_with_a_match(rows)
        if len(eligible) < MIN_HELD_OUT_IDENTITIES or count >= len(pids):
            raise MuvaError(
                f"{dataset.name}: {count} of its {len(pids)} training identities would be held "
                f"out to judge by, and {len(eligible)} have a match to be found (an image of "
                f"another camera): expected at least {MIN_HELD_OUT_IDENTITIES} of those, and some left to "
                f"learn from. Hold a whole source out with validation.domain, or set "
                f"validation=null"
            )
        by_hash = sorted(eligible.tolist(), key=lambda pid: _hash(f"{dataset.name}/{pid}"))
        return np.array(sorted(by_hash[:count]), np.int64)


def _training_rows(dataset: Dataset) -> pa.Table:
    return dataset.rows(["image_id", "pid", "camid", "split"], splits=["train"])


def _pids_with_a_match(rows: pa.Table) -> np.ndarray:
    """Pids seen by two cameras, or on two images where cameras are unknown."""
    pids = rows["pid"].to_numpy()
    if rows["camid"].null_count:
        known, images = np.unique(pids, return_counts=True)
        return known[images > 1]
    pairs = np.unique(np.stack([pids, rows["camid"].to_numpy()]), axis=1)
    known, cameras = np.unique(pairs[0], return_counts=True)
    return known[cameras > 1]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class SourcesOnlyStore:
    """A store in which no data set can be touched but these sources: what a search is given."""

    def __init__(self, store: Store, sources: Sequence[Artifact]):
        self.uri = store.uri
        self._store = store
        self._addresses = tuple(f"{source.address}/" for source in sources)

    def read(self, key: str) -> bytes:
        """See `muva.data.store.Store`; so the other methods."""
        return self._store.read(self._checked(key))

    def write(self, key: str, data: bytes) -> None:
        """See `Store`."""
        self._store.write(self._checked(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Store`."""
        return self._store.create(self._checked(key), data)

    def exists(self, key: str) -> bool:
        """See `Store`."""
        return self._store.exists(self._checked(key))

    def size(self, key: str) -> int:
        """See `Store`."""
        return self._store.size(self._checked(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store`; the keys of other data sets are left out."""
        return (key for key in self._store.list(prefix) if self._is_allowed(key))

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._store.delete(self._checked(key))

    def path(self, key: str) -> Path:
        """See `Store`."""
        return self._store.path(self._checked(key))

    def sweep(self, *, older_than_s: float) -> int:
        """See `Store`."""
        return self._store.sweep(older_than_s=older_than_s)

    def _is_allowed(self, key: str) -> bool:
        return not key.startswith("datasets/") or key.startswith(self._addresses)

    def _checked(self, key: str) -> str:
        if not self._is_allowed(key):
            raise MuvaError(
                f"store {self.uri}: {key} is of no source: what learns and chooses reaches no "
                "other data set"
            )
        return key
