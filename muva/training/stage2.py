"""Stage 2: train the image encoder, with the prompts' text features as prototypes (Sec. 3.4).

A generator that yields after each epoch and does not depend on how it is run. If torch.distributed
is initialised, several workers together compute what a single one would: each takes whole
identities of every batch, the BN neck sees the global batch, gradients are averaged, and all
workers apply the same update to their copy of the memory, from all features.
"""

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from muva.config import Stage2Config
from muva.data.draw import Draw
from muva.model.distributed import gather_batch, mean_over_workers, rank, world_size
from muva.model.muva_model import MuvaModel, TrainingOutputs
from muva.model.precision import Precision, autocast, resolve_precision
from muva.training.centroids import Progress, dataset_centroids
from muva.training.checkpoints import check_settings, recorded_settings
from muva.training.compute import Compute, apply_compute, explain_out_of_memory
from muva.training.divergence import check_weights, remedies
from muva.training.guard import Guard
from muva.training.loader import Loader, TrainingImages
from muva.training.losses import Stage2Losses, stage2_losses
from muva.training.optimisers import set_learning_rate, stage2_lr, stage2_optimiser
from muva.training.report import Checkpoint, EpochReport
from muva.training.sampler import epoch_draws, rank_share
from muva.training.stage2_checkpoint import restore_stage2, stage2_checkpoint, stage2_tensors
from muva.training.visual_memory import VisualMemory, new_memory

AfterStep = Callable[[Mapping[str, Tensor], VisualMemory], None]
"""Called after each step with this worker's loss terms by name and the updated memory."""


def train_image_encoder(
    *,
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    compute: Compute | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[EpochReport]:
    """Train `model`, which holds the learned prompts, yielding a report after each epoch.

    Args:
        checkpoint: an earlier report's checkpoint; training resumes after its epoch, with the
            results of an uninterrupted run.
        progress: called as `progress(done, total)` with the batches of an epoch, including those
            that build the memory.
        compute: settings that affect only speed and memory use.

    Raises:
        DivergedError: a loss is not finite, on all workers; it has a checkpoint for `repeat_step`.
        MuvaError: the GPU has too little memory for a batch, or the checkpoint belongs to different
            settings or sources.
    """
    compute = compute or Compute()
    with apply_compute(model.image_encoder, compute):
        yield from _epochs(
            model, images, settings, seed, device, checkpoint, progress, compute, after_step
        )


def _epochs(
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    compute: Compute,
    after_step: AfterStep | None,
) -> Iterator[EpochReport]:
    precision = resolve_precision(settings.precision, device)
    sections = {
        "stage2": settings,
        "augmentation": images.augmentation,
        "model": model.config,
        "seed": seed,
    }
    if checkpoint is not None:
        check_settings(checkpoint, sections)
    model.to(device).contexts.requires_grad_(False)
    prototypes = model.prototypes()
    optimiser = stage2_optimiser(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    first_epoch = 1
    if checkpoint is not None:
        first_epoch += restore_stage2(model, optimiser, scaler, checkpoint)
    trained = _distributed(model) if world_size() > 1 else model
    loader = Loader(images, processes=compute.loaders, device=device)
    share = settings.batch_size // world_size()
    for epoch in range(first_epoch, settings.epochs + 1):
        lr = stage2_lr(epoch, settings)
        set_learning_rate(optimiser, lr)
        draws = epoch_draws(images.labels, settings, seed=seed, epoch=epoch)
        encode_batches = -(-len(images.labels) // compute.images_per_pass(settings.batch_size))
        count = _Counter(progress, encode_batches + len(draws))
        began_at, waited_s = time.perf_counter(), loader.waited_s
        with explain_out_of_memory(
            compute,
            batch=settings.batch_size,
            precision=precision,
            where=f"stage 2, features for the memory of epoch {epoch}",
        ):
            memory = visual_memory(
                model,
                images,
                settings,
                device=device,
                precision=precision,
                progress=count.step,
                compute=compute,
                loader=loader,
            )
        memory_built_at = time.perf_counter()
        terms: list[dict[str, Tensor]] = []
        model.train()
        guard = Guard(
            model=model,
            optimiser=optimiser,
            scaler=scaler,
            memory=memory,
            draws=draws,
            image_ids=images.image_ids,
            settings=settings,
            epoch=epoch,
        )
        ours = [_rank_share(draw, settings) for draw in draws]
        batches = zip(ours, loader.batches(ours), strict=True)
        for number, (draw, (pixels, masks)) in enumerate(batches, start=1):
            guard.before_step()
            with explain_out_of_memory(
                compute,
                batch=share,
                precision=precision,
                where=f"stage 2, epoch {epoch}, step {number} of {len(draws)}",
            ):
                _, losses = training_step(
                    trained,
                    images=compute.pixels(pixels, device),
                    labels=torch.as_tensor(images.labels[draw.indices], device=device),
                    part_masks=None if masks is None else masks.to(device, non_blocking=True),
                    prototypes=prototypes,
                    memory=memory,
                    optimiser=optimiser,
                    settings=settings,
                    precision=precision,
                    scaler=scaler,
                    micro_batch=compute.micro_batch,
                    check=guard.check,
                )
            step = {"loss": losses.total, **losses.terms()}
            terms.append({name: value.detach() for name, value in step.items()})
            if after_step:
                after_step(terms[-1], memory)
            count.step()
        metrics, step_losses = _epoch_means(terms)
        check_weights(
            stage2_tensors(model).items(),
            epoch=epoch,
            remedy=remedies("stage2", settings.lr, precision),
        )
        yield EpochReport(
            epoch=epoch,
            metrics={**metrics, "lr": lr},
            step_losses=step_losses,
            checkpoint=lambda epoch=epoch: {
                **stage2_checkpoint(epoch, model, optimiser, scaler),
                **recorded_settings(sections),
            },
            seconds={
                "memory_pass_s": memory_built_at - began_at,
                "steps_s": time.perf_counter() - memory_built_at,
                "waiting_s": loader.waited_s - waited_s,
            },
        )


def _distributed(model: MuvaModel) -> nn.Module:
    """The model wrapped so that gradients are averaged over all workers.

    Every trained parameter gets a gradient in every step, so there are no unused ones to find, and
    declaring the graph static gains nothing. Buffers are not synchronised, because the statistics
    of the BN neck already cover the global batch on every worker. Gradients are views of the
    all-reduce buckets, which saves a copy of all of them.
    """
    return DistributedDataParallel(
        model,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=False,
        static_graph=False,
    )


def visual_memory(
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    *,
    device: torch.device,
    precision: Precision,
    progress: Progress | None = None,
    compute: Compute | None = None,
    loader: Loader | None = None,
) -> VisualMemory:
    """The memory at the start of an epoch: identity centroids of all training images."""
    centroids = dataset_centroids(
        model,
        images,
        device=device,
        batch_size=settings.batch_size,
        precision=precision,
        necked=True,
        progress=progress,
        compute=compute,
        loader=loader,
    )
    return new_memory(centroids, settings)


def training_step(
    model: nn.Module,
    *,
    images: Float[Tensor, " B 3 H W"],
    labels: Int[Tensor, " B"],
    part_masks: Bool[Tensor, " B R L"] | None,
    prototypes: Float[Tensor, " N F"],
    memory: VisualMemory,
    optimiser: torch.optim.Optimizer,
    settings: Stage2Config,
    precision: Precision = "fp32",
    scaler: torch.amp.GradScaler | None = None,
    micro_batch: int | None = None,
    check: Callable[[Stage2Losses], None] = lambda losses: None,
) -> tuple[TrainingOutputs, Stage2Losses]:
    """One worker's step on its share of the batch: losses, Adam, then the memory update.

    The gradients are kept until the next step.

    Args:
        model: a MuvaModel in train mode, either plain or wrapped in DistributedDataParallel.
        micro_batch: see `MuvaModel.forward`.
        check: called with the losses before any weight changes; it may raise.
    """
    scaler = scaler or torch.amp.GradScaler(images.device.type, enabled=False)
    with autocast(precision, images.device):
        outputs: TrainingOutputs = model(images, micro_batch)
    compared = normalize(outputs.necked)
    losses = stage2_losses(
        outputs,
        labels=labels,
        part_masks=part_masks,
        prototypes=prototypes,
        memory_logits=memory.logits(compared),
        settings=settings,
    )
    check(losses)
    optimiser.zero_grad()
    scaler.scale(losses.total).backward()
    scaler.step(optimiser)
    scaler.update()
    memory.update(gather_batch(compared.detach()), gather_batch(labels))
    return outputs, losses


def _rank_share(draw: Draw, settings: Stage2Config) -> Draw:
    """This worker's share of a batch."""
    positions = rank_share(
        np.arange(len(draw)),
        rank=rank(),
        world=world_size(),
        images_per_identity=settings.images_per_identity,
    )
    return draw.take(positions)


class _Counter:
    """Counts the batches of an epoch and calls `progress`."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def step(self, *_: int) -> None:
        self._done += 1
        if self._progress:
            self._progress(min(self._done, self._total), self._total)


def _epoch_means(
    terms: list[dict[str, Tensor]],
) -> tuple[dict[str, float], tuple[float, ...]]:
    """Loss terms averaged over steps and workers, and each step's total averaged over workers."""
    if not terms:
        return {}, ()
    names = list(terms[0])
    table = torch.stack([torch.stack([step[name] for name in names]) for step in terms])
    values = mean_over_workers(table.double().flatten().tolist())
    steps = np.reshape(values, (len(terms), len(names)))
    return dict(zip(names, steps.mean(axis=0).tolist(), strict=True)), tuple(steps[:, 0].tolist())
