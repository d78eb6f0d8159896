"""The visual memory: a centroid per identity, updated with momentum during training (Sec. 3.4)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from muva.config import Stage2Config


def identity_centroids(
    features: Float[Tensor, " M F"], labels: Int[Tensor, " M"], identities: int
) -> Float[Tensor, " N F"]:
    """The mean feature of each identity, of unit length."""
    sums = features.new_zeros(identities, features.shape[1]).index_add_(0, labels, features)
    return mean_directions(sums, labels)


def mean_directions(
    sums: Float[Tensor, " N F"], labels: Int[Tensor, " M"]
) -> Float[Tensor, " N F"]:
    """The mean feature of each identity, of unit length, from the sums of its features."""
    counts = labels.bincount(minlength=len(sums)).clamp(min=1)
    return normalize(sums / counts[:, None])


class VisualMemory:
    """The identity centroids of one epoch: gives logits, and is updated after each step."""

    def __init__(
        self,
        centroids: Float[Tensor, " N F"],
        *,
        temperature: float,
        momentum: float,
        hard_update: bool,
    ):
        self.centroids = centroids
        self._temperature = temperature
        self._momentum = momentum
        self._hard_update = hard_update

    def logits(self, features: Float[Tensor, " B F"]) -> Float[Tensor, " B N"]:
        """Cosine similarities of unit-length features and all centroids, over the temperature."""
        return features @ self.centroids.T / self._temperature

    @torch.no_grad()
    def update(self, features: Float[Tensor, " B F"], labels: Int[Tensor, " B"]) -> None:
        """Move the centroids of a batch's identities towards its unit-length features.

        With the hard update, each centroid moves once, towards the feature least similar to it.
        Otherwise every feature moves the centroid of its identity, in the order of the batch.
        """
        self.centroids = (
            self.centroids.clone()
        )  # the loss of this step still needs the old centroids
        if self._hard_update:
            self._move(*self._least_similar(features, labels))
            return
        for update_round in _update_rounds(labels.tolist()):
            self._move(features[update_round], labels[update_round])

    def _least_similar(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        similarity = (features * self.centroids[labels]).sum(dim=1)
        identities = labels.unique()
        other = labels != identities[:, None]
        hardest = similarity.expand_as(other).masked_fill(other, torch.inf).argmin(dim=1)
        return features[hardest], identities

    def _move(self, features: Tensor, identities: Tensor) -> None:
        before = self.centroids[identities]
        moved = self._momentum * before + (1 - self._momentum) * features
        self.centroids[identities] = normalize(moved)


def _update_rounds(labels: Sequence[int]) -> list[list[int]]:
    """Group batch positions: each identity's first image, each identity's second image, and so on.

    Identities have separate centroids, so the updates of one round can run in parallel.
    """
    seen: dict[int, int] = {}
    rounds: list[list[int]] = []
    for position, label in enumerate(labels):
        update_round = seen[label] = seen.get(label, -1) + 1
        if update_round == len(rounds):
            rounds.append([])
        rounds[update_round].append(position)
    return rounds


def new_memory(centroids: Float[Tensor, " N F"], settings: Stage2Config) -> VisualMemory:
    """A memory with these centroids and the temperature, momentum and rule of the settings."""
    return VisualMemory(
        centroids,
        temperature=settings.memory_temperature,
        momentum=settings.memory_momentum,
        hard_update=settings.memory_hard_update,
    )
