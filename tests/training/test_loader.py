"""Batches are the same whoever makes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from muva.config import AugmentationConfig, Stage2Config
from muva.data.draw import Draw
from muva.data.store import LocalStore
from muva.data.training_images import TrainingImages
from muva.errors import MuvaError
from muva.training.loader import Loader
from muva.training.sampler import epoch_draws, pk_batches
from tests.data.test_training_images import augmented_images, dataset
from tests.training.toy_images import ToyImages

LOADERS = (0, 1, 2)


EVERYTHING = AugmentationConfig(
    pad=3, jitter=0.5, gamma=1.5, cast=0.2, grey=0.2, blur=0.5, low_resolution=0.5, sharpen=0.5,
    jpeg=0.5, erase=0.5,
)  # fmt: skip


@pytest.fixture(params=[AugmentationConfig(), EVERYTHING], ids=["plain", "augmented"])
def images(tmp_path: Path, request: pytest.FixtureRequest) -> TrainingImages:
    """Some of which are kept decoded."""
    sources = [dataset(tmp_path, "town", [7, 3]), dataset(tmp_path, "city", [3, 5, 9])]
    return augmented_images(
        sources,
        request.param,
        cache_bytes=7 * 16 * 8 * 3,
        cache_folder=tmp_path / "node",
    )


def draws(labels: np.ndarray, epoch: int) -> list[Draw]:
    settings = Stage2Config(batch_size=4, images_per_identity=2)
    return epoch_draws(labels, settings, seed=1, epoch=epoch)


def test_batches_are_the_same_for_any_number_of_loaders(images: TrainingImages) -> None:
    lists = [[Draw(np.arange(at, at + 5)) for at in (0, 5, 10)]]
    lists += [draws(images.labels, epoch) for epoch in (1, 2)]
    state = torch.get_rng_state()
    found: list[list[Tensor]] = []
    for processes in LOADERS:
        loader = Loader(images, processes=processes)
        made = [batch for these in lists for batch in loader.batches(these)]
        assert len(made) == sum(map(len, lists))
        found.append([t.clone() for batch in made for t in batch if t is not None])
        assert loader.waited_s > 0
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, found[0], strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    plain = [images.batch(Draw(draw.indices, draw.flips))[0] for draw in draws(images.labels, 2)]
    differ = any(
        not torch.equal(a, b) for a, b in zip(found[0][-2 * len(plain) :: 2], plain, strict=True)
    )
    assert differ == (images.augmentation == EVERYTHING)


@pytest.mark.parametrize("processes", LOADERS[:2])
def test_a_list_left_early_does_not_affect_the_next_one(processes: int) -> None:
    images = ToyImages()
    loader = Loader(images, processes=processes)
    assert next(loader.batches(draws(images.labels, 1))) is not None
    following = draws(images.labels, 2)
    made = list(loader.batches(following))
    for (pixels, _), draw in zip(made, following, strict=True):
        assert torch.equal(pixels, images.batch(draw)[0])


class Mistaken(ToyImages):
    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        raise MuvaError("shard-00000.parquet is damaged")


@pytest.mark.parametrize("processes", LOADERS[:2])
def test_an_error_in_a_loader_is_raised_unchanged(processes: int) -> None:
    images = Mistaken()
    with pytest.raises(MuvaError, match=r"^shard-00000\.parquet is damaged$"):
        list(Loader(images, processes=processes).batches(draws(images.labels, 1)))


def test_a_bucket_is_asked_once_for_each_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    path = LocalStore.path

    def counted(store: LocalStore, key: str) -> Path:
        asked.append(key)
        return path(store, key)

    monkeypatch.setattr(LocalStore, "path", counted)
    town = dataset(tmp_path, "town", [7, 3])
    town.rows()
    for _ in range(2):
        assert len(town.read_images(range(6))) == 6
    assert len(asked) == len(town.shards)


def test_sources_a_thousandfold_apart_and_people_seen_once() -> None:
    """A source's share of an epoch is its share of the groups of K, not of the sources."""
    large = np.repeat(np.arange(500), 4)
    small = np.array([500])
    once = np.arange(501, 511)
    labels = np.concatenate([large, small, once])
    settings = Stage2Config(batch_size=16, images_per_identity=4)
    seen = np.concatenate(
        [
            batch
            for epoch in range(1, 6)
            for batch in pk_batches(
                labels,
                batch_size=settings.batch_size,
                images_per_identity=settings.images_per_identity,
                seed=0,
                epoch=epoch,
            )
        ]
    )
    times = np.bincount(seen, minlength=len(labels)) / 5
    # Each image of a person with K images comes once; an only image comes K times.
    assert 0.95 < times[: len(large)].mean() <= 1
    assert 3.5 < times[len(large) :].mean() <= 4
    groups = 500 + 1 + 10
    share = np.isin(seen, np.arange(len(large))).mean()
    np.testing.assert_allclose(share, 500 / groups, atol=0.005)


PROGRAM = """
import numpy as np
from muva.data.draw import Draw
from muva.training.loader import Loader
from tests.training.toy_images import ToyImages
if __name__ == "__main__":
    images = ToyImages()
    loader = Loader(images, processes=1)
    print(len(list(loader.batches([Draw(np.arange(4))]))))
"""


def test_loaders_find_a_short_folder_where_that_of_a_batch_system_is_long(tmp_path: Path) -> None:
    folder = tmp_path / "of_a_batch_system" / ("x" * (100 - len(str(tmp_path))))
    folder.mkdir(parents=True)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout == "1\n", done.stderr
