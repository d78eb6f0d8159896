"""Stage 2: learn the image encoder, with the prompts' text features as prototypes (Sec. 3.4).

A generator that yields after each epoch and knows nothing of who runs it. When torch.distributed is
initialised it is one of several workers, which do together what one does: each takes whole
identities of every batch, the BN neck sees the whole batch, gradients are averaged, and all workers
update their memory alike from all features.
"""

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from muva.config import Stage2Config
from muva.errors import MuvaError
from muva.model.distributed import gather_batch, mean_over_workers, rank, world_size
from muva.model.muva_model import MuvaModel, TrainingOutputs
from muva.model.precision import Precision, autocast, resolve_precision
from muva.training.checkpoints import check_settings, told_settings
from muva.training.divergence import (
    DivergedError,
    check_weights,
    is_finite,
    remedies,
    told_losses,
)
from muva.training.images import Progress, TrainingImages, image_features, in_advance
from muva.training.losses import Stage2Losses, stage2_losses
from muva.training.memory import VisualMemory, identity_centroids
from muva.training.optimisers import (
    optimiser_state,
    restore_optimiser,
    set_learning_rate,
    stage2_lr,
    stage2_optimiser,
    trained_parameters,
)
from muva.training.report import EpochReport, State
from muva.training.sampler import flip_draws, pk_batches, rank_share

AfterStep = Callable[[Mapping[str, Tensor], VisualMemory], None]
"""Sees a step's loss terms by name, of this worker's share, and the memory after it."""


def train_image_encoder(
    *,
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    seed: int,
    device: torch.device,
    state: State | None = None,
    progress: Progress | None = None,
    micro_batch: int | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[EpochReport]:
    """Train `model`, which holds the learned prompts, yielding after each epoch.

    `state` is a former report's state: training goes on behind its epoch, as if uninterrupted.
    `progress(done, total)` counts the batches of an epoch, those of the memory included.
    `micro_batch`: so many images are encoded at a time, for memory's sake, with the same result. A
    loss that is not finite is a DivergedError, on all workers, with a state for `repeat_step`.
    """
    precision = resolve_precision(settings.precision, device)
    sections = {"stage2": settings, "model": model.config, "seed": seed}
    if state is not None:
        check_settings(state, sections)
    model.to(device).contexts.requires_grad_(False)
    prototypes = model.prototypes()
    optimiser = stage2_optimiser(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    first_epoch = 1 if state is None else _restore(model, optimiser, scaler, state)
    # Statistics of the neck are already those of the whole batch on every worker.
    trained = DistributedDataParallel(model, broadcast_buffers=False) if world_size() > 1 else model
    for epoch in range(first_epoch, settings.epochs + 1):
        lr = stage2_lr(epoch, settings)
        set_learning_rate(optimiser, lr)
        batches = _batches(images.labels, settings, seed=seed, epoch=epoch)
        count = _Counter(progress, -(-len(images.labels) // settings.batch_size) + len(batches))
        memory = visual_memory(
            model, images, settings, device=device, precision=precision, progress=count.step
        )
        terms: list[dict[str, Tensor]] = []
        model.train()
        guard = _Guard(model, optimiser, scaler, memory, images, settings, seed, epoch)
        for (indices, _), (pixels, masks) in zip(batches, in_advance(images, batches), strict=True):
            guard.before_step()
            _, losses = training_step(
                trained,
                images=pixels.to(device, non_blocking=True),
                labels=torch.as_tensor(images.labels[indices], device=device),
                part_masks=None if masks is None else masks.to(device, non_blocking=True),
                prototypes=prototypes,
                memory=memory,
                optimiser=optimiser,
                settings=settings,
                precision=precision,
                scaler=scaler,
                micro_batch=micro_batch,
                check=guard.check,
            )
            step = {"loss": losses.total, **losses.terms()}
            terms.append({name: value.detach() for name, value in step.items()})
            if after_step:
                after_step(terms[-1], memory)
            count.step()
        metrics, step_losses = _epoch_means(terms)
        check_weights(
            _stage2_tensors(model).items(),
            epoch=epoch,
            remedy=remedies("stage2", settings.lr, precision),
        )
        yield EpochReport(
            epoch=epoch,
            metrics={**metrics, "lr": lr},
            step_losses=step_losses,
            state=lambda epoch=epoch: {
                **_state(epoch, model, optimiser, scaler),
                **told_settings(sections),
            },
        )


def visual_memory(
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    *,
    device: torch.device,
    precision: Precision,
    progress: Progress | None = None,
) -> VisualMemory:
    """The memory at an epoch's start: centroids of all training images as the model sees them."""
    features = image_features(
        model,
        images,
        device=device,
        batch_size=settings.batch_size,
        precision=precision,
        necked=True,
        progress=progress,
    )
    labels = torch.as_tensor(images.labels, device=device)
    return new_memory(identity_centroids(features, labels, model.identities), settings)


def new_memory(centroids: Float[Tensor, " N F"], settings: Stage2Config) -> VisualMemory:
    """A memory of these centroids, as the settings say."""
    return VisualMemory(
        centroids,
        temperature=settings.memory_temperature,
        momentum=settings.memory_momentum,
        hard_update=settings.memory_hard_update,
    )


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
    """One step of a worker on its share of the batch: losses, Adam, then the memory's update.

    `model` is a MuvaModel in train mode, bare or wrapped for several workers. The gradients are
    still there afterwards. `micro_batch`: see `MuvaModel.forward`. `check` sees the losses before
    any weight changes, and may raise.
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


def repeat_step(
    *,
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    device: torch.device,
    state: State,
) -> tuple[TrainingOutputs, Stage2Losses]:
    """The step that a DivergedError's state lies before, done again by one process.

    `model` holds the learned prompts and is changed as the step does. Several workers' batch is
    taken as a whole. `settings` may have another precision than the training had.
    """
    model.to(device).contexts.requires_grad_(False)
    precision = resolve_precision(settings.precision, device)
    optimiser = stage2_optimiser(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    indices, flips, centroids = (state.get(key) for key in ("indices", "flips", "memory"))
    if not (
        isinstance(indices, Tensor) and isinstance(flips, Tensor) and isinstance(centroids, Tensor)
    ):
        raise MuvaError(
            "this state is none of a step: no indices, flips or memory in it; expected one that a "
            "diverged training saved"
        )
    epoch = _restore(model, optimiser, scaler, state) - 1
    set_learning_rate(optimiser, stage2_lr(epoch, settings))
    pixels, masks = images.batch(indices.numpy(), flips)
    return training_step(
        model.train(),
        images=pixels.to(device),
        labels=torch.as_tensor(images.labels[indices.numpy()], device=device),
        part_masks=None if masks is None else masks.to(device),
        prototypes=model.prototypes(),
        memory=new_memory(centroids.to(device), settings),
        optimiser=optimiser,
        settings=settings,
        precision=precision,
        scaler=scaler,
    )


def load_weights(model: MuvaModel, state: State) -> int:
    """Give a model the weights and the neck's statistics of a state; returns its epoch.

    Raises MuvaError when it is a state of another model.
    """
    epoch = state.get("epoch")
    weights = _under("model/", state)
    tensors = _stage2_tensors(model)
    wrong = [
        name
        for name in tensors.keys() | weights.keys()
        if name not in tensors or getattr(weights.get(name), "shape", None) != tensors[name].shape
    ]
    if not isinstance(epoch, int) or wrong:
        raise MuvaError(
            f"this checkpoint is not one of stage 2 with these settings and sources: "
            f"{', '.join(sorted(wrong)[:3]) or 'its epoch'} missing or of another shape"
        )
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(torch.as_tensor(value))
    return epoch


class _Guard:
    """Watches an epoch's losses, and keeps what a forward pass changes: a step can be undone."""

    def __init__(
        self,
        model: MuvaModel,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        memory: VisualMemory,
        images: TrainingImages,
        settings: Stage2Config,
        seed: int,
        epoch: int,
    ):
        self._model, self._optimiser, self._scaler = model, optimiser, scaler
        self._memory, self._images, self._settings = memory, images, settings
        self._seed, self._epoch, self._step = seed, epoch, 0
        self._neck: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """To be called before each step's forward pass, which moves the neck's statistics."""
        self._step += 1
        self._neck = {name: value.clone() for name, value in _neck_statistics(self._model).items()}

    def check(self, losses: Stage2Losses) -> None:
        """Raises DivergedError on all workers when the loss of any is not finite."""
        if is_finite(losses.total):
            return
        settings, device = self._settings, losses.total.device
        batches = _whole_batches(self._images.labels, settings, seed=self._seed, epoch=self._epoch)
        indices, flips = batches[self._step - 1]
        image_ids = [self._images.image_ids[int(index)] for index in indices]
        precision = resolve_precision(settings.precision, device)
        raise DivergedError(
            f"stage 2 diverged in epoch {self._epoch}, step {self._step} of {len(batches)}: the "
            f"loss is not finite ({told_losses({'loss': losses.total, **losses.terms()})}). The "
            f"weights are those before this step. Images of the batch: {', '.join(image_ids)}. "
            f"{remedies('stage2', settings.lr, precision)}",
            lambda: {
                **_state(self._epoch, self._model, self._optimiser, self._scaler),
                **{f"model/{name}": value.cpu() for name, value in self._neck.items()},
                "step": self._step,
                "memory": self._memory.centroids.detach().to("cpu", copy=True),
                "indices": torch.from_numpy(indices),
                "flips": torch.from_numpy(flips),
                "image_ids": json.dumps(image_ids),
            },
        )


def _batches(
    labels: np.ndarray, settings: Stage2Config, *, seed: int, epoch: int
) -> list[tuple[np.ndarray, Tensor]]:
    """This worker's share of an epoch's batches: indices and which images are mirrored."""

    def ours(batch: np.ndarray) -> np.ndarray:
        return rank_share(
            batch,
            rank=rank(),
            world=world_size(),
            images_per_identity=settings.images_per_identity,
        )

    return [
        (ours(batch), torch.as_tensor(ours(flip)))
        for batch, flip in _whole_batches(labels, settings, seed=seed, epoch=epoch)
    ]


def _whole_batches(
    labels: np.ndarray, settings: Stage2Config, *, seed: int, epoch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """An epoch's batches of all workers: indices and which images are mirrored."""
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


class _Counter:
    """Counts the batches of an epoch for `progress`."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def step(self, *_: int) -> None:
        self._done += 1
        if self._progress:
            self._progress(min(self._done, self._total), self._total)


def _epoch_means(
    terms: list[dict[str, Tensor]],
) -> tuple[dict[str, float], tuple[float, ...]]:
    """Means of the loss terms over steps and workers, and each step's total over the workers."""
    if not terms:
        return {}, ()
    names = list(terms[0])
    table = torch.stack([torch.stack([step[name] for name in names]) for step in terms])
    values = mean_over_workers(table.double().flatten().tolist())
    steps = np.reshape(values, (len(terms), len(names)))
    return dict(zip(names, steps.mean(axis=0).tolist(), strict=True)), tuple(steps[:, 0].tolist())


def _state(
    epoch: int, model: MuvaModel, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> State:
    weights = {
        f"model/{name}": value.detach().to("cpu", copy=True)
        for name, value in _stage2_tensors(model).items()
    }
    moments = {
        f"optimiser/{name}": value
        for name, value in optimiser_state(optimiser, trained_parameters(model)).items()
    }
    scales = {f"scaler/{name}": value for name, value in scaler.state_dict().items()}
    return {"epoch": epoch, **weights, **moments, **scales}


def _restore(
    model: MuvaModel,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: State,
) -> int:
    epoch = load_weights(model, state)
    moments = _under("optimiser/", state)
    if moments or "step" not in state:  # none before the first step of all
        restore_optimiser(optimiser, trained_parameters(model), moments)
    scale = dict(_under("scaler/", state))
    # There is none where the state comes from a device that trained in bf16 or float32.
    if scaler.is_enabled() and scale:
        scaler.load_state_dict(scale)
    return epoch + 1


def _stage2_tensors(model: MuvaModel) -> Mapping[str, Tensor]:
    """All that stage 2 changes: trained parameters and the neck's statistics."""
    return {**trained_parameters(model), **_neck_statistics(model)}


def _neck_statistics(model: MuvaModel) -> dict[str, Tensor]:
    """What the forward pass itself changes in train mode."""
    return {f"bn_neck.{name}": value for name, value in model.bn_neck.named_buffers()}


def _under(prefix: str, state: State) -> State:
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
