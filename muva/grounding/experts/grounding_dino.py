"""Grounding DINO (Liu et al., ECCV 2024): an open-set detector that takes phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

from muva.grounding.answers import best_box
from muva.grounding.expert import Grounding, GroundingImage, ground_each_phrase
from muva.grounding.experts.pretrained import Weights, load_pretrained

THRESHOLD = 0.25
"""The authors' default; below this score, a phrase counts as not found."""


class GroundingDinoExpert:
    """Processes one phrase at a time.

    With several phrases, it would be unclear which one a box answers.
    """

    def __init__(self, weights: Weights, *, precision: str) -> None:
        self._model, self._processor = load_pretrained(
            GroundingDinoForObjectDetection, GroundingDinoProcessor, weights, precision=precision
        )

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. If there are several boxes, the one with the highest score is used."""
        return ground_each_phrase(lambda phrase: self._answers(images, phrase), phrases)

    @torch.inference_mode()
    def _answers(self, images: Sequence[GroundingImage], phrase: str) -> list[Grounding]:
        inputs = self._processor(
            images=[image.image for image in images],
            text=[f"{phrase.lower().rstrip('.')}."] * len(images),
            return_tensors="pt",
        ).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        outputs = self._model(**inputs)
        detections = self._processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=THRESHOLD, target_sizes=[(1, 1)] * len(images)
        )
        return [
            detection(detected["boxes"].tolist(), detected["scores"].tolist())
            for detected in detections
        ]


def detection(boxes: Sequence[Sequence[float]], scores: Sequence[float]) -> Grounding:
    """A detector's boxes (as fractions) and scores for one phrase, converted to an answer."""
    best = best_box(boxes, scores)
    top_boxes = "; ".join(
        f"{score:.3f} [{', '.join(f'{value:.4f}' for value in box)}]"
        for box, score in sorted(
            zip(boxes, scores, strict=True), key=lambda detections: -detections[1]
        )[:3]
    )
    if best is None:
        return Grounding(box=None, answer=top_boxes)
    return Grounding(box=best[0], score=best[1], answer=top_boxes)
