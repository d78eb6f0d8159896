"""The scores of an evaluation: one type from the ranking to tables, JSON and MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIN_IDENTITIES = 10
"""Fewer identities give no interval: a bootstrap over a handful of groups is far too narrow, and
over one it has no width (Cameron, Gelbach and Miller, Review of Economics and Statistics, 2008)."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a score would lie for other people of the same kind, with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CameraPair:
    """The scores of one camera's queries in a gallery of another camera's images only."""

    query_camid: int
    gallery_camid: int
    mean_ap: float
    rank1: float
    queries: int
    """Those with a match in that gallery."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a model, or of features from elsewhere, on one data set; all are fractions."""

    mean_ap: float
    mean_inp: float
    cmc: dict[int, float]
    """At the ranks that the settings name."""
    curve: dict[int, float]
    """At every rank up to 50."""
    queries: int
    valid_queries: int
    """Queries with a match in the gallery; the others count in no score."""
    gallery: int
    cameras_known: bool
    """Otherwise each query ignored only its own image."""
    reranked: bool
    trials: int
    """Random splits that all scores are means over; 0: the data set's own split."""
    intervals: dict[str, Interval]
    """95 % intervals of `mean_ap` and `rank1`, over the identities of the valid queries; none with
    trials, and none with fewer than `MIN_IDENTITIES`."""
    camera_pairs: tuple[CameraPair, ...]
    """None where cameras are unknown, and with trials."""

    @property
    def rank1(self) -> float:
        """Share of queries whose nearest image shows the same person."""
        return self.curve[1]

    @property
    def valid_of_all(self) -> str:
        """How many queries are valid, for tables: `24 of 24`."""
        return f"{self.valid_queries} of {self.queries}"

    @property
    def too_few_queries(self) -> str | None:
        """Why the scores say little about the model; None where enough queries are valid."""
        reasons = []
        if 2 * self.valid_queries < self.queries:
            reasons.append(
                f"only {self.valid_of_all} queries are valid; the others have no match in the "
                "gallery that counts under the camera rule, and are part of no score"
            )
        if not self.trials and not self.intervals:
            reasons.append(
                f"the valid queries show fewer than {MIN_IDENTITIES} people, too few for a "
                "confidence interval"
            )
        return "; ".join(reasons) or None

    def as_json(self) -> dict[str, Any]:
        """The scores as plain data, for manifests and `--json`; ranks become strings."""
        stored = dataclasses.asdict(self)
        for name in ("cmc", "curve"):
            stored[name] = {str(rank): value for rank, value in stored[name].items()}
        stored["camera_pairs"] = list(stored["camera_pairs"])
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Scores:
        """Undoes `as_json`; fields that are not scores are ignored."""
        known = {field.name: stored[field.name] for field in dataclasses.fields(cls)}
        for name in ("cmc", "curve"):
            known[name] = {int(rank): value for rank, value in known[name].items()}
        intervals = {name: Interval(**one) for name, one in known["intervals"].items()}
        # Earlier versions stored intervals of any number of identities.
        known["intervals"] = intervals if known["valid_queries"] >= MIN_IDENTITIES else {}
        known["camera_pairs"] = tuple(CameraPair(**pair) for pair in known["camera_pairs"])
        return cls(**known)
