"""Loads CLIP's weights and adapts them to the image size and stride in use.

Every loader ends in `build_clip`, which builds an `open_clip.CLIP` from a state dict in OpenAI's
layout, with position embeddings resized for the input images; the modules are open_clip's own. A
small CLIP stores only the token embeddings that its captions and the prompts use:
`token_ids_used` and `token_embedding_rows` replace `token_embedding.weight`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from muva.config import SHIPPED_CLIPS
from muva.errors import MuvaError, SettingsError
from muva.model.checks import patch_grid
from muva.model.position_embedding import resize_position_embedding
from muva.model.state_dicts import read_state_dict

CLIP_FOLDERS = {name: Path(__file__).parent / name for name in SHIPPED_CLIPS}
"""The folders of the CLIPs shipped with muva: `model.safetensors` and `config.json` in each."""

HUB = "hf-hub:"

HEAD_WIDTH = 64
"""Width of an attention head: OpenAI's layout does not store the number of heads."""

OPENAI_MEAN = open_clip.OPENAI_DATASET_MEAN
OPENAI_STD = open_clip.OPENAI_DATASET_STD

OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Entries that only OpenAI's archives have in addition to the parameters."""
NOT_PARAMETERS = (*OPENAI_SIZES, "attn_mask")
"""Entries of state dicts that are not parameters; older programs also store the causal mask."""

VISION_OPTIONS = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
TEXT_OPTIONS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
"""The options of OpenAI's architecture; any other option means a different architecture."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Everything needed to build a CLIP that the names in its state dict do not say."""

    patch: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp_width: int
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp_width: int
    embed_dim: int
    context_length: int
    vocabulary: int
    reduced_vocabulary: bool
    quick_gelu: bool


class ClipFolder(TypedDict):
    """`config.json` of a folder that `save_clip` wrote."""

    name: str
    patch: int
    image_height: int
    image_width: int
    mean: Sequence[float]
    std: Sequence[float]
    quick_gelu: bool


class UsedTokenEmbedding(nn.Embedding):
    """A token embedding that holds only the rows of the ids in use."""

    token_ids_used: Tensor

    def __init__(self, token_ids: Sequence[int], width: int):
        super().__init__(len(token_ids), width)
        self.register_buffer("token_ids_used", torch.tensor(token_ids, dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """Embed vocabulary ids.

        Raises:
            MuvaError: an id has no row; the message names its word.
        """
        rows = torch.searchsorted(self.token_ids_used, input.contiguous())
        rows = rows.clamp(max=self.num_embeddings - 1)
        absent = input[self.token_ids_used[rows] != input].unique()
        if absent.numel():
            words = ", ".join(repr(open_clip.decode(absent[i : i + 1])) for i in range(len(absent)))
            raise MuvaError(
                f"this CLIP's reduced vocabulary of {self.num_embeddings} tokens lacks {words}: "
                f"use words that it was trained with, or a CLIP with the full vocabulary"
            )
        return super().forward(rows)


def token_ids_in(texts: Iterable[str]) -> list[int]:
    """The token ids in these texts, with padding, start and end: a reduced vocabulary, sorted."""
    ids = open_clip.tokenize(list(texts), context_length=512).unique()
    return torch.unique(torch.cat([ids, torch.tensor([0])])).tolist()


def load_clip(name: str, *, image_size: tuple[int, int], stride: int) -> open_clip.CLIP:
    """Load a CLIP, with its position embeddings resized for images of `image_size` (height, width).

    `name` is one of: `tiny` or `small`, which are shipped; an open_clip name (OpenAI's weights) or
    `NAME:TAG`; `hf-hub:ORG/NAME`; a file of OpenAI's weights (safetensors, torch, TorchScript);
    `NAME:FILE` for weights of others, because a weights file records neither the activation nor the
    number of heads; or a folder that `save_clip` wrote. `normalisation` returns the mean and std
    that the CLIP was trained with.
    """
    path = CLIP_FOLDERS.get(name) or Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, image_size=image_size, stride=stride)
    if path.is_file():
        weights = read_state_dict(path)
        _check_heads(path, clip_shape(_parameters(weights)))
        return build_clip(weights, image_size=image_size, stride=stride)
    if name.startswith(HUB):
        return _load_hub(name, image_size=image_size, stride=stride)
    return _load_open_clip(name, image_size=image_size, stride=stride)


def build_clip(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    stride: int,
    pretrained_grid: tuple[int, int] | None = None,
    shape: ClipShape | None = None,
    mean: Sequence[float] = OPENAI_MEAN,
    std: Sequence[float] = OPENAI_STD,
) -> open_clip.CLIP:
    """A float32 CLIP in eval mode from a state dict in OpenAI's layout.

    Args:
        pretrained_grid: the patch grid of the stored position embedding; None: a square one.
        shape: None: inferred from the weights.
    """
    weights = _parameters(state_dict)
    shape = shape or clip_shape(weights)
    positions = weights["visual.positional_embedding"].float()
    grid = pretrained_grid or _square_grid(positions)
    if grid[0] * grid[1] + 1 != len(positions):
        raise MuvaError(
            f"CLIP's position embedding has {len(positions)} rows, but a patch grid of {grid[0]} x "
            f"{grid[1]} needs {grid[0] * grid[1] + 1}: check that the configuration belongs to "
            f"these weights"
        )
    token_ids = None
    if "token_ids_used" in weights:
        ids = weights.pop("token_ids_used").long()
        order = ids.argsort()
        token_ids = ids[order].tolist()
        weights["token_embedding.weight"] = weights.pop("token_embedding_rows")[order]
        weights["token_embedding.token_ids_used"] = ids[order]
    clip = empty_clip(shape, image_size=image_size, stride=stride, token_ids=token_ids)
    weights["visual.positional_embedding"] = resize_position_embedding(
        positions, from_grid=grid, to_grid=_grid_of(clip)
    )
    if "logit_scale" in weights and weights["logit_scale"].shape == (1,):
        weights["logit_scale"] = weights["logit_scale"][0]  # as some programs store it
    try:
        clip.load_state_dict(weights)
    except RuntimeError as error:
        raise MuvaError(f"these weights are not a CLIP in OpenAI's layout: {error}") from error
    _set_normalisation(clip, mean, std)
    return clip.eval()


def clip_shape(
    weights: Mapping[str, Tensor], *, vision_heads: int | None = None, text_heads: int | None = None
) -> ClipShape:
    """The sizes of a CLIP from a state dict in OpenAI's layout.

    The weights do not record the number of heads: unless given, heads are 64 wide.

    Raises:
        MuvaError: the weights are not a CLIP with a vision transformer in OpenAI's layout.
    """
    token_rows = "token_embedding_rows" if "token_ids_used" in weights else "token_embedding.weight"
    needed = ("visual.proj", "visual.conv1.weight", "visual.positional_embedding", token_rows,
              "positional_embedding", "text_projection")  # fmt: skip
    absent = [key for key in needed if key not in weights]
    if absent:
        raise MuvaError(
            f"these weights are not a CLIP with a vision transformer in OpenAI's layout: "
            f"{', '.join(absent)} missing from the {len(weights)} entries "
            f"({', '.join(sorted(weights)[:3])}…)"
        )
    vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
    context_length, text_width = weights["positional_embedding"].shape
    return ClipShape(
        patch=patch,
        vision_width=vision_width,
        vision_layers=_layers(weights, "visual.transformer.resblocks."),
        vision_heads=vision_heads or _heads("vision", vision_width),
        vision_mlp_width=_mlp_width(weights, "visual.transformer.resblocks."),
        text_width=text_width,
        text_layers=_layers(weights, "transformer.resblocks."),
        text_heads=text_heads or _heads("text", text_width),
        text_mlp_width=_mlp_width(weights, "transformer.resblocks."),
        embed_dim=weights["text_projection"].shape[1],
        context_length=context_length,
        vocabulary=len(weights[token_rows]),
        reduced_vocabulary="token_ids_used" in weights,
        quick_gelu=True,
    )


def _heads(tower: str, width: int) -> int:
    if width % HEAD_WIDTH:
        raise MuvaError(
            f"CLIP's {tower} width is {width}: expected a multiple of {HEAD_WIDTH}, the width of a "
            f"head in OpenAI's layout"
        )
    return width // HEAD_WIDTH


def empty_clip(
    shape: ClipShape,
    *,
    image_size: tuple[int, int],
    stride: int,
    token_ids: Sequence[int] | None = None,
) -> open_clip.CLIP:
    """A CLIP of this shape with random weights, for this image (height, width) and stride.

    With a reduced vocabulary, `token_ids` are the ids in use, ascending.
    """
    if stride > shape.patch:
        raise MuvaError(
            f"stride {stride} skips pixels between patches of {shape.patch}: "
            f"set model.stride to {shape.patch} or less"
        )
    if min(image_size) < shape.patch:
        raise MuvaError(
            f"images of {image_size[0]} x {image_size[1]} are smaller than a patch of "
            f"{shape.patch} x {shape.patch}: increase model.image_height and model.image_width"
        )
    clip = open_clip.CLIP(
        shape.embed_dim,
        vision_cfg=open_clip.CLIPVisionCfg(
            layers=shape.vision_layers,
            width=shape.vision_width,
            head_width=shape.vision_width // shape.vision_heads,
            mlp_ratio=shape.vision_mlp_width / shape.vision_width,
            patch_size=shape.patch,
            image_size=image_size,
        ),
        text_cfg=open_clip.CLIPTextCfg(
            context_length=shape.context_length,
            vocab_size=1 if shape.reduced_vocabulary else shape.vocabulary,
            width=shape.text_width,
            heads=shape.text_heads,
            layers=shape.text_layers,
            mlp_ratio=shape.text_mlp_width / shape.text_width,
        ),
        quick_gelu=shape.quick_gelu,
    )
    if shape.reduced_vocabulary:
        clip.token_embedding = UsedTokenEmbedding(
            range(shape.vocabulary) if token_ids is None else token_ids, shape.text_width
        )
        nn.init.normal_(clip.token_embedding.weight, std=0.02)
        clip.vocab_size = shape.vocabulary
    visual = vision_tower(clip)
    visual.conv1.stride = (stride, stride)
    visual.grid_size = patch_grid(image_size, patch=shape.patch, stride=stride)
    rows, columns = visual.grid_size
    visual.positional_embedding = nn.Parameter(
        torch.randn(1 + rows * columns, shape.vision_width) * shape.vision_width**-0.5
    )
    return clip


def shape_of(clip: open_clip.CLIP) -> ClipShape:
    """The shape of a CLIP in memory."""
    visual = vision_tower(clip)
    vision, text = _first_block(visual.transformer), _first_block(clip.transformer)
    assert isinstance(clip.text_projection, Tensor)
    return ClipShape(
        patch=visual.conv1.kernel_size[0],
        vision_width=visual.transformer.width,
        vision_layers=visual.transformer.layers,
        vision_heads=vision.attn.num_heads,
        vision_mlp_width=len(vision.get_parameter("mlp.c_fc.weight")),
        text_width=clip.transformer.width,
        text_layers=clip.transformer.layers,
        text_heads=text.attn.num_heads,
        text_mlp_width=len(text.get_parameter("mlp.c_fc.weight")),
        embed_dim=clip.text_projection.shape[1],
        context_length=clip.context_length,
        vocabulary=len(clip.get_parameter("token_embedding.weight")),
        reduced_vocabulary=isinstance(clip.token_embedding, UsedTokenEmbedding),
        quick_gelu=isinstance(vision.mlp[1], QuickGELU),
    )


def vision_tower(clip: open_clip.CLIP) -> VisionTransformer:
    """The image encoder of a CLIP with a vision transformer."""
    if not isinstance(clip.visual, VisionTransformer):
        raise MuvaError(f"CLIP's image encoder is a {type(clip.visual).__name__}: expected a ViT")
    return clip.visual


def new_clip(
    *,
    token_ids: Sequence[int],
    seed: int,
    image_size: tuple[int, int] = (128, 64),
    patch: int = 8,
    vision_width: int = 128,
    vision_layers: int = 4,
    text_width: int = 64,
    text_layers: int = 3,
    embed_dim: int = 64,
    context_length: int = 77,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> open_clip.CLIP:
    """A randomly initialised CLIP with a reduced vocabulary: see `token_ids_in`.

    Heads are 64 wide, as in OpenAI's layout. The same seed gives the same weights.
    """
    shape = ClipShape(
        patch=patch,
        vision_width=vision_width,
        vision_layers=vision_layers,
        vision_heads=_heads("vision", vision_width),
        vision_mlp_width=4 * vision_width,
        text_width=text_width,
        text_layers=text_layers,
        text_heads=_heads("text", text_width),
        text_mlp_width=4 * text_width,
        embed_dim=embed_dim,
        context_length=context_length,
        vocabulary=len(token_ids),
        reduced_vocabulary=True,
        quick_gelu=True,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        clip = empty_clip(shape, image_size=image_size, stride=patch, token_ids=sorted(token_ids))
    _set_normalisation(clip, mean, std)
    return clip


def normalisation(clip: open_clip.CLIP) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std per channel that a CLIP was trained with."""
    config = open_clip.get_model_preprocess_cfg(clip)
    return tuple(config["mean"]), tuple(config["std"])


def image_size_of(clip: open_clip.CLIP) -> tuple[int, int]:
    """The (height, width) of the images that a CLIP was built for."""
    height, width = vision_tower(clip).image_size
    return height, width


def openai_weights(clip: open_clip.CLIP) -> dict[str, Tensor]:
    """A CLIP's state dict in OpenAI's layout; a reduced vocabulary has two entries of its own."""
    weights = dict(clip.state_dict())
    if isinstance(clip.token_embedding, UsedTokenEmbedding):
        weights["token_ids_used"] = weights.pop("token_embedding.token_ids_used")
        weights["token_embedding_rows"] = weights.pop("token_embedding.weight")
    return weights


def save_clip(
    clip: open_clip.CLIP, folder: Path, *, name: str, dtype: torch.dtype = torch.float16
) -> None:
    """Write `model.safetensors` (OpenAI's layout) and `config.json`, which `load_clip` reads.

    Weights are rounded to float16 by default, as OpenAI's are.
    """
    height, width = image_size_of(clip)
    config = ClipFolder(
        name=name,
        patch=shape_of(clip).patch,
        image_height=height,
        image_width=width,
        mean=list(normalisation(clip)[0]),
        std=list(normalisation(clip)[1]),
        quick_gelu=shape_of(clip).quick_gelu,
    )
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for key, value in openai_weights(clip).items()
    }
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _load_folder(folder: Path, *, image_size: tuple[int, int], stride: int) -> open_clip.CLIP:
    weights_path, config_path = folder / "model.safetensors", folder / "config.json"
    absent = [path.name for path in (weights_path, config_path) if not path.is_file()]
    if absent:
        raise MuvaError(f"CLIP in {folder}: expected {' and '.join(absent)}, found none")
    try:
        config: ClipFolder = json.loads(config_path.read_text())
        patch, grid_size = config["patch"], (config["image_height"], config["image_width"])
        quick_gelu, mean, std = config["quick_gelu"], config["mean"], config["std"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MuvaError(f"{config_path}: damaged, or not written by muva ({error!r})") from error
    weights = read_state_dict(weights_path)
    shape = ClipShape(**{**asdict(clip_shape(weights)), "quick_gelu": quick_gelu})
    return build_clip(
        weights,
        image_size=image_size,
        stride=stride,
        pretrained_grid=patch_grid(grid_size, patch=patch, stride=patch),
        shape=shape,
        mean=mean,
        std=std,
    )


def open_clip_name(name: str) -> tuple[str, str]:
    """The architecture, and the tag or file of the weights; a model on the Hub has no tag."""
    if name.startswith(HUB):
        return name, ""
    architecture, _, tag = name.partition(":")
    tag = tag or "openai"
    if open_clip.get_model_config(architecture) is None:
        raise SettingsError(
            f"CLIP {name!r} is neither a file, a folder nor a name that open_clip knows: expected "
            "`tiny`, `small`, a path, or a name such as ViT-B-16 (open_clip.list_models() lists "
            "them)"
        )
    _shape_of_config(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags and not Path(tag).expanduser().is_file():
        raise SettingsError(
            f"CLIP {name!r}: open_clip has no weights {tag} for {architecture}: expected one of "
            f"{', '.join(tags) or 'none'} after the colon, or the path of a checkpoint"
        )
    return architecture, tag


def _shape_of_config(architecture: str) -> tuple[ClipShape, tuple[int, int]]:
    """The shape and patch grid in open_clip's configuration of that name.

    Raises:
        SettingsError: the architecture is not OpenAI's. A model with another tokenizer or pooling
            would load and silently give meaningless features.
    """
    config = open_clip.get_model_config(architecture)
    assert config is not None, architecture
    vision, text = config["vision_cfg"], config["text_cfg"]
    foreign = sorted((set(vision) - VISION_OPTIONS) | (set(text) - TEXT_OPTIONS))
    if foreign or config.get("custom_text"):
        raise SettingsError(
            f"CLIP {architecture!r}: expected a vision transformer with CLIP's own text tower and "
            f"tokenizer; open_clip's configuration has {', '.join(foreign) or 'custom_text'}"
        )
    vision = open_clip.CLIPVisionCfg(**vision)
    text = open_clip.CLIPTextCfg(**text)
    if not isinstance(vision.layers, int):
        raise SettingsError(f"CLIP {architecture!r}: expected a vision transformer, found a ResNet")
    size = vision.image_size
    image_size = (size, size) if isinstance(size, int) else (size[0], size[1])
    shape = ClipShape(
        patch=vision.patch_size,
        vision_width=vision.width,
        vision_layers=vision.layers,
        vision_heads=vision.width // vision.head_width,
        vision_mlp_width=int(vision.width * vision.mlp_ratio),
        text_width=text.width,
        text_layers=text.layers,
        text_heads=text.heads,
        text_mlp_width=int(text.width * text.mlp_ratio),
        embed_dim=config["embed_dim"],
        context_length=text.context_length,
        vocabulary=text.vocab_size,
        reduced_vocabulary=False,
        quick_gelu=bool(config.get("quick_gelu")),
    )
    return shape, patch_grid(image_size, patch=shape.patch, stride=shape.patch)


def _load_open_clip(name: str, *, image_size: tuple[int, int], stride: int) -> open_clip.CLIP:
    """Weights from open_clip (`NAME:TAG`) or from a file (`NAME:FILE`), in that architecture.

    open_clip's configurations without a suffix say GELU. Which weights were trained with QuickGELU
    follows from their tags, and for OpenAI's own files from the sizes stored with the parameters.
    """
    architecture, tag = open_clip_name(name)
    expected, grid = _shape_of_config(architecture)
    known = open_clip.get_pretrained_cfg(architecture, tag)
    try:
        file = Path(open_clip.download_pretrained(known) if known else tag).expanduser()
    except (RuntimeError, OSError, ValueError) as error:
        raise _loading_error(name, error) from error
    weights = read_state_dict(file)
    shape = clip_shape(
        _parameters(weights), vision_heads=expected.vision_heads, text_heads=expected.text_heads
    )
    of_openai = any(key in weights for key in OPENAI_SIZES)
    quick_gelu = expected.quick_gelu or bool(known.get("quick_gelu")) or of_openai
    shape = ClipShape(**{**asdict(shape), "quick_gelu": quick_gelu})
    _check_sizes(name, shape, expected)
    positions = weights["visual.positional_embedding"]
    return build_clip(
        weights,
        image_size=image_size,
        stride=stride,
        pretrained_grid=grid if len(positions) == grid[0] * grid[1] + 1 else None,
        shape=shape,
        mean=known.get("mean", OPENAI_MEAN),
        std=known.get("std", OPENAI_STD),
    )


def _load_hub(name: str, *, image_size: tuple[int, int], stride: int) -> open_clip.CLIP:
    """A model on the Hugging Face Hub, built from its own configuration."""
    try:
        _shape_of_config(name)
        loaded = open_clip.create_model(name, require_pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise _loading_error(name, error) from error
    assert isinstance(loaded, open_clip.CLIP)
    mean, std = normalisation(loaded)
    return build_clip(
        loaded.state_dict(),
        image_size=image_size,
        stride=stride,
        pretrained_grid=_grid_of(loaded),
        shape=shape_of(loaded),
        mean=mean,
        std=std,
    )


def _loading_error(name: str, error: Exception) -> MuvaError:
    return MuvaError(
        f"CLIP {name!r} could not be loaded ({error}). Without network access, copy the checkpoint "
        f"to disk and give its path"
    )


def _check_sizes(name: str, found: ClipShape, expected: ClipShape) -> None:
    """Check that the weights have the sizes of the named architecture, except the text's own."""
    free = ("context_length", "vocabulary", "reduced_vocabulary", "quick_gelu")
    differing = [
        f"{key} {value}, expected {getattr(expected, key)}"
        for key, value in asdict(found).items()
        if key not in free and value != getattr(expected, key)
    ]
    if differing:
        raise MuvaError(
            f"CLIP {name!r}: these weights belong to a different architecture: "
            f"{'; '.join(differing)}"
        )


def _check_heads(path: Path, found: ClipShape) -> None:
    """Refuse a file of a known architecture whose heads are not 64 wide: it would load wrongly."""
    for name in open_clip.list_models():
        try:
            known, _ = _shape_of_config(name)
        except SettingsError:
            continue
        heads = (known.vision_heads, known.text_heads)
        alike = ClipShape(
            **{
                **asdict(known),
                "vision_heads": found.vision_heads,
                "text_heads": found.text_heads,
                "context_length": found.context_length,
                "vocabulary": found.vocabulary,
                "quick_gelu": found.quick_gelu,
            }
        )
        if alike == found and heads != (found.vision_heads, found.text_heads):
            raise MuvaError(
                f"CLIP {path} has the sizes of {name}, which has {heads[0]} and {heads[1]} heads "
                f"instead of OpenAI's {found.vision_heads} and {found.text_heads}: add the "
                f"name, {name}:{path}"
            )


def _parameters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state_dict.items() if key not in NOT_PARAMETERS}


def _first_block(transformer: nn.Module) -> ResidualAttentionBlock:
    blocks = transformer.get_submodule("resblocks")
    block = next(blocks.children())
    if not isinstance(block, ResidualAttentionBlock):
        raise MuvaError(
            f"CLIP's blocks are {type(block).__name__}: expected ResidualAttentionBlock"
        )
    return block


def _set_normalisation(clip: open_clip.CLIP, mean: Sequence[float], std: Sequence[float]) -> None:
    open_clip.set_model_preprocess_cfg(clip, {"mean": tuple(mean), "std": tuple(std)})


def _grid_of(clip: open_clip.CLIP) -> tuple[int, int]:
    rows, columns = vision_tower(clip).grid_size
    return rows, columns


def _square_grid(positions: Tensor) -> tuple[int, int]:
    side = round((len(positions) - 1) ** 0.5)
    return side, side


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len(
        {key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)}
    )


def _mlp_width(weights: Mapping[str, Tensor], prefix: str) -> int:
    return weights[f"{prefix}0.mlp.c_fc.weight"].shape[0]
