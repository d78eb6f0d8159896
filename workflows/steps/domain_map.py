"""A map of all domains in the feature space of a model, before and after training.

A few images of each domain are embedded, and t-SNE maps their features to the plane. If a model
separates domains, which it should not, they form separate clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from muva.config import ModelConfig
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.lineage import Role
from workflows.session import Session
from workflows.steps.embed import model_identity
from workflows.steps.step import Step, StepResult, run_step

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

IMAGES_OF_A_DOMAIN = 96
PERPLEXITY = 30.0
"""Van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008."""


def map_of_domains(
    session: Session,
    models: Mapping[str, str],
    datasets: Sequence[Artifact],
    config: ModelConfig,
    *,
    name: str,
) -> StepResult:
    """Positions of some images of each data set in the plane, for each model (its name -> URI).

    For each model the summary has `domains`, one name per image; `places`, x and y from 0 to 1; and
    how often the nearest other image is from the same domain.
    """
    step = _step(session, models, datasets, config, name=name)

    def work(_: object) -> dict[str, Any]:
        from workflows.runtime.cluster import gpus, ray_cluster
        from workflows.runtime.tasks import run_tasks
        from workflows.steps.embed_tasks import some_features

        summary = {}
        with ray_cluster():
            for which, model in models.items():
                calls = [(model, config, one, IMAGES_OF_A_DOMAIN) for one in datasets]
                features = run_tasks(some_features, calls, gpus=1 if gpus() else 0)
                domains = np.repeat([one.name for one in datasets], [len(f) for f in features])
                stacked = np.concatenate(features)
                summary[which] = {
                    "domains": domains.tolist(),
                    "places": _layout(stacked).tolist(),
                    "same_domain_nearest": same_domain_nearest(stacked, domains),
                }
        return summary

    def log(run: Run, summary: dict[str, Any]) -> None:
        from tracking.domain_map import domain_plot

        run.log_figure(
            "domains.png",
            domain_plot(
                {which: (one["domains"], np.array(one["places"])) for which, one in summary.items()}
            ),
        )
        for which, one in summary.items():
            run.log_metrics({f"domains/{which}-same-domain-nearest": one["same_domain_nearest"]})

    return run_step(step, session=session, work=work, log=log)


def _step(
    session: Session,
    models: Mapping[str, str],
    datasets: Sequence[Artifact],
    config: ModelConfig,
    *,
    name: str,
) -> Step:
    settings: dict[str, Any] = {"images": IMAGES_OF_A_DOMAIN, "models": {}}
    inputs = {Role.DATASET: list(datasets)}
    for which, model in models.items():
        identity, given = model_identity(model, config)
        settings["models"][which] = identity
        for role, artifacts in given.items():
            inputs.setdefault(role, []).extend(artifacts)
    return Step(
        title=f"map of domains by {name}",
        store=session.store,
        kind="metrics",
        name=f"domains-by-{name}",
        format_version=formats.DOMAIN_MAP,
        settings=settings,
        inputs=inputs,
    )


def same_domain_nearest(features: np.ndarray, domains: np.ndarray) -> float:
    """The share of images whose nearest other image, by cosine, is from the same domain."""
    similar = features @ features.T
    np.fill_diagonal(similar, -np.inf)
    return float((domains[similar.argmax(axis=1)] == domains).mean())


def _layout(features: np.ndarray) -> np.ndarray:
    """Positions by t-SNE: (images, 2), in 0 to 1."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    positions = tsne.fit_transform(features)
    low, high = positions.min(axis=0), positions.max(axis=0)
    return (positions - low) / np.maximum(high - low, 1e-12)
