"""Kosmos-2 (Peng et al. 2023): continues a phrase with two cells of a 32 x 32 grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Kosmos2ForConditionalGeneration, Kosmos2Processor

from muva.data.records import Box
from muva.grounding.answers import largest_box
from muva.grounding.expert import Grounding, GroundingImage, ground_each_phrase
from muva.grounding.experts.pretrained import Weights, load_pretrained

CELLS = 32
MAX_NEW_TOKENS = 16
_BOX = re.compile(r"<patch_index_(\d{4})><patch_index_(\d{4})>")


class Kosmos2Expert:
    """Processes one phrase for all images at a time, so that all prompts have the same length.

    Each image is encoded only once.
    """

    def __init__(self, weights: Weights, *, precision: str) -> None:
        self._model, self._processor = load_pretrained(
            Kosmos2ForConditionalGeneration, Kosmos2Processor, weights, precision=precision
        )

    @torch.inference_mode()
    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`."""
        pictures = [image.image for image in images]
        pixels = self._processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        features = self._features(pixels.to(self._model.device, self._model.dtype))
        return ground_each_phrase(
            lambda phrase: self._answers(pictures[0], features, phrase), phrases
        )

    def _features(self, pixels: Tensor) -> Tensor:
        """The `image_embeds` (B, latent queries, D) that `generate` would compute of the pixels."""
        tower = self._model.vision_model
        encoded = tower.model.post_layernorm(tower(pixels).last_hidden_state)
        return self._model.image_to_text_projection(normalize(encoded, dim=-1))[0]

    def _answers(self, picture: Image, features: Tensor, phrase: str) -> list[Grounding]:
        """One answer per image. features (B, latent queries, D); any picture will do.

        The processor makes the prompt's image tokens only if it is given a picture.
        """
        prompt = self._processor(
            text=f"<grounding><phrase> {phrase}</phrase>", images=picture, return_tensors="pt"
        ).to(self._model.device)
        ids, attention, positions = (
            prompt[name].repeat(len(features), 1)
            for name in ("input_ids", "attention_mask", "image_embeds_position_mask")
        )
        answers = self._model.generate(
            input_ids=ids,
            attention_mask=attention,
            image_embeds=features,
            image_embeds_position_mask=positions,
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=1,
            do_sample=False,
        )
        texts = self._processor.batch_decode(answers[:, ids.shape[1] :], skip_special_tokens=False)
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
