"""The scores of an evaluation: one type from the ranking to tables, JSON and MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

_Value = TypeVar("_Value")

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
class Identification:
    """Identification with an open set: some people whom queries show are not in the gallery."""

    enrolled_queries: int
    unenrolled_queries: int
    """Queries of people who were removed from the gallery."""
    detected: dict[float, float]
    """False-alarm rate -> share of the enrolled queries whose person is the nearest one, and nearer
    than the threshold (DIR)."""
    thresholds: dict[float, float]
    """False-alarm rate -> the cosine above which that share of the other queries raises an
    alarm."""
    intervals: dict[float, Interval]
    """95 % intervals of `detected` at these thresholds, over the enrolled people."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What a threshold that was learned elsewhere does here."""

    threshold: float
    """Pairs with a higher cosine are accepted."""
    far: float
    """False-accept rate."""
    tar: float
    """True-accept rate."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Same person or not: over all pairs of a query and an image that count under the camera rule.

    A rate at which not a single pair, or query, of all would be accepted is left out.
    """

    genuine_pairs: int
    impostor_pairs: int
    eer: float
    """Equal error rate."""
    tar: dict[float, float]
    """False-accept rate -> true-accept rate."""
    thresholds: dict[float, float]
    """False-accept rate -> the cosine above which pairs are accepted."""
    roc: dict[float, float]
    """False-accept rate -> true-accept rate, for a curve; within the width of a cell of cosines."""
    intervals: dict[str, Interval]
    """95 % intervals of `eer` and, under `tar_name`, of `tar`, over the people of the queries; none
    with fewer than `MIN_IDENTITIES`."""
    identification: Identification | None
    """None where too few people are in the queries."""
    delivered: dict[float, Delivered] = dataclasses.field(default_factory=dict)
    """False-accept rate that the model's calibration promised -> what came of it."""

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Verification:
        """Undoes `as_json` of the scores that they are part of."""
        known = dict(stored)
        for name in ("tar", "thresholds", "roc"):
            known[name] = _by_rate(known[name])
        known["intervals"] = _intervals(known["intervals"])
        known["delivered"] = _by_rate(
            {rate: Delivered(**one) for rate, one in known["delivered"].items()}
        )
        if (found := known["identification"]) is not None:
            known["identification"] = Identification(
                **{
                    **found,
                    "detected": _by_rate(found["detected"]),
                    "thresholds": _by_rate(found["thresholds"]),
                    "intervals": _by_rate(_intervals(found["intervals"])),
                }
            )
        return cls(**known)


def tar_name(rate: float) -> str:
    """The name of the true-accept rate at this false-accept rate: `tar-at-1e-3`."""
    return f"tar-at-{rate_name(rate)}"


def rate_name(rate: float) -> str:
    """A rate, such as 0.001, as `1e-3`."""
    digits, exponent = f"{rate:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _by_rate(stored: Mapping[str, _Value]) -> dict[float, _Value]:
    return {float(rate): value for rate, value in stored.items()}


def _intervals(stored: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: Interval(**one) for name, one in stored.items()}


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
    verification: Verification | None
    """None with trials, and where all images show the same person."""

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
        """The scores as plain data, for manifests and `--json`; ranks and rates become strings."""
        return _with_strings_as_keys(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Scores:
        """Undoes `as_json`; fields that are not scores are ignored."""
        known = {field.name: stored[field.name] for field in dataclasses.fields(cls)}
        for name in ("cmc", "curve"):
            known[name] = {int(rank): value for rank, value in known[name].items()}
        intervals = _intervals(known["intervals"])
        # Earlier versions stored intervals of any number of identities.
        known["intervals"] = intervals if known["valid_queries"] >= MIN_IDENTITIES else {}
        known["camera_pairs"] = tuple(CameraPair(**pair) for pair in known["camera_pairs"])
        if known["verification"] is not None:
            known["verification"] = Verification.from_json(known["verification"])
        return cls(**known)


def _with_strings_as_keys(stored: Any) -> Any:
    """Plain data whose keys are as JSON has them."""
    if isinstance(stored, dict):
        return {str(key): _with_strings_as_keys(value) for key, value in stored.items()}
    if isinstance(stored, list | tuple):
        return [_with_strings_as_keys(value) for value in stored]
    return stored
