"""Repeats the step of stage 2 at which a training diverged: see `muva.training.guard`."""

import torch
from torch import Tensor

from muva.config import Stage2Config
from muva.data.draw import Draw
from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel, TrainingOutputs
from muva.model.precision import resolve_precision
from muva.training.loader import TrainingImages
from muva.training.losses import Stage2Losses
from muva.training.optimisers import set_learning_rate, stage2_lr, stage2_optimiser
from muva.training.report import Checkpoint
from muva.training.stage2 import training_step
from muva.training.stage2_checkpoint import restore_stage2
from muva.training.visual_memory import new_memory


def repeat_step(
    *,
    model: MuvaModel,
    images: TrainingImages,
    settings: Stage2Config,
    device: torch.device,
    checkpoint: Checkpoint,
) -> tuple[TrainingOutputs, Stage2Losses]:
    """Repeat the step that follows the checkpoint of a DivergedError, in a single process.

    `model` holds the learned prompts and is updated by the step. The batch is the global one of all
    workers. The precision in `settings` may differ from that of the training.

    Raises:
        MuvaError: the checkpoint is not one of a diverged step, or was saved without the seeds that
            these images' augmentation needs.
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
            "this checkpoint is not one of a diverged step: it lacks indices, flips or memory; "
            "expected one that a diverged training saved"
        )
    seeds = checkpoint.get("seeds")
    if not isinstance(seeds, Tensor) and images.augmentation.result_settings():
        raise MuvaError(
            "this checkpoint lacks the seeds of the images' augmentation, because the training "
            "that saved it had none: repeat the step with the settings of that training"
        )
    epoch = restore_stage2(model, optimiser, scaler, checkpoint)
    set_learning_rate(optimiser, stage2_lr(epoch, settings))
    draw = Draw(
        indices.numpy(), flips.numpy(), seeds.numpy() if isinstance(seeds, Tensor) else None
    )
    pixels, masks = images.batch(draw)
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
