"""Checkpoints in the forms of other programs, written from small random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from muva.model.clip import save_clip
from muva.model.muva_model import MuvaModel
from tests.model.small import small_clip, small_model

TEXT = ("transformer.", "positional_embedding", "ln_final.", "text_projection")


def trained_model(**changed: object) -> MuvaModel:
    """A model whose every parameter and statistic is its own, as after a training."""
    settings: dict[str, Any] = {"identities": 5, "seed": 3, **changed}
    model = small_model(**settings).eval()
    model.bn_neck.get_buffer("num_batches_tracked").fill_(100)
    generator = torch.Generator().manual_seed(11)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        ours = name.startswith(("image_encoder.", "bn_neck.", "classifier.", "contexts"))
        if ours and value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.data.add_(0.2 * (noise.abs() if name.endswith("running_var") else noise))
    return model


def clip_folder(folder: Path) -> Path:
    """The CLIP that the small models stand on, where `--clip` finds it."""
    save_clip(small_clip(), folder, name="small", dtype=torch.float32)
    return folder


def visual_of(model: MuvaModel) -> dict[str, Tensor]:
    """The image encoder in OpenAI's names."""
    return {
        name: value.clone()
        for name, value in model.image_encoder.state_dict().items()
        if name != "part_tokens" and not name.startswith("mask_predictor.")
    }


def release_state(model: MuvaModel) -> dict[str, Tensor]:
    """As the authors' release saves a model."""
    encoder = model.image_encoder
    assert encoder.mask_predictor is not None
    tokens = encoder.part_tokens
    if tokens is None:
        tokens = torch.zeros(len(model.config.parts), len(encoder.class_embedding))
    return {
        **{f"image_encoder.{name}": value for name, value in visual_of(model).items()},
        "prompt_learner.learnable_ctx": model.contexts.detach().clone(),
        **_text(model),
        "local_token": tokens.detach().clone(),
        **_under("residual_mask_predictor", encoder.mask_predictor),
        "fc.weight": model.classifier.weight.detach().clone(),
        **_under("bnneck", model.bn_neck),
    }


def clip_reid_state(model: MuvaModel, *, seed: int = 0) -> dict[str, Tensor]:
    """As CLIP-ReID saves its ViT with camera embeddings, the model's neck being the second one."""
    generator = torch.Generator().manual_seed(seed)
    width = len(model.image_encoder.class_embedding)
    text_width = model.text_encoder.width
    neck = nn.BatchNorm1d(width)
    assert neck.running_mean is not None
    neck.running_mean.copy_(torch.randn(width, generator=generator))
    return {
        "cv_embed": torch.randn(6, width, generator=generator),
        "classifier.weight": torch.randn(model.identities, width, generator=generator),
        "classifier_proj.weight": model.classifier.weight.detach().clone(),
        **_under("bottleneck", neck),
        **_under("bottleneck_proj", model.bn_neck),
        **{f"image_encoder.{name}": value for name, value in visual_of(model).items()},
        "prompt_learner.cls_ctx": model.contexts.detach()[:, 0].clone(),
        "prompt_learner.token_prefix": torch.randn(1, 5, text_width, generator=generator),
        "prompt_learner.token_suffix": torch.randn(1, 23, text_width, generator=generator),
        **_text(model),
    }


def clip_reid_features(state: dict[str, Tensor], images: Tensor, stride: int) -> Tensor:
    """CLIP-ReID's test feature behind its necks, without cameras: 64 unprojected and 32 projected.

    Its forward pass step by step, with torch's own attention.
    """
    v = {n.removeprefix("image_encoder."): t for n, t in state.items()}
    width = len(v["class_embedding"])
    patches = torch.nn.functional.conv2d(images, v["conv1.weight"], stride=stride)
    x = patches.flatten(2).permute(0, 2, 1)
    x = torch.cat([v["class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = _norm(x + v["positional_embedding"], v, "ln_pre")
    layers = {name.split(".")[2] for name in v if name.startswith("transformer.resblocks.")}
    for layer in sorted(layers):
        block = f"transformer.resblocks.{layer}"
        attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
        attention.load_state_dict(
            {
                n.removeprefix(f"{block}.attn."): t
                for n, t in v.items()
                if n.startswith(f"{block}.attn.")
            }
        )
        y = _norm(x, v, f"{block}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = _norm(x, v, f"{block}.ln_2") @ v[f"{block}.mlp.c_fc.weight"].T
        y = y + v[f"{block}.mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ v[f"{block}.mlp.c_proj.weight"].T + v[f"{block}.mlp.c_proj.bias"]
    feature = _norm(x, v, "ln_post")[:, 0]
    necked = []
    for neck, value in (("bottleneck", feature), ("bottleneck_proj", feature @ v["proj"])):
        spread = torch.sqrt(v[f"{neck}.running_var"] + 1e-5)
        centred = (value - v[f"{neck}.running_mean"]) / spread
        necked.append(centred * v[f"{neck}.weight"] + v[f"{neck}.bias"])
    return torch.cat(necked, dim=1)


def write(weights: dict[str, Tensor], file: Path, *, how: str = "torch") -> Path:
    """A file of these weights: `torch`, `wrapped` (DataParallel within a dict), `safetensors`."""
    if how == "safetensors":
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
    elif how == "wrapped":
        inner = {f"module.{name}": value for name, value in weights.items()}
        torch.save({"epoch": 60, "name": "run", "state_dict": inner, "optimizer": {}}, file)
    else:
        torch.save(weights, file)
    return file


def _under(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.clone() for name, value in module.state_dict().items()}


def _text(model: MuvaModel) -> dict[str, Tensor]:
    """The text side as both programs keep it: without the token embedding."""
    state = _under("text_encoder", model.text_encoder)
    return {
        name: value
        for name, value in state.items()
        if name.removeprefix("text_encoder.").startswith(TEXT)
    }


def _norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return torch.nn.functional.layer_norm(
        x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"]
    )
