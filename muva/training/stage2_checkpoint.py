"""Checkpoints of stage 2: weights, BN statistics, Adam's moments and the gradient scaler.

Everything else follows from (seed, epoch): batches, flips, augmentation and learning rates. The
memory is rebuilt at the start of each epoch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel
from muva.training.optimisers import optimiser_state, restore_optimiser, trained_parameters
from muva.training.report import Checkpoint


def stage2_checkpoint(
    epoch: int, model: MuvaModel, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Checkpoint:
    """The checkpoint after an epoch, copied to the CPU."""
    weights = {
        f"model/{name}": value.detach().to("cpu", copy=True)
        for name, value in stage2_tensors(model).items()
    }
    moments = {
        f"optimiser/{name}": value
        for name, value in optimiser_state(optimiser, trained_parameters(model)).items()
    }
    scales = {f"scaler/{name}": value for name, value in scaler.state_dict().items()}
    return {"epoch": epoch, **weights, **moments, **scales}


def restore_stage2(
    model: MuvaModel,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    checkpoint: Checkpoint,
) -> int:
    """Load what `stage2_checkpoint` returned; returns its epoch.

    Raises:
        MuvaError: the checkpoint belongs to a different model.
    """
    epoch = load_weights(model, checkpoint)
    moments = _without_prefix("optimiser/", checkpoint)
    if moments or "step" not in checkpoint:  # empty before the very first step
        restore_optimiser(optimiser, trained_parameters(model), moments)
    scale = dict(_without_prefix("scaler/", checkpoint))
    # It is empty if the checkpoint comes from a training in bf16 or float32.
    if scaler.is_enabled() and scale:
        scaler.load_state_dict(scale)
    return epoch


def load_weights(model: MuvaModel, checkpoint: Checkpoint) -> int:
    """Load a checkpoint's weights and BN statistics into a model; returns the epoch.

    Raises:
        MuvaError: the checkpoint belongs to a different model.
    """
    epoch = checkpoint.get("epoch")
    weights = _without_prefix("model/", checkpoint)
    tensors = stage2_tensors(model)
    wrong = [
        name
        for name in tensors.keys() | weights.keys()
        if name not in tensors or getattr(weights.get(name), "shape", None) != tensors[name].shape
    ]
    if not isinstance(epoch, int) or wrong:
        raise MuvaError(
            f"this checkpoint does not belong to stage 2 with these settings and sources: "
            f"{', '.join(sorted(wrong)[:3]) or 'the epoch'} is missing or has another shape"
        )
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(torch.as_tensor(value))
    return epoch


def stage2_tensors(model: MuvaModel) -> Mapping[str, Tensor]:
    """Every tensor that stage 2 changes: trained parameters and BN statistics."""
    return {**trained_parameters(model), **neck_statistics(model)}


def neck_statistics(model: MuvaModel) -> dict[str, Tensor]:
    """The running statistics of the BN neck, which a forward pass in train mode changes."""
    return {f"bn_neck.{name}": value for name, value in model.bn_neck.named_buffers()}


def _without_prefix(prefix: str, checkpoint: Checkpoint) -> Checkpoint:
    return {key.removeprefix(prefix): v for key, v in checkpoint.items() if key.startswith(prefix)}
