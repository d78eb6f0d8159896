"""Every setting of an experiment, one frozen section per stage; the defaults are the paper's.

A recipe is a YAML file that names what differs from the defaults. `load_recipe` reads one by name
or path, applies `key=value` overrides and refuses what it does not know, naming the closest setting.
Sections are what steps are fingerprinted by: a field here changes a result, or it is not here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PARTS = ("head", "upper_body", "legs")
"""The body parts in their fixed order: index 0, 1, 2 of masks, tokens, contexts and prompts."""

Part = Literal["head", "upper_body", "legs"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: immutable, complete by defaults, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The image encoder (Sec. 3.2 to 3.4 of the paper)."""

    clip: str = "ViT-B-16"
    """`tiny` (shipped), an open_clip name with OpenAI's weights, `NAME:TAG` for other weights of
    open_clip, `hf-hub:ORG/NAME`, or a path to a checkpoint in OpenAI's layout."""
    image_height: Count = 256
    image_width: Count = 128
    stride: Count = 16
    """Step between patches in pixels; smaller than the patch makes them overlap."""
    parts: tuple[Part, ...] = PARTS
    """Body parts with a token of their own; empty for the global-only model."""
    part_token_init: Literal["random", "cls", "patch_avg"] = "random"
    gating: Literal["offline", "online"] = "offline"
    """`offline`: a hard gate without gradient; `online`: an additive bias with gradient."""
    mask_max_value: Annotated[float, Field(ge=0)] = 100.0
    """v of the online gate's bias 2 v P - v."""
    mask_temperature: Positive = 1.0
    """tau of P = sigmoid(M / tau)."""
    predictor_heads: Count = 2
    predictor_layer_norm: bool = True
    predictor_shortcut: bool = True
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)

    @field_validator("parts")
    @classmethod
    def _ascending(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(parts)) != len(parts):
            raise ValueError(f"names a part twice: {', '.join(parts)}")
        return tuple(part for part in PARTS if part in parts)


class PromptConfig(Section):
    """The learnable prompts, one per identity and grain."""

    template: Literal["universal", "part-agnostic"] = "universal"
    domain_context: str = ""
    """Text after a comma at the end of each prompt, for example `taken at night`."""
    context_tokens: Count = 4
    context_std: Positive = 0.002
    """Standard deviation of the contexts' normal start."""


class SamplingConfig(Section):
    """P x K sampling: P identities with K images each make a batch."""

    batch_size: Count = 64
    images_per_identity: Count = 4

    @model_validator(mode="after")
    def _whole_identities(self) -> Self:
        if self.batch_size % self.images_per_identity:
            raise ValueError(
                f"images_per_identity {self.images_per_identity} does not divide "
                f"batch_size {self.batch_size}"
            )
        return self


class Stage1Config(SamplingConfig):
    """Stage 1: the prompts learn, everything else is frozen."""

    epochs: Count = 120
    lr: Positive = 3.5e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    warmup_lr: Positive = 1e-5
    final_lr: Positive = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2, added to the gradient (Adam, not AdamW)."""
    temperature: Positive = 1.0


class Stage2Config(SamplingConfig):
    """Stage 2: the image encoder learns, the prompts are frozen."""

    epochs: Count = 60
    lr: Positive = 5e-6
    predictor_lr_factor: Positive = 10.0
    """The mask predictor's learning rate in units of `lr`."""
    head_lr_factor: Positive = 1.0
    """The same for the BN neck and the classifier."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2, for every trained tensor but the mask predictor's."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 10
    warmup_factor: Fraction = 0.1
    milestones: tuple[int, ...] = (30, 50)
    """Epochs from which the learning rate is multiplied by `decay`."""
    decay: Fraction = 0.1
    label_smoothing: Fraction = 0.1
    mask_loss: Literal["bce+dice", "mse"] = "bce+dice"
    i2t_normalised: bool = False
    i2t_temperature: Positive = 1.0
    memory_hard_update: bool = True
    memory_temperature: Positive = 0.01
    memory_momentum: Fraction = 0.2
    flip_probability: Fraction = 0.5
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 where the processor or GPU multiplies it fast, else fp32."""
