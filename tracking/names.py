"""One vocabulary of names: experiments, runs, metric keys.

MLflow groups charts by what stands before the slash, and makes breadcrumbs of the slashes in an
experiment's name. Values are fractions; per cent is for tables that people read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muva.retrieval.results import Scores

ARTIFACT_TAG = "muva.artifact"
"""Tag of a run that made or used an artifact, or began to make it: its address; of a logged model:
that of the artifact that it is. What no run names can go."""


DATASETS_TAG = "muva.datasets"
"""Tag of a run that made an artifact, or began to: the names of the data sets that it is made from,
with commas between them. It outlives the artifact."""


def experiment_name(protocol: str) -> str:
    """The experiment that holds the runs of a protocol, or of a recipe by itself."""
    return f"muva/{protocol}"


def pipeline_name(recipe: str, *, sources: Sequence[str], targets: Sequence[str]) -> str:
    """A parent run's name: `syn-boulevard+syn-harbour -> syn-station · demo`."""
    return f"{'+'.join(sources)} -> {'+'.join(targets)} · {recipe}"


def retrieval_metrics(
    data_set: str, *, mean_ap: float, cmc: Mapping[int, float], mean_inp: float | None = None
) -> dict[str, float]:
    """`market1501/mAP`, `market1501/rank-1`, `market1501/mINP`: fractions, as they come in.

    Signs in the data set's name that MLflow refuses become a dash.
    """
    data_set = re.sub(r"[^\w.-]+", "-", data_set).lstrip(".") or "features"
    metrics = {f"{data_set}/mAP": mean_ap}
    metrics |= {f"{data_set}/rank-{rank}": value for rank, value in sorted(cmc.items())}
    if mean_inp is not None:
        metrics[f"{data_set}/mINP"] = mean_inp
    return metrics


def score_metrics(data_set: str, scores: Scores) -> dict[str, float]:
    """The metrics of an evaluation, at the ranks that its settings name."""
    return retrieval_metrics(
        data_set, mean_ap=scores.mean_ap, cmc=scores.cmc, mean_inp=scores.mean_inp
    )


def grouped(group: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under one heading of the charts: `stage2/loss`, `stage2/lr`."""
    return {f"{group}/{name}": value for name, value in metrics.items()}
