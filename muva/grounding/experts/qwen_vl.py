"""Qwen2.5-VL and Qwen3-VL (Bai et al. 2025): chat models that answer with boxes in JSON.

Qwen2.5-VL answers in pixels of the resized image, Qwen3-VL in thousandths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from muva.grounding.answers import boxes_in_text, largest_box
from muva.grounding.expert import QUESTION, Grounding, GroundingImage
from muva.grounding.experts.pretrained import Weights, load_pretrained

MAX_NEW_TOKENS = 128
ANSWER_FORMAT = (
    '. Answer in JSON: [{"bbox_2d": [x0, y0, x1, y1], "label": "..."}], or [] if there is none.'
)
THOUSANDTHS = (1000.0, 1000.0)


class _QwenExpert(ABC):
    """The common part of both generations."""

    model_class: Any
    processor_class: Any

    def __init__(self, weights: Weights, *, precision: str) -> None:
        self._model, self._processor = load_pretrained(
            self.model_class, self.processor_class, weights, precision=precision
        )
        self._processor.tokenizer.padding_side = "left"

    @torch.inference_mode()
    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. Asks the paper's question; of several boxes, the largest is used."""
        questions = [self._question(phrase) for phrase in phrases.values()]
        inputs = self._processor(
            text=questions * len(images),
            images=[image.image for image in images for _ in phrases],
            padding=True,
            return_tensors="pt",
        ).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        prompt_length = inputs["input_ids"].shape[1]
        answers = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = self._processor.batch_decode(answers[:, prompt_length:], skip_special_tokens=True)
        grids = inputs["image_grid_thw"].tolist()
        groundings = [
            grounding(text, self._coordinate_range(grid))
            for text, grid in zip(texts, grids, strict=True)
        ]
        return [groundings[i : i + len(phrases)] for i in range(0, len(groundings), len(phrases))]

    def _question(self, phrase: str) -> str:
        content = [
            {"type": "image"},
            {"type": "text", "text": QUESTION.format(phrase=phrase) + ANSWER_FORMAT},
        ]
        return self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    @abstractmethod
    def _coordinate_range(self, grid: Sequence[int]) -> tuple[float, float]:
        """Width and height of the image in the units of an answer.

        `grid` is (frames, rows, columns) of the patches of the resized image.
        """


class Qwen25VLExpert(_QwenExpert):
    """Answers in pixels of the resized image."""

    model_class = Qwen2_5_VLForConditionalGeneration
    processor_class = Qwen2_5_VLProcessor

    def _coordinate_range(self, grid: Sequence[int]) -> tuple[float, float]:
        patch = self._processor.image_processor.patch_size
        return float(grid[2] * patch), float(grid[1] * patch)


class Qwen3VLExpert(_QwenExpert):
    """Answers in thousandths of the image."""

    model_class = Qwen3VLForConditionalGeneration
    processor_class = Qwen3VLProcessor

    def _coordinate_range(self, grid: Sequence[int]) -> tuple[float, float]:
        return THOUSANDTHS


def grounding(text: str, coordinate_range: tuple[float, float]) -> Grounding:
    """Parse an answer whose coordinates range up to `coordinate_range` (width, height)."""
    width, height = coordinate_range
    boxes = [
        (x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in boxes_in_text(text)
    ]
    return Grounding(box=largest_box(boxes), answer=text)
