from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from muva.config import Stage2Config
from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel
from muva.training.checkpoints import load_checkpoint, save_checkpoint
from muva.training.images import image_features
from muva.training.report import EpochReport
from muva.training.stage2 import train_image_encoder
from tests.model.small import small_model
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
    model: MuvaModel, images: ToyImages, *, state: Any = None, seed: int = 5, **changed: Any
) -> list[EpochReport]:
    settings = Stage2Config(**{**SETTINGS, **changed})
    return list(
        train_image_encoder(
            model=model, images=images, settings=settings, seed=seed, device=CPU, state=state
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
    save_checkpoint(tmp_path, next(loop).state())
    next(loop)  # the state is that of its epoch, whatever comes after
    resumed, _ = model_and_images()
    rest = run(resumed, images, state=load_checkpoint(tmp_path))
    assert [r.step_losses for r in rest] == [r.step_losses for r in reports[1:]]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_checkpoint_of_other_settings_is_refused() -> None:
    model, images = model_and_images()
    (report,) = run(model, images, epochs=1)
    global_only, plain = model_and_images(parts=0)
    with pytest.raises(MuvaError, match="not one of stage 2 with these settings"):
        run(global_only, plain, state=report.state())
    with pytest.raises(MuvaError, match="not one of stage 2"):
        run(model, images, state={"contexts": torch.zeros(3)})


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    model, images = model_and_images()
    images.images[3] = torch.nan
    with pytest.raises(MuvaError, match=r"diverged in epoch 1: .* lower stage2\.lr"):
        run(model, images)


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
    return losses, model.state_dict(), image_features(model, images, device=CPU, batch_size=5)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    torch.save({dtype: outcome(dtype) for dtype in CASES}, Path(folder) / f"worker{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[torch.dtype, Outcome]]:
    folder = tmp_path_factory.mktemp("workers")
    spawn(worker, (str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"worker{rank}.pt") for rank in range(WORKERS)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["f64", "f32"]
)
def test_two_workers_do_what_one_does(
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
                # The key third of these has a true gradient of zero: its steps are rounding.
                if not name.endswith("in_proj_bias"):
                    torch.testing.assert_close(worker_weights[name], value, rtol=1e-8, atol=1e-8)


def test_all_workers_end_with_the_same_model(workers: list[dict[torch.dtype, Outcome]]) -> None:
    first, second = (of_worker[torch.float32][1] for of_worker in workers)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_workers_that_cannot_share_a_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = model_and_images()
    monkeypatch.setattr("muva.training.stage2.world_size", lambda: 3)
    monkeypatch.setattr("muva.training.stage2.DistributedDataParallel", lambda model, **_: model)
    with pytest.raises(MuvaError, match="3 workers cannot share the 4 identities"):
        run(model, images)
