"""P x K sampling: batches of P identities with K images each (Sec. 4.1).

Each identity's images are shuffled and split into groups of K. As long as P identities have a group
left, P of them are drawn, and each contributes one group. The result depends only on (seed, epoch),
not on the number of workers.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from muva.config import Stage2Config
from muva.data.draw import Draw
from muva.errors import MuvaError

IMAGES, FLIPS, AUGMENTATION = 0, 1, 2
"""Independent streams of random numbers within an epoch."""


def epoch_draws(
    labels: Int[np.ndarray, " M"], settings: Stage2Config, *, seed: int, epoch: int
) -> list[Draw]:
    """The global batches of one epoch of stage 2, with their flips and augmentation seeds."""
    batches = pk_batches(
        labels,
        batch_size=settings.batch_size,
        images_per_identity=settings.images_per_identity,
        seed=seed,
        epoch=epoch,
        stage="stage2",
    )
    flips = flip_draws(
        len(batches),
        settings.batch_size,
        probability=settings.flip_probability,
        seed=seed,
        epoch=epoch,
    )
    seeds = augmentation_seeds(batches, seed=seed, epoch=epoch)
    return [Draw(*draw) for draw in zip(batches, flips, seeds, strict=True)]


def pk_batches(
    labels: Int[np.ndarray, " M"],
    *,
    batch_size: int,
    images_per_identity: int,
    seed: int,
    epoch: int,
    stage: str | None = None,
) -> list[Int[np.ndarray, " B"]]:
    """The batches of one epoch as indices into `labels`, with an identity's K images adjacent.

    For an identity with fewer than K images, K are drawn with replacement; a remainder smaller than
    K is dropped. `stage` is named in the message.

    Raises:
        MuvaError: there are fewer than P identities.
    """
    rng = np.random.default_rng([seed, epoch, IMAGES])
    groups = [
        _groups(indices, images_per_identity, rng) for indices in _indices_by_identity(labels)
    ]
    check_batches(
        len(groups),
        batch_size=batch_size,
        images_per_identity=images_per_identity,
        stage=stage,
    )
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
    identities: int,
    *,
    batch_size: int,
    images_per_identity: int,
    world: int = 1,
    stage: str | None = None,
) -> None:
    """Check that so many identities fill a batch and that `world` workers can share it.

    Args:
        stage: whose batches they are, for the message: `stage1` or `stage2`.

    Raises:
        MuvaError: they do not.
    """
    setting = f"{stage}.batch_size" if stage else "batch_size"
    needed = batch_size // images_per_identity
    if identities < needed:
        raise MuvaError(
            f"{setting} is {batch_size}: with {images_per_identity} images per identity, a batch "
            f"needs {needed} identities, but the training images show only {identities}. Lower "
            f"{setting} to {identities * images_per_identity} or less, or add sources"
        )
    if needed % world:
        raise MuvaError(
            f"{world} workers cannot share the {needed} identities of a batch equally ({setting} "
            f"is {batch_size}): choose a number of workers that divides {needed}"
        )


def flip_draws(
    batches: int, batch_size: int, *, probability: float, seed: int, epoch: int
) -> Bool[np.ndarray, " batches B"]:
    """Which images of an epoch's batches are flipped horizontally."""
    rng = np.random.default_rng([seed, epoch, FLIPS])
    return rng.random((batches, batch_size)) < probability


def augmentation_seeds(
    batches: Sequence[Int[np.ndarray, " B"]], *, seed: int, epoch: int
) -> list[Int[np.ndarray, " B"]]:
    """A seed from 0 for each image of an epoch's batches, for its augmentation.

    It depends on (seed, epoch), on the image, and on how many times the epoch has drawn that image
    before: a person with fewer than K images has the same image several times in a batch.
    """
    if not batches:
        return []
    drawn = np.concatenate(batches)
    times = _times_before(drawn)
    seeds = np.empty(len(drawn), np.int64)
    for time in range(int(times.max()) + 1):
        rng = np.random.default_rng([seed, epoch, AUGMENTATION, time])
        by_image = rng.integers(np.iinfo(np.int64).max, size=int(drawn.max()) + 1)
        now = times == time
        seeds[now] = by_image[drawn[now]]
    return np.split(seeds, np.cumsum([len(batch) for batch in batches])[:-1])


def rank_share(batch: np.ndarray, *, rank: int, world: int, images_per_identity: int) -> np.ndarray:
    """One worker's share of a batch, made of whole identities.

    The shares in rank order are the batch.

    Raises:
        MuvaError: the identities of a batch cannot be divided equally among the workers.
    """
    check_batches(
        len(batch) // images_per_identity,
        batch_size=len(batch),
        images_per_identity=images_per_identity,
        world=world,
        stage="stage2",
    )
    share = len(batch) // world
    return batch[rank * share : (rank + 1) * share]


def _indices_by_identity(labels: np.ndarray) -> Sequence[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, starts) if len(order) else []


def _times_before(values: np.ndarray) -> np.ndarray:
    """For each value, how many equal ones stand before it."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    times = np.empty(len(values), np.int64)
    times[order] = np.arange(len(values)) - np.searchsorted(ascending, ascending)
    return times


def _groups(indices: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    if len(indices) < size:
        return [rng.choice(indices, size, replace=True)]
    shuffled = rng.permutation(indices)
    return list(shuffled[: len(indices) // size * size].reshape(-1, size))
