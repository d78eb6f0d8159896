"""What the features of a model are: which model, and which weights, computed them."""

from __future__ import annotations

from muva.data.artifacts import Artifact, open_artifact
from muva.errors import MuvaError
from muva.models import model_description
from muva.retrieval.gallery import EmbeddingSource


def embedding_source(
    model: Artifact, *, folder: str | None = None, dataset: str | None = None
) -> EmbeddingSource:
    """What a model's features are."""
    facts = model_description(model)
    return EmbeddingSource(
        model=model.uri,
        weights=facts["sha256"],
        image_height=facts["model"]["image_height"],
        image_width=facts["model"]["image_width"],
        feature_dim=facts["feature_dim"],
        folder=folder,
        dataset=dataset,
    )


def model_of(source: EmbeddingSource) -> Artifact:
    """The model that computed some features, to compute more.

    Raises:
        MuvaError: it is no longer there, or has other weights now.
    """
    artifact = open_artifact(source.model)
    if model_description(artifact)["sha256"] != source.weights:
        raise MuvaError(
            f"{source.model} no longer has the weights that computed these features. Compute them "
            "again with the model that is there now"
        )
    return artifact
