"""Repeating the step at which a training diverged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muva.config import with_overrides
from muva.data.artifacts import Artifact, open_artifact
from muva.training.repeat import repeat_step
from muva.training.report import Checkpoint
from muva.training.stage1 import repeat_prompt_loss
from workflows.steps.checkpoints import diverged_checkpoint
from workflows.steps.prompts import learned_contexts
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import default_device

Repeated = dict[str, Any]
"""The position of the step, its losses by name, and the images with non-finite features."""


def repeat_diverged(artifact: Artifact, *, overrides: Sequence[str] = ()) -> Repeated:
    """Repeat the step before which a training of these prompts or this model stopped.

    `overrides` change settings as `--set` does. Raises MuvaError if no such step was kept.
    """
    state, made_from = diverged_checkpoint(artifact)
    inputs = TrainingInputs.read(made_from["inputs"])
    config = with_overrides(inputs.config, overrides, where=artifact.uri)
    device = default_device()
    place: Repeated = {"epoch": state["epoch"], "step": state["step"]}
    model, images = inputs.open(predicts_masks=artifact.kind == "models")
    if artifact.kind == "prompts":
        loss = repeat_prompt_loss(model=model.to(device), settings=config.stage1, checkpoint=state)
        return {**place, "losses": {"loss": loss.item()}, "images": []}
    model.contexts.data.copy_(learned_contexts(open_artifact(made_from["prompts"])))
    outputs, losses = repeat_step(
        model=model, images=images, settings=config.stage2, device=device, checkpoint=state
    )
    terms = {"loss": losses.total, **losses.terms()}
    return {
        **place,
        "losses": {name: value.item() for name, value in terms.items()},
        "images": _not_finite(outputs.feature, state, images.image_ids),
    }


def _not_finite(features: Tensor, state: Checkpoint, image_ids: Sequence[str]) -> list[str]:
    """The images of the batch whose features, before the batch-norm neck, are not finite."""
    indices = torch.as_tensor(state["indices"]).tolist()
    finite = features.isfinite().all(dim=1).tolist()
    return [
        image_ids[int(index)] for index, sound in zip(indices, finite, strict=True) if not sound
    ]
