"""Stage 1: learn a context per identity and grain against the identities' image centroids.

Everything except the contexts is frozen, so the images are encoded only once (`image_centroids`).
A P x K batch contains only P different prompts: each is computed once and weighted by its count.
Gradients of different identities never mix, so the identities can be learned in shares, which
together give the same result as a single run.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from muva.config import Stage1Config
from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel
from muva.model.precision import Precision, autocast, resolve_precision
from muva.training.centroids import Progress, dataset_centroids
from muva.training.checkpoints import check_settings, recorded_settings
from muva.training.compute import Compute
from muva.training.divergence import DivergedError, remedies
from muva.training.loader import TrainingImages
from muva.training.optimisers import (
    optimiser_state,
    restore_optimiser,
    set_learning_rate,
    stage1_lr,
    stage1_optimiser,
)
from muva.training.report import Checkpoint, EpochReport
from muva.training.sampler import pk_batches


def image_centroids(
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage1Config,
    *,
    device: torch.device,
    progress: Progress | None = None,
    compute: Compute | None = None,
) -> Float[Tensor, " N F"]:
    """The identities' mean features under the part masks, which the prompts learn to match."""
    return dataset_centroids(
        model.to(device),
        images,
        device=device,
        batch_size=settings.batch_size,
        precision=resolve_precision(settings.precision, device),
        progress=progress,
        compute=compute,
    )


def identity_shares(labels: Int[np.ndarray, " M"], count: int) -> list[range]:
    """Split the identities into `count` contiguous shares with about the same number of images.

    With fewer identities than shares, some shares are empty.
    """
    images = np.bincount(labels).cumsum()
    inner = np.searchsorted(images, images[-1] * np.arange(1, count) / count) + 1
    ends = [0, *np.minimum(inner, len(images)).tolist(), len(images)]
    return [range(start, max(start, end)) for start, end in itertools.pairwise(ends)]


def learn_prompts(
    *,
    model: MuvaModel,
    centroids: Float[Tensor, " N F"],
    labels: Int[np.ndarray, " M"],
    settings: Stage1Config,
    seed: int,
    identities: range | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Iterator[EpochReport]:
    """Learn the contexts of `model`, on the model's device, yielding a report after each epoch.

    Args:
        centroids: the identities' mean features before the BN neck, see `image_centroids`.
        identities: learn only these, a contiguous share (see `identity_shares`). The reported
            losses are their part of the batch's loss, to be summed over the shares.
        checkpoint: an earlier report's checkpoint of the same share; training resumes after it.
        progress: called as `progress(done, total)` with the batches of an epoch.

    Raises:
        DivergedError: a loss is not finite; the error has a checkpoint for `repeat_prompt_loss`.
        MuvaError: the checkpoint belongs to different settings or sources.
    """
    share = identities if identities is not None else range(model.identities)
    contexts = nn.Parameter(model.contexts.detach()[share.start : share.stop].clone())
    precision = resolve_precision(settings.precision, contexts.device)
    optimiser = stage1_optimiser(contexts, settings)
    sections = {"stage1": settings, "prompts": model.prompt_config, "seed": seed}
    if checkpoint is not None:
        check_settings(checkpoint, sections)
    first_epoch = 1 if checkpoint is None else _restore(contexts, optimiser, checkpoint)
    model.contexts.data[share.start : share.stop] = contexts.detach()
    centroids = centroids.to(contexts.device)
    for epoch in range(first_epoch, settings.epochs + 1):
        lr = stage1_lr(epoch, settings)
        set_learning_rate(optimiser, lr)
        batches = pk_batches(
            labels,
            batch_size=settings.batch_size,
            images_per_identity=settings.images_per_identity,
            seed=seed,
            epoch=epoch,
            stage="stage1",
        )
        losses = []
        for step, batch in enumerate(batches, start=1):
            loss = prompt_loss(
                model,
                contexts,
                centroids,
                torch.as_tensor(labels[batch]),
                temperature=settings.temperature,
                first_identity=share.start,
                precision=precision,
            )
            if not loss.isfinite():  # before anything changes; this synchronises, see divergence.py
                checkpoint = {
                    **_checkpoint(epoch, contexts, optimiser),
                    "step": step,
                    "first_identity": share.start,
                    "labels": torch.as_tensor(labels[batch]),
                    "centroids": centroids.to("cpu", copy=True),
                }
                raise _diverged(loss.item(), checkpoint, remedies("stage1", settings.lr, precision))
            prompt_step(loss, optimiser)
            losses.append(loss.detach())
            if progress:
                progress(step, len(batches))
        model.contexts.data[share.start : share.stop] = contexts.detach()
        step_losses = tuple(torch.stack(losses).tolist()) if losses else ()
        yield EpochReport(
            epoch=epoch,
            metrics={"loss": float(np.mean(step_losses)) if losses else 0.0, "lr": lr},
            step_losses=step_losses,
            checkpoint=lambda epoch=epoch: {
                **_checkpoint(epoch, contexts, optimiser),
                **recorded_settings(sections),
            },
        )


def prompt_loss(
    model: MuvaModel,
    contexts: Float[Tensor, " n G K W"],
    centroids: Float[Tensor, " N F"],
    labels: Int[Tensor, " B"],
    *,
    temperature: float,
    first_identity: int = 0,
    precision: Precision = "fp32",
) -> Float[Tensor, ""]:
    """Cross-entropy of text features against all centroids, the mean over the batch.

    `contexts` belong to the identities from `first_identity` on. The batch's other identities add
    nothing to the sum but count in the denominator of the mean.
    """
    present, counts = labels.unique(return_counts=True)
    ours = (present >= first_identity) & (present < first_identity + len(contexts))
    present, counts = present[ours].to(contexts.device), counts[ours].to(contexts)
    with autocast(precision, contexts.device):
        text = model.text_features(contexts[present - first_identity], present)
    text = normalize(text)
    losses = cross_entropy(text @ centroids.T / temperature, present, reduction="none")
    return (losses * counts).sum() / len(labels)


def prompt_step(loss: Float[Tensor, ""], optimiser: torch.optim.Optimizer) -> None:
    """One step of Adam. Weight decay and momentum also change identities outside the batch."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def repeat_prompt_loss(
    *, model: MuvaModel, settings: Stage1Config, checkpoint: Checkpoint
) -> Float[Tensor, ""]:
    """Recompute the loss of the step that follows the checkpoint of a DivergedError.

    It is computed on the model's device. The precision in `settings` may differ from that of the
    training.

    Raises:
        MuvaError: the checkpoint is not one of a diverged step of stage 1.
    """
    contexts, centroids, labels = (
        checkpoint.get(key) for key in ("contexts", "centroids", "labels")
    )
    if not (
        isinstance(contexts, Tensor)
        and isinstance(centroids, Tensor)
        and isinstance(labels, Tensor)
    ):
        raise MuvaError(
            "this checkpoint is not one of a diverged step of stage 1: it lacks contexts, "
            "centroids or labels; expected one that a diverged training saved"
        )
    device = model.contexts.device
    return prompt_loss(
        model,
        contexts.to(device),
        centroids.to(device),
        labels,
        temperature=settings.temperature,
        first_identity=int(torch.as_tensor(checkpoint["first_identity"])),
        precision=resolve_precision(settings.precision, device),
    )


def _diverged(loss: float, checkpoint: Checkpoint, remedy: str) -> DivergedError:
    identities = sorted(set(torch.as_tensor(checkpoint["labels"]).tolist()))
    return DivergedError(
        f"stage 1 diverged in epoch {checkpoint['epoch']}, step {checkpoint['step']}: its loss is "
        f"{loss}. The contexts were not updated by this step. Identity labels of the batch: "
        f"{', '.join(map(str, identities))}. {remedy}",
        lambda: checkpoint,
    )


def _checkpoint(epoch: int, contexts: nn.Parameter, optimiser: torch.optim.Optimizer) -> Checkpoint:
    moments = optimiser_state(optimiser, {"contexts": contexts})
    return {"epoch": epoch, "contexts": contexts.detach().to("cpu", copy=True), **moments}


def _restore(
    contexts: nn.Parameter, optimiser: torch.optim.Optimizer, checkpoint: Checkpoint
) -> int:
    stored, epoch = checkpoint.get("contexts"), checkpoint.get("epoch")
    if not isinstance(stored, Tensor) or not isinstance(epoch, int):
        raise MuvaError("this checkpoint is not one of stage 1: it lacks contexts or the epoch")
    if stored.shape != contexts.shape:
        raise MuvaError(
            f"the checkpoint's contexts have the shape {tuple(stored.shape)}, expected "
            f"{tuple(contexts.shape)}: it belongs to different sources or prompts"
        )
    contexts.data.copy_(stored)
    moments = {key: value for key, value in checkpoint.items() if "/" in key}
    restore_optimiser(optimiser, {"contexts": contexts}, moments)
    return epoch + 1
