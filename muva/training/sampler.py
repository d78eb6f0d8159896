"""P x K sampling: batches of P identities with K images each (Sec. 4.1).

Each identity's images are shuffled and cut into groups of K; while P identities have a group left,
P of them are drawn and give one each. A function of (seed, epoch), whatever the number of workers.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from muva.config import Stage2Config
from muva.errors import MuvaError

IMAGES, FLIPS = 0, 1
"""Streams of random numbers within an epoch."""


BatchDraw = tuple[np.ndarray, np.ndarray]
"""Which images a batch has (B,), and which of them are mirrored (B,)."""


def epoch_draws(
    labels: Int[np.ndarray, " M"], settings: Stage2Config, *, seed: int, epoch: int
) -> list[BatchDraw]:
    """Stage 2's batches of one epoch, of all workers together, and their flips."""
    batches = pk_batches(
        labels,
        batch_size=settings.batch_size,
        images_per_identity=settings.images_per_identity,
        seed=seed,
        epoch=epoch,
    )
    flips = flip_draws(
        len(batches),
        settings.batch_size,
        probability=settings.flip_probability,
        seed=seed,
        epoch=epoch,
    )
    return list(zip(batches, flips, strict=True))


def pk_batches(
    labels: Int[np.ndarray, " M"],
    *,
    batch_size: int,
    images_per_identity: int,
    seed: int,
    epoch: int,
) -> list[Int[np.ndarray, " B"]]:
    """The batches of one epoch as indices into `labels`, an identity's K images side by side.

    An identity with fewer than K images gives K drawn with replacement; a rest smaller than K is
    dropped. Raises MuvaError when there are fewer than P identities.
    """
    rng = np.random.default_rng([seed, epoch, IMAGES])
    groups = [
        _groups(indices, images_per_identity, rng) for indices in _indices_by_identity(labels)
    ]
    check_batches(len(groups), batch_size=batch_size, images_per_identity=images_per_identity)
    identities_per_batch = batch_size // images_per_identity
    left = np.array([len(group) for group in groups])
    batches = []
    while True:
        available = np.flatnonzero(left)
        if len(available) < identities_per_batch:
            return batches
        drawn = rng.choice(available, identities_per_batch, replace=False)
        left[drawn] -= 1
        batches.append(np.concatenate([groups[identity].pop() for identity in drawn]))


def check_batches(
    identities: int, *, batch_size: int, images_per_identity: int, world: int = 1
) -> None:
    """Raises MuvaError when so many identities fill no batch, or workers cannot share one."""
    needed = batch_size // images_per_identity
    if identities < needed:
        raise MuvaError(
            f"a batch of {batch_size} with {images_per_identity} images per identity needs "
            f"{needed} identities, the training images show {identities}: lower batch_size or add "
            f"sources"
        )
    if needed % world:
        raise MuvaError(
            f"{world} workers cannot share the {needed} identities of a batch equally: choose a "
            f"number of workers that divides {needed}"
        )


def flip_draws(
    batches: int, batch_size: int, *, probability: float, seed: int, epoch: int
) -> Bool[np.ndarray, " batches B"]:
    """Which images of an epoch's batches are mirrored."""
    rng = np.random.default_rng([seed, epoch, FLIPS])
    return rng.random((batches, batch_size)) < probability


def rank_share(batch: np.ndarray, *, rank: int, world: int, images_per_identity: int) -> np.ndarray:
    """One worker's part of a batch: whole identities, the parts in rank order make the batch.

    Raises MuvaError when the identities of a batch do not divide among the workers.
    """
    check_batches(
        len(batch) // images_per_identity,
        batch_size=len(batch),
        images_per_identity=images_per_identity,
        world=world,
    )
    share = len(batch) // world
    return batch[rank * share : (rank + 1) * share]


def _indices_by_identity(labels: np.ndarray) -> Sequence[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, starts) if len(order) else []


def _groups(indices: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    if len(indices) < size:
        return [rng.choice(indices, size, replace=True)]
    shuffled = rng.permutation(indices)
    return list(shuffled[: len(indices) // size * size].reshape(-1, size))
