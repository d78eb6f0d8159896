from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from muva.config import PromptConfig
from muva.errors import MuvaError
from muva.model.bundle import load_bundle, pretrained_clip, save_bundle
from muva.model.clip import save_clip
from muva.model.muva_model import build_model
from tests.model.small import IMAGE_SIZE, PATCH, small_clip, small_config, small_model

METADATA = {"sources": ["a", "b"], "fingerprint": "0123456789abcdef"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(trained_model(), tmp_path / "bundle", metadata=METADATA)
    return tmp_path / "bundle"


def trained_model():
    model = small_model(gating="online", mask_max_value=5.0).eval()
    model.get_buffer("bn_neck.running_mean").add_(0.1)
    model.get_buffer("bn_neck.running_var").mul_(2)
    return model


def picture(height: int = 60, width: int = 31) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_a_bundle_embeds_as_the_model_that_was_saved(folder: Path) -> None:
    bundle = load_bundle(folder)
    model = trained_model()
    resized = np.asarray(picture().resize((24, 48), Image.Resampling.BILINEAR))
    images = (torch.from_numpy(resized.copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    with torch.no_grad():
        after_neck = model.neck(model.encode_images(images).feature)
    expected = torch.nn.functional.normalize(after_neck).numpy()
    np.testing.assert_allclose(bundle.embed([picture()]), expected, rtol=1e-5, atol=1e-6)
    assert bundle.metadata == METADATA
    assert bundle.feature_dim == 4 * 32
    for name, value in model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value), name


def test_prompts_that_differ_by_domain_are_those_that_were_saved(tmp_path: Path) -> None:
    prompts = PromptConfig(domain_context="taken at night", domain_contexts={"b": ""})
    domains = ["a", "b", "a"]
    model = build_model(
        small_clip(), model=small_config(), prompts=prompts, identities=3, seed=0, domains=domains
    )
    save_bundle(model.eval(), tmp_path / "bundle", metadata=METADATA)
    loaded = load_bundle(tmp_path / "bundle").model
    assert torch.equal(loaded.prototypes(), model.prototypes())
    model.contexts.data.copy_(model.contexts[:1].expand_as(model.contexts).clone())
    night, other, again = model.prototypes()
    assert torch.equal(night, again)
    assert not torch.equal(night, other)


def test_a_compact_bundle_is_small_and_has_the_same_features(folder: Path) -> None:
    whole, compact = load_bundle(folder), folder.parent / "compact"
    whole.save(compact, compact=True)
    saved = load_bundle(compact)
    cosine = (whole.embed([picture()]) * saved.embed([picture()])).sum()
    assert cosine > 0.9999
    sizes = [(each / "model.safetensors").stat().st_size for each in (compact, folder)]
    assert sizes[0] < 0.6 * sizes[1]
    assert (saved.model.identities, len(saved.model.classifier.weight)) == (0, 0)
    assert saved.metadata == {**METADATA, "training_identities": 4}
    assert "with 4 people" not in (compact / "README.md").read_text()  # the sources have no names
    saved.save(folder.parent / "again", compact=True)
    for file in compact.iterdir():
        if file.name != "README.md":  # which has the folder's name
            assert (folder.parent / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_training_starts_from_a_compact_bundle(folder: Path) -> None:
    compact = folder.parent / "compact"
    load_bundle(folder).save(compact, compact=True)
    fresh = small_model(identities=7, gating="online", mask_max_value=5.0)
    fresh.start_from(load_bundle(compact).model)
    expected = load_bundle(folder).model.image_encoder.state_dict()
    for name, value in fresh.image_encoder.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_a_compact_bundle_keeps_no_prompts_of_domains(tmp_path: Path) -> None:
    prompts = PromptConfig(domain_contexts={"a": "taken at night"})
    model = build_model(
        small_clip(),
        model=small_config(),
        prompts=prompts,
        identities=2,
        seed=0,
        domains=["a", "b"],
    )
    save_bundle(model.eval(), tmp_path / "bundle", metadata=METADATA, compact=True)
    assert load_bundle(tmp_path / "bundle").model.identities == 0


def test_a_saved_bundle_replaces_an_earlier_one_but_neither_other_files_nor_an_edited_card(
    folder: Path,
) -> None:
    bundle, saved = load_bundle(folder), folder.parent / "saved"
    results = {"syn-station": {"mAP": 0.5, "rank-1": 0.25}}
    bundle.save(saved, licence="apache-2.0", results=results)
    card = (saved / "README.md").read_text()
    assert "| syn-station | 25.0 | 50.0 |" in card
    assert 'muva.load("./saved")' in card
    bundle.save(saved)
    assert "syn-station" not in (saved / "README.md").read_text()
    (saved / "README.md").write_text("mine")
    bundle.save(saved, licence="apache-2.0")
    assert (saved / "README.md").read_text() == "mine"
    (saved / "notes.txt").write_text("mine too")
    with pytest.raises(MuvaError, match=r"holds notes\.txt, which belongs to no bundle"):
        bundle.save(saved)


def test_every_kind_of_image_gives_the_same_feature(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    stream = BytesIO()
    picture().save(stream, "PNG")
    (tmp_path / "image.png").write_bytes(stream.getvalue())
    images = [
        picture(),
        picture().convert("RGBA"),
        np.asarray(picture()),
        stream.getvalue(),
        tmp_path / "image.png",
        f"{tmp_path / 'image.png'}",
    ]
    features = bundle.embed(images, batch_size=2)
    assert features.dtype == np.float32 and features.shape == (6, bundle.feature_dim)
    np.testing.assert_allclose(features, features[:1].repeat(6, axis=0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    assert np.array_equal(bundle.embed(images, batch_size=2, decoders=3), features)
    assert bundle.embed([]).shape == (0, bundle.feature_dim)


@pytest.mark.parametrize("decoders", [0, 2])
def test_images_are_taken_from_a_sequence_batch_by_batch(folder: Path, decoders: int) -> None:
    class Reading(Sequence[np.ndarray]):
        read: ClassVar[list[slice]] = []

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: Any) -> Any:
            if isinstance(index, int):  # the type checker of the tests looks at one
                return np.asarray(picture())
            self.read.append(index)
            return [np.asarray(picture())] * len(range(5)[index])

    Reading.read = []
    done: list[int] = []
    bundle = load_bundle(folder)
    features = bundle.embed(Reading(), batch_size=2, decoders=decoders, progress=done.append)
    assert (len(features), done) == (5, [2, 4, 5])
    assert Reading.read == [slice(0, 2), slice(2, 4), slice(4, 6)]


def test_a_rotated_or_deep_picture_gives_the_same_feature_as_a_file_and_as_a_pil_image(
    folder: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(folder)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    picture().save(tmp_path / "rotated.jpg", exif=exif)
    deep = np.random.default_rng(2).integers(0, 65536, (60, 31), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name in ("rotated.jpg", "deep.png"):
        image = Image.open(tmp_path / name)
        by_path, as_image = bundle.embed([tmp_path / name, image])
        np.testing.assert_allclose(by_path, as_image, atol=1e-6, err_msg=name)
        as_before = bundle.embed([np.array(image.convert("RGB"))])[0]
        assert np.abs(as_before - by_path).max() > 1e-3, name


def test_pixels_may_be_bytes_or_fractions(folder: Path) -> None:
    bundle = load_bundle(folder)
    pixels = torch.randint(0, 256, (3, 3, *IMAGE_SIZE), dtype=torch.uint8)
    np.testing.assert_allclose(
        bundle.embed_pixels(pixels), bundle.embed_pixels(pixels / 255), atol=1e-6
    )
    with pytest.raises(MuvaError, match="this model expects 48 x 24"):
        bundle.embed_pixels(pixels[..., :20])


def test_what_is_not_an_image_is_named(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    with pytest.raises(MuvaError, match=r"absent\.jpg: .*No such file"):
        bundle.embed([tmp_path / "absent.jpg"])
    with pytest.raises(MuvaError, match="of 3 bytes: not an image"):
        bundle.embed([b"abc"])
    with pytest.raises(MuvaError, match=r"float64 \(4, 4\): expected uint8"):
        bundle.embed([np.zeros((4, 4))])


def test_a_trained_encoder_is_copied_for_other_identities(folder: Path) -> None:
    trained = load_bundle(folder).model
    model = small_model(identities=9, seed=4, gating="online", mask_max_value=5.0)
    contexts = model.contexts.detach().clone()
    model.start_from(trained)
    for name, value in trained.image_encoder.state_dict().items():
        assert torch.equal(model.image_encoder.state_dict()[name], value), name
    variances = [m.get_buffer("bn_neck.running_var") for m in (model, trained)]
    assert torch.equal(*variances)
    assert torch.equal(model.contexts, contexts)


def test_a_model_of_a_different_architecture_is_refused_as_a_start(folder: Path) -> None:
    trained = load_bundle(folder).model
    with pytest.raises(MuvaError, match=r"parts is \('head', .*\) in that model, \('head',\) here"):
        small_model(parts=("head",)).start_from(trained)
    with pytest.raises(MuvaError, match="predictor_layer_norm is True in that model, False here"):
        small_model(predictor_layer_norm=False).start_from(trained)
    with pytest.raises(MuvaError, match=r'use its settings: --set model\.parts=\["head",'):
        small_model(parts=("head",)).start_from(trained)
    wider = small_model(vision_layers=3, gating="online")
    with pytest.raises(
        MuvaError, match=r"vision_layers is 2 in that model, 3 here\. Choose .* --set model\.clip"
    ):
        wider.start_from(trained)
    copied = small_model(part_token_init="cls")
    copied.start_from(trained)
    offline = small_model(gating="offline")
    offline.start_from(trained)
    assert offline.config.gating == "offline"


def test_a_start_may_leave_the_mask_predictor_out(folder: Path) -> None:
    trained = load_bundle(folder).model
    model = small_model(predictor_layer_norm=False, seed=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.start_from(trained, mask_predictor=False)
    for name, value in model.state_dict().items():
        taken = name.startswith(("image_encoder.", "bn_neck.")) and "predictor" not in name
        expected = trained.state_dict()[name] if taken else before[name]
        assert torch.equal(value, expected), name


def test_a_start_copies_the_classifier_on_request(folder: Path) -> None:
    trained = load_bundle(folder).model
    model = small_model(seed=8)
    assert not torch.equal(model.classifier.weight, trained.classifier.weight)
    model.start_from(trained, classifier=True)
    assert torch.equal(model.classifier.weight, trained.classifier.weight)


def test_damage_is_found(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[len(whole) // 2] ^= 4
    weights.write_bytes(whole)
    with pytest.raises(MuvaError, match=r"model\.safetensors is damaged"):
        load_bundle(folder)
    weights.unlink()
    with pytest.raises(MuvaError, match=r"model\.safetensors is missing"):
        load_bundle(folder)


def change(folder: Path, **changed: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_description_of_another_model_is_refused(folder: Path) -> None:
    stored = json.loads((folder / "bundle.json").read_text())
    change(folder, model={**stored["model"], "parts": ["head"]})
    with pytest.raises(
        MuvaError, match=r"does not match the configuration in bundle\.json: size mismatch for"
    ):
        load_bundle(folder)
    change(folder, model={**stored["model"], "colour": "red"})
    with pytest.raises(MuvaError, match="does not describe a model of this version"):
        load_bundle(folder)
    change(folder, format_version=99)
    with pytest.raises(MuvaError, match="format version 99, but this program reads version 1"):
        load_bundle(folder)
    (folder / "bundle.json").write_text("{")
    with pytest.raises(MuvaError, match=r"bundle\.json is damaged"):
        load_bundle(folder)
    (folder / "bundle.json").unlink()
    with pytest.raises(MuvaError, match="is not a model bundle"):
        load_bundle(folder)


def test_the_pretrained_clip_embeds_with_its_own_mean_and_std(tmp_path: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    clip = small_clip(mean=mean, std=std).eval()
    save_clip(clip, tmp_path, name="small", dtype=torch.float32)
    embedder = pretrained_clip(
        str(tmp_path), image_height=IMAGE_SIZE[0], image_width=IMAGE_SIZE[1], stride=PATCH
    )
    pixels = torch.rand(2, 3, *IMAGE_SIZE)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = clip.encode_image(normalised, normalize=True).numpy()
    np.testing.assert_allclose(embedder.embed_pixels(pixels), expected, atol=1e-6)
    assert embedder.feature_dim == 32
