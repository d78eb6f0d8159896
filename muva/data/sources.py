"""The part of the data that training and model selection may access: the source domains.

`Sources` has no access to a target. It names source domains only, and the data sets that it opens
expose only their training images. Some of those can be held out for validation: a share of the
identities of every domain, or one whole domain.
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
"""Minimum number of identities of a domain to validate on: with a single one, every answer is
right."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Identities of a source domain that are excluded from training and used for validation."""

    dataset: Dataset
    """Exposes only training images."""
    rows: pa.Table
    """image_id, pid, camid, row and split. The first image of each pid and camera is a query."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The source domains of an experiment, by URI, and which identities are held out."""

    domains: tuple[str, ...]
    """URIs of the data sets to train on, in order."""
    all_splits: bool = False
    """Also train on the identities of query and gallery."""
    held_out_share: float = 0.0
    """Share of each domain's training identities that is held out for validation."""
    held_out_domain: str | None = None
    """URI of a further source domain that is held out as a whole."""

    @classmethod
    def of(cls, datasets: Sequence[Artifact], config: ExperimentConfig) -> Sources:
        """The sources, divided as the section `validation` of the config says.

        Raises MuvaError if `validation.domain` is not one of at least two sources.
        """
        settings = config.validation
        domains = {open_dataset(dataset).name: dataset.uri for dataset in datasets}
        held_out = None
        if settings is not None and settings.domain:
            if settings.domain not in domains or len(domains) < 2:
                raise MuvaError(
                    f"validation.domain is {settings.domain}: expected one of at least two "
                    f"sources, found {', '.join(domains)}"
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
        """The inverse of `as_json`."""
        fields = {("all_splits" if name == "everyone" else name): stored[name] for name in stored}
        return cls(**{**fields, "domains": tuple(fields["domains"])})

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON. `all_splits` is stored under the key `everyone`."""
        return {("everyone" if name == "all_splits" else name): v for name, v in vars(self).items()}

    def pool(self) -> Pool:
        """The training images. Raises MuvaError as `muva.data.protocols.pool` does."""
        datasets = [self._open(uri) for uri in self.domains]
        held_out = {dataset.name: self._held_out_pids(dataset) for dataset in datasets}
        return pool(datasets, all_splits=self.all_splits, excluded=held_out)

    def identities(self) -> int:
        """Number of identities to train on."""
        return len(self.pool().identities)

    def held_out(self) -> list[HeldOut]:
        """The validation sets, one per domain, in order; empty if nothing is held out.

        Raises MuvaError if a domain has too few identities.
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
        """A share of the pids that have a cross-camera match, drawn by a hash of domain and pid.

        The choice therefore depends neither on the other sources nor on a seed.
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
                f"out for validation, and {len(eligible)} of them have a match in another camera. "
                f"Expected at least {MIN_HELD_OUT_IDENTITIES} with a match, and some identities "
                "left to train on. Hold out a whole source with validation.domain, or set "
                "validation=null"
            )
        by_hash = sorted(eligible.tolist(), key=lambda pid: _hash(f"{dataset.name}/{pid}"))
        return np.array(sorted(by_hash[:count]), np.int64)


def _training_rows(dataset: Dataset) -> pa.Table:
    return dataset.rows(["image_id", "pid", "camid", "split"], splits=["train"])


def _pids_with_a_match(rows: pa.Table) -> np.ndarray:
    """Pids with images from two cameras, or with two images if cameras are unknown."""
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
    """A store that hides all data sets except the sources. A search is given this store."""

    def __init__(self, store: Store, sources: Sequence[Artifact]):
        self.uri = store.uri
        self._store = store
        self._addresses = tuple(f"{source.address}/" for source in sources)

    def read(self, key: str) -> bytes:
        """See `muva.data.store.Store`, as for the other methods."""
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
        """See `Store`; keys of other data sets are left out."""
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
                f"store {self.uri}: {key} does not belong to a source; training and model "
                "selection must not access any other data set"
            )
        return key
