"""Plain CLIP, fine-tuned or not, in OpenAI's, open_clip's or Hugging Face's layout.

Hugging Face's `CLIPModel` stores query, key and value separately and its projections transposed. It
comes with a `config.json`, which records heads, activation and image size; a weights file in
OpenAI's layout records none of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muva.errors import MuvaError
from muva.model.checks import patch_grid
from muva.model.foreign.form import Form, Weights

_SIZE = "a size, not a weight"
_HUGGING_FACE = "vision_model."
_TOWERS = {"vision_model.": "visual.", "text_model.": ""}

_IN_TOWER = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "pre_layrnorm.": "ln_pre.",  # the spelling in transformers
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
}
_IN_LAYER = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_PROJECTIONS = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}

WEIGHT_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin",
                "open_clip_pytorch_model.bin")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SidecarConfig:
    """What the configuration files next to a checkpoint record; None where they record nothing."""

    quick_gelu: bool | None = None
    vision_heads: int | None = None
    text_heads: int | None = None
    grid: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def from_hugging_face(weights: Weights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Entries in OpenAI's layout, and the original name of each; other layouts stay unchanged."""
    if not any(name.startswith(_HUGGING_FACE) for name in weights):
        return dict(weights), {name: name for name in weights}
    named: dict[str, Tensor] = {}
    was: dict[str, str] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        place = _openai_name(name)
        which = re.fullmatch(r"(.+\.attn\.)([qkv])_proj\.(weight|bias)", place)
        if which is not None:
            joined = f"{which[1]}in_proj_{which[3]}"
            apart.setdefault(joined, {})[which[2]] = value
            was[joined] = name
            continue
        named[place] = value.T.contiguous() if name in _PROJECTIONS else value
        was[place] = name
    for joined, parts in apart.items():
        if len(parts) == 3:
            named[joined] = torch.cat([parts[which] for which in "qkv"])
    return named, was


def _openai_name(name: str) -> str:
    if name in _PROJECTIONS:
        return _PROJECTIONS[name]
    for theirs, tower in _TOWERS.items():
        if name.startswith(theirs):
            return tower + _within_tower(name.removeprefix(theirs))
    return name


def _within_tower(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _replaced(name, _IN_TOWER)
    number, rest = layer.groups()
    rest = _replaced(rest, _IN_LAYER)
    return f"transformer.resblocks.{number}.{rest.replace('self_attn.', 'attn.')}"


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def weights_file(path: Path) -> Path:
    """The weights file: the path itself, or the file in a folder.

    Raises:
        MuvaError: the folder has no weights, or has them in several files.
    """
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    index = next(path.glob("*.index.json"), None)
    if index is not None:
        raise MuvaError(
            f"{path}: its weights are in several files ({index.name}); expected a single one. With "
            "transformers: model.save_pretrained(FOLDER, max_shard_size='100GB')"
        )
    raise MuvaError(f"{path}: expected one of {', '.join(WEIGHT_FILES)} in the folder, found none")


def read_sidecar_config(file: Path) -> SidecarConfig:
    """What the configuration files next to a checkpoint record about its CLIP.

    These are Hugging Face's `config.json` with `preprocessor_config.json`, the `config.json` that
    `save_clip` writes, or open_clip's `open_clip_config.json`. Other files are ignored.

    Raises:
        MuvaError: one of these files is damaged.
    """
    config, images = _json(file.with_name("config.json")), {}
    if str(config.get("model_type", "")).startswith("clip"):
        images = _json(file.with_name("preprocessor_config.json"))
    open_clip = _json(file.with_name("open_clip_config.json"))
    try:
        if "quick_gelu" in config and "patch" in config:
            size = (config["image_height"], config["image_width"])
            return SidecarConfig(
                quick_gelu=config["quick_gelu"],
                grid=patch_grid(size, patch=config["patch"], stride=config["patch"]),
                mean=tuple(config["mean"]),
                std=tuple(config["std"]),
            )
        if not str(config.get("model_type", "")).startswith("clip"):
            return _open_clip_sidecar(open_clip) if open_clip else SidecarConfig()
        vision = config.get("vision_config", config)
        activation = vision.get("hidden_act", "quick_gelu")
        if activation not in ("quick_gelu", "gelu"):
            raise MuvaError(
                f"{file.parent}: its config.json names the activation {activation}: expected "
                "quick_gelu or gelu, the activations of CLIP"
            )
        size = vision.get("image_size", 224)
        text = config.get("text_config", {})
        return SidecarConfig(
            quick_gelu=activation == "quick_gelu",
            vision_heads=vision.get("num_attention_heads", 12),
            text_heads=text.get("num_attention_heads", 8) if text else None,
            grid=patch_grid(
                (size, size),
                patch=vision.get("patch_size", 32),
                stride=vision.get("patch_size", 32),
            ),
            mean=tuple(images["image_mean"]) if "image_mean" in images else None,
            std=tuple(images["image_std"]) if "image_std" in images else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise MuvaError(
            f"{file.parent}: the configuration file next to {file.name} is damaged ({error!r}); "
            "fix it, or move it away and set --activation, --grid and model.mean"
        ) from error


def _open_clip_sidecar(config: Mapping[str, Any]) -> SidecarConfig:
    model, images = config["model_cfg"], config.get("preprocess_cfg", {})
    vision = model["vision_cfg"]
    return SidecarConfig(
        quick_gelu=model.get("quick_gelu", False),
        vision_heads=vision["width"] // vision.get("head_width", 64),
        text_heads=model["text_cfg"].get("heads", 8),
        mean=tuple(images["mean"]) if "mean" in images else None,
        std=tuple(images["std"]) if "std" in images else None,
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise MuvaError(
            f"{file}: expected JSON ({error}); move the file away if it is not needed"
        ) from error
    return content if isinstance(content, dict) else {}


PLAIN_CLIP = Form(
    name="clip",
    title="CLIP in OpenAI's, open_clip's or Hugging Face's layout",
    names={
        "visual.": "visual.",
        "transformer.": "transformer.",
        "token_embedding.weight": "token_embedding.weight",
        "token_ids_used": "token_ids_used",
        "token_embedding_rows": "token_embedding_rows",
        "positional_embedding": "positional_embedding",
        "ln_final.": "ln_final.",
        "text_projection": "text_projection",
    },
    signature="visual.",
    needs=(),
    left_out={
        "logit_scale": "used only in CLIP's own loss",
        "input_resolution": _SIZE,
        "context_length": _SIZE,
        "vocab_size": _SIZE,
        "attn_mask": "rebuilt on loading: the text transformer is causal",
        "visual.embeddings.position_ids": "indices, not weights",
        "embeddings.position_ids": "indices, not weights",
    },
    fixed_grid=False,
    prepare=from_hugging_face,
)
