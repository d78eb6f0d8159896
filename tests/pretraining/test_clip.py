"""Pre-training the small CLIPs: repeatable, resumable, learning, from the open world alone."""

import math
from itertools import islice

import numpy as np
import open_clip
import pytest
import torch

from muva.model.clip import CLIP_FOLDERS, load_clip, new_clip, save_clip, token_ids_in
from muva.pretraining import clip as pretrain_clip
from muva.pretraining.clip import (
    IMAGE_TEMPERATURE,
    PROMPT_WORDS,
    class_tokens,
    draw_batch,
    draw_people,
    encode_images,
    learning_rate_factor,
    nt_xent,
    phrase,
    pretrain,
    unseen,
)
from muva.pretraining.crowd import Crowd, rendered_crowd
from muva.pretraining.variation import varied
from muva.synthetic import BENCHMARK, render
from muva.synthetic.caption import caption, vocabulary_texts
from muva.synthetic.domain import find_domain
from muva.synthetic.identity import identity

IMAGE_SIZE = (32, 16)
TOKEN_IDS = token_ids_in([*vocabulary_texts(), *PROMPT_WORDS])


def fresh_clip(seed: int = 0) -> open_clip.CLIP:
    return new_clip(token_ids=TOKEN_IDS, seed=seed, image_size=IMAGE_SIZE)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these small steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    """Eight people of two networks, each in a grey of their own, with the captions of real ones."""
    greys = np.linspace(20, 235, 8).astype(np.uint8)
    images = np.tile(greys[:, None, None, None, None], (1, 3, *IMAGE_SIZE, 3))
    captions = [caption(identity("syn-mall", pid)) for pid in range(1, 9)]
    return Crowd(images, captions, np.repeat([3, 5], 4))


def losses(crowd: Crowd, *, seed: int = 0, steps: int = 3) -> list[float]:
    reports = pretrain(fresh_clip(), crowd, steps=steps, seed=seed)
    return [report.caption_loss + report.image_loss for report in reports]


def test_same_seed_gives_the_same_losses_and_another_seed_others(crowd):
    assert losses(crowd, seed=1) == losses(crowd, seed=1)
    assert losses(crowd, seed=1) != losses(crowd, seed=2)


def test_the_losses_fall_below_those_of_guessing(crowd, monkeypatch):
    monkeypatch.setattr(pretrain_clip, "varied", lambda pixels, rng: pixels)
    reports = list(pretrain(fresh_clip(), crowd, steps=40, seed=0))
    assert np.mean([report.caption_loss for report in reports[-5:]]) < np.log(8) - 0.3
    assert np.mean([report.image_loss for report in reports[-5:]]) < np.log(15) - 0.3


def test_a_training_that_was_interrupted_continues_as_if_it_had_not_been(
    crowd, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretrain_clip, "CHECKPOINT_EVERY", 2)
    whole = fresh_clip()
    uninterrupted = list(pretrain(whole, crowd, steps=5, seed=0))
    first = list(islice(pretrain(fresh_clip(), crowd, steps=5, seed=0, checkpoints=tmp_path), 3))
    continued = fresh_clip(seed=9)
    rest = list(pretrain(continued, crowd, steps=5, seed=0, checkpoints=tmp_path))
    assert first + rest[1:] == uninterrupted  # step 3 is repeated
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(continued.state_dict()[name], value, rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_that_was_not_finished_is_passed_over(crowd, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_clip, "CHECKPOINT_EVERY", 2)
    list(islice(pretrain(fresh_clip(), crowd, steps=5, seed=0, checkpoints=tmp_path), 3))
    (tmp_path / "000004").mkdir()
    (tmp_path / "000004" / "state.safetensors").write_bytes(b"half")
    rest = list(pretrain(fresh_clip(), crowd, steps=5, seed=0, checkpoints=tmp_path))
    assert [report.step for report in rest] == [3, 4, 5]


def test_the_loss_between_images_is_that_of_a_loop():
    features = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    expected = 0.0
    for one in range(6):
        similarity = {
            other: math.exp(float(features[one] @ features[other]) / IMAGE_TEMPERATURE)
            for other in range(6)
            if other != one
        }
        expected -= math.log(similarity[(one + 3) % 6] / sum(similarity.values())) / 6
    assert float(nt_xent(features)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_has_two_views_of_different_people_of_a_few_networks(crowd, monkeypatch):
    monkeypatch.setattr(pretrain_clip, "BATCH_NETWORKS", 1)
    monkeypatch.setattr(pretrain_clip, "BATCH_PEOPLE", 3)
    people = draw_people(crowd, np.random.default_rng(0))
    assert len(set(people.tolist())) == 3
    assert len(set(crowd.networks[people].tolist())) == 1
    images, texts = draw_batch(crowd, fresh_clip(), np.random.default_rng(0))
    assert images.shape == (6, 3, *IMAGE_SIZE)
    assert len({tuple(text.tolist()) for text in texts}) == 3
    assert (texts == open_clip.tokenize("")[0, 1]).any(dim=1).all()


def test_kept_patches_are_those_of_all_patches():
    clip, images = fresh_clip().eval(), torch.rand(2, 3, *IMAGE_SIZE)
    every = torch.arange(8).expand(2, -1)
    with torch.inference_mode():
        expected = encode_images(clip, images)
        torch.testing.assert_close(encode_images(clip, images, kept=every), expected)
        half = encode_images(clip, images, kept=every[:, ::2])
    assert (half - expected).abs().max() > 1e-3


def test_variations_keep_the_range_and_differ_between_images():
    plain = torch.rand(1, 3, 64, 32).expand(6, -1, -1, -1)
    images = varied(plain, np.random.default_rng(0))
    assert images.shape == plain.shape
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    assert len({float(image.mean()) for image in images}) == 6
    torch.testing.assert_close(images, varied(plain, np.random.default_rng(0)))


def test_the_fast_forward_gives_clips_own_features():
    clip, images = fresh_clip().eval(), torch.rand(3, 3, *IMAGE_SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(
            encode_images(clip, images), clip.encode_image(images), rtol=1e-4, atol=1e-5
        )


def test_only_rows_of_the_vocabulary_are_needed():
    embedding = fresh_clip().get_submodule("token_embedding")
    texts = [
        "A photo of a * * * * person",
        "A photo of a * * * * legs of a person, taken at night",
        *(caption(identity(domain, pid)) for domain in BENCHMARK for pid in range(1, 40)),
        *(caption(identity("syn-world-0007", pid)) for pid in range(1, 40)),
    ]
    assert embedding(open_clip.tokenize(texts)).isfinite().all()


def test_phrases_keep_the_attributes():
    text = "a tall slim woman with long black hair, wearing a red coat and black shoes"
    phrases = {phrase(text, np.random.default_rng(seed)) for seed in range(40)}
    assert text in phrases and f"A photo of {text}" in phrases
    assert f"A photo of {text.replace('woman', 'person')}" in phrases
    assert all(each.endswith("wearing a red coat and black shoes") for each in phrases)


def test_the_rate_warms_up_to_its_peak_and_ends_at_zero():
    factors = [learning_rate_factor(step, 100, warmup=0.05) for step in range(1, 101)]
    assert factors[4] == 1 == max(factors)
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert factors[:5] == sorted(factors[:5])
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    clip = fresh_clip().eval()
    save_clip(clip, tmp_path, name="tiny")
    loaded = load_clip(str(tmp_path), image_size=IMAGE_SIZE, stride=8)
    images = torch.rand(2, 3, *IMAGE_SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded.encode_image(images), clip.encode_image(images), rtol=0.02, atol=0.02
        )


@pytest.mark.parametrize("name", CLIP_FOLDERS)
def test_the_shipped_clips_are_small_and_distinguish_people(name):
    assert (CLIP_FOLDERS[name] / "model.safetensors").stat().st_size < 10e6
    clip = load_clip(name, image_size=(128, 64), stride=8)
    assert sum(parameter.numel() for parameter in clip.parameters()) < 5e6
    result = unseen(class_tokens(clip), "syn-campus", people=10)
    assert result.valid_queries == 40
    assert result.cmc[1] > 0.5  # a tenth by chance


def test_people_are_rendered_once_and_seen_by_different_cameras(tmp_path):
    options = {"people": 2, "views": 4, "folder": tmp_path, "processes": 1}
    crowd = rendered_crowd([7], **options)
    assert crowd.images.shape == (2, 4, 128, 64, 3)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = rendered_crowd([7, 8], **options)
    assert path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.images[:2], crowd.images)
    assert again.networks.tolist() == [7, 7, 8, 8]
    assert again.captions[1] == caption(identity("syn-world-0007", 2))
    cameras = range(1, find_domain("syn-world-0007").cameras + 1)
    shots = [
        render("syn-world-0007", pid=1, camid=camid, index=0, height=128, width=64).image
        for camid in cameras
    ]
    found = [sum(np.array_equal(image, shot) for shot in shots) for image in crowd.images[0]]
    assert found == [1, 1, 1, 1]
