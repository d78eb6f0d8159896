from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch import Tensor

from muva.errors import MuvaError
from muva.model.clip import (
    build_clip,
    image_size_of,
    load_clip,
    normalisation,
    save_clip,
    shape_of,
    token_ids_in,
    vision_tower,
)
from muva.model.prompts import tokenise
from muva.model.state_dicts import read_state_dict
from tests.model.small import IMAGE_SIZE, PATCH, small_clip

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_clip(small_clip(), tmp_path / "small", name="small", dtype=torch.float32)
    return tmp_path / "small"


def load(folder: Path) -> open_clip.CLIP:
    return load_clip(str(folder), image_size=IMAGE_SIZE, stride=PATCH)


def whole_weights() -> dict[str, Tensor]:
    """A CLIP with the whole vocabulary and a square grid, as OpenAI's files hold one."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        32,
        vision_cfg=open_clip.CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32),
        text_cfg=open_clip.CLIPTextCfg(context_length=20, width=64, heads=1, layers=1),
        quick_gelu=True,
    )
    return {key: value.contiguous() for key, value in clip.state_dict().items()}


def test_a_saved_clip_is_loaded_unchanged(folder: Path) -> None:
    before, after = small_clip().eval(), load(folder)
    images, tokens = torch.randn(2, 3, *IMAGE_SIZE), tokenise(["a person"], context_length=32)
    with torch.no_grad():
        assert torch.equal(after.encode_image(images), before.encode_image(images))
        assert torch.equal(after.encode_text(tokens), before.encode_text(tokens))
    assert shape_of(after) == shape_of(before)
    assert normalisation(after) == normalisation(before) == ((0.5,) * 3, (0.5,) * 3)
    assert image_size_of(after) == IMAGE_SIZE
    assert not after.training


def test_weights_are_stored_in_half_precision_and_only_the_rows_in_use(tmp_path: Path) -> None:
    save_clip(small_clip(), tmp_path, name="small")
    stored = load_file(tmp_path / "model.safetensors")
    assert "token_embedding.weight" not in stored
    assert stored["token_embedding_rows"].dtype == torch.float16
    assert len(stored["token_ids_used"]) == len(stored["token_embedding_rows"]) < 30


def test_the_same_seed_makes_the_same_clip() -> None:
    first, second, other = (small_clip(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])


def test_a_word_outside_the_reduced_vocabulary_is_named() -> None:
    with pytest.raises(MuvaError, match="lacks 'umbrella ': use words that it was trained with"):
        small_clip().encode_text(tokenise(["a person, umbrella"], context_length=32))


def test_the_vocabulary_of_texts_holds_padding_start_and_end() -> None:
    ids = token_ids_in(["a person", "a photo"])
    assert ids == sorted(ids)
    assert ids[0] == 0 and ids[-2:] == [49406, 49407] and len(ids) == 6


def test_every_kind_of_file_gives_the_same_clip(tmp_path: Path) -> None:
    weights = whole_weights()
    scripted = torch.jit.script(_Holder(weights))
    save_file(weights, tmp_path / "clip.safetensors")
    torch.save(weights, tmp_path / "clip.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "dp.pt")
    scripted.save(str(tmp_path / "jit.pt"))
    for name in ("clip.safetensors", "clip.pt", "dp.pt", "jit.pt"):
        clip = load_clip(str(tmp_path / name), image_size=(32, 32), stride=8)
        for key, value in clip.state_dict().items():
            assert torch.equal(value, weights[key]), (name, key)
        assert normalisation(clip) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


class _Holder(torch.nn.Module):
    """A scriptable module whose state dict has the names of CLIP's."""

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        for name, value in weights.items():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for step in path:
                if not hasattr(module, step):
                    module.add_module(step, torch.nn.Module())
                module = module.get_submodule(step)
            module.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_sizes_are_those_of_the_recorded_clip_and_it_has_quick_gelu() -> None:
    recorded = json.loads((GOLDEN / "model.json").read_text())["clip"]
    with np.load(GOLDEN / "model.npz") as arrays:
        weights = {
            name.removeprefix("clip/"): torch.from_numpy(np.array(arrays[name]))
            for name in arrays.files
            if name.startswith("clip/")
        }
    shape = shape_of(build_clip(weights, image_size=(256, 128), stride=16))
    for key in ("vision_width", "vision_layers", "vision_heads", "patch", "text_width"):
        assert getattr(shape, key) == recorded[key]
    for key in ("text_heads", "text_layers", "embed_dim", "context_length"):
        assert getattr(shape, key) == recorded[key]
    assert shape.quick_gelu and shape.reduced_vocabulary


def test_the_fitted_clip_runs_at_another_size_and_stride() -> None:
    clip = build_clip(whole_weights(), image_size=(64, 24), stride=6)
    visual = vision_tower(clip)
    assert visual.grid_size == (10, 3)
    assert clip.encode_image(torch.randn(2, 3, 64, 24)).shape == (2, 32)
    activations = [m for m in clip.modules() if isinstance(m, QuickGELU)]
    assert len(activations) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.proj": None}, "visual.proj missing from the"),
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "not a CLIP in OpenAI's layout"),
        ({"ln_final.weight": torch.zeros(7)}, "not a CLIP in OpenAI's layout"),
        (
            {"visual.positional_embedding": torch.zeros(19, 64)},
            "19 rows, but a patch grid of 4 x 4",
        ),
        ({"positional_embedding": torch.zeros(20, 65)}, "text width is 65: expected a multiple"),
    ],
)
def test_another_architecture_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    weights = {**whole_weights(), **change}
    kept = {key: value for key, value in weights.items() if value is not None}
    with pytest.raises(MuvaError, match=message):
        build_clip(kept, image_size=(32, 32), stride=8)


def test_a_stride_beyond_the_patch_and_an_image_below_it_are_refused() -> None:
    with pytest.raises(MuvaError, match=r"set model\.stride to 8 or less"):
        build_clip(whole_weights(), image_size=(32, 32), stride=9)
    with pytest.raises(MuvaError, match="are smaller than a patch of 8 x 8"):
        build_clip(whole_weights(), image_size=(32, 4), stride=8)


def test_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MuvaError, match="cannot be read as weights"):
        load(folder)
    (tmp_path / "text.pt").write_text("no weights at all")
    with pytest.raises(MuvaError, match="cannot be read as weights"):
        read_state_dict(tmp_path / "text.pt")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(MuvaError, match="expected a state dict of tensors"):
        read_state_dict(tmp_path / "list.pt")


def test_a_file_with_pickled_code_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"weights": Path("code")}, tmp_path / "model.pt")
    with pytest.raises(MuvaError, match="a torch file with tensors in plain containers"):
        read_state_dict(tmp_path / "model.pt")


def test_an_incomplete_folder_says_what_is_missing(folder: Path) -> None:
    (folder / "config.json").write_text('{"patch": 8}')
    with pytest.raises(MuvaError, match=r"config\.json: damaged, or not written by muva"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MuvaError, match=r"expected config\.json, found none"):
        load(folder)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(MuvaError, match="'ViT-B-61' is neither a file, a folder nor a name"):
        load_clip("ViT-B-61", image_size=(256, 128), stride=16)


def test_an_open_clip_name_with_a_local_file_of_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    save_file(clip.state_dict(), tmp_path / "weights.safetensors")
    name = f"ViT-S-32-alt:{tmp_path}/weights.safetensors"
    loaded = load_clip(name, image_size=(224, 224), stride=32)
    assert not shape_of(loaded).quick_gelu  # as its configuration in open_clip says
    for key, value in clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(MuvaError, match="is 12 tokens long, but this CLIP reads at most 8"):
        tokenise(["a person", "a " * 10], context_length=8)
