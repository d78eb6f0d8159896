"""The losses of stage 2 (Eq. 8 to 13), one function each; their sum is minimised."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from muva.config import Stage2Config
from muva.model.muva_model import TrainingOutputs

DICE_SMOOTHING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Stage2Losses:
    """The weighted loss terms of a step. A term that the settings disable is None."""

    identity: Float[Tensor, ""]
    image_to_text: Float[Tensor, ""]
    memory: Float[Tensor, ""]
    mask: Float[Tensor, ""] | None
    dice: Float[Tensor, ""] | None

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum of the terms, which the step minimises."""
        return torch.stack(list(self.terms().values())).sum()

    def terms(self) -> dict[str, Float[Tensor, ""]]:
        """The enabled terms, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def stage2_losses(
    outputs: TrainingOutputs,
    *,
    labels: Int[Tensor, " B"],
    part_masks: Bool[Tensor, " B R L"] | None,
    prototypes: Float[Tensor, " N F"],
    memory_logits: Float[Tensor, " B N"],
    settings: Stage2Config,
) -> Stage2Losses:
    """All loss terms of a step. Without parts there are no mask terms."""
    mask, dice = None, None
    if outputs.mask_logits is not None and outputs.mask_probabilities is not None:
        if part_masks is None:
            raise ValueError("part_masks is None, but a model with parts needs part masks to train")
        if settings.mask_loss == "mse":
            mask = mask_squared_error(outputs.mask_probabilities, part_masks)
        else:
            mask = mask_cross_entropy(outputs.mask_logits, part_masks)
            dice = settings.dice_weight * dice_loss(outputs.mask_probabilities, part_masks)
        mask = settings.mask_weight * mask
    text_logits = image_to_text_logits(
        outputs.feature,
        prototypes,
        normalised=settings.i2t_normalised,
        temperature=settings.i2t_temperature,
    )
    smoothing = settings.label_smoothing
    return Stage2Losses(
        identity=cross_entropy(outputs.logits, labels, label_smoothing=smoothing),
        image_to_text=cross_entropy(text_logits, labels, label_smoothing=smoothing),
        memory=cross_entropy(memory_logits, labels),
        mask=mask,
        dice=dice,
    )


def image_to_text_logits(
    features: Float[Tensor, " B F"],
    prototypes: Float[Tensor, " N F"],
    *,
    normalised: bool,
    temperature: float,
) -> Float[Tensor, " B N"]:
    """Inner products of image features (before the BN neck) and text prototypes."""
    if normalised:
        features, prototypes = normalize(features), normalize(prototypes)
    return features @ prototypes.T / temperature


def mask_cross_entropy(
    logits: Float[Tensor, " blocks B R L"], part_masks: Bool[Tensor, " B R L"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of all blocks' mask logits, averaged over all elements."""
    return binary_cross_entropy_with_logits(logits, part_masks.to(logits).expand_as(logits))


def mask_squared_error(
    probabilities: Float[Tensor, " blocks B R L"], part_masks: Bool[Tensor, " B R L"]
) -> Float[Tensor, ""]:
    """Squared error of all blocks' mask probabilities, averaged over all elements."""
    return (probabilities - part_masks.to(probabilities)).square().mean()


def dice_loss(
    probabilities: Float[Tensor, " blocks B R L"], part_masks: Bool[Tensor, " B R L"]
) -> Float[Tensor, ""]:
    """1 minus the Dice coefficient over the patches, without squares in the denominator.

    The mean over blocks, images and parts.
    """
    masks = part_masks.to(probabilities)
    overlap = 2 * (probabilities * masks).sum(dim=-1) + DICE_SMOOTHING
    sizes = probabilities.sum(dim=-1) + masks.sum(dim=-1) + DICE_SMOOTHING
    return (1 - overlap / sizes).mean()
