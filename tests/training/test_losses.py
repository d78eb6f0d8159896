from __future__ import annotations

import pytest
import torch

from muva.config import Stage2Config
from muva.model.muva_model import TrainingOutputs
from muva.training.losses import dice_loss, image_to_text_logits, mask_squared_error, stage2_losses

LABELS = torch.tensor([0, 2])
MASKS = torch.tensor([[[True, True, False, False]], [[False, False, False, False]]])


def outputs(parts: bool = True) -> TrainingOutputs:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 1, 4, generator=generator) if parts else None
    return TrainingOutputs(
        feature=torch.randn(2, 8, generator=generator),
        necked=torch.randn(2, 8, generator=generator),
        logits=torch.randn(2, 5, generator=generator),
        mask_logits=logits,
        mask_probabilities=None if logits is None else logits.sigmoid(),
    )


def losses_of(parts: bool = True, masks: torch.Tensor | None = MASKS, **changed: object):
    return stage2_losses(
        outputs(parts),
        labels=LABELS,
        part_masks=masks,
        prototypes=torch.ones(5, 8),
        memory_logits=torch.ones(2, 5),
        settings=Stage2Config.model_validate(changed),
    )


def test_dice_of_a_perfect_mask_is_nothing_and_of_its_opposite_nearly_one() -> None:
    perfect = MASKS.float().expand(3, -1, -1, -1)
    assert dice_loss(perfect, MASKS) == 0
    # An empty mask that is predicted empty costs nothing; both opposites cost 1 - 1e-3 / 4.001.
    assert dice_loss(1 - perfect, MASKS).item() == pytest.approx(1 - 1e-3 / 4.001)


def test_the_squared_error_replaces_cross_entropy_and_dice() -> None:
    losses = losses_of(mask_loss="mse")
    assert losses.dice is None
    assert set(losses.terms()) == {"identity", "image_to_text", "memory", "mask"}
    probabilities = outputs().mask_probabilities
    assert probabilities is not None
    expected = torch.stack([(p - MASKS.float()) ** 2 for p in probabilities]).mean()
    torch.testing.assert_close(mask_squared_error(probabilities, MASKS), expected)
    torch.testing.assert_close(losses.total, sum(losses.terms().values(), torch.zeros(())))


def test_a_model_without_parts_has_no_mask_terms() -> None:
    assert set(losses_of(parts=False, masks=None).terms()) == {
        "identity",
        "image_to_text",
        "memory",
    }


def test_parts_without_masks_are_an_error() -> None:
    with pytest.raises(ValueError, match="needs part masks to train"):
        losses_of(masks=None)


def test_the_temperature_divides_the_text_logits_normalised_or_not() -> None:
    features, prototypes = torch.randn(2, 8), torch.randn(5, 8)
    plain = image_to_text_logits(features, prototypes, normalised=False, temperature=2.0)
    torch.testing.assert_close(plain, features @ prototypes.T / 2)
    cosines = image_to_text_logits(features, prototypes, normalised=True, temperature=0.5)
    expected = torch.cosine_similarity(features[:, None], prototypes[None], dim=2) / 0.5
    torch.testing.assert_close(cosines, expected)


def test_weights_scale_only_the_mask_terms() -> None:
    plain, weighted = losses_of(), losses_of(mask_weight=0.5, dice_weight=3.0)
    assert plain.mask is not None and plain.dice is not None
    expected = {**plain.terms(), "mask": 0.5 * plain.mask, "dice": 3.0 * plain.dice}
    torch.testing.assert_close(weighted.terms(), expected)
    torch.testing.assert_close(weighted.total, sum(expected.values(), torch.zeros(())))
    squared, halved = (losses_of(mask_loss="mse", mask_weight=weight) for weight in (1.0, 0.5))
    assert squared.mask is not None
    torch.testing.assert_close(halved.mask, 0.5 * squared.mask)
