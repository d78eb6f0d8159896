from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from muva.config import PARTS, ModelConfig, PromptConfig
from muva.errors import MuvaError, SettingsError
from muva.model.bundle import bundle_of_model, load_bundle, save_bundle
from muva.model.clip import load_clip, openai_weights
from muva.model.foreign import fit_checkpoint
from muva.model.foreign.adopt import Adopted, adopt, needs_clip
from muva.model.foreign.fit import ImportOptions
from muva.model.foreign.form import Row
from muva.model.muva_model import MuvaModel
from tests.model.foreign_files import (
    clip_folder,
    clip_reid_features,
    clip_reid_state,
    release_state,
    trained_model,
    visual_of,
    write,
)
from tests.model.small import IMAGE_SIZE, PATCH, small_clip, small_config

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE: dict[str, Any] = {"image_height": IMAGE_SIZE[0], "image_width": IMAGE_SIZE[1]}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clip_folder(tmp_path / "clip")


def imported(
    path: Path,
    clip: Path | None,
    *,
    form: str | None = None,
    quick_gelu: bool | None = None,
    grid: tuple[int, int] | None = None,
    prompts: PromptConfig | None = None,
    seed: int = 0,
    **model: Any,
) -> Adopted:
    given = ImportOptions(
        model=ModelConfig(**{**SIZE, **model}),
        prompts=prompts or PromptConfig(),
        quick_gelu=quick_gelu,
        grid=grid,
    )
    fit = fit_checkpoint(path, given, form=form)
    assert needs_clip(fit) == (clip is not None)

    def filler(settings: ModelConfig) -> open_clip.CLIP:
        size = (settings.image_height, settings.image_width)
        return load_clip(str(clip), image_size=size, stride=settings.stride)

    return adopt(fit, clip=filler, clip_name="that CLIP", seed=seed)


def rows_of(adopted: Adopted) -> dict[str, Row]:
    return {row.what or row.source: row for row in adopted.rows}


def pixels(count: int = 4, size: tuple[int, int] = IMAGE_SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def embedded(model: MuvaModel, images: Tensor) -> np.ndarray:
    return bundle_of_model(model, metadata={}).embed_pixels(images)


# The authors' release --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("torch", {}),
        ("wrapped", {"gating": "online", "mask_max_value": 3.0}),
        ("safetensors", {"parts": ("head", "legs"), "predictor_heads": 4}),
        ("torch", {"predictor_layer_norm": False, "predictor_shortcut": False}),
        ("torch", {"part_token_init": "patch_avg"}),
        ("torch", {"stride": 5}),
    ],
)
def test_a_model_of_the_release_comes_back_whole(
    how: str, settings: dict[str, Any], clip: Path, tmp_path: Path
) -> None:
    original = trained_model(**settings)
    suffix = "safetensors" if how == "safetensors" else "pth"
    file = write(release_state(original), tmp_path / f"model.{suffix}", how=how)
    told_by_file = ("predictor_layer_norm", "part_token_init", "stride")
    given = {name: value for name, value in settings.items() if name not in told_by_file}
    adopted = imported(file, clip, **given)
    state = original.state_dict()
    for name, value in adopted.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert adopted.model.config.model_dump(exclude={"clip", *SIZE}) == original.config.model_dump(
        exclude={"clip", *SIZE}
    )
    images = pixels()
    np.testing.assert_array_equal(embedded(adopted.model, images), embedded(original, images))
    assert {row.outcome for row in adopted.rows} <= {"taken", "filled", "left out"}
    assert rows_of(adopted)["token embedding"].note == "missing from the file"


def test_the_recorded_release_gives_its_recorded_features(tmp_path: Path) -> None:
    settings = json.loads((GOLDEN / "model.json").read_text())
    with np.load(GOLDEN / "model.npz") as archive:
        arrays = {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    clip = {n.removeprefix("clip/"): v for n, v in arrays.items() if n.startswith("clip/")}
    save_file(clip, tmp_path / "clip.safetensors")
    muva = {n.removeprefix("muva/"): v for n, v in arrays.items() if n.startswith("muva/")}
    width = len(muva["bn.weight"])
    state = {
        **{n.replace("visual.", "image_encoder."): v for n, v in clip.items() if "visual." in n},
        "image_encoder.positional_embedding": muva["visual_positional_embedding"],
        **{
            f"text_encoder.{n}": v
            for n, v in clip.items()
            if n.startswith(("transformer.", "positional_", "ln_final.", "text_projection"))
        },
        **{f"residual_{n}": v for n, v in muva.items() if n.startswith("mask_predictor.")},
        "local_token": muva["part_tokens"],
        "prompt_learner.learnable_ctx": muva["contexts"],
        "fc.weight": muva["classifier.weight"],
        "bnneck.weight": muva["bn.weight"],
        "bnneck.bias": muva["bn.bias"],
        "bnneck.running_mean": torch.zeros(width),
        "bnneck.running_var": torch.ones(width),
    }
    file = write(state, tmp_path / "muva.pth", how="wrapped")
    adopted = imported(
        file,
        tmp_path / "clip.safetensors",
        image_height=256,
        image_width=128,
        predictor_heads=settings["predictor_heads"],
    )
    images = arrays["input/images_u8"]
    recorded = normalize(arrays["image/feature_predicted_masks_bn_eval"]).numpy()
    ours = embedded(adopted.model, images)
    assert np.abs(ours - recorded).max() / np.abs(recorded).max() < 2e-5
    text = adopted.model.prototypes()
    theirs = arrays["text/features"]
    assert float((text - theirs).abs().max() / theirs.abs().max()) < 2e-5
    assert rows_of(adopted)["text transformer"].note == "matches that CLIP"


def test_without_prompts_and_classifier_contexts_are_initialised(
    clip: Path, tmp_path: Path
) -> None:
    state = release_state(trained_model())
    del state["prompt_learner.learnable_ctx"]
    adopted = imported(write(state, tmp_path / "a.pth"), clip)
    row = rows_of(adopted)["contexts"]
    assert (row.outcome, adopted.model.identities) == ("new", 5)
    assert row.note == "5 identities; the file has no prompt_learner.learnable_ctx"
    again = imported(tmp_path / "a.pth", clip)
    other = imported(tmp_path / "a.pth", clip, seed=1)
    assert torch.equal(again.model.contexts, adopted.model.contexts)
    assert not torch.equal(other.model.contexts, adopted.model.contexts)
    del state["fc.weight"]
    bare = imported(write(state, tmp_path / "b.pth"), clip).model
    assert bare.identities == 0
    images = pixels()
    np.testing.assert_array_equal(embedded(bare, images), embedded(adopted.model, images))


def test_a_text_encoder_unlike_clips_is_reported_or_refused(clip: Path, tmp_path: Path) -> None:
    state = release_state(trained_model())
    state["text_encoder.ln_final.bias"] += 0.5
    adopted = imported(write(state, tmp_path / "a.pth"), clip)
    assert "differs from that CLIP by up to 0.5" in rows_of(adopted)["text transformer"].note
    for name in [name for name in state if "text_encoder" in name]:
        del state[name]
    filled = imported(write(state, tmp_path / "b.pth"), clip)
    assert rows_of(filled)["text side"].outcome == "filled"
    state = release_state(trained_model())
    state["text_encoder.positional_embedding"] = torch.zeros(40, 64)
    with pytest.raises(
        MuvaError, match=r"\(40, 64\) in the file, \(32, 64\) in that CLIP\): .* --clip"
    ):
        imported(write(state, tmp_path / "c.pth"), clip)


def test_a_checkpoint_of_stage_1_is_reported_as_one(clip: Path, tmp_path: Path) -> None:
    state = release_state(trained_model())
    trained = imported(write(state, tmp_path / "stage2.pth"), clip)
    assert rows_of(trained)["BN neck"].note == ""
    state["bnneck.num_batches_tracked"] = torch.tensor(0)
    early = imported(write(state, tmp_path / "stage1.pth"), clip)
    assert "a checkpoint of stage 1" in rows_of(early)["BN neck"].note


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": ("head",)}, r"has 3 part tokens, but model\.parts names 1 \(head\)"),
        ({"parts": ()}, r"model\.parts names 0 \(none\): expected 3, .*=\[head,upper_body,legs\]"),
        ({"stride": 4}, r"18 patches \(of 8 pixels\); stride 4 gives 11 x 5 = 55 at 48 x 24: "
         r"use --set model\.stride=8"),
        ({"image_height": 64}, r"18 patches .* at 64 x 24: set the size of its images"),
        ({"part_token_init": "patch_avg"}, "are not zeros: they were learned"),
        ({"predictor_layer_norm": False}, "its mask predictor has LayerNorms"),
        ({"predictor_heads": 3}, r"predictor_heads 3 does not divide"),
        ({"grid": (3, 6)}, "--grid 3x6: the patch grid of this model is 6x3"),
        ({"prompts": PromptConfig(context_tokens=8)}, "4 tokens, but .* is 8: set it to 4"),
    ],
)  # fmt: skip
def test_options_must_not_contradict_the_file(
    given: dict[str, Any], message: str, clip: Path, tmp_path: Path
) -> None:
    file = write(release_state(trained_model()), tmp_path / "model.pth")
    with pytest.raises(SettingsError, match=message):
        imported(file, clip, **given)


def test_fewer_parts_must_be_named(clip: Path, tmp_path: Path) -> None:
    file = write(release_state(trained_model(parts=("head", "legs"))), tmp_path / "model.pth")
    with pytest.raises(
        SettingsError, match=r"2 part tokens but does not record their parts.*parts=\["
    ):
        imported(file, clip)


def test_more_parts_than_the_papers_must_be_named(clip: Path, tmp_path: Path) -> None:
    parts = (*PARTS, "x")  # a word that the small CLIP knows
    file = write(release_state(trained_model(parts=parts)), tmp_path / "model.pth")
    with pytest.raises(SettingsError, match=r"4 part tokens .*=\[head,upper_body,legs,part_4\]"):
        imported(file, clip)
    assert imported(file, clip, parts=parts).model.config.parts == parts


def test_a_file_that_contradicts_itself_is_refused(clip: Path, tmp_path: Path) -> None:
    state = release_state(trained_model())
    changes: list[tuple[str, Tensor, str]] = [
        ("fc.weight", torch.zeros(7, 128), "classifier has 7 identities, but its prompts 5"),
        ("bnneck.weight", torch.zeros(64), "its BN neck is 64 wide, but 4 grains of 32 are 128"),
        (
            "residual_mask_predictor.blocks.1.mlp.0.weight",
            torch.zeros(20, 64),
            r"blocks\.1\.mlp\.0\.weight has the shape \(20, 64\), "
            r"but a model with these settings has \(18, 64\)",
        ),
        ("residual_mask_predictor.blocks.7.mlp.0.weight", torch.zeros(1), "1 entries that a model"),
        ("image_encoder.ln_post.weight", torch.zeros(5), "size mismatch for visual.ln_post"),
        ("image_encoder.proj", torch.zeros(64), r"proj has the shape \(64,\): expected \(width, f"),
        ("local_token", torch.zeros(3, 1, 64), r"local_token has the shape \(3, 1, 64\)"),
        (
            "local_token",
            torch.ones(3, 9),
            r"local_token has the shape \(3, 9\), but a model with these settings",
        ),
        (
            "image_encoder.adapter.weight",
            torch.zeros(5),
            r"adapter\.weight: without knowing how they are used",
        ),
    ]
    for name, value, message in changes:
        file = write({**state, name: value}, tmp_path / "model.pth")
        with pytest.raises(MuvaError, match=message):
            imported(file, clip)


# CLIP-ReID ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [8, 5])
def test_clip_reids_projected_feature_after_its_neck_is_reproduced(
    stride: int, clip: Path, tmp_path: Path
) -> None:
    state = clip_reid_state(trained_model(parts=(), stride=stride))
    adopted = imported(write(state, tmp_path / "ViT-B-16_60.pth"), clip)
    images = pixels()
    theirs = clip_reid_features(state, (images / 255 - 0.5) / 0.5, stride)
    assert theirs.shape == (4, 64 + 32)
    expected = normalize(theirs[:, 64:]).detach().numpy()
    np.testing.assert_allclose(embedded(adopted.model, images), expected, atol=2e-6)
    assert adopted.model.config.stride == stride
    assert adopted.model.identities == 5
    assert torch.equal(adopted.model.contexts[:, 0], state["prompt_learner.cls_ctx"])
    rows = rows_of(adopted)
    assert "concatenates it with the unprojected one" in rows["BN neck"].note
    assert "full stop" in rows["contexts"].note
    assert "depending on camera or view" in rows["cv_embed"].note
    assert rows["classifier.weight, bottleneck.*"].outcome == "left out"


def test_clip_reids_baseline_has_no_text(clip: Path, tmp_path: Path) -> None:
    whole = clip_reid_state(trained_model(parts=()))
    state = {n: v for n, v in whole.items() if not n.startswith(("prompt_", "text_", "cv_"))}
    adopted = imported(write(state, tmp_path / "baseline.pth"), clip)
    images = pixels()
    expected = embedded(imported(write(whole, tmp_path / "whole.pth"), clip).model, images)
    np.testing.assert_array_equal(embedded(adopted.model, images), expected)
    assert rows_of(adopted)["contexts"].outcome == "new"


def test_clip_reids_resnet_is_refused(clip: Path, tmp_path: Path) -> None:
    state = clip_reid_state(trained_model(parts=()))
    state = {n: v for n, v in state.items() if not n.startswith("image_encoder.")}
    state["image_encoder.layer1.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(MuvaError, match="its image encoder is a ResNet"):
        imported(write(state, tmp_path / "RN50.pth"), clip)


def test_clip_reids_position_embedding_is_resized_where_its_grid_is_named(
    clip: Path, tmp_path: Path
) -> None:
    file = write(clip_reid_state(trained_model(parts=())), tmp_path / "model.pth")
    adopted = imported(file, clip, grid=(6, 3), image_height=64, image_width=32)
    row = rows_of(adopted)["position embedding"]
    assert (row.outcome, row.note) == ("resized", "from 6 x 3 to 8 x 4 patches, bilinearly")
    assert adopted.model.grid == (8, 4)


# CLIP itself -------------------------------------------------------------------------------------


def square_clip(*, quick_gelu: bool = True) -> open_clip.CLIP:
    torch.manual_seed(2)
    return open_clip.CLIP(
        32,
        vision_cfg=open_clip.CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32),
        text_cfg=open_clip.CLIPTextCfg(context_length=77, width=64, heads=1, layers=1),
        quick_gelu=quick_gelu,
    ).eval()


def of_clip(images: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(s)[:, None, None]
        for s in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (images / 255 - mean) / std


@pytest.mark.parametrize("how", ["torch", "wrapped", "safetensors"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_an_open_clip_checkpoint_embeds_as_open_clip_does(
    how: str, quick_gelu: bool, tmp_path: Path
) -> None:
    original = square_clip(quick_gelu=quick_gelu)
    suffix = "safetensors" if how == "safetensors" else "pt"
    file = write(dict(original.state_dict()), tmp_path / f"epoch_3.{suffix}", how=how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adopted = imported(file, None, quick_gelu=quick_gelu, image_height=32, image_width=32)
    images = pixels(size=(32, 32))
    with torch.no_grad():
        expected = original.encode_image(of_clip(images), normalize=True).numpy()
    np.testing.assert_allclose(embedded(adopted.model, images), expected, atol=2e-6)
    assert adopted.model.identities == 0 and adopted.model.config.parts == ()
    text = openai_weights(original)["transformer.resblocks.0.mlp.c_fc.weight"]
    ours = adopted.model.text_encoder.get_parameter("transformer.resblocks.0.mlp.c_fc.weight")
    assert torch.equal(ours, text)


def test_a_plain_clip_is_fitted_to_people_as_clip_is_elsewhere(tmp_path: Path) -> None:
    file = write(dict(square_clip().state_dict()), tmp_path / "clip.pt")
    adopted = imported(file, None)
    fitted = load_clip(str(file), image_size=IMAGE_SIZE, stride=8).eval()
    images = pixels()
    with torch.no_grad():
        expected = normalize(fitted.encode_image(of_clip(images))).numpy()
    np.testing.assert_allclose(embedded(adopted.model, images), expected, atol=2e-6)
    row = rows_of(adopted)["position embedding"]
    assert (row.outcome, row.note) == ("resized", "from 4 x 4 to 6 x 3 patches, bilinearly")


def test_a_bundle_of_a_model_without_identities_opens(tmp_path: Path) -> None:
    file = write(dict(square_clip().state_dict()), tmp_path / "clip.pt")
    model = imported(file, None).model
    save_bundle(model, tmp_path / "bundle", metadata={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = load_bundle(tmp_path / "bundle")
    np.testing.assert_array_equal(bundle.embed_pixels(pixels()), embedded(model, pixels()))
    assert len(bundle.model.prototypes()) == 0


def test_parts_of_a_plain_clip_are_reported_as_new(tmp_path: Path) -> None:
    file = write(dict(square_clip().state_dict()), tmp_path / "clip.pt")
    adopted = imported(file, None, parts=PARTS)
    assert adopted.model.config.parts == PARTS
    assert "initialised randomly" in rows_of(adopted)["parts"].note
    assert embedded(adopted.model, pixels()).shape == (4, 4 * 32)


def hugging_face(folder: Path, *, activation: str = "quick_gelu", **vision: Any) -> CLIPModel:
    torch.manual_seed(4)
    tower = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "hidden_act": activation,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "num_attention_heads": 2,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
        },
        vision_config={
            **tower,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 32,
            **vision,
        },
        projection_dim=32,
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("how", ["folder", "file", "pytorch_model.bin"])
def test_hugging_faces_clip_embeds_as_transformers_does(
    how: str, activation: str, tmp_path: Path
) -> None:
    original = hugging_face(tmp_path / "hf", activation=activation)
    path = tmp_path / "hf"
    if how == "file":
        path = path / "model.safetensors"
    if how == "pytorch_model.bin":
        (path / "model.safetensors").unlink()
        state = {**original.state_dict(), "vision_model.embeddings.position_ids": torch.arange(17)}
        torch.save(state, path / how)
    adopted = imported(path, None, image_height=32, image_width=32)
    images = pixels(size=(32, 32))
    with torch.no_grad():
        theirs: Any = original.get_image_features(pixel_values=of_clip(images))
        expected = normalize(theirs.pooler_output).numpy()
    np.testing.assert_allclose(embedded(adopted.model, images), expected, atol=2e-6)
    assert adopted.model.clip_shape.text_heads == 2
    tokens = open_clip.tokenize(["A photo of a person"])
    with torch.no_grad():
        text: Any = original.get_text_features(input_ids=tokens)
        ours = text_features(adopted.model, tokens)
    np.testing.assert_allclose(ours.numpy(), text.pooler_output.numpy(), atol=1e-5)


def text_features(model: MuvaModel, tokens: Tensor) -> Tensor:
    """The text of these tokens through a model's text side."""
    text = model.text_encoder
    x = text.token_embedding(tokens) + text.positional_embedding
    causal = torch.full((77, 77), float("-inf")).triu(1)
    for block in text.transformer.get_submodule("resblocks").children():
        x = block(x, attn_mask=causal)
    return text.ln_final(x)[:, tokens[0].argmax()] @ text.text_projection


def test_mean_and_std_from_the_configuration_file_count(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    assert imported(tmp_path, None).model.config.mean == (0.1, 0.2, 0.3)
    given = imported(tmp_path, None, mean=(0.5, 0.5, 0.5)).model.config
    assert (given.mean, given.std) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))


def test_open_clips_own_description_counts(tmp_path: Path) -> None:
    original = square_clip(quick_gelu=False)
    torch.save(original.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    description = {
        "model_cfg": {"embed_dim": 32, "vision_cfg": {"width": 64}, "text_cfg": {"heads": 1}},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
    adopted = imported(tmp_path, None, image_height=32, image_width=32)
    images = pixels(size=(32, 32))
    with torch.no_grad():
        expected = original.encode_image((images / 255 - 0.5) / 0.25, normalize=True).numpy()
    np.testing.assert_allclose(embedded(adopted.model, images), expected, atol=2e-6)
    description["model_cfg"].pop("vision_cfg")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
    with pytest.raises(MuvaError, match=r"next to open_clip_pytorch_model\.bin is damaged"):
        imported(tmp_path, None)


def test_an_image_encoder_alone_takes_its_text_side_from_clip(clip: Path, tmp_path: Path) -> None:
    whole = hugging_face(tmp_path / "whole")
    tower: Any = whole.config.vision_config
    vision = CLIPVisionModelWithProjection(tower)
    vision.load_state_dict(whole.state_dict(), strict=False)
    vision.save_pretrained(tmp_path / "vision")
    adopted = imported(tmp_path / "vision", clip)
    images = pixels()
    expected = embedded(imported(tmp_path / "whole", None).model, images)
    np.testing.assert_allclose(embedded(adopted.model, images), expected, atol=1e-6)
    assert rows_of(adopted)["text side"].source == "that CLIP"


def test_an_activation_that_config_json_denies_is_refused(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    with pytest.raises(SettingsError, match="says quick-gelu, but --activation the opposite"):
        imported(tmp_path, None, quick_gelu=False)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MuvaError, match="names the activation relu"):
        imported(tmp_path, None)


def test_a_folder_of_our_own_clip_is_one_too(clip: Path) -> None:
    adopted = imported(clip, None)
    images = pixels()
    with torch.no_grad():
        expected = small_clip().eval().encode_image((images / 255 - 0.5) / 0.5, normalize=True)
    np.testing.assert_allclose(embedded(adopted.model, images), expected.numpy(), atol=2e-6)


# What is none of them ----------------------------------------------------------------------------


def test_an_unknown_form_is_refused_with_the_closest_one(clip: Path, tmp_path: Path) -> None:
    file = write({"blocks.0.attn.qkv.weight": torch.zeros(1)}, tmp_path / "timm.pth")
    with pytest.raises(MuvaError, match=r"such as blocks\.0\.attn\.qkv\.weight\)\. Expected resid"):
        imported(file, clip)
    state = {f"image_encoder.{n}": v for n, v in visual_of(trained_model()).items()}
    file = write(state, tmp_path / "encoder.pth")
    with pytest.raises(
        MuvaError, match=r"not a known checkpoint form .*Closest is muva .*residual_mask_predictor"
    ):
        imported(file, clip)
    model = trained_model()
    save_bundle(model, tmp_path / "bundle", metadata={})
    with pytest.raises(MuvaError, match="muva model bundle, which needs no import"):
        imported(tmp_path / "bundle" / "model.safetensors", clip)


def test_the_wrong_form_is_refused_with_the_right_one(clip: Path, tmp_path: Path) -> None:
    release = write(release_state(trained_model()), tmp_path / "release.pth")
    with pytest.raises(MuvaError, match=r"not of the form clip-reid .*--form muva"):
        imported(release, clip, form="clip-reid")
    reid = write(clip_reid_state(trained_model(parts=())), tmp_path / "reid.pth")
    with pytest.raises(MuvaError, match=r"such as local_token, .*--form clip-reid"):
        imported(reid, clip, form="muva")
    hugging_face(tmp_path / "hf")
    with pytest.raises(MuvaError, match=r"not of the form muva .*--form clip"):
        imported(tmp_path / "hf", clip, form="muva")


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.proj",
        "image_encoder.transformer.resblocks.0.ln_1.weight",
        "bnneck.weight",
        "text_encoder.text_projection",
        "text_encoder.transformer.resblocks.0.mlp.c_fc.weight",
    ],
)
def test_a_missing_entry_is_named(name: str, clip: Path, tmp_path: Path) -> None:
    state = release_state(trained_model())
    del state[name]
    with pytest.raises(MuvaError, match=rf"1 entries are missing, such as {name}"):
        imported(write(state, tmp_path / "model.pth"), clip)


def test_files_that_cannot_be_read_say_why(clip: Path, tmp_path: Path) -> None:
    file = write(release_state(trained_model()), tmp_path / "model.pth")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        MuvaError, match=r"cannot be read as weights .*Check that the file is complete"
    ):
        imported(file, clip)
    with pytest.raises(MuvaError, match=r"absent\.pth: expected a weights file, found none"):
        imported(tmp_path / "absent.pth", clip)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MuvaError, match=r"expected one of model\.safetensors, .*found none"):
        imported(tmp_path / "empty", clip)
    (tmp_path / "empty" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(MuvaError, match="its weights are in several files"):
        imported(tmp_path / "empty", clip)


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("new_form", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    new_form: bool, clip: Path, tmp_path: Path
) -> None:
    content = {"state_dict": release_state(trained_model()), "args": Trap(tmp_path / "sprung")}
    file = tmp_path / "model.pth"
    torch.save(content, file, _use_new_zipfile_serialization=new_form)
    with pytest.raises(
        MuvaError, match=r"refers to \w+\.mkdir, .*was not loaded.*weights_only=Fal"
    ):
        imported(file, clip)
    assert not (tmp_path / "sprung").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "sprung").exists()  # so the trap was one


def test_the_config_of_a_small_model_is_the_one_that_tests_assume() -> None:
    config = small_config()
    assert (config.image_height, config.image_width, config.stride) == (*IMAGE_SIZE, PATCH)
