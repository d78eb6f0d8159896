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
from transformers.tokenization_utils_base import BatchEncoding

from muva.grounding.answers import boxes_in_text, largest_box
from muva.grounding.expert import QUESTION, Grounding, GroundingImage
from muva.grounding.experts.pretrained import Weights, load_pretrained

MAX_NEW_TOKENS = 128
ANSWER_FORMAT = (
    '. Answer in JSON: [{"bbox_2d": [x0, y0, x1, y1], "label": "..."}], or [] if there is none.'
)
THOUSANDTHS = (1000.0, 1000.0)


class _QwenExpert(ABC):
    """The common part of both generations. Each image is encoded only once."""

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
        pictures = self._processor.image_processor(
            [image.image for image in images], return_tensors="pt"
        ).to(self._model.device)
        grids = pictures["image_grid_thw"]
        features = self._model.model.get_image_features(
            pictures["pixel_values"].to(self._model.dtype), grids
        )
        prompts = self._prompts(pictures, list(phrases.values())).to(self._model.device)
        answers = self._model.generate(
            **prompts,
            image_grid_thw=grids.repeat_interleave(len(phrases), dim=0),
            mm_encoder_outputs={"image": _repeated(features, len(phrases))},
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        prompt_length = prompts["input_ids"].shape[1]
        texts = self._processor.batch_decode(answers[:, prompt_length:], skip_special_tokens=True)
        groundings = [
            grounding(text, self._coordinate_range(grids[index // len(phrases)].tolist()))
            for index, text in enumerate(texts)
        ]
        return [groundings[i : i + len(phrases)] for i in range(0, len(groundings), len(phrases))]

    def _prompts(self, pictures: Mapping[str, Any], phrases: Sequence[str]) -> BatchEncoding:
        """Token ids, attention mask and kinds of tokens: for each image, a prompt per phrase."""
        questions = [self._question(phrase) for phrase in phrases]
        token = self._processor.image_token
        placeholders = [
            self._processor.replace_image_token(pictures, index)
            for index in range(len(pictures["image_grid_thw"]))
        ]
        prompts = self._processor.tokenizer(
            [
                question.replace(token, of_image)
                for of_image in placeholders
                for question in questions
            ],
            padding=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        image_tokens = prompts["input_ids"] == self._processor.image_token_id
        prompts["mm_token_type_ids"] = image_tokens.long()
        return prompts

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


def _repeated(features: Any, times: int) -> Any:
    """The outputs of the vision tower with each image's features several times in succession."""
    features.pooler_output = [one for one in features.pooler_output for _ in range(times)]
    if "deepstack_features" in features:  # Qwen3-VL: those of several layers
        features.deepstack_features = [
            [one for one in of_layer for _ in range(times)]
            for of_layer in features.deepstack_features
        ]
    return features


def grounding(text: str, coordinate_range: tuple[float, float]) -> Grounding:
    """Parse an answer whose coordinates range up to `coordinate_range` (width, height)."""
    width, height = coordinate_range
    boxes = [
        (x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in boxes_in_text(text)
    ]
    return Grounding(box=largest_box(boxes), answer=text)
