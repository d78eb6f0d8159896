"""Florence-2 (Xiao et al., CVPR 2024): answers a phrase with words and locations in 1,000 bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from muva.errors import MuvaError
from muva.grounding.answers import largest_box
from muva.grounding.expert import Grounding, GroundingImage
from muva.grounding.experts.pretrained import Weights, load_pretrained

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
BOX_RESOLUTION = 10_000
"""The processor rounds boxes down to whole pixels of the image size that it is given. With this
size, the centre of every bin is exact, whatever the size of the crop."""
MAX_NEW_TOKENS = 64


class Florence2Expert:
    """Processes every phrase for every image; each image is encoded only once."""

    def __init__(self, weights: Weights, *, precision: str) -> None:
        self._model, self._processor = load_pretrained(
            Florence2ForConditionalGeneration, Florence2Processor, weights, precision=precision
        )
        self._prompts = lru_cache(maxsize=4)(self._tokenised)

    @torch.inference_mode()
    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. If a phrase is found several times, the largest box is used."""
        prompts = tuple(phrases.values())
        ids, attention = (part.repeat(len(images), 1) for part in self._prompts(prompts))
        pixels = self._processor.image_processor(
            [image.image for image in images], return_tensors="pt"
        )["pixel_values"].to(self._model.device, self._model.dtype)
        image_features = self._model.get_image_features(pixels).pooler_output
        answers = self._model.generate(
            input_ids=ids,
            attention_mask=attention,
            mm_encoder_outputs={
                "image": BaseModelOutputWithPooling(
                    pooler_output=image_features.repeat_interleave(len(prompts), dim=0)
                )
            },
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=1,
            do_sample=False,
        )
        texts = self._processor.batch_decode(answers, skip_special_tokens=False)
        groundings = [self._grounding(text) for text in texts]
        return [
            groundings[start : start + len(prompts)]
            for start in range(0, len(groundings), len(prompts))
        ]

    def _tokenised(self, phrases: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask (R, tokens) of the prompts, with image placeholders."""
        tokenizer = self._processor.tokenizer
        for phrase in phrases:
            ids = tokenizer(phrase, add_special_tokens=False).input_ids
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                raise MuvaError(
                    f"phrase {phrase!r}: the small vocabulary of this expert lacks some of its "
                    "words. Choose a full-size expert for arbitrary phrases"
                )
        size = self._processor.image_processor.size
        blank = torch.zeros(3, size["height"], size["width"], dtype=torch.uint8)
        inputs = self._processor(
            text=[TASK + phrase for phrase in phrases],
            images=[blank] * len(phrases),
            padding=True,
            return_tensors="pt",
        )
        return inputs["input_ids"].to(self._model.device), inputs["attention_mask"].to(
            self._model.device
        )

    def _grounding(self, text: str) -> Grounding:
        parsed = self._processor.post_process_generation(
            text, task=TASK, image_size=(BOX_RESOLUTION, BOX_RESOLUTION)
        )
        boxes, labels = parsed[TASK]["bboxes"], parsed[TASK]["labels"]
        # The noun of the phrase comes first; "of the person" may be grounded after it.
        first_phrase_boxes = [
            box for box, label in zip(boxes, labels, strict=True) if label == labels[0]
        ]
        box = largest_box([corner / BOX_RESOLUTION for corner in box] for box in first_phrase_boxes)
        return Grounding(box=box, answer=text.replace("<pad>", ""))
