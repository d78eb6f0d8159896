"""Verification and open-set identification: same person or not, and has this person been seen?

All pairs of a query and a gallery image that count under the camera rule are compared: genuine ones
show the same person, impostors do not. The cosines of genuine pairs are few and known; those of
impostors are counted during ranking, block by block. A random sample of them tells beforehand
within which bands the thresholds lie; the cosines there are kept, in float64. So thresholds,
true-accept rates and the equal error rate are exact, as if all pairs had been sorted, and do not
depend on blocks or threads; curves and confidence intervals are computed from histograms. Queries
without a match count here no more than in mAP.

FAR (false-accept rate) is the share of impostor pairs that are accepted, TAR (true-accept rate)
that of genuine pairs, and EER (equal error rate) where FAR equals 1 - TAR; ISO/IEC 19795-1 calls
FAR and 1 - TAR of single comparisons FMR and FNMR. DIR (detection and identification rate) is that
of Phillips, Grother and Micheals, Evaluation Methods in Face Recognition, Handbook of Face
Recognition, 2005: the share of enrolled people who are nearest and beyond the threshold, at which a
given share of the people who are not enrolled raise a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from muva.retrieval.block_products import cosine_error
from muva.retrieval.camera_rule import CameraRule
from muva.retrieval.distances import BLOCK_BYTES, even_slices
from muva.retrieval.match_ranks import (
    AffineRescoring,
    Block,
    FeatureChunk,
    MatchRanks,
    Pairs,
    Thresholds,
    check_widths,
    count_nearer_in_chunk,
    matching_and_ignored_pairs,
    pair_similarities,
    run_in_threads,
)
from muva.retrieval.metrics import BOOTSTRAP_RESAMPLES, bootstrap_interval, percentile_interval
from muva.retrieval.pair_loops import count_impostors
from muva.retrieval.results import (
    MIN_IDENTITIES,
    Delivered,
    Identification,
    Interval,
    Verification,
    tar_name,
)

FALSE_ACCEPT_RATES = (1e-2, 1e-3, 1e-4)
FALSE_ALARM_RATES = (1e-1, 1e-2)
LEAST_FALSE_ACCEPTS = 1
"""A rate at which fewer pairs of all impostors would be accepted than this is not reported."""
ROC_RATES = tuple(round(10 ** (exponent / 10), 9) for exponent in range(-60, 1))
UNENROLLED_SHARE, UNENROLLED_SEED = 0.5, 0
"""Half of the people whom queries show, drawn with this seed, are removed from the gallery."""

SAMPLE_PAIRS = 2**18
DEVIATIONS = 5.0
"""Width of a band in standard deviations of the sample's estimate. Where a threshold lies outside
its band nevertheless, the pairs are counted again, with bands of four times the width."""
_CELLS = 1024
"""Cells of a histogram of cosines from -1 to 1, from which curves and intervals are computed."""
MOST_GROUPS = 4096
"""So many histograms are kept: of each person, or of as many groups of people, which bounds memory
and makes intervals hardly wider."""
_VALUES_AT_ONCE = 65_536
_PAIRS_OF_ONE_THREAD = 65_536
"""A smaller block is counted before other threads would have started."""


def ranks_and_verification(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    rule: CameraRule,
    *,
    rescoring: AffineRescoring | None = None,
    block_bytes: int = BLOCK_BYTES,
    verify: bool = True,
    promised: Mapping[float, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MatchRanks, Verification | None]:
    """Ranks of the matches among the gallery images that count, and figures of all such pairs.

    Features are (images, width), need not be normalised, and may be memory-mapped. `rescoring`
    ranks by other similarities; verification is always by cosine, and None without `verify`, or
    where no query has a match or a stranger in the gallery. `promised` are thresholds that a
    calibration gives for false-accept rates: `delivered` says what comes of them. `block_bytes`
    bounds a block of similarities, and a block of features beside it; `progress` is called with
    (gallery images done, all). Raises MuvaError if features do not match each other, or contain NaN
    or infinity.
    """
    queries = FeatureChunk(query, "query_features")
    galleries = FeatureChunk(gallery, "gallery_features")
    check_widths(queries, galleries)
    matches, ignored = matching_and_ignored_pairs(rule, len(queries))
    similarities = pair_similarities(queries, galleries, matches)
    thresholds = Thresholds.of(matches, similarities, queries=len(query), rescoring=rescoring)
    sample = impostor_sample(rule, matches, count=SAMPLE_PAIRS if verify else 0)
    sampled = pair_similarities(queries, galleries, sample)

    def count(plan: PairPlan | None) -> tuple[np.ndarray, ImpostorCounts | None]:
        counts, each_block = block_counter(plan)
        nearer = count_nearer_in_chunk(
            queries,
            galleries,
            thresholds,
            ignored=ignored,
            rule=rule,
            rescoring=rescoring,
            each_block=each_block,
            block_bytes=block_bytes,
            progress=progress,
        )
        return nearer, counts

    nearer, verification = counted(
        count, rule, matches, similarities, sampled, width=queries.width, promised=promised
    )
    return thresholds.ranks(nearer, rule), verification


def block_counter(
    plan: PairPlan | None,
) -> tuple[ImpostorCounts | None, Callable[[Block], None] | None]:
    """Counts without any pair yet, and what adds the pairs of a block; None without a plan."""
    if plan is None:
        return None, None
    counts = ImpostorCounts.empty(plan)
    return counts, partial(counts.add_block, plan)


def counted(
    count: Callable[[PairPlan | None], tuple[np.ndarray, ImpostorCounts | None]],
    rule: CameraRule,
    matches: Pairs,
    similarities: np.ndarray,
    sampled: np.ndarray,
    *,
    width: int,
    promised: Mapping[float, float] | None = None,
) -> tuple[np.ndarray, Verification | None]:
    """The counts of nearer images, and the verification, of a pass over the gallery.

    `count` makes the pass; it is repeated with wider bands if a threshold is outside of its band,
    which happens in one of a million evaluations.
    """
    if not len(sampled):
        return count(None)[0], None
    deviations = DEVIATIONS
    while True:
        plan = pair_plan(
            rule,
            matches,
            similarities,
            sampled,
            width=width,
            promised=promised,
            deviations=deviations,
        )
        nearer, counts = count(plan)
        assert counts is not None
        if (found := verification(plan, counts)) is not None:
            return nearer, found
        deviations *= 4


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """What is counted about the pairs of different people."""

    rule: CameraRule
    error: float
    """The most by which a float32 cosine differs from the exact one."""
    matches: Pairs
    similarities: np.ndarray
    """(matches,) float64: their cosines."""
    identities: np.ndarray
    """(queries,): number of each query's person, or -1 if it has no match."""
    groups: np.ndarray
    """(queries,): of those persons, in whose histogram a query's pairs are counted, or -1."""
    unenrolled: np.ndarray
    """(people,) bool: who is removed from the gallery for identification with an open set."""
    enrolled: np.ndarray
    """(gallery,) bool."""
    promised: Mapping[float, float]
    """False-accept rate -> a threshold that was learned elsewhere."""
    low: np.ndarray
    """(bands,) float64: disjoint bands of cosines, ascending, whose pairs are kept."""
    high: np.ndarray

    @property
    def group_count(self) -> int:
        """The number of histograms."""
        return min(len(self.unenrolled), MOST_GROUPS)


def impostor_sample(rule: CameraRule, matches: Pairs, *, count: int = SAMPLE_PAIRS) -> Pairs:
    """Random pairs of different people, sorted by gallery image; the same ones every time."""
    queries = np.unique(matches.query)
    gallery = np.setdiff1d(np.arange(len(rule.gallery_pids)), rule.junk, assume_unique=True)
    rng = np.random.default_rng(0)
    count = min(count, len(queries) * len(gallery))
    pairs = Pairs(rng.choice(queries, count), rng.choice(gallery, count))
    pairs = pairs.select(rule.query.pids[pairs.query] != rule.gallery_pids[pairs.gallery])
    return pairs.select(np.argsort(pairs.gallery, kind="stable"))


def pair_plan(
    rule: CameraRule,
    matches: Pairs,
    similarities: np.ndarray,
    sampled: np.ndarray,
    *,
    width: int,
    promised: Mapping[float, float] | None = None,
    deviations: float = DEVIATIONS,
) -> PairPlan:
    """Plan the count. `similarities` are the cosines of the matches, `sampled` of the sample;
    `width` is that of the features."""
    valid = np.unique(matches.query)
    people, of_valid = np.unique(rule.query.pids[valid], return_inverse=True)
    identities = np.full(len(rule.query), -1)
    identities[valid] = of_valid
    order = np.random.default_rng(UNENROLLED_SEED).permutation(len(people))
    unenrolled = np.zeros(len(people), bool)
    unenrolled[order[: int(UNENROLLED_SHARE * len(people))]] = True
    bands = _likely_bands(np.sort(sampled)[::-1], np.sort(similarities), deviations)
    error, promised = cosine_error(width), promised or {}
    bands += [(t - 2 * error, t + 2 * error) for t in promised.values()]
    low, high = _disjoint(bands)
    return PairPlan(
        rule=rule,
        error=error,
        matches=matches,
        similarities=similarities,
        identities=identities,
        groups=np.where(identities < 0, -1, identities % MOST_GROUPS),
        unenrolled=unenrolled,
        enrolled=~np.isin(rule.gallery_pids, people[unenrolled]),
        promised=promised,
        low=low,
        high=high,
    )


def _likely_bands(
    sampled: np.ndarray, genuine: np.ndarray, deviations: float
) -> list[tuple[float, float]]:
    """Bands within which the thresholds of the rates and of the EER lie, with near certainty."""
    count = len(sampled)
    bands = []
    for rate in FALSE_ACCEPT_RATES:
        doubt = deviations * (np.sqrt(count * rate) + deviations)
        bands.append((_at(sampled, count * rate + doubt), _at(sampled, count * rate - doubt)))
    far = np.arange(1, count + 1) / max(count, 1)
    excess = far - np.searchsorted(genuine, sampled, side="left") / max(len(genuine), 1)
    at_equal = far[min(int(np.searchsorted(excess, 0)), count - 1)] if count else 0.0
    doubt = deviations * (np.sqrt(at_equal / max(count, 1)) + deviations / max(count, 1))
    first, last = np.searchsorted(excess, [-doubt, doubt])
    bands.append((_at(sampled, float(last) + 1), _at(sampled, float(first) - 1)))
    return bands


def _disjoint(bands: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper ends of bands, ascending, with those that overlap joined."""
    merged: list[tuple[float, float]] = []
    for low, high in sorted(bands):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    edges = np.array(merged)
    return edges[:, 0], edges[:, 1]


def _at(descending: np.ndarray, place: float) -> float:
    """The value at a place, or infinity before the first and minus infinity after the last one."""
    if place < 0:
        return np.inf
    return float(descending[int(place)]) if place < len(descending) else -np.inf


@dataclass(kw_only=True)
class ImpostorCounts:
    """What is known about the pairs of different people; counts of gallery chunks add up."""

    histogram: np.ndarray
    """(groups, cells) int64: impostor pairs of each group's queries, by cosine."""
    above: np.ndarray
    """(bands,) int64: impostor pairs above each band."""
    nearest: np.ndarray
    """(queries,) float64: highest cosine of a query with an enrolled image of another person."""
    values: list[np.ndarray] = field(default_factory=list)
    """The exact cosines of the pairs within bands."""
    bands: list[np.ndarray] = field(default_factory=list)
    """The bands of those pairs."""

    @classmethod
    def empty(cls, plan: PairPlan) -> ImpostorCounts:
        """The state before any pair."""
        return cls(
            histogram=np.zeros((plan.group_count, _CELLS), np.int64),
            above=np.zeros(len(plan.low), np.int64),
            nearest=np.full(len(plan.identities), -np.inf),
        )

    def merge(self, other: ImpostorCounts) -> None:
        """Add the counts of other pairs."""
        self.histogram += other.histogram
        self.above += other.above
        np.maximum(self.nearest, other.nearest, out=self.nearest)
        self.values += other.values
        self.bands += other.bands

    def add_block(self, plan: PairPlan, block: Block) -> None:
        """Count the pairs of a block of cosines."""
        groups = plan.groups[block.queries]
        order = np.argsort(groups, kind="stable")
        threads = torch.get_num_threads() if block.near.size > _PAIRS_OF_ONE_THREAD else 1
        edges = _edges_between_groups(groups[order], threads)
        shares = [
            _Share.of(self, order[first:last], columns=block.near.shape[1])
            for first, last in pairwise(edges)
        ]
        side = (
            *(groups, plan.rule.query.pids[block.queries]),
            *(block.query_features, block.query_scales),
            *(plan.rule.gallery_pids[block.gallery], plan.enrolled[block.gallery]),
            *(block.gallery_features, block.gallery_scales, plan.low, plan.high),
        )
        common = (block.near, plan.error, side, self.histogram, self.nearest[block.queries])
        if len(shares) == 1:
            _count_share(shares[0], *common)
        else:
            with ThreadPoolExecutor(len(shares)) as pool:
                run_in_threads(pool, _count_share, [(share, *common) for share in shares])
        for share in shares:
            self.above += share.above
            self.values += share.kept_values
            self.bands += share.kept_bands


@dataclass(kw_only=True)
class _Share:
    """The queries of a block that a thread counts, and what it found."""

    order: np.ndarray
    above: np.ndarray
    values: np.ndarray
    bands: np.ndarray
    kept_values: list[np.ndarray]
    kept_bands: list[np.ndarray]

    @classmethod
    def of(cls, counts: ImpostorCounts, order: np.ndarray, *, columns: int) -> _Share:
        room = max(_VALUES_AT_ONCE, columns)
        return cls(
            order=order,
            above=np.zeros_like(counts.above),
            values=np.empty(room),
            bands=np.empty(room, np.int64),
            kept_values=[],
            kept_bands=[],
        )


def _count_share(
    share: _Share,
    near: np.ndarray,
    error: float,
    side: tuple[np.ndarray, ...],
    histogram: np.ndarray,
    nearest: np.ndarray,
) -> None:
    position = 0
    while position < len(share.order):
        position, found = count_impostors(
            near,
            error,
            share.order,
            position,
            *side,
            histogram,
            share.above,
            nearest,
            share.values,
            share.bands,
        )
        share.kept_values.append(share.values[:found].copy())
        share.kept_bands.append(share.bands[:found].copy())


def _edges_between_groups(sorted_groups: np.ndarray, shares: int) -> list[int]:
    """Where to cut queries that are sorted by group, so that no group is in two shares."""
    edges = {0, len(sorted_groups)}
    for part in even_slices(len(sorted_groups), len(sorted_groups) // shares + 1)[1:]:
        group = sorted_groups[part.start]
        edges.add(int(np.searchsorted(sorted_groups, group, side="left")))
    return sorted(edges)


def verification(plan: PairPlan, counts: ImpostorCounts) -> Verification | None:
    """The figures of all pairs; None if a threshold is outside its band.

    Then the pairs have to be counted again, with the bands of a greater `deviations`.
    """
    zones = _zones(plan, counts)
    impostors, genuine = int(counts.histogram.sum()), np.sort(plan.similarities)
    thresholds: dict[float, float] = {}
    for rate in FALSE_ACCEPT_RATES:
        if rate * impostors < LEAST_FALSE_ACCEPTS:
            continue
        threshold = _next_highest(zones, _accepted(rate, impostors))
        if threshold is None:
            return None
        thresholds[rate] = threshold
    eer = _equal_error_rate(zones, genuine, impostors)
    if eer is None:
        return None
    curves = _Curves.of(plan, counts)
    rates = tuple(thresholds)
    return Verification(
        genuine_pairs=len(genuine),
        impostor_pairs=impostors,
        eer=eer,
        tar={rate: float(np.mean(genuine > t)) for rate, t in thresholds.items()},
        thresholds=thresholds,
        roc=curves.roc(),
        intervals=curves.intervals(rates),
        identification=_identification(plan, counts),
        delivered={
            rate: Delivered(
                threshold=threshold,
                far=_beyond(zones, threshold) / impostors,
                tar=float(np.mean(genuine > threshold)),
            )
            for rate, threshold in plan.promised.items()
        },
    )


@dataclass(frozen=True, kw_only=True)
class _Zone:
    """A band within which the cosines of all impostor pairs are known."""

    low: float
    high: float
    above: int
    """Impostor pairs with a higher cosine."""
    values: np.ndarray
    """Descending float64; outside of low to high, others are missing."""


def _zones(plan: PairPlan, counts: ImpostorCounts) -> list[_Zone]:
    """The bands, narrowed by the error of the float32 cosines that decided who belongs to them."""
    values = np.concatenate([np.empty(0), *counts.values])
    bands = np.concatenate([np.empty(0, np.int64), *counts.bands])
    return [
        _Zone(
            low=plan.low[band] + plan.error,
            high=plan.high[band] - plan.error,
            above=int(counts.above[band]),
            values=np.sort(values[bands == band])[::-1],
        )
        for band in range(len(plan.low))
    ]


def _accepted(rate: float, total: int) -> int:
    """The most of so many that may be accepted at this rate; 0.01 of 300 are 3."""
    return math.floor(round(rate * total, 6))


def _next_highest(zones: Sequence[_Zone], count: int) -> float | None:
    """The highest cosine but `count`, above which exactly that many lie; None if unknown."""
    for zone in zones:
        place = count - zone.above
        if 0 <= place < len(zone.values) and zone.low < zone.values[place] < zone.high:
            return float(zone.values[place])
    return None


def _beyond(zones: Sequence[_Zone], threshold: float) -> int:
    """How many impostor pairs have a higher cosine than a threshold that a band was planned for."""
    [zone] = [zone for zone in zones if zone.low < threshold < zone.high]
    return zone.above + int((zone.values > threshold).sum())


def _equal_error_rate(zones: Sequence[_Zone], genuine: np.ndarray, impostors: int) -> float | None:
    """Where the ROC, with straight lines between its points, meets 1 - TAR = FAR."""
    for zone in zones:
        known = np.concatenate([zone.values, genuine])
        points = np.unique(known[(known > zone.low) & (known < zone.high)])[::-1]
        ascending = zone.values[::-1]
        accepted = len(ascending) - np.searchsorted(ascending, points, side="left")
        far = (zone.above + accepted) / impostors
        missed = np.searchsorted(genuine, points, side="left") / len(genuine)
        if zone.high == np.inf:
            far, missed = np.append(0.0, far), np.append(1.0, missed)
        meets = int(np.searchsorted(far - missed, 0.0))
        if 0 < meets < len(far):
            before, at = far[meets - 1] - missed[meets - 1], far[meets] - missed[meets]
            return float(far[meets - 1] - before / (at - before) * (far[meets] - far[meets - 1]))
    return None


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """ROC curves in steps of a cell of cosines."""

    genuine: np.ndarray
    """(groups, cells): pairs of each group's queries, by cosine, highest first."""
    impostors: np.ndarray

    @classmethod
    def of(cls, plan: PairPlan, counts: ImpostorCounts) -> _Curves:
        genuine = np.zeros_like(counts.histogram)
        cells = np.clip((plan.similarities + 1) * 0.5 * _CELLS, 0, _CELLS - 1).astype(np.int64)
        np.add.at(genuine, (plan.groups[plan.matches.query], cells), 1)
        return cls(genuine=genuine[:, ::-1], impostors=counts.histogram[:, ::-1])

    def roc(self) -> dict[float, float]:
        """FAR -> TAR at the rates of `ROC_RATES`."""
        far, tar = (_cumulated(pairs.sum(axis=0)) for pairs in (self.impostors, self.genuine))
        least = 1 / self.impostors.sum()
        rates = [rate for rate in ROC_RATES if rate >= least]
        return dict(zip(rates, np.interp(rates, far, tar).tolist(), strict=True))

    def intervals(self, rates: Sequence[float]) -> dict[str, Interval]:
        """Of `eer` and `tar`, when people are resampled with all pairs of their queries."""
        groups = len(self.genuine)
        if groups < MIN_IDENTITIES:
            return {}
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=BOOTSTRAP_RESAMPLES)
        weights = drawn.astype(np.float64)
        found = np.empty((BOOTSTRAP_RESAMPLES, 1 + len(rates)))
        curves = (_cumulated(weights @ pairs) for pairs in (self.impostors, self.genuine))
        for resample, (far, tar) in enumerate(zip(*curves, strict=True)):
            found[resample, 0] = np.interp(0.0, far + tar - 1, far)
            found[resample, 1:] = np.interp(rates, far, tar)
        names = ["eer", *(tar_name(rate) for rate in rates)]
        return dict(zip(names, map(percentile_interval, found.T), strict=True))


def _cumulated(pairs: np.ndarray) -> np.ndarray:
    """(..., cells + 1): the share of pairs in the first cells, from 0 to 1."""
    total = np.cumsum(pairs, axis=-1, dtype=np.float64)
    shares = total / total[..., -1:]
    return np.concatenate([np.zeros_like(shares[..., :1]), shares], axis=-1)


def _identification(plan: PairPlan, counts: ImpostorCounts) -> Identification | None:
    """Of queries against the gallery of enrolled people; None if everyone or no one is enrolled."""
    valid = np.flatnonzero(plan.identities >= 0)
    unenrolled = plan.unenrolled[plan.identities[valid]]
    if unenrolled.all() or not unenrolled.any():
        return None
    best_match = np.full(len(plan.identities), -np.inf)
    np.maximum.at(best_match, plan.matches.query, plan.similarities)
    alarms = counts.nearest[valid[unenrolled]]
    mated = valid[~unenrolled]
    # Of a match and a stranger at exactly the same distance, neither is found.
    found = np.where(best_match[mated] > counts.nearest[mated], best_match[mated], -np.inf)
    rates = [rate for rate in FALSE_ALARM_RATES if rate * len(alarms) >= LEAST_FALSE_ACCEPTS]
    sorted_alarms = np.sort(alarms)[::-1]
    thresholds = {rate: float(sorted_alarms[_accepted(rate, len(alarms))]) for rate in rates}
    intervals = {}
    for rate, threshold in thresholds.items():
        interval = bootstrap_interval(found > threshold, plan.identities[mated])
        if interval is not None:
            intervals[rate] = interval
    return Identification(
        enrolled_queries=len(mated),
        unenrolled_queries=len(alarms),
        detected={rate: float(np.mean(found > t)) for rate, t in thresholds.items()},
        thresholds=thresholds,
        intervals=intervals,
    )
