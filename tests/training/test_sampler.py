from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muva.config import Stage2Config
from muva.errors import MuvaError
from muva.training.sampler import (
    augmentation_seeds,
    check_batches,
    epoch_draws,
    flip_draws,
    pk_batches,
    rank_share,
)

LABELS = np.repeat([0, 1, 2, 3, 4], [9, 4, 2, 5, 1])


def batches_of(labels: np.ndarray = LABELS, *, epoch: int = 1, seed: int = 3) -> list[np.ndarray]:
    return pk_batches(labels, batch_size=8, images_per_identity=4, seed=seed, epoch=epoch)


def groups_of(labels: np.ndarray, epoch: int) -> list[np.ndarray]:
    return [group for batch in batches_of(labels, epoch=epoch) for group in np.split(batch, 2)]


def test_a_batch_holds_p_identities_with_k_images_side_by_side() -> None:
    for batch in batches_of():
        of_groups = LABELS[batch].reshape(2, 4)
        assert (of_groups == of_groups[:, :1]).all()
        assert of_groups[0, 0] != of_groups[1, 0]


@given(counts=st.lists(st.integers(1, 13), min_size=2, max_size=9), epoch=st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_groups_are_cut_from_shuffled_images_and_rests_are_dropped(
    counts: list[int], epoch: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = groups_of(labels, epoch)
    groups = Counter(int(labels[group[0]]) for group in drawn)
    for identity, count in enumerate(counts):
        assert groups[identity] <= max(1, count // 4)
    # Once fewer than P = 2 identities have a group left, the epoch is over.
    left = [max(1, count // 4) - groups[i] for i, count in enumerate(counts)]
    assert sum(rest > 0 for rest in left) < 2
    # Images repeat only where an identity has fewer than K.
    seen = Counter(int(index) for group in drawn for index in group)
    assert all(times == 1 for index, times in seen.items() if counts[labels[index]] >= 4)


def test_an_identity_with_one_image_contributes_it_k_times() -> None:
    with_single = [g for epoch in range(1, 20) for g in groups_of(LABELS, epoch) if 20 in g]
    assert with_single and all((group == 20).all() for group in with_single)


def test_all_images_of_a_large_identity_come_in_time_and_the_order_changes() -> None:
    seen = {int(i) for epoch in range(1, 30) for batch in batches_of(epoch=epoch) for i in batch}
    assert seen == set(range(len(LABELS)))
    assert not np.array_equal(batches_of(epoch=1)[0], batches_of(epoch=2)[0])


def test_the_same_seed_and_epoch_give_the_same_batches_and_flips() -> None:
    for first, second in zip(batches_of(), batches_of(), strict=True):
        np.testing.assert_array_equal(first, second)
    draws, again, other = (
        flip_draws(3, 8, probability=0.5, seed=3, epoch=epoch) for epoch in (1, 1, 2)
    )
    np.testing.assert_array_equal(draws, again)
    assert (draws != other).any()


def test_flips_come_with_their_probability() -> None:
    draws = flip_draws(200, 64, probability=0.3, seed=0, epoch=1)
    assert abs(draws.mean() - 0.3) < 0.01
    assert not flip_draws(9, 64, probability=0.0, seed=0, epoch=1).any()
    assert flip_draws(9, 64, probability=1.0, seed=0, epoch=1).all()


def test_the_seed_of_an_augmentation_depends_on_epoch_image_and_how_often_it_came_before() -> None:
    batches = [np.array([4, 7, 4, 0]), np.array([4, 9, 0, 3])]
    seeds = augmentation_seeds(batches, seed=3, epoch=2)
    assert [len(these) for these in seeds] == [4, 4]
    by_place = {
        (int(image), int((np.concatenate(batches)[:place] == image).sum())): int(seed)
        for place, (image, seed) in enumerate(
            zip(np.concatenate(batches), np.concatenate(seeds), strict=True)
        )
    }
    assert len(set(by_place.values())) == 8, "an image that comes again is augmented in another way"
    assert min(by_place.values()) >= 0
    # Neither the other images of an epoch nor their order matter.
    alone = augmentation_seeds([np.array([0, 4]), np.array([3, 4])], seed=3, epoch=2)
    assert np.concatenate(alone).tolist() == [
        by_place[0, 0], by_place[4, 0], by_place[3, 0], by_place[4, 1]
    ]  # fmt: skip
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}):
        assert not np.isin(np.concatenate(augmentation_seeds(batches, **other)), seeds[0]).any()
    assert augmentation_seeds([], seed=3, epoch=2) == []


def test_an_epoch_draws_batches_flips_and_seeds_that_its_workers_share_by_position() -> None:
    settings = Stage2Config(batch_size=8, images_per_identity=4)
    draws = epoch_draws(LABELS, settings, seed=3, epoch=1)
    seeds = augmentation_seeds(batches_of(), seed=3, epoch=1)
    flips = flip_draws(len(draws), 8, probability=0.5, seed=3, epoch=1)
    for number, (draw, batch) in enumerate(zip(draws, batches_of(), strict=True)):
        np.testing.assert_array_equal(draw.indices, batch)
        np.testing.assert_array_equal(draw.flips, flips[number])
        np.testing.assert_array_equal(draw.seeds, seeds[number])
        second = draw.take(np.arange(4, 8))
        assert len(second) == 4
        np.testing.assert_array_equal(second.indices, batch[4:])
        np.testing.assert_array_equal(second.flips, flips[number][4:])
        np.testing.assert_array_equal(second.seeds, seeds[number][4:])


def test_the_workers_shares_of_a_batch_make_the_batch_in_order() -> None:
    (batch,) = pk_batches(
        np.repeat(np.arange(4), 4), batch_size=16, images_per_identity=4, seed=0, epoch=1
    )
    shares = [rank_share(batch, rank=r, world=2, images_per_identity=4) for r in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), batch)
    with pytest.raises(MuvaError, match="divides 4"):
        rank_share(batch, rank=0, world=3, images_per_identity=4)


def test_identities_that_fill_no_batch_are_refused_before_loading() -> None:
    check_batches(16, batch_size=64, images_per_identity=4, world=8)
    with pytest.raises(
        MuvaError, match="needs 16 identities, but the training images show only 15"
    ):
        check_batches(15, batch_size=64, images_per_identity=4)
    with pytest.raises(MuvaError, match="3 workers cannot share the 16 identities"):
        check_batches(20, batch_size=64, images_per_identity=4, world=3)
    with pytest.raises(
        MuvaError,
        match=r"32 workers cannot share the 16 identities of a batch equally \(batch_size is 64",
    ):
        check_batches(40, batch_size=64, images_per_identity=4, world=32)


def test_too_few_identities_are_refused() -> None:
    with pytest.raises(MuvaError, match="needs 2 identities, but the training images show only 1"):
        batches_of(np.zeros(12, dtype=np.int64))
    with pytest.raises(MuvaError, match="show only 0"):
        batches_of(np.empty(0, dtype=np.int64))
