"""The names of experiments, runs and metrics in MLflow.

MLflow groups charts by the prefix before the slash, and shows slashes in the name of an experiment
as breadcrumbs. Values are fractions; per cent is used only in tables for users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muva.retrieval.results import rate_name

if TYPE_CHECKING:
    from muva.retrieval.results import Scores, Verification

ARTIFACT_TAG = "muva.artifact"
"""The address of the artifact that a run made, used or started to make, or that a logged model is.

An artifact that no run refers to can be deleted.
"""


DATASETS_TAG = "muva.datasets"
"""Tag of a run that made an artifact, or began to: the names of the data sets that it is made from,
separated by commas. It outlives the artifact."""

MODEL_TAG = "muva.model"
"""Tag of a run on a server without logged models: the address of the model that it made or used."""


def experiment_name(protocol: str) -> str:
    """The experiment for the runs of a protocol, or of a single recipe."""
    return f"muva/{protocol}"


def pipeline_name(recipe: str, *, sources: Sequence[str], targets: Sequence[str]) -> str:
    """A parent run's name: `syn-boulevard+syn-harbour -> syn-station · demo`."""
    return f"{'+'.join(sources)} -> {'+'.join(targets)} · {recipe}"


def retrieval_metrics(
    data_set: str, *, mean_ap: float, cmc: Mapping[int, float], mean_inp: float | None = None
) -> dict[str, float]:
    """Metrics named `market1501/mAP`, `market1501/rank-1`, `market1501/mINP`, as fractions.

    Characters in the data set's name that MLflow does not accept become a dash.
    """
    data_set = _metric_group(data_set)
    metrics = {f"{data_set}/mAP": mean_ap}
    metrics |= {f"{data_set}/rank-{rank}": value for rank, value in sorted(cmc.items())}
    if mean_inp is not None:
        metrics[f"{data_set}/mINP"] = mean_inp
    return metrics


def score_metrics(data_set: str, scores: Scores) -> dict[str, float]:
    """The metrics of an evaluation, at the ranks that its settings name, and its queries."""
    metrics = retrieval_metrics(
        data_set, mean_ap=scores.mean_ap, cmc=scores.cmc, mean_inp=scores.mean_inp
    )
    more = {"queries": scores.queries, "valid-queries": scores.valid_queries}
    if scores.verification is not None:
        more |= _verification_metrics(scores.verification)
    return metrics | grouped(_metric_group(data_set), more)


def _verification_metrics(verification: Verification) -> dict[str, float]:
    """`EER`, `TAR-at-1e-3` (a false-accept rate), `DIR-at-1e-1` (a false-alarm rate)."""
    metrics = {"EER": verification.eer}
    metrics |= {f"TAR-at-{rate_name(rate)}": tar for rate, tar in verification.tar.items()}
    if (identification := verification.identification) is not None:
        for rate, detected in identification.detected.items():
            metrics[f"DIR-at-{rate_name(rate)}"] = detected
    return metrics


def _metric_group(data_set: str) -> str:
    return re.sub(r"[^\w.-]+", "-", data_set).lstrip(".") or "features"


def grouped(group: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Prefix metrics with a group, as MLflow's charts do: `stage2/loss`, `stage2/lr`."""
    return {f"{group}/{name}": value for name, value in metrics.items()}
