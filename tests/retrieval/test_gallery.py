"""Galleries: files round-trip, and searches agree with a plain product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import muva.retrieval.similar as similar
from muva.errors import MuvaError
from muva.retrieval.features import read_features
from muva.retrieval.gallery import EmbeddingSource, Gallery, read_gallery, write_gallery

BY = EmbeddingSource(
    model="store/models/muva-0123456789abcdef",
    weights="ab" * 32,
    image_height=128,
    image_width=64,
    feature_dim=16,
    folder="/crops",
)


def gallery(images: int = 50, *, known: bool = True) -> Gallery:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(images, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    numbers = np.arange(images)
    return Gallery(
        features=features,
        ids=np.array([f"cam{n % 2}/{n:04d}.jpg" for n in numbers]),
        pids=numbers // 4 if known else None,
        camids=numbers % 2 if known else None,
        split=np.where(numbers % 4 == 0, "query", "gallery") if known else None,
        source=BY,
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_gallery_is_read_as_it_was_written(known: bool, tmp_path: Path) -> None:
    file, written = tmp_path / "features.parquet", gallery(known=known)
    write_gallery(file, written)
    found = read_gallery(file)
    np.testing.assert_array_equal(found.features, written.features)
    np.testing.assert_array_equal(found.ids, written.ids)
    assert found.source == BY
    column = pq.read_schema(file).field("features").type
    assert column == pa.list_(pa.float32(), 16)
    if not known:
        assert (found.pids, found.camids, found.split) == (None, None, None)
        with pytest.raises(MuvaError, match="pids missing, found ids, features"):
            read_features(file)
        return
    features_read = read_features(file)
    for name in ("features", "ids", "pids", "camids", "split"):
        np.testing.assert_array_equal(getattr(features_read, name), getattr(written, name))
    assert found.describe(5) == {"image_id": "cam1/0005.jpg", "pid": 1, "camid": 1}


@pytest.mark.parametrize("block", [7, 65_536])
def test_the_most_similar_images_equal_those_of_a_plain_product(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar, "_BLOCK_ROWS", block)
    all_images = gallery()
    query = all_images.features[11]
    cosines = [float(np.dot(f.astype(float), query.astype(float))) for f in all_images.features]
    expected = sorted(range(50), key=lambda n: (-cosines[n], n))
    indices, found = all_images.most_similar(query, top=10)
    assert indices.tolist() == expected[:10]
    np.testing.assert_allclose(found, [cosines[n] for n in expected[:10]], atol=1e-12)
    indices, _ = all_images.most_similar(query, top=10, exclude=11)
    assert indices.tolist() == expected[1:11]
    assert len(all_images.most_similar(query, top=99, exclude=11)[0]) == 49
    assert len(gallery(1).most_similar(query, top=3, exclude=0)[0]) == 0


def test_images_that_float32_cannot_distinguish_are_ordered_as_in_float64() -> None:
    query = gallery().features[0]
    rng = np.random.default_rng(1)
    features = np.tile(query, (300, 1))
    at = np.arange(300), rng.integers(0, 16, 300)
    features[at] = np.nextafter(features[at], np.float32(1))
    cosines = features.astype(float) @ query.astype(float)
    indices, found = replace(gallery(300), features=features).most_similar(query, top=20)
    assert len(np.unique((features @ query).astype(np.float32))) < len(np.unique(cosines))
    np.testing.assert_array_equal(found, np.sort(cosines)[::-1][:20])
    np.testing.assert_array_equal(cosines[indices], found)


def test_images_that_are_equally_similar_keep_their_order() -> None:
    twins = gallery(6)
    twins = replace(twins, features=np.repeat(twins.features[:1], 6, axis=0))
    assert twins.most_similar(twins.features[0], top=4)[0].tolist() == [0, 1, 2, 3]


def test_a_file_without_its_model_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "features.parquet"
    write_gallery(file, gallery())
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({}), file)
    with pytest.raises(
        MuvaError, match=r"expected the model in the metadata .* a file that `muva embed` wrote"
    ):
        read_gallery(file)
    changed = {b"muva": b'{"format_version": 9}'}
    pq.write_table(table.replace_schema_metadata(changed), file)
    with pytest.raises(MuvaError, match="expected format 1, found 9"):
        read_gallery(file)


def test_a_failed_write_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "features.parquet"
    write_gallery(file, gallery())
    before = file.read_bytes()

    def full(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(MuvaError, match="cannot be written: No space left"):
        write_gallery(file, gallery(20))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
