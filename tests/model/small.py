"""A small CLIP and model for tests: made in milliseconds, with OpenAI's layout and two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip

from muva.config import ModelConfig, PromptConfig
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.store import open_store
from muva.model.clip import build_clip, new_clip, openai_weights, token_ids_in
from muva.model.muva_model import MuvaModel, build_model
from muva.model.prompts import prompt_texts
from muva.models import store_bundle

IMAGE_SIZE = (48, 24)
PATCH = 8


def small_clip(seed: int = 0, **changed: Any) -> open_clip.CLIP:
    texts = prompt_texts(("head", "upper_body", "legs"), PromptConfig())
    settings: dict[str, Any] = {
        "token_ids": token_ids_in([*texts, "a photo of a person taken at night, x"]),
        "seed": seed,
        "image_size": IMAGE_SIZE,
        "patch": PATCH,
        "vision_width": 64,
        "vision_layers": 2,
        "text_width": 64,
        "text_layers": 2,
        "embed_dim": 32,
        "context_length": 32,
    }
    return new_clip(**{**settings, **changed})


def small_config(**changed: Any) -> ModelConfig:
    height, width = IMAGE_SIZE
    settings: dict[str, Any] = {
        "clip": "small",
        "image_height": height,
        "image_width": width,
        "stride": PATCH,
    }
    return ModelConfig(**{**settings, **changed})


def small_model(
    *, identities: int = 4, seed: int = 0, vision_layers: int = 2, **changed: Any
) -> MuvaModel:
    config = small_config(**changed)
    clip = build_clip(
        openai_weights(small_clip(vision_layers=vision_layers)),
        image_size=(config.image_height, config.image_width),
        stride=config.stride,
        pretrained_grid=(IMAGE_SIZE[0] // PATCH, IMAGE_SIZE[1] // PATCH),
    )
    return build_model(
        clip,
        model=config,
        prompts=PromptConfig(),
        identities=identities,
        seed=seed,
    )


def stored_model(
    home: Path, fullname: str, *, metadata: dict[str, Any] | None = None, **changed: Any
) -> Artifact:
    """A small model in the store of `home`, under a name and a fingerprint joined by a hyphen."""
    artifact = Artifact(open_store(home / "store"), "models", *fullname.rsplit("-", 1))
    store_bundle(artifact, small_model(**changed), metadata=metadata or {})
    artifact.commit(format_version=formats.BUNDLE, config={}, inputs={}, summary={})
    return artifact
