"""A random CLIP with two layers per tower and the words of the prompts, for fault injection."""

from __future__ import annotations

from pathlib import Path

from muva.config import ExperimentConfig
from muva.model.clip import new_clip, save_clip, token_ids_in
from muva.model.prompts import prompt_texts


def write_small_clip(folder: Path) -> None:
    """Write it to a folder that `model.clip` can name: patches of 8 pixels on 64 x 32."""
    texts = prompt_texts(("head", "upper_body", "legs"), ExperimentConfig().prompts)
    clip = new_clip(
        token_ids=token_ids_in(texts),
        seed=0,
        image_size=(64, 32),
        vision_width=64,
        vision_layers=2,
        text_layers=2,
        embed_dim=32,
    )
    save_clip(clip, folder, name="small")
