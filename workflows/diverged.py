"""A diverged step, repeated: `python -m workflows.diverged ARTIFACT [--set stage2.precision=fp32]`.

A training whose loss is not finite keeps the state before that step under its artifact. This builds
the same model from the same data, does the step again in one process, and tells each loss and, of
stage 2, which images' features are not finite. Nothing is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import torch
from torch import Tensor

from muva.config import with_overrides
from muva.data.artifacts import Artifact, open_artifact
from muva.errors import MuvaError
from muva.training.repeat import repeat_step
from muva.training.report import State
from muva.training.stage1 import repeat_prompt_loss
from workflows.epochs import device_here
from workflows.prompts import learned_contexts
from workflows.session import json_option, override_option, print_result
from workflows.states import diverged_state
from workflows.training_inputs import TrainingInputs

Repeated = dict[str, Any]
"""Where the step is, each loss by name, and which images' features are not finite."""


def repeat_diverged(artifact: Artifact, *, overrides: Sequence[str] = ()) -> Repeated:
    """The step before which a training of these prompts or this model has stopped, done again.

    `overrides` change settings as `--set` does. Raises MuvaError when no such step was kept.
    """
    state, made_from = diverged_state(artifact)
    inputs = TrainingInputs.read(made_from["inputs"])
    config = with_overrides(inputs.config, overrides, where=artifact.uri)
    device = device_here()
    place: Repeated = {"epoch": state["epoch"], "step": state["step"]}
    model, images = inputs.open(predicts_masks=artifact.kind == "models")
    if artifact.kind == "prompts":
        loss = repeat_prompt_loss(model=model.to(device), settings=config.stage1, state=state)
        return {**place, "losses": {"loss": loss.item()}, "images": []}
    model.contexts.data.copy_(learned_contexts(open_artifact(made_from["prompts"])))
    outputs, losses = repeat_step(
        model=model, images=images, settings=config.stage2, device=device, state=state
    )
    terms = {"loss": losses.total, **losses.terms()}
    return {
        **place,
        "losses": {name: value.item() for name, value in terms.items()},
        "images": _not_finite(outputs.feature, state, images.image_ids),
    }


def _not_finite(features: Tensor, state: State, image_ids: Sequence[str]) -> list[str]:
    """The images of the batch whose features, before the neck mixes them, are not finite."""
    indices = torch.as_tensor(state["indices"]).tolist()
    finite = features.isfinite().all(dim=1).tolist()
    return [
        image_ids[int(index)] for index, sound in zip(indices, finite, strict=True) if not sound
    ]


@click.command()
@click.argument("artifact")
@override_option
@json_option
def main(artifact: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Repeat the step at which a training of ARTIFACT (STORE/models/NAME-FINGERPRINT) diverged.

    \b
    python -m workflows.diverged runs/store/models/muva-0123456789abcdef
    python -m workflows.diverged ... --set stage2.precision=fp32
    """
    try:
        found = repeat_diverged(open_artifact(artifact), overrides=overrides)
    except MuvaError as mistake:
        sys.exit(f"Error: {mistake}")
    print_result(found, as_json=as_json, text="\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
