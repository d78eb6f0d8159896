"""Training images: pooled without mixing identities, resized, flipped together with their masks."""

import io
import pickle
import tempfile
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from muva.config import AugmentationConfig
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.augmentation import augmented
from muva.data.draw import Draw
from muva.data.images import UnreadableImageError, decode_rgb, resized
from muva.data.normalised import normalised_levels, normalised_pixels
from muva.data.protocols import pool, query_gallery
from muva.data.records import Record, Split, first_per_camera
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.data.store import open_store
from muva.data.training_images import TrainingImages, flip_part_masks
from muva.errors import MuvaError
from muva.grounding.part_masks import BoxMasks, part_masks, patch_centres

HALF = (0.5, 0.5, 0.5)


def png(seed: int, size=(20, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(root, name: str, people: list[int], *, split: Split = "train") -> Dataset:
    records = [
        Record(
            domain=name,
            image_id=f"{split}/{pid}_{i}.png",
            split=split,
            pid=pid,
            camid=i,
            source=png(pid * 10 + i),
        )
        for pid in people
        for i in range(3)
    ]
    artifact = Artifact(open_store(root), "datasets", name, "0" * 16)
    if split != "train":
        records.append(
            Record(domain=name, image_id="g", split="gallery", pid=1, camid=9, source=png(0))
        )
    summary = write_shards(records, artifact=artifact, shard_bytes=8000)
    artifact.commit(format_version=formats.SHARDS, config={}, inputs={}, summary=asdict(summary))
    return open_dataset(artifact)


@pytest.fixture(autouse=True)
def nodes_own_folder(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("node")))


@pytest.fixture
def sources(tmp_path) -> list[Dataset]:
    return [dataset(tmp_path, "town", [7, 3]), dataset(tmp_path, "city", [3, 5, 9])]


def test_people_of_different_domains_are_different(sources):
    pooled = pool(sources)
    assert pooled.identities == (("town", 3), ("town", 7), ("city", 3), ("city", 5), ("city", 9))
    assert pooled.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert pooled.image_ids[0] == "town/train/3_0.png"
    assert pooled.image_ids[6] == "city/train/3_0.png"
    assert pooled.image_ids_of(sources[1])[-1] == "train/9_2.png"
    for label, number, row in zip(pooled.labels, pooled.dataset_index, pooled.rows, strict=True):
        source = sources[number].rows(["pid"]).to_pylist()[row]
        assert pooled.identities[label] == (sources[number].name, source["pid"])


def test_sources_must_differ_and_contain_training_images(sources, tmp_path):
    with pytest.raises(
        MuvaError, match="expected one or more different data sets, found town, town"
    ):
        pool([sources[0], sources[0]])
    with pytest.raises(MuvaError, match="found none"):
        pool([])
    with pytest.raises(MuvaError, match="has no training images"):
        pool([dataset(tmp_path, "target", [1], split="query")])


def expected_image(seed: int, height: int, width: int) -> torch.Tensor:
    image = Image.open(io.BytesIO(png(seed))).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


@pytest.mark.parametrize("cache_images", [0, 4, 100])
def test_batches_are_the_requested_images_whatever_is_cached(sources, cache_images):
    size: dict[str, Any] = {"height": 16, "width": 8}
    images = TrainingImages.open(
        sources,
        **size,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.25, 1.0),
        part_masks=None,
        grid=(2, 1),
        cache_bytes=cache_images * 16 * 8 * 3,
    )
    indices = np.array([14, 0, 3, 14, 7])
    seeds = [92, 30, 70, 92, 31]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.25, 1.0)))
    first, _ = images.batch(Draw(indices))
    for _ in range(2):
        pixels, masks = images.batch(Draw(indices))
        assert masks is None and pixels.dtype == torch.float32
        for image, seed in zip(pixels, seeds, strict=True):
            expected = (expected_image(seed, **size) - mean) / std
            torch.testing.assert_close(image.double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(images.batch(Draw(indices))[0], first)


def test_pickled_training_images_give_the_same_batches(sources):
    grid = (4, 2)
    masks = torch.rand(15, 3, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    images = TrainingImages.open(
        sources, height=16, width=8, mean=HALF, std=HALF, part_masks=masks, grid=grid
    )
    travelled = pickle.loads(pickle.dumps(images))
    draw = Draw(np.array([2, 9, 2, 14]), np.array([True, False, False, True]))
    unpickled, original = travelled.batch(draw), images.batch(draw)
    torch.testing.assert_close(unpickled, original, rtol=0, atol=0)
    assert len(images.image_ids) == 15 and not travelled.image_ids


def test_an_image_is_decoded_once_for_all_processes(sources, monkeypatch):
    decoded = []

    def counted(encoded):
        decoded.append(encoded)
        return decode_rgb(encoded)

    monkeypatch.setattr("muva.data.training_images.decode_rgb", counted)
    for _ in range(2):
        images = TrainingImages.open(
            sources, height=18, width=10, mean=HALF, std=HALF, part_masks=None, grid=(1, 1)
        )
        images.batch(Draw(np.array([3, 4, 3])))
        images.batch(Draw(np.array([4, 5])))
    assert len(decoded) == 3


def test_normalisation_by_lookup_equals_the_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    here = normalised_pixels(pixels, mean=mean, std=std)
    on_a_gpu = normalised_levels(torch.from_numpy(pixels).permute(0, 3, 1, 2), mean=mean, std=std)
    assert torch.equal(here, on_a_gpu)
    assert here.is_contiguous()


def test_a_flip_mirrors_image_and_masks_together(sources):
    grid = (4, 2)
    masks = torch.rand(15, 3, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    images = TrainingImages.open(
        sources, height=16, width=8, mean=HALF, std=HALF, part_masks=masks, grid=grid
    )
    indices = np.array([2, 2, 11])
    plain, plain_masks = images.batch(Draw(indices, np.array([False, False, False])))
    flipped, flipped_masks = images.batch(Draw(indices, np.array([True, False, True])))
    assert plain_masks is not None and flipped_masks is not None
    assert torch.equal(plain_masks, masks[indices])
    for i in (0, 2):
        assert torch.equal(flipped[i], plain[i].flip(-1))
        by_patch = plain_masks[i].view(3, *grid)
        assert torch.equal(flipped_masks[i].view(3, *grid), by_patch.flip(-1))
    assert torch.equal(flipped[1], plain[1]) and torch.equal(flipped_masks[1], plain_masks[1])
    assert torch.equal(flip_part_masks(flip_part_masks(masks, grid=grid), grid=grid), masks)


SIZE: dict[str, Any] = {"height": 16, "width": 8}
CENTRES = {
    "row_centres": patch_centres(16, patch=4, stride=4),
    "column_centres": patch_centres(8, patch=4, stride=4),
}


def augmented_images(sources, augmentation: AugmentationConfig, **changed: Any) -> TrainingImages:
    """Images of 16 x 8 with boxes of three parts, and masks of 4 x 2 patches."""
    corners = torch.rand(15, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)
    found = torch.rand(15, 3, generator=torch.Generator().manual_seed(1)) > 0.2
    settings = {
        "part_masks": part_masks(boxes, found, **CENTRES),
        "moved_masks": BoxMasks(boxes=boxes, found=found, **CENTRES),
        "grid": (4, 2),
        "augmentation": augmentation,
        **changed,
    }
    return TrainingImages.open(sources, **SIZE, mean=HALF, std=HALF, **settings)


def test_an_augmented_image_has_the_mask_of_its_moved_boxes_and_is_flipped_with_it(sources):
    everything = AugmentationConfig(pad=4, jitter=1, gamma=1.5, erase=0.5, jpeg=0.5)
    images = augmented_images(sources, everything)
    indices = np.array([2, 9, 2, 14, 7, 9])
    seeds = np.array([5, 6, 7, 8, 9, 6])
    flips = np.array([True, False, False, True, False, True])
    pixels, masks = images.uint8_batch(Draw(indices, flips, seeds))
    plain, _ = images.uint8_batch(Draw(indices))
    changed, shift = augmented(plain.numpy(), seeds, everything)
    assert masks is not None and shift.any(axis=1).all()
    boxes = images._moved_masks.boxes.double()  # type: ignore[union-attr]
    for number, index in enumerate(indices):
        dx, dy = shift[number] / (8, 16)
        moved = boxes[index] + torch.tensor([dx, dy, dx, dy])
        frame = moved.clamp(0, 1)
        inside = (frame[:, 0] < frame[:, 2]) & (frame[:, 1] < frame[:, 3])
        found = images._moved_masks.found[index] & inside  # type: ignore[union-attr]
        mask = part_masks(frame[None], found[None], **CENTRES)[0].view(3, 4, 2)
        image = torch.from_numpy(changed[number])
        if flips[number]:
            mask, image = mask.flip(-1), image.flip(1)
        assert torch.equal(masks[number].view(3, 4, 2), mask)
        assert torch.equal(pixels[number], image)
    assert not torch.equal(masks[1], flip_part_masks(masks[5], grid=(4, 2))) or flips[5]


def test_without_seeds_or_without_augmentation_a_batch_has_the_same_bytes_as_before(sources):
    off, on = (
        augmented_images(sources, settings)
        for settings in (AugmentationConfig(), AugmentationConfig(pad=3, cast=0.5, blur=1))
    )
    indices, seeds = np.array([2, 9, 2, 14]), np.arange(4)
    flips = np.array([True, False, True, False])
    expected = torch.stack([expected_image(seed, **SIZE) for seed in (32, 50, 32, 92)]) * 2 - 1
    expected[flips] = expected[flips].flip(-1)
    for images, draw in (
        (off, Draw(indices, flips)),
        (off, Draw(indices, flips, seeds)),
        (on, Draw(indices, flips)),
    ):
        pixels, masks = images.batch(draw)
        assert masks is not None and images.part_masks is not None
        torch.testing.assert_close(pixels.double(), expected, atol=1e-6, rtol=0)
        assert torch.equal(masks[1], images.part_masks[9])
    changed, _ = on.batch(Draw(indices, flips, seeds))
    assert (changed.double() - expected).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_colours_alone_need_no_boxes_but_a_crop_does(sources):
    augmented_images(sources, AugmentationConfig(grey=1), moved_masks=None)
    augmented_images(sources, AugmentationConfig(pad=2), part_masks=None, moved_masks=None)
    with pytest.raises(
        MuvaError, match=r"augmentation\.pad is 2, .*expected moved_masks, or pad=0"
    ):
        augmented_images(sources, AugmentationConfig(pad=2), moved_masks=None)


def test_masks_of_another_grid_or_number_are_rejected(sources):
    for shape in ((14, 3, 8), (15, 3, 9)):
        with pytest.raises(MuvaError, match="expected 15 images and 4 x 2 patches"):
            TrainingImages.open(
                sources,
                height=16,
                width=8,
                mean=HALF,
                std=HALF,
                part_masks=torch.zeros(shape, dtype=torch.bool),
                grid=(4, 2),
            )


def test_the_first_image_of_each_person_and_camera_is_a_query():
    assert first_per_camera([1, 1, 2, 1, -1], [1, 1, 1, 2, 1]) == [True, False, True, True, False]
    assert first_per_camera([1, 1, 2], [None, None, None]) == [True, False, True]


def test_held_out_people_become_queries_and_gallery(sources):
    rows = query_gallery(sources[0].rows())
    assert rows["split"].to_pylist() == ["query"] * 6
    assert rows["image_id"].to_pylist() == sources[0].rows()["image_id"].to_pylist()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_rgb(mode):
    buffer = io.BytesIO()
    form = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    Image.new("L" if mode == "I;16" else mode, (3, 5)).convert(mode).save(buffer, form)
    image = decode_rgb(buffer.getvalue())
    assert (image.mode, image.size) == ("RGB", (3, 5))


def test_sixteen_bits_become_the_upper_eight_and_more_are_rejected():
    ramp = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    np.testing.assert_array_equal(np.asarray(decode_rgb(buffer.getvalue()))[..., 0], ramp >> 8)
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.float32) / 65535).save(buffer, "TIFF")
    with pytest.raises(UnreadableImageError, match="32 bits per channel"):
        decode_rgb(buffer.getvalue())


def test_an_image_is_rotated_by_its_exif_orientation():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    Image.new("RGB", (3, 5)).save(buffer, "JPEG", exif=exif)
    assert decode_rgb(buffer.getvalue()).size == (5, 3)


def test_an_image_truncated_anywhere_is_unreadable():
    whole = png(0)
    for length in range(0, len(whole) - 12, 97):  # the last 12 bytes only mark the end
        with pytest.raises(UnreadableImageError):
            decode_rgb(whole[:length])


def test_test_images_are_resized_bilinearly():
    image = Image.open(io.BytesIO(png(1)))
    result = resized(image, height=16, width=8, interpolation="bilinear")
    assert np.array_equal(result, np.array(image.resize((8, 16), Image.Resampling.BILINEAR)))
    black = normalised_pixels(np.zeros((1, 2, 2, 3), np.uint8), mean=HALF, std=HALF)
    assert black.shape == (1, 3, 2, 2) and black.unique().tolist() == [-1]
