"""Learns what a model's cosines mean, as probabilities and thresholds for false-accept rates.

Both are learned from pairs of images of people whom the model was not trained on, in the camera
networks that it was: no target is needed, and none may be used. Every network counts equally, and
so do genuine pairs and impostors, so that a probability is meant for two images that are as likely
as not to show the same person; `Calibration.probability` takes other priors.

The map is a logistic function of the cosine (Platt, Probabilistic Outputs for Support Vector
Machines, 1999) or a monotonic one (Zadrozny and Elkan, KDD 2002), whichever has the lower
cross-entropy on people who were left out of its fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from muva.errors import MuvaError
from muva.retrieval.calibration import Calibration, Method
from muva.retrieval.camera_rule import CameraRule
from muva.retrieval.match_ranks import (
    FeatureChunk,
    check_widths,
    matching_and_ignored_pairs,
    pair_similarities,
)
from muva.retrieval.results import MIN_IDENTITIES
from muva.retrieval.verification import impostor_sample

RATES = (1e-1, 1e-2, 1e-3, 1e-4)
"""False-accept rates for which there are thresholds, as far as there are pairs enough."""
LEAST_FALSE_ACCEPTS = 30
"""So many impostors must lie beyond a threshold: the rule of 30 of Doddington et al., The NIST
Speaker Recognition Evaluation, Speech Communication, 2000."""
IMPOSTORS = 1_000_000
"""Pairs of different people that are drawn from each network."""
_FOLDS = 5
_CLIP = 1e-4
"""A monotonic map gives no probability below this, or above 1 minus it."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of images within one camera network."""

    genuine: np.ndarray
    """(M,) float64: cosines of pairs of the same person."""
    genuine_pids: np.ndarray
    """(M,): the person."""
    impostors: np.ndarray
    """(N,) float64: cosines of pairs of different people."""
    impostor_pids: np.ndarray
    """(N,): the person in the query."""

    @property
    def people(self) -> int:
        """How many people the queries show."""
        return len(np.unique(self.genuine_pids))


def calibration_pairs(
    query: np.ndarray, gallery: np.ndarray, rule: CameraRule, *, impostors: int = IMPOSTORS
) -> Pairs:
    """The genuine pairs that count under the camera rule, and a random sample of the impostors.

    Features are (images, width) and need not be normalised.
    """
    queries = FeatureChunk(query, "query_features")
    galleries = FeatureChunk(gallery, "gallery_features")
    check_widths(queries, galleries)
    matches, _ = matching_and_ignored_pairs(rule, len(queries))
    sample = impostor_sample(rule, matches, count=impostors)
    return Pairs(
        genuine=pair_similarities(queries, galleries, matches),
        genuine_pids=rule.query.pids[matches.query],
        impostors=pair_similarities(queries, galleries, sample),
        impostor_pids=rule.query.pids[sample.query],
    )


def calibrate(pairs: Mapping[str, Pairs]) -> Calibration:
    """The calibration of a model, from the pairs of each of its camera networks.

    Raises MuvaError if they show too few people, or have no impostors.
    """
    for name, some in pairs.items():
        if some.people < MIN_IDENTITIES or not len(some.impostors):
            raise MuvaError(
                f"{name}: expected query and gallery images of at least {MIN_IDENTITIES} people "
                f"with a match, found {some.people}. A calibration from fewer would say little "
                "about other people"
            )
    joined = _Joined.of(pairs)
    entropy = {method: _cross_validated(joined, method) for method in ("logistic", "isotonic")}
    method: Method = "isotonic" if entropy["isotonic"] < entropy["logistic"] else "logistic"
    cosines, log_odds = _fitted(joined, method)
    thresholds = thresholds_of(pairs)
    return Calibration(
        method=method,
        cosines=tuple(cosines.tolist()),
        log_odds=tuple(log_odds.tolist()),
        thresholds=thresholds,
        accepted={
            rate: float(np.mean([np.mean(some.genuine > t) for some in pairs.values()]))
            for rate, t in thresholds.items()
        },
        cross_entropy=entropy,
        people=sum(some.people for some in pairs.values()),
        datasets=tuple(pairs),
    )


def thresholds_of(pairs: Mapping[str, Pairs]) -> dict[float, float]:
    """False-accept rate -> the cosine above which the networks accept that share on average.

    A rate for which the networks have too few pairs (`LEAST_FALSE_ACCEPTS`) is left out: their mean
    varies as the rate of so many pairs does, which is less than all of them where sizes differ.
    """
    effective = len(pairs) ** 2 / sum(1 / len(some.impostors) for some in pairs.values())
    cosines = np.concatenate([some.impostors for some in pairs.values()])
    shares = np.concatenate(
        [np.full(len(some.impostors), 1 / len(some.impostors)) for some in pairs.values()]
    ) / len(pairs)
    order = np.argsort(-cosines, kind="stable")
    accepted = np.cumsum(shares[order])
    return {
        rate: float(cosines[order][np.searchsorted(accepted, rate, side="right")])
        for rate in RATES
        if rate * effective >= LEAST_FALSE_ACCEPTS
    }


@dataclass(frozen=True, kw_only=True)
class _Joined:
    """The pairs of all networks."""

    cosines: np.ndarray
    same: np.ndarray
    """Whether they are genuine."""
    weights: np.ndarray
    """Sum to 1; each network and kind of pair has the same share."""
    folds: np.ndarray
    """By person, in which of the folds a pair is."""

    @classmethod
    def of(cls, pairs: Mapping[str, Pairs]) -> _Joined:
        cosines, same, weights, folds = [], [], [], []
        for some in pairs.values():
            people = np.unique(some.genuine_pids)
            fold_of = np.random.default_rng(0).permutation(len(people)) % _FOLDS
            sides = (
                (True, some.genuine, some.genuine_pids),
                (False, some.impostors, some.impostor_pids),
            )
            for genuine, values, pids in sides:
                cosines.append(values)
                same.append(np.full(len(values), genuine))
                weights.append(np.full(len(values), 0.5 / len(pairs) / len(values)))
                folds.append(fold_of[np.searchsorted(people, pids)])
        return cls(
            cosines=np.concatenate(cosines),
            same=np.concatenate(same),
            weights=np.concatenate(weights),
            folds=np.concatenate(folds),
        )

    def select(self, chosen: np.ndarray) -> _Joined:
        return _Joined(
            cosines=self.cosines[chosen],
            same=self.same[chosen],
            weights=self.weights[chosen],
            folds=self.folds[chosen],
        )


def _fitted(pairs: _Joined, method: Method) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and log-odds of the fitted map."""
    # Takes half a second to import, which a process that only uses a calibration does without.
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    weights = pairs.weights * len(pairs.weights)
    if method == "logistic":
        fit = LogisticRegression(C=np.inf).fit(
            pairs.cosines[:, None], pairs.same, sample_weight=weights
        )
        cosines = np.array([-1.0, 1.0])
        return cosines, fit.decision_function(cosines[:, None])
    fit = IsotonicRegression(y_min=_CLIP, y_max=1 - _CLIP, out_of_bounds="clip").fit(
        pairs.cosines, pairs.same.astype(np.float64), sample_weight=weights
    )
    probabilities = np.clip(fit.y_thresholds_, _CLIP, 1 - _CLIP)
    return fit.X_thresholds_, np.log(probabilities / (1 - probabilities))


def _cross_validated(pairs: _Joined, method: Method) -> float:
    """Cross-entropy in bits on the people of each fold, by the map fitted to all others."""
    total = weight = 0.0
    for fold in range(_FOLDS):
        held_out = pairs.select(pairs.folds == fold)
        cosines, log_odds = _fitted(pairs.select(pairs.folds != fold), method)
        found = np.interp(held_out.cosines, cosines, log_odds)
        losses = np.logaddexp(0, np.where(held_out.same, -found, found)) / np.log(2)
        total += float(losses @ held_out.weights)
        weight += float(held_out.weights.sum())
    return total / weight
