"""All that resuming stage 2 needs: weights, the neck's statistics, Adam's moments, the scaler.

What is not in it is a function of (seed, epoch): batches, flips, learning rates. The memory is made
anew at each epoch's start.
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
    """The state behind an epoch, copied to the processor."""
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
    """Undo `stage2_checkpoint`; returns the state's epoch. MuvaError when it is of another model."""
    epoch = load_weights(model, checkpoint)
    moments = _without_prefix("optimiser/", checkpoint)
    if moments or "step" not in checkpoint:  # none before the first step of all
        restore_optimiser(optimiser, trained_parameters(model), moments)
    scale = dict(_without_prefix("scaler/", checkpoint))
    # There is none where the state comes from a device that trained in bf16 or float32.
    if scaler.is_enabled() and scale:
        scaler.load_state_dict(scale)
    return epoch


def load_weights(model: MuvaModel, checkpoint: Checkpoint) -> int:
    """Give a model the weights and the neck's statistics of a state; returns its epoch.

    Raises MuvaError when it is a state of another model.
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
            f"this checkpoint is not one of stage 2 with these settings and sources: "
            f"{', '.join(sorted(wrong)[:3]) or 'its epoch'} missing or of another shape"
        )
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(torch.as_tensor(value))
    return epoch


def stage2_tensors(model: MuvaModel) -> Mapping[str, Tensor]:
    """All that stage 2 changes: trained parameters and the neck's statistics."""
    return {**trained_parameters(model), **neck_statistics(model)}


def neck_statistics(model: MuvaModel) -> dict[str, Tensor]:
    """What the forward pass itself changes in train mode."""
    return {f"bn_neck.{name}": value for name, value in model.bn_neck.named_buffers()}


def _without_prefix(prefix: str, checkpoint: Checkpoint) -> Checkpoint:
    return {key.removeprefix(prefix): v for key, v in checkpoint.items() if key.startswith(prefix)}
