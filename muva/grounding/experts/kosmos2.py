"""Kosmos-2 (Peng et al. 2023): continues a phrase with two cells of a 32 x 32 grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from transformers import Kosmos2ForConditionalGeneration, Kosmos2Processor

from muva.data.records import Box
from muva.grounding.answers import largest_box
from muva.grounding.expert import Grounding, GroundingImage, ground_each_phrase
from muva.grounding.experts.pretrained import Weights, load_pretrained

CELLS = 32
MAX_NEW_TOKENS = 16
_BOX = re.compile(r"<patch_index_(\d{4})><patch_index_(\d{4})>")


class Kosmos2Expert:
    """Processes one phrase for all images at a time, so that all prompts have the same length."""

    def __init__(self, weights: Weights, *, precision: str) -> None:
        self._model, self._processor = load_pretrained(
            Kosmos2ForConditionalGeneration, Kosmos2Processor, weights, precision=precision
        )

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`."""
        return ground_each_phrase(lambda phrase: self._answers(images, phrase), phrases)

    @torch.inference_mode()
    def _answers(self, images: Sequence[GroundingImage], phrase: str) -> list[Grounding]:
        inputs = self._processor(
            text=[f"<grounding><phrase> {phrase}</phrase>"] * len(images),
            images=[image.image for image in images],
            return_tensors="pt",
        ).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        prompt_length = inputs["input_ids"].shape[1]
        answers = self._model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, num_beams=1, do_sample=False
        )
        texts = self._processor.batch_decode(answers[:, prompt_length:], skip_special_tokens=False)
        return [grounding(text) for text in texts]


def grounding(text: str) -> Grounding:
    """The box in the continuation of a phrase, up to the first `</object>`."""
    own = text.split("</object>")[0]
    pairs = ((int(first), int(last)) for first, last in _BOX.findall(own))
    return Grounding(box=largest_box(cells_box(*pair) for pair in pairs), answer=text)


def cells_box(first: int, last: int) -> Box:
    """The box from the cell of its upper left corner to the cell of its lower right corner.

    A corner can be anywhere in its cell, so the centre of the cell is used. If both corners are in
    the same column (or row), the box is as wide (or high) as the cell.
    """
    (top, left), (bottom, right) = divmod(first, CELLS), divmod(last, CELLS)
    x0, x1 = _side(left, right)
    y0, y1 = _side(top, bottom)
    return x0, y0, x1, y1


def _side(first: int, last: int) -> tuple[float, float]:
    if first == last:
        return first / CELLS, (first + 1) / CELLS
    return (first + 0.5) / CELLS, (last + 0.5) / CELLS
