"""Detects a step of stage 2 whose loss is not finite, and makes it repeatable.

Whatever a forward pass changes is backed up until the loss is known, so the step can be undone.
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from muva.config import Stage2Config
from muva.data.draw import Draw
from muva.model.muva_model import MuvaModel
from muva.model.precision import resolve_precision
from muva.training.divergence import DivergedError, format_losses, is_finite, remedies
from muva.training.losses import Stage2Losses
from muva.training.stage2_checkpoint import neck_statistics, stage2_checkpoint
from muva.training.visual_memory import VisualMemory


class Guard:
    """Checks the losses of one epoch."""

    def __init__(
        self,
        *,
        model: MuvaModel,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        memory: VisualMemory,
        draws: Sequence[Draw],
        image_ids: Sequence[str],
        settings: Stage2Config,
        epoch: int,
    ):
        self._model, self._optimiser, self._scaler = model, optimiser, scaler
        self._memory, self._settings = memory, settings
        self._draws, self._image_ids = draws, image_ids
        self._epoch, self._step = epoch, 0
        self._neck: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Back up the BN statistics. Call it before each forward pass, which changes them."""
        self._step += 1
        self._neck = {name: value.clone() for name, value in neck_statistics(self._model).items()}

    def check(self, losses: Stage2Losses) -> None:
        """Check a step's losses; a collective call.

        Raises:
            DivergedError: the loss of any worker is not finite. All workers raise it.
        """
        if is_finite(losses.total):
            return
        settings, device = self._settings, losses.total.device
        draw = self._draws[self._step - 1]
        image_ids = [self._image_ids[int(index)] for index in draw.indices]
        precision = resolve_precision(settings.precision, device)
        raise DivergedError(
            f"stage 2 diverged in epoch {self._epoch}, step {self._step} of {len(self._draws)}: "
            f"the loss is not finite ({format_losses({'loss': losses.total, **losses.terms()})}). "
            f"The weights were not updated by this step. Images of the batch: "
            f"{', '.join(image_ids)}. "
            f"{remedies('stage2', settings.lr, precision)}",
            lambda: {
                **stage2_checkpoint(self._epoch, self._model, self._optimiser, self._scaler),
                **{f"model/{name}": value.cpu() for name, value in self._neck.items()},
                "step": self._step,
                "memory": self._memory.centroids.detach().to("cpu", copy=True),
                "indices": torch.from_numpy(draw.indices),
                "flips": torch.from_numpy(draw.flips),
                "seeds": torch.from_numpy(draw.seeds),
                "image_ids": json.dumps(image_ids),
            },
        )
