"""The real CLIP's files: OpenAI's two forms, and the weights that open_clip knows by a tag."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from open_clip.model import build_model_from_openai_state_dict
from open_clip.transformer import QuickGELU
from torch import Tensor

from benchmarks.openai_files import Sizes, openai_state_dict, random_clip, write_archive
from muva.config import ModelConfig
from muva.errors import MuvaError, SettingsError
from muva.model.checks import check_clip
from muva.model.clip import (
    ClipShape,
    empty_clip,
    load_clip,
    normalisation,
    shape_of,
    vision_tower,
)
from muva.model.image_encoder import ImageEncoder

SIZES = {
    "ViT-B-16": Sizes(
        patch=16, vision_width=128, vision_layers=2, text_width=64, text_layers=3, embed_dim=48
    ),
    "ViT-L-14": Sizes(
        patch=14, vision_width=192, vision_layers=3, text_width=128, text_layers=2, embed_dim=96
    ),
}
"""With the patches and head width of their names, and less of everything else."""

TEXTS = ["a photo of a person", "the legs of a person, taken at night"]


@pytest.fixture(scope="module", params=sorted(SIZES))
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return SIZES[request.param]


@pytest.fixture(scope="module")
def clip(sizes: Sizes) -> open_clip.CLIP:
    return random_clip(sizes)


@pytest.fixture(scope="module")
def archive(sizes: Sizes, clip: open_clip.CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "published.pt"
    write_archive(clip, sizes, path)
    return path


def load(path: Path | str, sizes: Sizes) -> open_clip.CLIP:
    return load_clip(str(path), image_size=(224, 224), stride=sizes.patch)


@torch.no_grad()
def features(clip: open_clip.CLIP) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return clip.encode_image(images), clip.encode_text(open_clip.tokenize(TEXTS))


def assert_same_features(ours: open_clip.CLIP, theirs: torch.nn.Module) -> None:
    assert isinstance(theirs, open_clip.CLIP)
    for mine, other in zip(features(ours), features(theirs), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
        assert (mine[0] - mine[1]).abs().max() > 1e-3


def activations(clip: open_clip.CLIP) -> list[bool]:
    """Whether each block's activation is QuickGELU, those of vision and of text."""
    towers = (vision_tower(clip).transformer, clip.transformer)
    blocks = [block for tower in towers for block in tower.get_submodule("resblocks").children()]
    return [isinstance(block.get_submodule("mlp.gelu"), QuickGELU) for block in blocks]


def test_the_archive_has_openais_format(archive: Path, sizes: Sizes) -> None:
    """Opened as OpenAI's own loader opens one; the facts are those of its published files."""
    opened = torch.jit.load(archive, map_location="cpu")
    state = opened.state_dict()
    assert [int(state[key]) for key in ("input_resolution", "context_length", "vocab_size")] == [
        224, 77, 49408,
    ]  # fmt: skip
    assert "attn_mask" not in state
    halves = ("visual.conv1.weight", "visual.proj", "text_projection",
              "transformer.resblocks.0.attn.in_proj_weight")  # fmt: skip
    assert {state[key].dtype for key in halves} == {torch.float16}
    assert opened.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, sizes.embed_dim)
    assert opened.encode_text(open_clip.tokenize(TEXTS).int()[:1]).dtype == torch.float16


def test_an_archive_gives_what_open_clips_own_loader_gives(archive: Path, sizes: Sizes) -> None:
    ours = load(archive, sizes)
    theirs = open_clip.load_openai_model(str(archive), precision="fp32", device="cpu")
    assert_same_features(ours, theirs)
    assert activations(ours) == [True] * (sizes.vision_layers + sizes.text_layers)
    assert normalisation(ours) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    shape = shape_of(ours)
    assert (shape.vision_heads, shape.text_heads) == (
        sizes.vision_width // 64,
        sizes.text_width // 64,
    )


FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "with the sizes": lambda state: state,
    "with the sizes as numbers": lambda state: {
        key: value.item() if value.dtype == torch.int64 else value for key, value in state.items()
    },
    "without the sizes": lambda state: {
        key: value for key, value in state.items() if value.dtype != torch.int64
    },
    "with the causal mask": lambda state: {
        **state,
        "attn_mask": torch.full((77, 77), -torch.inf).triu(1),
    },
    "inside a checkpoint": lambda state: {"epoch": 3, "name": "x", "state_dict": state},
    "from several GPUs": lambda state: {
        "state_dict": {f"module.{key}": value for key, value in state.items()}
    },
    "all of it half": lambda state: {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    },
    "logit scale as a vector": lambda state: {
        **state,
        "logit_scale": state["logit_scale"].reshape(1),
    },
}


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_gives_what_open_clips_own_builder_gives(
    form: str, suffix: str, sizes: Sizes, clip: open_clip.CLIP, tmp_path: Path
) -> None:
    state = openai_state_dict(clip, sizes)
    path = tmp_path / f"clip{suffix}"
    torch.save(FORMS[form](dict(state)), path)
    ours = load(path, sizes)
    if form == "all of it half":
        state = {key: value.half().to(value.dtype) for key, value in state.items()}
    theirs = build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float()
    assert_same_features(ours, theirs)
    assert activations(ours) == [True] * (sizes.vision_layers + sizes.text_layers)


def test_the_activation_shows_in_the_features(sizes: Sizes, clip: open_clip.CLIP) -> None:
    """Else the comparisons above would miss a wrong one."""
    state = openai_state_dict(clip, sizes)
    right, wrong = (
        build_model_from_openai_state_dict(dict(state), quick_gelu=q, cast_dtype=torch.float32)
        for q in (True, False)
    )
    for one, other in zip(features(right.float()), features(wrong.float()), strict=True):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "image_size", "stride", "grid"),
    [
        ("ViT-B-16", (256, 128), 16, (16, 8)),
        ("ViT-B-16", (256, 128), 12, (21, 10)),
        ("ViT-B-16", (224, 224), 16, (14, 14)),
        ("ViT-B-16", (230, 100), 16, (14, 6)),
        ("ViT-L-14", (252, 126), 14, (18, 9)),
        ("ViT-L-14", (256, 128), 14, (18, 9)),
        ("ViT-L-14", (250, 130), 10, (24, 12)),
        ("ViT-L-14", (224, 224), 14, (16, 16)),
    ],
)
def test_position_embeddings_fit_any_size_and_stride(
    name: str, image_size: tuple[int, int], stride: int, grid: tuple[int, int], tmp_path: Path
) -> None:
    sizes = SIZES[name]
    state = openai_state_dict(random_clip(sizes), sizes)
    torch.save(state, tmp_path / "clip.pt")
    clip = load_clip(str(tmp_path / "clip.pt"), image_size=image_size, stride=stride)
    assert vision_tower(clip).grid_size == grid
    stored = state["visual.positional_embedding"].numpy()
    side = 224 // sizes.patch
    fitted = vision_tower(clip).positional_embedding.detach().numpy()
    np.testing.assert_array_equal(fitted[0], stored[0])
    expected = bilinear(stored[1:].reshape(side, side, -1), grid)
    np.testing.assert_allclose(fitted[1:].reshape(*grid, -1), expected, atol=1e-6)

    settings = ModelConfig(
        clip="x", image_height=image_size[0], image_width=image_size[1], stride=stride, parts=()
    )
    images = torch.randn(2, 3, *image_size)
    with torch.no_grad():
        bare = clip.encode_image(images)
        torch.testing.assert_close(
            ImageEncoder(clip, settings)(images).feature, bare, atol=1e-5, rtol=1e-5
        )
    assert bare.shape == (2, sizes.embed_dim)


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel: centres align, the border is repeated."""
    resized = np.empty((*size, image.shape[-1]), image.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            value = np.zeros(image.shape[-1])
            places = [
                min(max((at + 0.5) * image.shape[axis] / size[axis] - 0.5, 0), image.shape[axis])
                for axis, at in enumerate((row, column))
            ]
            for y in (int(places[0]), int(places[0]) + 1):
                for x in (int(places[1]), int(places[1]) + 1):
                    share = (1 - abs(places[0] - y)) * (1 - abs(places[1] - x))
                    inside = min(y, image.shape[0] - 1), min(x, image.shape[1] - 1)
                    value += share * image[inside]
            resized[row, column] = value
    return resized


def small(config: dict[str, Any]) -> dict[str, Any]:
    """An architecture of open_clip's with two heads, a layer a tower, and the same in all else."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    head = vision.get("head_width", 64)
    return {
        **config,
        "embed_dim": 16,
        "vision_cfg": {**vision, "layers": 1, "width": 2 * head},
        "text_cfg": {**text, "layers": 1, "width": 64, "heads": 2},
    }


@pytest.fixture
def small_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's own names and tags, of small architectures."""
    for name, config in list(factory._MODEL_CONFIGS.items()):
        if isinstance(config["vision_cfg"].get("layers"), int):
            monkeypatch.setitem(factory._MODEL_CONFIGS, name, small(config))


def of_architecture(name: str) -> ClipShape:
    config = factory.get_model_config(name)
    assert config is not None
    vision, text = config["vision_cfg"], config["text_cfg"]
    return ClipShape(
        patch=vision["patch_size"],
        vision_width=vision["width"],
        vision_layers=1,
        vision_heads=2,
        vision_mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4)),
        text_width=64,
        text_layers=1,
        text_heads=2,
        text_mlp_width=256,
        embed_dim=16,
        context_length=text["context_length"],
        vocabulary=text["vocab_size"],
        reduced_vocabulary=False,
        quick_gelu=False,
    )


def weights_for(name: str, path: Path) -> Path:
    """A file of weights as others than OpenAI save them: it tells neither activation nor heads."""
    shape = of_architecture(name)
    config = factory.get_model_config(name)
    assert config is not None
    size = config["vision_cfg"]["image_size"]
    clip = empty_clip(shape, image_size=(size, size), stride=shape.patch)
    torch.save({"epoch": 1, "state_dict": clip.state_dict()}, path)
    return path


HALF = ((0.5,) * 3, (0.5,) * 3)
OPENAI = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
TAGS = {
    "ViT-B-16": (True, OPENAI),
    "ViT-B-16:openai": (True, OPENAI),
    "ViT-B-16-quickgelu:openai": (True, OPENAI),
    "ViT-B-16:laion2b_s34b_b88k": (False, OPENAI),
    "ViT-B-16:laion400m_e32": (False, OPENAI),
    "ViT-B-16:datacomp_xl_s13b_b90k": (False, OPENAI),
    "ViT-B-16:dfn2b": (True, OPENAI),
    "ViT-B-16:metaclip_400m": (True, OPENAI),
    "ViT-B-16-quickgelu:metaclip_400m": (True, OPENAI),
    "ViT-B-32:laion400m_e32": (True, OPENAI),
    "ViT-L-14:openai": (True, OPENAI),
    "ViT-L-14-336:openai": (True, OPENAI),
    "ViT-L-14:laion2b_s32b_b82k": (False, HALF),
    "ViT-L-14:dfn2b": (True, OPENAI),
    "ViT-L-14:dfn2b_s39b": (False, OPENAI),
    "ViT-H-14:laion2b_s32b_b79k": (False, OPENAI),
}
"""Name -> QuickGELU, and the mean and std, as their publishers state."""


def plain_tags() -> list[str]:
    """All of open_clip's weights in OpenAI's architecture."""
    found = []
    for name, tag in open_clip.list_pretrained():
        try:
            check_clip(f"{name}:{tag}")
        except SettingsError:
            continue
        found.append(f"{name}:{tag}")
    return found


def test_open_clips_weights_are_known_by_their_tags() -> None:
    known = plain_tags()
    assert len(known) >= 60
    assert {name for name in TAGS if ":" in name} <= set(known)


@pytest.mark.usefixtures("small_architectures")
@pytest.mark.parametrize("name", sorted({*TAGS, *plain_tags()}))
def test_weights_of_a_tag_have_its_activation_mean_and_std(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, _, tag = name.partition(":")
    file = weights_for(architecture, tmp_path / "open_clip_pytorch_model.bin")
    asked = []
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: asked.append(cfg) or file)
    table = open_clip.get_pretrained_cfg(architecture, tag or "openai")
    patch = of_architecture(architecture).patch
    clip = load_clip(name, image_size=(3 * patch, 2 * patch), stride=patch)
    assert asked == [table], "the weights of that tag, and no others"
    known = (bool(table.get("quick_gelu")), (tuple(table["mean"]), tuple(table["std"])))
    assert known == TAGS.get(name, known)
    assert (activations(clip), normalisation(clip)) == ([known[0]] * 2, known[1])
    assert (shape_of(clip).vision_heads, shape_of(clip).text_heads) == (2, 2)


@pytest.mark.usefixtures("small_architectures")
def test_a_plain_name_takes_a_files_activation_from_the_file_or_gelu(tmp_path: Path) -> None:
    """OpenAI's say themselves whose they are; with others' the name decides."""
    sizes = Sizes(
        patch=16, vision_width=128, vision_layers=1, text_width=64, text_layers=1, embed_dim=16
    )
    ours = random_clip(sizes)
    write_archive(ours, sizes, tmp_path / "published.pt")
    others = weights_for("ViT-B-16", tmp_path / "others.pt")

    def loaded(name: str, file: Path) -> open_clip.CLIP:
        return load_clip(f"{name}:{file}", image_size=(224, 224), stride=16)

    factory._MODEL_CONFIGS["ViT-B-16"]["text_cfg"]["heads"] = 1
    published = loaded("ViT-B-16", tmp_path / "published.pt")
    assert_same_features(
        published,
        open_clip.load_openai_model(str(tmp_path / "published.pt"), "fp32", device="cpu"),
    )
    assert activations(published) == [True, True]
    assert activations(loaded("ViT-B-16", others)) == [False, False]
    assert activations(loaded("ViT-B-16-quickgelu", others)) == [True, True]


@pytest.mark.usefixtures("small_architectures")
def test_a_file_in_the_name_of_another_architecture_is_refused(tmp_path: Path) -> None:
    file = weights_for("ViT-B-32", tmp_path / "b32.pt")
    with pytest.raises(MuvaError, match="a different architecture: patch 32, expected 16"):
        load_clip(f"ViT-B-16:{file}", image_size=(64, 64), stride=16)


@pytest.mark.usefixtures("small_architectures")
def test_a_bare_file_whose_heads_are_not_openais_asks_for_its_name(tmp_path: Path) -> None:
    file = weights_for("ViT-bigG-14", tmp_path / "open_clip_pytorch_model.bin")
    config = factory._MODEL_CONFIGS["ViT-bigG-14"]
    config["vision_cfg"].update(width=128, head_width=32)
    config["text_cfg"]["heads"] = 1
    state = torch.load(file)["state_dict"]
    assert state["visual.conv1.weight"].shape[0] == 208
    torch.save(empty_like(config), file)
    with pytest.raises(
        MuvaError, match=r"has 4 and 1 heads instead of OpenAI's 2 and 1: add the name, ViT-"
    ):
        load_clip(str(file), image_size=(28, 28), stride=14)
    named = load_clip(f"ViT-bigG-14:{file}", image_size=(28, 28), stride=14)
    assert shape_of(named).vision_heads == 4


def empty_like(config: dict[str, Any]) -> dict[str, Tensor]:
    return open_clip.CLIP(
        config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=config["text_cfg"]
    ).state_dict()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-H-14-worldwide:metaclip2_worldwide", "hf_tokenizer_name"),
        ("ViT-L-14-CLIPA:datacomp1b", "final_ln_after_pool"),
        ("ViT-B-16-SigLIP:webli", "timm_model_name"),
        ("RN50:openai", "expected a vision transformer, found a ResNet"),
    ],
)
def test_other_towers_are_refused_before_anything_is_downloaded(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_clip(name)


@pytest.mark.usefixtures("small_architectures")
def test_a_hubs_model_is_what_its_own_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weights_for("ViT-B-16", tmp_path / "open_clip_model.pt")
    config = tmp_path / "open_clip_config.json"
    model = {**factory._MODEL_CONFIGS["ViT-B-16"], "quick_gelu": True}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))

    def stored(model_id: str, filename: str | None = None, **_: object) -> str:
        assert model_id == "lab/clip"
        return str(config if filename == "open_clip_config.json" else file)

    monkeypatch.setattr(factory, "download_pretrained_from_hf", stored)
    clip = load_clip("hf-hub:lab/clip", image_size=(64, 32), stride=16)
    assert activations(clip) == [True, True]
    assert normalisation(clip) == HALF


def test_without_a_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: object) -> str:
        raise FileNotFoundError("no route to the hub")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(MuvaError, match=r"no route to the hub.*copy the checkpoint to disk"):
        load_clip("ViT-B-16", image_size=(256, 128), stride=16)
