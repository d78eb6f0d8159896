"""Augmentation compared with a loop over images, written with PIL, torchvision and NumPy."""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from muva.config import AugmentationConfig
from muva.config.augmentation import STRENGTHS
from muva.data.augmentation import augmented, hue_rotation
from muva.data.augmentation_draws import AugmentationDraws, draw_augmentations

HEIGHT, WIDTH = 40, 24
ON: dict[str, Any] = {
    "pad": 5, "jitter": 0.7, "gamma": 1.5, "cast": 0.2, "grey": 0.3, "blur": 0.5,
    "low_resolution": 0.5, "sharpen": 0.5, "jpeg": 0.5, "erase": 0.5,
}  # fmt: skip
"""Every augmentation, so that some images have it and others do not."""


def pictures(count: int = 12, *, low: int = 0, high: int = 255) -> np.ndarray:
    """Smooth images (count, 40, 24, 3), as photos are at this size."""
    rng = np.random.default_rng(4)
    small = rng.integers(low, high + 1, (count, 8, 5, 3), dtype=np.uint8)
    size = (WIDTH, HEIGHT)
    return np.stack(
        [np.array(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in small]
    )


def seeds_of(count: int = 12) -> np.ndarray:
    return np.random.default_rng(7).integers(2**63 - 1, size=count)


def draws_of(
    settings: AugmentationConfig, seeds: np.ndarray, *, height: int = HEIGHT, width: int = WIDTH
) -> AugmentationDraws:
    return draw_augmentations(seeds, settings, height=height, width=width)


def largest_difference(some: np.ndarray, others: np.ndarray) -> int:
    return int(np.abs(some.astype(int) - others.astype(int)).max())


def altered(settings: AugmentationConfig, pixels: np.ndarray) -> tuple[np.ndarray, Any]:
    seeds = seeds_of(len(pixels))
    return augmented(pixels, seeds, settings)[0], draws_of(settings, seeds)


# A naive loop: what is drawn is done to one image after the other, by other code.


def moved(image: np.ndarray, shift: np.ndarray, pad: int) -> np.ndarray:
    padded = ImageOps.expand(Image.fromarray(image), pad)
    left, top = pad - int(shift[0]), pad - int(shift[1])
    return np.array(padded.crop((left, top, left + WIDTH, top + HEIGHT)))


def with_levels(image: np.ndarray, gamma: float, gain: np.ndarray) -> np.ndarray:
    result = np.empty_like(image)
    for place, level in np.ndenumerate(image):
        value = 255 * (level / 255) ** gamma * gain[place[2]]
        result[place] = min(max(round(value), 0), 255)
    return result


def recoloured(image: np.ndarray, jitter: np.ndarray, *, to_grey: bool) -> np.ndarray:
    brightness, contrast, saturation, turns = jitter
    colours = image.astype(float) * brightness
    mean = sum(w * colours[..., c].mean() for c, w in enumerate((0.299, 0.587, 0.114)))
    colours = mean + contrast * (colours - mean)
    for factor in (saturation, None, 0.0 if to_grey else 1.0):
        grey = colours @ [0.299, 0.587, 0.114]
        if factor is None:
            i = colours @ [0.596, -0.274, -0.322]
            q = colours @ [0.211, -0.523, 0.312]
            turned = (i + 1j * q) * np.exp(2j * np.pi * turns)
            inverse = np.linalg.inv(
                [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
            )
            colours = np.stack([grey, turned.real, turned.imag], axis=-1) @ inverse.T
        else:
            colours = grey[..., None] + factor * (colours - grey[..., None])
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    size = 2 * round(3 * sigma) + 1
    tensor = torch.from_numpy(image).permute(2, 0, 1).double()
    result = functional.gaussian_blur(tensor, [size, size], [sigma, sigma])
    return result.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def overlaps(size: int, low: int) -> np.ndarray:
    """What part of each of `size` pixels lies in each of `low` pixels of the same length."""
    edges = [(i * size / low, (i + 1) * size / low) for i in range(low)]
    shares = [[max(0, min(b, j + 1) - max(a, j)) for j in range(size)] for a, b in edges]
    return np.array(shares) * low / size


def reduced(image: np.ndarray, scale: float) -> np.ndarray:
    down, across = (overlaps(n, max(1, round(scale * n))) for n in (HEIGHT, WIDTH))
    return np.rint(np.einsum("yh,hwc,xw->yxc", down, image, across)).astype(np.uint8)


def enlarged(image: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    result = torch.nn.functional.interpolate(tensor, (HEIGHT, WIDTH), mode="bicubic")
    return result[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def sharpened(image: np.ndarray, amount: float) -> np.ndarray:
    values = image + amount * (image - blurred(image, 1.0).astype(float))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(file))


def naive(image: np.ndarray, draws: AugmentationDraws, number: int, pad: int) -> np.ndarray:
    """All but random erasing."""
    image = moved(image, draws.shift[number], pad)
    image = with_levels(image, draws.gamma[number], draws.gain[number])
    image = recoloured(image, draws.jitter[number], to_grey=bool(draws.grey[number]))
    if draws.blur_sigma[number]:
        image = blurred(image, draws.blur_sigma[number])
    if draws.scale[number] < 1:
        image = reduced(image, draws.scale[number])
    if draws.sharpening[number]:
        image = sharpened(image, draws.sharpening[number])
    if draws.jpeg_quality[number]:
        image = compressed(image, int(draws.jpeg_quality[number]))
    return enlarged(image) if draws.scale[number] < 1 else image


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"pad": 7}, 0),
        ({"gamma": 2.0, "cast": 0.3}, 0),
        ({"grey": 0.5}, 1),
        # Away from black and white, where torchvision and a single matrix clip differently.
        ({"jitter": 0.8, "brightness": 0.2, "contrast": 0.2}, 1),
        ({"jitter": 1.0, "hue": 0.5, "saturation": 1.0}, 1),
        ({"blur": 0.7, "blur_sigma": [0.5, 2.5]}, 1),
        ({"low_resolution": 0.8, "low_resolution_scale": 0.2}, 2),
        ({"sharpen": 0.8, "sharpen_amount": 2.0}, 3),
        ({"jpeg": 0.8, "jpeg_quality": [10, 95]}, 1),
    ],
    ids=lambda changes: "-".join(changes) if isinstance(changes, dict) else "",
)
def test_each_augmentation_equals_a_naive_loop(changes: dict[str, Any], levels: int) -> None:
    pixels = pictures(low=90, high=165)
    settings = AugmentationConfig(**changes)
    result, draws = altered(settings, pixels)
    expected = np.stack([naive(p, draws, n, settings.pad) for n, p in enumerate(pixels)])
    assert largest_difference(result, pixels) > 5
    assert largest_difference(result, expected) <= levels


def test_all_together_they_equal_a_naive_loop() -> None:
    pixels = pictures(40)
    for jpeg, mean, most in ((0, 0.2, 5), (0.5, 0.6, 255)):
        settings = AugmentationConfig(**{**ON, "erase": 0, "jpeg": jpeg})
        result, draws = altered(settings, pixels)
        expected = np.stack([naive(p, draws, n, settings.pad) for n, p in enumerate(pixels)])
        # JPEG may turn a level of difference into many: then it rounds a coefficient differently.
        assert largest_difference(result, expected) <= most
        assert np.abs(result.astype(int) - expected).mean() < mean


@pytest.mark.parametrize(
    ("strength", "change"),
    [
        ("brightness", lambda image, jitter: functional.adjust_brightness(image, jitter[0])),
        ("contrast", lambda image, jitter: functional.adjust_contrast(image, jitter[1])),
        ("saturation", lambda image, jitter: functional.adjust_saturation(image, jitter[2])),
    ],
)
def test_jitter_is_torchvisions(strength: str, change: Any) -> None:
    none: dict[str, Any] = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    settings = AugmentationConfig(jitter=1, **{**none, strength: 0.5})
    pixels = pictures()
    result, draws = altered(settings, pixels)
    for number, image in enumerate(torch.from_numpy(pixels).permute(0, 3, 1, 2)):
        expected = change(image, draws.jitter[number].tolist()).permute(1, 2, 0).numpy()
        assert largest_difference(result[number], expected) <= 2  # torchvision rounds down, twice


def test_a_rotation_of_hue_keeps_greys_and_brightness_and_comes_round() -> None:
    colours = np.random.default_rng(0).uniform(0, 255, (50, 3))
    luma = np.array([0.299, 0.587, 0.114])
    third, whole = hue_rotation(np.array([1 / 3, 1.0]))
    np.testing.assert_allclose(third @ np.ones(3), 1, atol=1e-12)
    np.testing.assert_allclose(colours @ third.T @ luma, colours @ luma)
    np.testing.assert_allclose(np.linalg.matrix_power(third, 3), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(whole, np.eye(3), atol=1e-12)
    assert np.abs(colours @ third.T - colours).max() > 50


def test_random_erasing_fills_one_rectangle_of_the_settings_area_and_aspect_with_noise() -> None:
    settings = AugmentationConfig(erase=0.5, erase_area=(0.1, 0.3), erase_aspect=(0.5, 2))
    pixels = np.full((400, 64, 32, 3), 7, np.uint8)
    seeds = seeds_of(400)
    result, _ = augmented(pixels, seeds, settings)
    erased = draws_of(settings, seeds, height=64, width=32).erased
    noise = []
    for image, (x0, y0, x1, y1) in zip(result, erased.tolist(), strict=True):
        outside = image.copy()
        outside[y0:y1, x0:x1] = 7
        assert (outside == 7).all()
        if x1 == 0:
            continue
        assert 0 <= x0 < x1 <= 32 and 0 <= y0 < y1 <= 64
        noise.append(image[y0:y1, x0:x1].ravel())
        wide, tall = x1 - x0, y1 - y0
        # Sides are rounded to whole pixels.
        assert (wide + 0.5) * (tall + 0.5) / (64 * 32) >= 0.1
        assert (wide - 0.5) * (tall - 0.5) / (64 * 32) <= 0.3
        assert (tall + 0.5) / (wide - 0.5) >= 0.5 and (tall - 0.5) / (wide + 0.5) <= 2
    assert 150 < len(noise) < 250
    levels = np.concatenate(noise)
    assert np.bincount(levels, minlength=256).std() < 0.2 * len(levels) / 256
    assert not np.array_equal(noise[0][:50], noise[1][:50])


def test_what_is_drawn_stays_in_its_range_and_happens_as_often_as_its_probability() -> None:
    draws = draws_of(AugmentationConfig(**ON), seeds_of(4000))
    assert set(np.unique(draws.shift)) == set(range(-5, 6))
    assert draws.gamma.min() > 1 / 1.5 and draws.gamma.max() < 1.5
    assert np.median(draws.gamma) == pytest.approx(1, abs=0.02), "as often brighter as darker"
    assert draws.gain.min() >= 0.8 and draws.gain.max() <= 1.2
    deviations = np.abs(draws.jitter - [1, 1, 1, 0]).max(axis=0)
    assert (deviations <= [0.15, 0.15, 0.1, 0.1]).all()
    assert (deviations > [0.14, 0.14, 0.09, 0.09]).all()
    often = {
        "jitter": (draws.jitter != [1, 1, 1, 0]).any(axis=1),
        "grey": draws.grey,
        "blur": draws.blur_sigma > 0,
        "low_resolution": draws.scale < 1,
        "sharpen": draws.sharpening > 0,
        "jpeg": draws.jpeg_quality > 0,
        "erase": draws.erased.any(axis=1),
    }
    for name, happened in often.items():
        assert happened.mean() == pytest.approx(ON[name], abs=0.03), name
    assert set(np.unique(draws.jpeg_quality)) == {0, *range(30, 91)}
    assert set(np.unique(draws.blur_sigma > 1.5)) == {False}
    assert 0.5 <= draws.scale.min() < 0.51
    together = np.corrcoef(np.stack(list(often.values())).astype(float))
    assert np.abs(together - np.eye(len(often))).max() < 0.06, "independent of each other"


def test_an_image_is_augmented_by_its_own_seed_whatever_its_batch() -> None:
    pixels, seeds, settings = pictures(), seeds_of(), AugmentationConfig(**ON)
    whole, shift = augmented(pixels, seeds, settings)
    for number in (7, 0, 3):
        alone, its_shift = augmented(pixels[[number]], seeds[[number]], settings)
        np.testing.assert_array_equal(alone[0], whole[number])
        np.testing.assert_array_equal(its_shift[0], shift[number])
    same, _ = augmented(pixels[[2, 2, 2]], seeds[[5, 5, 6]], settings)
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[1] != same[2]).any()


@pytest.mark.parametrize("switch", STRENGTHS)
def test_switching_one_on_leaves_the_draws_of_the_others_as_they_are(switch: str) -> None:
    others = {name: value for name, value in ON.items() if name != switch}
    before, after = (draws_of(AugmentationConfig(**s), seeds_of(50)) for s in (others, ON))
    changed = [
        field.name
        for field in fields(before)
        if (getattr(before, field.name) != getattr(after, field.name)).any()
    ]
    assert len(changed) == 1


STRONGER: dict[str, Any] = {
    "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5, "blur_sigma": [2, 3],
    "low_resolution_scale": 0.1, "sharpen_amount": 3.0, "jpeg_quality": [3, 5],
    "erase_area": [0.5, 0.6], "erase_aspect": [0.8, 1.0],
}  # fmt: skip


@pytest.mark.parametrize("setting", [*ON, *STRONGER])
def test_each_setting_changes_pixels(setting: str) -> None:
    pixels, seeds = pictures(), seeds_of()
    before = AugmentationConfig()
    changes = {setting: {**ON, **STRONGER}[setting]}
    for switch, strengths in STRENGTHS.items():
        if setting in strengths:
            always: dict[str, Any] = {switch: 1.0}
            before = AugmentationConfig(**always)
            changes |= always
    some, others = (augmented(pixels, seeds, s)[0] for s in (before, AugmentationConfig(**changes)))
    assert (some != others).any()


def test_switched_off_it_returns_the_same_bytes_and_never_writes_into_its_input() -> None:
    pixels, seeds = pictures(), seeds_of()
    untouched = pixels.copy()
    result, shift = augmented(pixels, seeds, AugmentationConfig())
    np.testing.assert_array_equal(result, untouched)
    assert not shift.any()
    augmented(pixels, seeds, AugmentationConfig(**ON))
    np.testing.assert_array_equal(pixels, untouched)
