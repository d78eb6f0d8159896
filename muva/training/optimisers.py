"""Adam for both stages, and their learning-rate schedules; epochs count from 1 (Sec. 4.1)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from muva.config import Stage1Config, Stage2Config
from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel
from muva.training.report import Checkpoint

FUSED_DEVICES = ("cpu", "cuda")


def stage1_lr(epoch: int, settings: Stage1Config) -> float:
    """A linear warm-up, then a cosine schedule.

    The cosine counts from epoch 0, so the rate jumps at the end of the warm-up.
    """
    if epoch < settings.warmup_epochs:
        rise = (settings.lr - settings.warmup_lr) * epoch / settings.warmup_epochs
        return settings.warmup_lr + rise
    cosine = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    return settings.final_lr + (settings.lr - settings.final_lr) * cosine


def stage2_lr(epoch: int, settings: Stage2Config) -> float:
    """The learning rate of the backbone: a linear warm-up, then a drop at each milestone."""
    warmup = 1.0
    if epoch < settings.warmup_epochs:
        rise = (1 - settings.warmup_factor) * epoch / settings.warmup_epochs
        warmup = settings.warmup_factor + rise
    drops = sum(epoch >= milestone for milestone in settings.milestones)
    return settings.lr * warmup * settings.decay**drops


def stage1_optimiser(contexts: nn.Parameter, settings: Stage1Config) -> torch.optim.Adam:
    """Adam on the contexts, with L2 weight decay added to the gradient."""
    return torch.optim.Adam(
        [{"params": [contexts], "lr_factor": 1.0}],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        fused=contexts.device.type in FUSED_DEVICES,
    )


def stage2_optimiser(model: MuvaModel, settings: Stage2Config) -> torch.optim.Adam:
    """Adam on the parameters of stage 2, with rates of their own for all but the backbone."""
    factors = {
        "backbone": 1.0,
        "predictor": settings.predictor_lr_factor,
        "part tokens": settings.part_token_lr_factor,
        "head": settings.head_lr_factor,
    }
    groups: dict[str, list[nn.Parameter]] = {group: [] for group in factors}
    for name, parameter in trained_parameters(model).items():
        groups[_group(name)].append(parameter)
    return torch.optim.Adam(
        [
            {
                "params": parameters,
                "lr_factor": factors[group],
                "weight_decay": 0.0 if group == "predictor" else settings.weight_decay,
            }
            for group, parameters in groups.items()
            if parameters
        ],
        lr=settings.lr,
        fused=model.classifier.weight.device.type in FUSED_DEVICES,
    )


def _group(name: str) -> str:
    if name.startswith("image_encoder.mask_predictor."):
        return "predictor"
    if name == "image_encoder.part_tokens":
        return "part tokens"
    return "head" if name in {"bn_neck.weight", "classifier.weight"} else "backbone"


def trained_parameters(model: MuvaModel) -> dict[str, nn.Parameter]:
    """The parameters that stage 2 trains, by name. Prompts and text encoder are frozen."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name != "contexts"
    }


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group to `lr` times the factor of the group."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]


def optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An optimiser's moments and step counts, by parameter name, copied to the CPU."""
    return {
        f"{name}/{key}": value.detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for key, value in optimiser.state[parameter].items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor], state: Checkpoint
) -> None:
    """Load what `optimiser_state` returned.

    Raises:
        MuvaError: the state belongs to different parameters.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    order = [names[p] for group in optimiser.param_groups for p in group["params"]]
    stored: dict[str, dict[str, object]] = {name: {} for name in order}
    for path, value in state.items():
        name, _, key = path.rpartition("/")
        if name not in stored:
            raise MuvaError(
                f"the checkpoint's optimiser has a state for {name}, which this model lacks"
            )
        stored[name][key] = value
    absent = [name for name in order if not stored[name]]
    if absent:
        raise MuvaError(f"the checkpoint's optimiser has no state for {', '.join(absent[:3])}")
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict(
        {"state": {i: stored[name] for i, name in enumerate(order)}, "param_groups": groups}
    )
