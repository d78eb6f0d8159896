"""A step of stage 2 that a training stopped before, done again: see `muva.training.guard`."""

import torch
from torch import Tensor

from muva.config import Stage2Config
from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel, TrainingOutputs
from muva.model.precision import resolve_precision
from muva.training.images import TrainingImages
from muva.training.losses import Stage2Losses
from muva.training.memory import new_memory
from muva.training.optimisers import set_learning_rate, stage2_lr, stage2_optimiser
from muva.training.report import Checkpoint
from muva.training.stage2 import training_step
from muva.training.stage2_checkpoint import restore_stage2


def repeat_step(
    *,
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    device: torch.device,
    checkpoint: Checkpoint,
) -> tuple[TrainingOutputs, Stage2Losses]:
    """The step that a DivergedError's state lies before, done again by one process.

    `model` holds the learned prompts and is changed as the step does. Several workers' batch is
    taken as a whole. `settings` may have another precision than the training had.
    """
    model.to(device).contexts.requires_grad_(False)
    precision = resolve_precision(settings.precision, device)
    optimiser = stage2_optimiser(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    indices, flips, centroids = (checkpoint.get(key) for key in ("indices", "flips", "memory"))
    if not (
        isinstance(indices, Tensor) and isinstance(flips, Tensor) and isinstance(centroids, Tensor)
    ):
        raise MuvaError(
            "this state is none of a step: no indices, flips or memory in it; expected one that a "
            "diverged training saved"
        )
    epoch = restore_stage2(model, optimiser, scaler, checkpoint)
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
