"""OWLv2 (Minderer et al., NeurIPS 2023): a detector that takes a list of phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import Owlv2ForObjectDetection, Owlv2Processor

from muva.grounding.expert import Grounding, GroundingImage
from muva.grounding.experts.grounding_dino import detection
from muva.grounding.experts.pretrained import Weights, load_pretrained

THRESHOLD = 0.1
"""The authors' default; below this score, a phrase counts as not found."""


class Owlv2Expert:
    """Processes all phrases at once; each box has a score for every phrase."""

    def __init__(self, weights: Weights, *, precision: str) -> None:
        self._model, self._processor = load_pretrained(
            Owlv2ForObjectDetection, Owlv2Processor, weights, precision=precision
        )

    @torch.inference_mode()
    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. Of several boxes, the one with the highest score for the phrase is used."""
        inputs = self._processor(
            text=[list(phrases.values())] * len(images),
            images=[image.image for image in images],
            return_tensors="pt",
        ).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        outputs = self._model(**inputs)
        scores = torch.sigmoid(outputs.logits.float())
        boxes = outputs.pred_boxes.float()
        return [
            [
                _answer(boxes[index], scores[index, :, phrase], image.image.size)
                for phrase in range(len(phrases))
            ]
            for index, image in enumerate(images)
        ]


def _answer(boxes: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]) -> Grounding:
    """boxes (queries, 4): centre, width and height as fractions of the padded square."""
    kept = scores >= THRESHOLD
    corners = [unpadded(box, size) for box in boxes[kept].tolist()]
    return detection(corners, scores[kept].tolist())


def unpadded(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Convert centre, width and height (fractions of the padded square) to corners (of the image).

    The square is as large as the longer side of the image, which lies in its upper left corner.
    """
    across, down = (max(size) / side for side in size)
    x, y, width, height = box
    return (
        (x - width / 2) * across,
        (y - height / 2) * down,
        (x + width / 2) * across,
        (y + height / 2) * down,
    )
