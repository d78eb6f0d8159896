from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from muva.config import Stage1Config
from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel
from muva.training.checkpoints import load_checkpoint, save_checkpoint
from muva.training.divergence import DivergedError
from muva.training.report import Checkpoint, EpochReport
from muva.training.sampler import pk_batches
from muva.training.stage1 import (
    identity_shares,
    image_centroids,
    learn_prompts,
    prompt_loss,
    repeat_prompt_loss,
)
from tests.model.small import small_model
from tests.training.toy_images import ToyImages

CPU = torch.device("cpu")
SETTINGS = Stage1Config(batch_size=8, images_per_identity=2, epochs=4, lr=0.05, precision="fp32")


def start(dtype: torch.dtype = torch.float32) -> tuple[MuvaModel, Tensor, np.ndarray]:
    model, images = small_model(identities=6).to(dtype), ToyImages(dtype=dtype)
    return model, image_centroids(model, images, SETTINGS, device=CPU), images.labels


def run(
    model: MuvaModel,
    centroids: Tensor,
    labels: np.ndarray,
    *,
    settings: Stage1Config = SETTINGS,
    identities: range | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[EpochReport]:
    return list(
        learn_prompts(
            model=model,
            centroids=centroids,
            labels=labels,
            settings=settings,
            seed=1,
            identities=identities,
            checkpoint=checkpoint,
        )
    )


def test_prompts_learn_and_nothing_else_does() -> None:
    model, centroids, labels = start()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reports = run(model, centroids, labels, settings=SETTINGS.model_copy(update={"epochs": 12}))
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"] - 0.05
    assert [report.epoch for report in reports] == list(range(1, 13))
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"contexts"}


def test_distinct_prompts_once_with_counts_is_every_entrys_mean() -> None:
    model, centroids, _ = start()
    batch = torch.tensor([5, 0, 5, 5, 2, 0])
    contexts = nn.Parameter(model.contexts.detach().clone())
    loss = prompt_loss(model, contexts, centroids, batch, temperature=0.5)
    text = normalize(model.text_features(contexts[batch]))
    expected = cross_entropy(text @ centroids.T / 0.5, batch)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, contexts)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_shares_of_identities_together_are_the_whole() -> None:
    whole, centroids, labels = start(torch.float64)
    reports = run(whole, centroids, labels)
    shares = [range(1), range(1, 4), range(4, 4), range(4, 6)]
    contexts, losses = [], []
    for share in shares:
        model = start(torch.float64)[0]
        of_share = run(model, centroids, labels, identities=share)
        contexts.append(model.contexts[share.start : share.stop])
        losses.append([report.metrics["loss"] for report in of_share])
    torch.testing.assert_close(torch.cat(contexts), whole.contexts, rtol=1e-9, atol=1e-9)
    summed = np.sum(losses, axis=0)
    np.testing.assert_allclose(summed, [r.metrics["loss"] for r in reports], rtol=1e-12)


def test_shares_follow_on_each_other_with_as_many_images_each_as_can_be() -> None:
    images = np.array([3, 1, 1, 1, 9, 2, 4, 4, 1, 1])
    labels = np.arange(10).repeat(images)
    for count in range(1, 14):
        shares = identity_shares(labels, count)
        assert len(shares) == count
        assert [identity for share in shares for identity in share] == list(range(10))
        sizes = [images[share.start : share.stop].sum() for share in shares]
        assert max(sizes) <= 27 / count + 9
    assert identity_shares(labels, 2) == [range(5), range(5, 10)]
    assert identity_shares(labels, 1) == [range(10)]


def test_resuming_gives_what_an_uninterrupted_run_gives_bit_for_bit(tmp_path) -> None:
    whole, centroids, labels = start()
    reports = run(whole, centroids, labels)
    stopped = start()[0]
    loop = learn_prompts(
        model=stopped, centroids=centroids, labels=labels, settings=SETTINGS, seed=1
    )
    next(loop)
    save_checkpoint(tmp_path, next(loop).checkpoint())
    resumed = start()[0]
    rest = run(resumed, centroids, labels, checkpoint=load_checkpoint(tmp_path))
    assert [report.step_losses for report in rest] == [r.step_losses for r in reports[2:]]
    assert torch.equal(resumed.contexts, whole.contexts)


def test_a_finished_checkpoint_gives_its_prompts_without_training() -> None:
    whole, centroids, labels = start()
    reports = run(whole, centroids, labels)
    model = start()[0]
    assert run(model, centroids, labels, checkpoint=reports[-1].checkpoint()) == []
    assert torch.equal(model.contexts, whole.contexts)


def test_a_loss_that_is_not_finite_stops_at_its_step_and_can_be_repeated(tmp_path) -> None:
    model, centroids, labels = start()
    flies_apart = SETTINGS.model_copy(update={"lr": 1e25, "warmup_epochs": 0})
    with pytest.raises(DivergedError, match=r"epoch 1, step 2: its loss is nan") as stopped:
        run(model, centroids, labels, settings=flies_apart)
    batch = pk_batches(labels, batch_size=8, images_per_identity=2, seed=1, epoch=1)[1]
    identities = ", ".join(map(str, sorted(set(labels[batch].tolist()))))
    assert f"Identity labels of the batch: {identities}. Lower stage1.lr (it is 1e+25)" in str(
        stopped.value
    )
    save_checkpoint(tmp_path, stopped.value.checkpoint())
    checkpoint = load_checkpoint(tmp_path)
    assert torch.as_tensor(checkpoint["contexts"]).isfinite().all()
    again = repeat_prompt_loss(model=start()[0], settings=flies_apart, checkpoint=checkpoint)
    assert not again.isfinite()
    with pytest.raises(MuvaError, match="not one of a diverged step of stage 1"):
        repeat_prompt_loss(model=model, settings=flies_apart, checkpoint={"epoch": 1})


def test_a_checkpoint_of_other_sources_is_refused() -> None:
    model, centroids, labels = start()
    checkpoint = run(model, centroids, labels)[-1].checkpoint()
    with pytest.raises(MuvaError, match=r"shape \(6, .*expected \(2, "):
        run(start()[0], centroids, labels, checkpoint=checkpoint, identities=range(2))
    with pytest.raises(MuvaError, match="not one of stage 1"):
        run(start()[0], centroids, labels, checkpoint={"epoch": 3})


def test_progress_counts_the_batches_of_each_epoch() -> None:
    model, centroids, labels = start()
    calls: list[tuple[int, int]] = []
    reports = learn_prompts(
        model=model,
        centroids=centroids,
        labels=labels,
        settings=SETTINGS,
        seed=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    for report in reports:
        batches = len(report.step_losses)
        assert calls == [(number, batches) for number in range(1, batches + 1)]
        calls.clear()
