"""Where images of all domains lie as a model sees them: before training, and after.

A few images of each domain are embedded, and t-SNE lays their features out in the plane. Domains
that a model tells apart, when it should tell people apart, lie in patches of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch

from muva.config import ModelConfig
from muva.data.artifacts import Artifact, fingerprint
from muva.data.shards import open_dataset
from muva.model.bundle import Embedder
from workflows.runtime.cluster import ANYWHERE, gpus, ray_cluster
from workflows.runtime.messages import results
from workflows.session import Session
from workflows.steps.embed import model_settings, open_embedder
from workflows.steps.step import Done, Step, do_step

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

DOMAIN_MAP_FORMAT = 1
IMAGES_OF_A_DOMAIN = 96
PERPLEXITY = 30.0
"""Van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008."""


def domain_map_step(
    session: Session,
    models: Mapping[str, str],
    datasets: Sequence[Artifact],
    config: ModelConfig,
    *,
    name: str,
) -> Done:
    """Places of some images of each data set in the plane, for each model (its name -> URI).

    The summary holds for each model `domains`, one name per image, and `places`, x and y in 0 to 1;
    and how often the nearest other image is of the same domain.
    """
    settings = {
        "models": {which: model_settings(model, config) for which, model in models.items()},
        "images": IMAGES_OF_A_DOMAIN,
    }
    contents = [open_dataset(dataset).fingerprint for dataset in datasets]
    artifact = Artifact(
        session.store,
        "metrics",
        f"domains-by-{name}",
        fingerprint([settings, contents, DOMAIN_MAP_FORMAT]),
    )

    def work(_: object) -> dict[str, Any]:
        found = {}
        with ray_cluster():
            for which, model in models.items():
                task = _some_features
                if gpus():
                    task = task.options(num_gpus=1)
                features = results([task.remote(model, config, one) for one in datasets])
                domains = np.repeat([one.name for one in datasets], [len(f) for f in features])
                stacked = np.concatenate(features)
                found[which] = {
                    "domains": domains.tolist(),
                    "places": _laid_out(stacked).tolist(),
                    "same_domain_nearest": same_domain_nearest(stacked, domains),
                }
        return found

    def report(run: Run, summary: dict[str, Any]) -> None:
        from tracking.domain_map import domain_plot

        run.log_figure(
            "domains.png",
            domain_plot(
                {which: (one["domains"], np.array(one["places"])) for which, one in summary.items()}
            ),
        )
        for which, one in summary.items():
            run.log_metrics({f"domains/{which}-same-domain-nearest": one["same_domain_nearest"]})

    step = Step(
        label=f"map of domains by {name}",
        artifact=artifact,
        format_version=DOMAIN_MAP_FORMAT,
        config=settings,
        inputs={f"dataset {number}": one.address for number, one in enumerate(datasets)},
    )
    return do_step(step, session=session, work=work, report=report)


def same_domain_nearest(features: np.ndarray, domains: np.ndarray) -> float:
    """The share of images whose nearest other image, by cosine, is of their own domain."""
    similar = features @ features.T
    np.fill_diagonal(similar, -np.inf)
    return float((domains[similar.argmax(axis=1)] == domains).mean())


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _some_features(model: str, config: ModelConfig, dataset: Artifact) -> np.ndarray:
    """Features of some images of a data set, evenly spaced over its rows."""
    torch.set_num_threads(1)
    rows = open_dataset(dataset).rows(["image_id"])["row"].to_numpy()
    chosen = rows[np.linspace(0, len(rows) - 1, min(IMAGES_OF_A_DOMAIN, len(rows))).astype(int)]
    embedder: Embedder = open_embedder(
        model, config.image_height, config.image_width, config.stride
    )
    return embedder.embed(open_dataset(dataset).read_images(chosen))


def _laid_out(features: np.ndarray) -> np.ndarray:
    """(images, 2), in 0 to 1."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    made = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    places = made.fit_transform(features)
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.maximum(high - low, 1e-12)
