"""Feature files and ranked lists: files round-trip, and missing columns are named."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from muva.errors import MuvaError
from muva.retrieval import Features, evaluate, read_features, write_features
from muva.retrieval import features as features_module
from muva.retrieval.ranked_lists import ranked_lists


def features(**changes) -> Features:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "features": rng.standard_normal((30, 8)).astype(np.float32),
        "ids": np.array([f"image {i}" for i in range(30)]),
        "pids": rng.integers(-1, 5, 30),
        "camids": rng.integers(1, 4, 30),
        "split": np.where(np.arange(30) % 3 == 0, "query", "gallery"),
    }
    return Features(**(made | changes))


@pytest.mark.parametrize("form", ["npz", "parquet"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"camids": None}, {"split": None}, {"features": np.ones((30, 3), np.float16)}],
    ids=["all", "no cameras", "no split", "float16"],
)
def test_features_are_read_as_they_were_written(tmp_path, form, changes):
    written = features(**changes)
    write_features(tmp_path / f"f.{form}", written)
    read = read_features(tmp_path / f"f.{form}")
    for name in ("features", "ids", "pids", "camids", "split"):
        before, after = getattr(written, name), getattr(read, name)
        assert (before is None) == (after is None), name
        if before is not None:
            assert np.array_equal(before, after), name
    assert read.features.dtype == written.features.dtype


def arrays_of(given: Features, **changes: np.ndarray) -> dict[str, Any]:
    names = ("features", "ids", "pids", "camids", "split")
    return {name: getattr(given, name) for name in names} | changes


@pytest.mark.parametrize("form", ["plain", "compressed", "by columns", "parquet"])
def test_large_features_stay_on_disk_and_score_the_same(tmp_path, monkeypatch, form):
    monkeypatch.setattr(features_module, "MAX_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(features_module, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(features_module, "_CHUNK_BYTES", 64)
    given = features()
    path = tmp_path / ("f.parquet" if form == "parquet" else "f.npz")
    if form == "compressed":
        np.savez_compressed(path, **arrays_of(given))
    elif form == "by columns":
        np.savez(path, **arrays_of(given, features=np.asfortranarray(given.features)))
    else:
        write_features(path, given)
    read = read_features(path)
    inputs = read.retrieval_inputs()
    for side in (read.features, inputs["query_features"], inputs["gallery_features"]):
        assert isinstance(side, np.memmap)
    assert np.array_equal(read.features, given.features)
    found, expected = (evaluate(**sides) for sides in (inputs, given.retrieval_inputs()))
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)


def test_damaged_or_truncated_features_are_rejected(tmp_path):
    write_features(tmp_path / "f.npz", features())
    stored = bytearray((tmp_path / "f.npz").read_bytes())
    at = stored.index(features().features[5].tobytes())
    stored[at] ^= 1
    (tmp_path / "f.npz").write_bytes(stored)
    with pytest.raises(MuvaError, match="cannot be read: Bad CRC-32"):
        read_features(tmp_path / "f.npz")


def test_parquet_of_other_programs_may_hold_plain_lists_and_doubles(tmp_path):
    table = pa.table(
        {
            "features": [[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]],
            "ids": [10, 11, 12],
            "pids": pa.array([1, 2, 1], pa.int32()),
            "camids": pa.nulls(3, pa.int32()),
            "note": ["", "", ""],
        }
    )
    pq.write_table(table, tmp_path / "f.parquet")
    read = read_features(tmp_path / "f.parquet")
    assert read.ids.tolist() == ["10", "11", "12"]
    assert read.camids is None and read.features.dtype == np.float64
    result = evaluate(**read.retrieval_inputs())
    assert (result.valid_queries, result.mean_ap) == (2, 1.0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"pids": None}, "pids missing, found features, ids"),
        ({"pids": np.arange(29)}, r"30 rows of features, but pids has shape \(29,\)"),
        ({"pids": np.full(30, 0.5)}, "integers as pids, found float64"),
        ({"pids": np.array(3)}, r"pids has shape \(\)"),
        ({"ids": np.full(30, "same")}, "ids must be unique"),
        ({"camids": np.full(30, -1)}, "camids must not be negative"),
        ({"split": np.full(30, "train")}, "query and gallery as split, found train"),
        ({"split": np.full(30, "query")}, "query and gallery as split, found query"),
        ({"features": np.ones(30, np.float32)}, r"of shape \(images, width\)"),
        ({"features": np.ones((30, 2), int)}, "expected floating-point numbers"),
    ],
)
def test_missing_or_invalid_columns_are_named(tmp_path, spoil, message):
    good = features()
    names = ("features", "ids", "pids", "camids", "split")
    arrays = {name: getattr(good, name) for name in names} | spoil
    np.savez(tmp_path / "f.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(MuvaError, match=message):
        read_features(tmp_path / "f.npz")


def test_files_that_are_not_features_are_rejected(tmp_path):
    (tmp_path / "f.npz").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    np.savez(tmp_path / "pickle.npz", features=np.array([{}], object))
    np.savez(tmp_path / "pickled-ids.npz", features=np.ones((1, 2)), ids=np.array([{}], object))
    ragged = pa.table({"features": [[1.0], [1.0, 2.0]], "ids": ["a", "b"], "pids": [1, 2]})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    holes = pa.table({"features": [[1.0], [2.0]], "ids": ["a", "b"], "pids": [1, None]})
    pq.write_table(holes, tmp_path / "holes.parquet")
    for name, message in {
        "f.npz": "expected an archive of named arrays",
        "f.parquet": "cannot be read",
        "pickle.npz": "features contains objects, which are never loaded",
        "pickled-ids.npz": "allow_pickle=False",
        "ragged.parquet": "different widths",
        "holes.parquet": "pids is empty in 1 of 2 rows",
        "none.npz": "expected a file, found none",
        "f.txt": r"ends in \.npz or \.parquet",
    }.items():
        with pytest.raises(MuvaError, match=message):
            read_features(tmp_path / name)


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("cameras", [True, False])
def test_a_ranked_list_is_the_ranking_that_is_scored(rerank, cameras):
    given = features(split=None, **({} if cameras else {"camids": None})).retrieval_inputs()
    lists = ranked_lists(**given, top=40, rerank=rerank, block_bytes=500)
    result = evaluate(**given, rerank=rerank)
    pids, camids = given["query_pids"], given["query_camids"]
    for query in range(30):
        shown = lists.indices[query][lists.indices[query] >= 0]
        assert len(set(shown)) == len(shown)
        expected = {
            j
            for j in range(30)
            if pids[j] != -1
            and (
                pids[query] == -1
                or (
                    j != query
                    if camids is None
                    else (pids[j], camids[j]) != (pids[query], camids[query])
                )
            )
        }
        assert set(shown.tolist()) == expected
        hits = np.flatnonzero(lists.is_match[query])
        assert result.first_match_rank[query] == (hits[0] + 1 if len(hits) else 0)
    top = ranked_lists(**given, top=3, rerank=rerank)
    assert np.array_equal(top.indices, lists.indices[:, :3])
    assert np.array_equal(top.is_match, lists.is_match[:, :3])


def test_equal_images_are_listed_in_gallery_order():
    lists = ranked_lists(
        query_features=np.ones((1, 4), np.float32),
        query_pids=[1],
        query_camids=[1],
        gallery_features=np.ones((50, 4), np.float32),
        gallery_pids=np.repeat([1, 2], 25),
        gallery_camids=np.repeat([1, 2, 2], [1, 24, 25]),
        top=5,
    )
    assert lists.indices.tolist() == [[1, 2, 3, 4, 5]]
