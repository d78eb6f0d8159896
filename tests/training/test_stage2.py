from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from muva.config import PARTS, AugmentationConfig, Stage2Config
from muva.data.draw import Draw
from muva.data.training_images import TrainingImages
from muva.errors import MuvaError
from muva.grounding.part_masks import BoxMasks, patch_centres
from muva.model.muva_model import MuvaModel
from muva.training.centroids import dataset_centroids
from muva.training.checkpoints import load_checkpoint, save_checkpoint
from muva.training.divergence import DivergedError, is_finite
from muva.training.optimisers import set_learning_rate, stage2_optimiser, trained_parameters
from muva.training.repeat import repeat_step
from muva.training.report import EpochReport
from muva.training.sampler import augmentation_seeds, flip_draws, pk_batches
from muva.training.stage2 import (
    train_image_encoder,
    training_step,
    visual_memory,
)
from tests.data.test_training_images import dataset
from tests.model.small import IMAGE_SIZE, PATCH, small_model
from tests.training.toy_images import ToyImages

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "images_per_identity": 2,
    "epochs": 3,
    "lr": 1e-4,
    "warmup_epochs": 2,
    "milestones": (3,),
    "precision": "fp32",
}
WORKERS = 2


def model_and_images(
    *, parts: int = 3, dtype: torch.dtype = torch.float32, **changed: Any
) -> tuple[MuvaModel, ToyImages]:
    names = ("head", "upper_body", "legs")[:parts]
    model = small_model(identities=6, parts=names, **changed).to(dtype)
    return model, ToyImages(parts=parts, dtype=dtype)


def run(
    model: MuvaModel,
    images: ToyImages | TrainingImages,
    *,
    checkpoint: Any = None,
    seed: int = 5,
    **changed: Any,
) -> list[EpochReport]:
    settings = Stage2Config(**{**SETTINGS, **changed})
    return list(
        train_image_encoder(
            model=model,
            images=images,
            settings=settings,
            seed=seed,
            device=CPU,
            checkpoint=checkpoint,
        )
    )


def step_losses(reports: list[EpochReport]) -> list[float]:
    return [loss for report in reports for loss in report.step_losses]


def test_the_image_encoder_learns_and_the_prompts_stay() -> None:
    model, images = model_and_images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reports = run(model, images, epochs=8, milestones=())
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"] - 1
    assert set(reports[0].metrics) == {
        "loss", "identity", "image_to_text", "memory", "mask", "dice", "lr"
    }  # fmt: skip
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert not [n for n in changed if n.startswith(("text_encoder.", "contexts"))]
    assert "image_encoder.conv1.weight" not in changed and "bn_neck.bias" not in changed
    assert "image_encoder.part_tokens" in changed and "bn_neck.running_mean" in changed


def test_the_global_only_model_trains_without_masks() -> None:
    model, images = model_and_images(parts=0)
    reports = run(model, images, epochs=8, milestones=())
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"] - 1
    assert set(reports[0].metrics) == {"loss", "identity", "image_to_text", "memory", "lr"}


@pytest.mark.parametrize("gating", ["offline", "online"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_losses(gating: str, precision: str) -> None:
    first, second, other = (
        step_losses(run(*model_and_images(gating=gating), precision=precision, seed=seed))
        for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other


def test_bf16_stays_close_to_float32() -> None:
    full, half = (
        step_losses(run(*model_and_images(), precision=precision, epochs=1))
        for precision in ("fp32", "bf16")
    )
    np.testing.assert_allclose(half, full, rtol=0.03)


def test_resuming_gives_what_an_uninterrupted_run_gives_bit_for_bit(tmp_path: Path) -> None:
    whole, images = model_and_images()
    reports = run(whole, images)
    stopped, _ = model_and_images()
    loop = train_image_encoder(
        model=stopped, images=images, settings=Stage2Config(**SETTINGS), seed=5, device=CPU
    )
    save_checkpoint(tmp_path, next(loop).checkpoint())
    next(loop)  # the state is that of its epoch, whatever comes after
    resumed, _ = model_and_images()
    rest = run(resumed, images, checkpoint=load_checkpoint(tmp_path))
    assert [r.step_losses for r in rest] == [r.step_losses for r in reports[1:]]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


EVERYTHING = AugmentationConfig(
    pad=4, jitter=0.5, gamma=1.5, cast=0.2, grey=0.2, blur=0.5, low_resolution=0.5, sharpen=0.5,
    jpeg=0.5, erase=0.5,
)  # fmt: skip


def real_images(folder: Path, augmentation: AugmentationConfig) -> TrainingImages:
    """Images of six people in files, with boxes of three parts."""
    height, width = IMAGE_SIZE
    rows, columns = (patch_centres(side, patch=PATCH, stride=PATCH) for side in IMAGE_SIZE)
    bands = [(0.1, 0.0, 0.9, 0.3), (0.0, 0.2, 1.0, 0.6), (0.2, 0.5, 0.8, 1.0)]
    boxes = BoxMasks(
        boxes=torch.tensor(bands).expand(18, 3, 4),
        found=torch.ones(18, 3, dtype=torch.bool),
        row_centres=rows,
        column_centres=columns,
    )
    return TrainingImages.open(
        [dataset(folder, "town", [1, 2, 3, 4, 5, 6])],
        height=height,
        width=width,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        part_masks=boxes(torch.arange(18), torch.zeros(18, 2)),
        moved_masks=boxes,
        grid=(len(rows), len(columns)),
        augmentation=augmentation,
        cache_folder=folder / "node",
    )


def test_an_augmented_training_resumes_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    images = real_images(tmp_path, EVERYTHING)
    whole = run(model_and_images()[0], images)
    none = real_images(tmp_path / "plain", AugmentationConfig())
    plain = run(model_and_images()[0], none, epochs=1)
    assert step_losses(whole)[0] != step_losses(plain)[0]
    loop = train_image_encoder(
        model=model_and_images()[0],
        images=images,
        settings=Stage2Config(**SETTINGS),
        seed=5,
        device=CPU,
    )
    save_checkpoint(tmp_path / "first", next(loop).checkpoint())
    checkpoint = load_checkpoint(tmp_path / "first")
    rest = run(model_and_images()[0], images, checkpoint=checkpoint)
    assert [r.step_losses for r in rest] == [r.step_losses for r in whole[1:]]


def test_a_checkpoint_of_other_or_no_augmentation_is_refused(tmp_path: Path) -> None:
    model, images = model_and_images()
    (report,) = run(model, images, epochs=1)
    without = dict(report.checkpoint())
    recorded = json.loads(str(without["settings"]))
    assert recorded.pop("augmentation")["jpeg"] == 0
    older = {**without, "settings": json.dumps(recorded)}
    run(model, images, epochs=1, checkpoint=older)
    images.augmentation = AugmentationConfig(jpeg=0.5)
    for checkpoint in (without, older):
        with pytest.raises(MuvaError, match=r"augmentation\.jpeg is 0\.5, but 0\.0 in the check"):
            run(model, images, epochs=1, checkpoint=checkpoint)


def test_a_checkpoint_of_other_settings_is_refused() -> None:
    model, images = model_and_images()
    (report,) = run(model, images, epochs=1)
    global_only, plain = model_and_images(parts=0)
    with pytest.raises(MuvaError, match=r"model.parts is \[\], but \['head'.*\] in the checkpoint"):
        run(global_only, plain, checkpoint=report.checkpoint())
    differing = (
        "stage2.lr is 0.5, but 0.0001 in the checkpoint; stage2.decay is 0.3, but 0.1 in the"
    )
    with pytest.raises(MuvaError, match=differing):
        run(model, images, lr=0.5, decay=0.3, epochs=1, checkpoint=report.checkpoint())
    with pytest.raises(MuvaError, match="does not belong to stage 2 with these settings"):
        run(
            small_model(identities=7, parts=PARTS), images, epochs=1, checkpoint=report.checkpoint()
        )
    with pytest.raises(MuvaError, match="does not belong to stage 2"):
        run(model, images, checkpoint={"contexts": torch.zeros(3)})


FLIES_APART: dict[str, Any] = {"lr": 1e30, "warmup_epochs": 0, "epochs": 1}


def diverged(model: MuvaModel, images: ToyImages, **changed: Any) -> DivergedError:
    with pytest.raises(DivergedError) as stopped:
        run(model, images, **{**FLIES_APART, **changed})
    return stopped.value


def test_a_loss_that_is_not_finite_stops_the_training_at_its_step() -> None:
    model, images = model_and_images()
    error = diverged(model, images)
    batch = pk_batches(images.labels, batch_size=8, images_per_identity=2, seed=5, epoch=1)[1]
    named = ", ".join(f"toy/{row:04d}" for row in batch)
    assert "epoch 1, step 2 of 2: the loss is not finite (loss nan, identity nan" in str(error)
    assert f"Images of the batch: {named}. Lower stage2.lr (it is 1e+30)" in str(error)
    assert all(value.isfinite().all() for value in trained_parameters(model).values())


def test_a_diverged_training_leaves_what_repeats_its_step(tmp_path: Path) -> None:
    model, images = model_and_images()
    one_step = run_steps(*model_and_images(), steps=1)
    save_checkpoint(tmp_path, diverged(model, images).checkpoint())
    checkpoint = load_checkpoint(tmp_path)
    for name, value in one_step.items():
        assert torch.equal(torch.as_tensor(checkpoint[f"model/{name}"]), value), name
    again, _ = model_and_images()
    settings = Stage2Config(**{**SETTINGS, **FLIES_APART})
    outputs, losses = repeat_step(
        model=again, images=images, settings=settings, device=CPU, checkpoint=checkpoint
    )
    assert not losses.total.isfinite()
    assert len(outputs.feature) == 8
    with pytest.raises(MuvaError, match="not one of a diverged step: it lacks indices"):
        repeat_step(
            model=again, images=images, settings=settings, device=CPU, checkpoint={"epoch": 1}
        )


def run_steps(model: MuvaModel, images: ToyImages, *, steps: int) -> dict[str, Tensor]:
    """Weights and statistics of the neck after so many steps of FLIES_APART, by hand."""
    settings = Stage2Config(**{**SETTINGS, **FLIES_APART})
    model.contexts.requires_grad_(False)
    memory = visual_memory(model, images, settings, device=CPU, precision="fp32")
    optimiser = stage2_optimiser(model, settings)
    set_learning_rate(optimiser, settings.lr)
    batches = pk_batches(images.labels, batch_size=8, images_per_identity=2, seed=5, epoch=1)
    flips = flip_draws(len(batches), 8, probability=0.5, seed=5, epoch=1)
    seeds = augmentation_seeds(batches, seed=5, epoch=1)
    for batch, flip, seed in list(zip(batches, flips, seeds, strict=True))[:steps]:
        pixels, masks = images.batch(Draw(batch, flip, seed))
        training_step(
            model.train(),
            images=pixels,
            labels=torch.from_numpy(images.labels[batch]),
            part_masks=masks,
            prototypes=model.prototypes(),
            memory=memory,
            optimiser=optimiser,
            settings=settings,
        )
    buffers = {f"bn_neck.{name}": value for name, value in model.bn_neck.named_buffers()}
    return {
        name: value.detach() for name, value in {**trained_parameters(model), **buffers}.items()
    }


def test_a_step_is_repeated_as_it_was() -> None:
    model, images = model_and_images()
    (report,) = run(model, images, epochs=1)
    broken, spoilt = model_and_images()[0], SpoiltImages()
    with pytest.raises(DivergedError, match=r"step 2 of 2") as stopped:
        run(broken, spoilt, epochs=1)
    _, losses = repeat_step(
        model=model_and_images()[0],
        images=images,
        settings=Stage2Config(**SETTINGS),
        device=CPU,
        checkpoint=stopped.value.checkpoint(),
    )
    assert losses.total.item() == report.step_losses[1]


def test_a_step_that_was_saved_without_seeds_is_repeated_only_without_augmentation() -> None:
    model, images = model_and_images()
    checkpoint = {k: v for k, v in diverged(model, images).checkpoint().items() if k != "seeds"}
    settings = Stage2Config(**{**SETTINGS, **FLIES_APART})
    again: dict[str, Any] = {"settings": settings, "device": CPU, "checkpoint": checkpoint}
    repeat_step(model=model_and_images()[0], images=images, **again)
    images.augmentation = AugmentationConfig(pad=2)
    with pytest.raises(MuvaError, match="lacks the seeds of the images' augmentation"):
        repeat_step(model=model_and_images()[0], images=images, **again)


class SpoiltImages(ToyImages):
    """Every image of the second batch is broken."""

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        images, masks = super().batch(draw)
        second = pk_batches(self.labels, batch_size=8, images_per_identity=2, seed=5, epoch=1)[1]
        spoilt = draw.flips is not None and np.isin(draw.indices, second).all()
        return images * (torch.nan if spoilt else 1.0), masks


def test_an_image_without_finite_features_is_named() -> None:
    model, images = model_and_images()
    images.images[3] = torch.nan
    with pytest.raises(MuvaError, match=r"features of 1 of 24 .* for example toy/0003\."):
        run(model, images)


def test_an_epoch_that_ends_with_non_finite_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = model_and_images()

    def overflow(gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, torch.inf)

    with torch.enable_grad():
        model.classifier.weight.register_hook(overflow)
    monkeypatch.setattr(
        "muva.training.sampler.pk_batches", lambda *args, **named: pk_batches(*args, **named)[:1]
    )
    with pytest.raises(
        MuvaError, match=r"losses were finite, but 1 weight tensors .*\(classifier\.weight\)"
    ):
        run(model, images)


def test_a_gradient_that_overflows_in_half_precision_is_no_divergence() -> None:
    model, images = model_and_images()
    settings = Stage2Config(**{**SETTINGS, "epochs": 1})
    pixels, masks = images.batch(Draw(np.arange(8)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    model.contexts.requires_grad_(False)
    before = model.classifier.weight.detach().clone()
    _, losses = training_step(
        model.train(),
        images=pixels,
        labels=torch.from_numpy(images.labels[:8]),
        part_masks=masks,
        prototypes=model.prototypes(),
        memory=visual_memory(model, images, settings, device=CPU, precision="fp32"),
        optimiser=stage2_optimiser(model, settings),
        settings=settings,
        scaler=scaler,
        check=lambda losses: None if is_finite(losses.total) else pytest.fail("no divergence"),
    )
    assert losses.total.isfinite()
    assert torch.equal(model.classifier.weight, before)
    assert scaler.get_scale() < 2.0**127


def test_progress_counts_every_batch_of_an_epoch() -> None:
    model, images = model_and_images()
    seen: list[tuple[int, int]] = []
    settings = Stage2Config(**{**SETTINGS, "epochs": 1})
    (report,) = list(
        train_image_encoder(
            model=model,
            images=images,
            settings=settings,
            seed=5,
            device=CPU,
            progress=lambda done, total: seen.append((done, total)),
        )
    )
    total = 3 + len(report.step_losses)  # the memory sees 24 images in batches of 8
    assert seen == [(done, total) for done in range(1, total + 1)]


CASES: dict[torch.dtype, dict[str, Any]] = {
    torch.float64: {"memory_hard_update": False},
    torch.float32: {"memory_hard_update": True},
}
Outcome = tuple[list[float], dict[str, Tensor], Tensor]


def outcome(dtype: torch.dtype) -> Outcome:
    model, images = model_and_images(dtype=dtype)
    losses = step_losses(run(model, images, epochs=5, **CASES[dtype]))
    return losses, model.state_dict(), dataset_centroids(model, images, device=CPU, batch_size=5)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    torch.save({dtype: outcome(dtype) for dtype in CASES}, Path(folder) / f"worker{rank}.pt")
    error = diverged(*model_and_images())
    Path(folder, f"worker{rank}.txt").write_text(str(error))
    save_checkpoint(Path(folder, f"diverged{rank}"), error.checkpoint())
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    spawn(worker, (str(folder),), nprocs=WORKERS)
    return folder


@pytest.fixture(scope="module")
def workers(workers_folder: Path) -> list[dict[torch.dtype, Outcome]]:
    return [torch.load(workers_folder / f"worker{rank}.pt") for rank in range(WORKERS)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["f64", "f32"]
)
def test_two_workers_give_the_result_of_one(
    dtype: torch.dtype, tolerance: float, workers: list[dict[torch.dtype, Outcome]]
) -> None:
    losses, weights, features = outcome(dtype)
    assert len(losses) > 8
    for of_worker in workers:
        worker_losses, worker_weights, worker_features = of_worker[dtype]
        np.testing.assert_allclose(worker_losses, losses, rtol=tolerance)
        if dtype is torch.float64:
            torch.testing.assert_close(worker_features, features, rtol=1e-8, atol=1e-8)
            for name, value in weights.items():
                # The key second of these has a true gradient of zero: its steps are rounding.
                if not name.endswith("in_proj_bias"):
                    torch.testing.assert_close(worker_weights[name], value, rtol=1e-8, atol=1e-8)


def test_all_workers_end_with_the_same_model(workers: list[dict[torch.dtype, Outcome]]) -> None:
    first, second = (of_worker[torch.float32][1] for of_worker in workers)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_workers_stop_at_the_same_step_with_all_images_named(workers_folder: Path) -> None:
    _, images = model_and_images()
    batch = pk_batches(images.labels, batch_size=8, images_per_identity=2, seed=5, epoch=1)[1]
    first, second = ((workers_folder / f"worker{rank}.txt").read_text() for rank in range(WORKERS))
    assert first == second
    assert "step 2 of 2" in first
    assert "worker 0: loss nan" in first and "worker 1: loss nan" in first
    assert ", ".join(f"toy/{row:04d}" for row in batch) in first
    states = [load_checkpoint(workers_folder / f"diverged{rank}") for rank in range(WORKERS)]
    assert torch.equal(torch.as_tensor(states[0]["indices"]), torch.from_numpy(batch))
    for name, value in states[0].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, torch.as_tensor(states[1][name])), name


def test_workers_that_cannot_share_a_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = model_and_images()
    monkeypatch.setattr("muva.training.stage2.world_size", lambda: 3)
    monkeypatch.setattr("muva.training.stage2.DistributedDataParallel", lambda model, **_: model)
    with pytest.raises(MuvaError, match="3 workers cannot share the 4 identities"):
        run(model, images)
