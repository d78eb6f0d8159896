"""Galleries that grow, against plain products and with others at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import muva.retrieval.gallery_table as gallery_table
from muva.data.store import S3Store, Store
from muva.errors import MuvaError
from muva.retrieval.gallery import EmbeddingSource
from muva.retrieval.gallery_rows import GalleryFilter, GalleryRow, check_image_id, utc_time
from muva.retrieval.gallery_table import GalleryTable, create_gallery, open_gallery
from muva.retrieval.lance_tables import storage_options

WIDTH = 32
SOURCE = EmbeddingSource(
    model="runs/store/models/mine-0",
    weights="ab" * 32,
    image_height=64,
    image_width=32,
    feature_dim=WIDTH,
)
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
Shrunk = Callable[[int], None]


def features_of(count: int, *, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def row(number: int) -> GalleryRow:
    """Ten images a person, three cameras and two places, one image a minute."""
    return GalleryRow(
        image_id=f"cam{number % 3}/{number:04d}.jpg",
        pid=number // 10,
        camid=number % 3,
        time=NOON + timedelta(minutes=number),
        place='it\'s the "north" gate' if number % 2 else "hall",
    )


@pytest.fixture
def gallery(tmp_path: Path) -> GalleryTable:
    """200 images."""
    made = create_gallery(str(tmp_path / "mall.lance"), SOURCE)
    made.add(features_of(200), [row(number) for number in range(200)])
    return made


@pytest.fixture
def exact_up_to(monkeypatch: pytest.MonkeyPatch) -> Shrunk:
    return lambda rows: monkeypatch.setattr(gallery_table, "EXACT_ROWS", rows)


@pytest.mark.parametrize(
    ("only", "kept"),
    [
        (GalleryFilter(), lambda _: True),
        (GalleryFilter(camids=(0, 2)), lambda one: one.camid in (0, 2)),
        (GalleryFilter(places=('it\'s the "north" gate',)), lambda one: one.place != "hall"),
        (
            GalleryFilter(
                after=NOON + timedelta(minutes=50), before=NOON + timedelta(minutes=60), camids=(1,)
            ),
            lambda one: 50 <= (one.time - NOON).seconds // 60 < 60 and one.camid == 1,
        ),
        (GalleryFilter(camids=(9,)), lambda _: False),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_search_finds_what_a_plain_product_finds(
    gallery: GalleryTable,
    exact_up_to: Shrunk,
    only: GalleryFilter,
    kept: Callable[[GalleryRow], bool],
    indexed: bool,
) -> None:
    if indexed:
        exact_up_to(100)
        index = gallery.optimise()
        assert index is not None
        assert index.rows == 200
    query = features_of(1, seed=7)[0]
    left = [number for number in range(200) if kept(row(number)) and number != 33]
    cosines = features_of(200).astype(float) @ query.astype(float)
    expected = sorted(left, key=lambda number: -cosines[number])[:10]
    found = gallery.search(query, top=10, only=only, exclude=row(33).image_id)
    assert [match.row for match in found] == [row(number) for number in expected]
    np.testing.assert_allclose([m.cosine for m in found], cosines[expected], atol=1e-12)


def test_an_index_of_groups_finds_as_much_as_it_was_measured_to(
    tmp_path: Path, exact_up_to: Shrunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_up_to(1000)
    monkeypatch.setattr("muva.retrieval.gallery_index.PARTITION_ROWS", 100)
    centres = features_of(400, seed=1)
    images = centres.repeat(10, axis=0) + 0.4 * features_of(4000, seed=2)
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    gallery = create_gallery(str(tmp_path / "groups.lance"), SOURCE)
    gallery.add(images, [row(number) for number in range(4000)])
    index = gallery.optimise()
    assert index is not None
    assert index.partitions == 40
    assert index.recall >= 0.98
    queries = centres[:50]
    recalls = []
    for query in queries:
        nearest = np.argsort(-(images @ query))[:10].tolist()
        found = {match.row.image_id for match in gallery.search(query, top=10)}
        recalls.append(len(found & {row(number).image_id for number in nearest}) / 10)
    assert np.mean(recalls) >= 0.95


def test_an_index_finds_what_was_added_since(gallery: GalleryTable, exact_up_to: Shrunk) -> None:
    exact_up_to(100)
    gallery.optimise()
    new = features_of(3, seed=5)
    gallery.add(new, [row(number) for number in range(1000, 1003)])
    assert gallery.search(new[1], top=1)[0].row == row(1001)
    assert gallery.optimise() == gallery.index()
    assert gallery.search(new[1], top=1)[0].row == row(1001)


def test_an_image_that_is_added_again_replaces_itself(gallery: GalleryTable) -> None:
    again = features_of(1, seed=3)
    gallery.add(again, [replace(row(5), pid=77, columns={"hat": True})])
    assert len(gallery) == 200
    found = gallery.search(again[0], top=1)[0]
    assert found.row.pid == 77
    assert found.row.columns == {"hat": True}
    assert found.cosine == pytest.approx(1)
    assert gallery.row(row(6).image_id) == row(6)


@pytest.mark.parametrize("replaced", [False, True])
def test_many_images_are_added_at_once_whether_or_not_some_replace_others(
    gallery: GalleryTable, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr(gallery_table, "_JOINED_BYTES", 10_000)
    first = 150 if replaced else 200
    new = features_of(170, seed=6)
    gallery.add(new, [row(number) for number in range(first, first + 170)])
    assert gallery.ids() == {row(number).image_id for number in range(first + 170)}
    assert len(gallery) == first + 170
    for number in (0, 60, 169):
        assert gallery.search(new[number], top=1)[0].row == row(first + number)


def test_columns_of_any_kind_are_kept(gallery: GalleryTable) -> None:
    kept = {"hat": "red", "height_cm": 181.5, "child": False, "floor": 3}
    gallery.add(features_of(1, seed=4), [GalleryRow(image_id="one", columns=kept)])
    assert open_gallery(gallery.uri).row("one") == GalleryRow(image_id="one", columns=kept)
    with pytest.raises(MuvaError, match="column floor: expected int64"):
        gallery.add(features_of(1), [GalleryRow(image_id="two", columns={"floor": "third"})])
    with pytest.raises(MuvaError, match="column floor: expected int64"):
        gallery.add(features_of(1), [GalleryRow(image_id="two", columns={"floor": 3.5})])
    with pytest.raises(MuvaError, match="other than feature"):
        gallery.add(features_of(1), [GalleryRow(image_id="two", columns={"PID": 3})])
    with pytest.raises(MuvaError, match="differs in case"):
        gallery.add(features_of(1), [GalleryRow(image_id="two", columns={"Hat": "red"})])
    mixed = [GalleryRow(image_id=f"{one}", columns={"shoes": one}) for one in (1, "x")]
    with pytest.raises(MuvaError, match="column shoes"):
        gallery.add(features_of(2), mixed)
    gallery.add(features_of(1), [GalleryRow(image_id="two", columns={"shoes": "brown"})])
    assert open_gallery(gallery.uri).row("two") == GalleryRow(
        image_id="two", columns={"shoes": "brown"}
    )


def test_a_gallery_says_what_is_in_it(gallery: GalleryTable) -> None:
    nobody = [GalleryRow(image_id="unknown.jpg"), GalleryRow(image_id="junk.jpg", pid=-1)]
    gallery.add(features_of(2, seed=8), nobody)
    summary = gallery.summary()
    assert (summary.images, summary.people, summary.camids) == (202, 20, (0, 1, 2))
    assert summary.places == ("hall", 'it\'s the "north" gate')
    assert (summary.first, summary.last) == (NOON, NOON + timedelta(minutes=199))
    feature = gallery.feature(row(7).image_id)
    np.testing.assert_array_equal(feature, features_of(200)[7])
    assert gallery.feature("elsewhere.jpg") is None
    assert gallery.row("elsewhere.jpg") is None


@pytest.mark.parametrize("indexed", [False, True])
def test_nothing_of_a_forgotten_person_stays_on_the_disk(
    gallery: GalleryTable, exact_up_to: Shrunk, indexed: bool
) -> None:
    features = features_of(200)
    if indexed:
        exact_up_to(100)
        gallery.optimise()
    assert _on_disk(gallery, features[34])
    elsewhere = open_gallery(gallery.uri)
    assert elsewhere.search(features[34], top=1)[0].row == row(34)
    assert gallery.forget(pids=[3], image_ids=[row(77).image_id, "unknown"]) == 11
    for reader in (gallery, elsewhere):
        found = reader.search(features[34], top=200)
        assert len(found) == len(reader) == 189
        assert not [one for one in found if one.row.pid == 3 or one.row == row(77)]
    assert not _on_disk(gallery, features[34])
    assert not _on_disk(gallery, features[77])
    assert _on_disk(gallery, features[40])
    assert gallery.forget(pids=[3]) == 0


def test_what_interrupted_commands_left_of_a_person_goes_too(gallery: GalleryTable) -> None:
    secret = features_of(1, seed=11)
    table = lance.dataset(gallery.uri)
    rows = pa.table({"feature": pa.FixedSizeListArray.from_arrays(pa.array(secret[0]), WIDTH)})
    lance.fragment.write_fragments(rows, gallery.uri, schema=rows.schema)  # and not committed
    assert _on_disk(gallery, secret[0])
    gallery.add(secret, [GalleryRow(image_id="secret-1", pid=9999)])
    table.checkout_latest()
    table.delete("pid = 9999")  # and not tidied
    gallery.forget_where(None)
    assert not _on_disk(gallery, secret[0])
    assert not _holds(gallery, b"secret-1")


def test_an_empty_gallery_has_no_matches(gallery: GalleryTable) -> None:
    everybody = [row(number).image_id for number in range(200)]
    assert gallery.forget(image_ids=everybody) == 200
    assert gallery.search(features_of(1)[0], top=5) == []
    assert not _holds(gallery, everybody[7].encode())


def _on_disk(gallery: GalleryTable, feature: np.ndarray) -> bool:
    return _holds(gallery, feature.tobytes())


def _holds(gallery: GalleryTable, content: bytes) -> bool:
    files = [file for file in Path(gallery.uri).rglob("*") if file.is_file()]
    return any(content in file.read_bytes() for file in files)


def test_searches_go_on_while_others_add_and_forget(
    gallery: GalleryTable, exact_up_to: Shrunk
) -> None:
    exact_up_to(100)
    gallery.optimise()
    known, new = features_of(200), features_of(120, seed=9)
    stop, failures, searches = threading.Event(), [], []

    def search() -> None:
        reader = open_gallery(gallery.uri)
        while not stop.is_set():
            try:
                found = reader.search(known[150], top=3)
                assert found[0].row == row(150)
                searches.append(len(reader))
            except Exception as error:
                failures.append(error)
                return

    def add(first: int) -> None:
        for number in range(first, first + 60, 6):
            some = slice(number, number + 6)
            rows = [row(1000 + one) for one in range(number, number + 6)]
            open_gallery(gallery.uri).add(new[some], rows)

    reader = threading.Thread(target=search)
    writers = [threading.Thread(target=add, args=(first,)) for first in (0, 60)]
    reader.start()
    for writer in writers:
        writer.start()
    for pid in (1, 2, 3):
        gallery.forget(pids=[pid])
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert not failures
    assert searches == sorted(searches) or min(searches) >= 170
    assert len(gallery) == 200 - 30 + 120
    assert {match.row.image_id for match in gallery.search(new[0], top=290)} == {
        row(number).image_id for number in (*range(10), *range(40, 200), *range(1000, 1120))
    }


def test_many_small_additions_do_not_pile_up(gallery: GalleryTable, exact_up_to: Shrunk) -> None:
    exact_up_to(250)
    for number in range(70):
        gallery.add(features_of(1, seed=100 + number), [row(1000 + number)])
    assert len(lance.dataset(gallery.uri).get_fragments()) <= 64
    assert len(gallery) == 270
    index = gallery.index()
    assert index is not None
    assert index.rows > 250


@pytest.mark.parametrize(
    ("features", "rows", "said"),
    [
        (features_of(2), [row(1)], "expected features of the shape"),
        (2 * features_of(1), [row(1)], "unit length, found 2 for cam1/0001.jpg"),
        (np.full((1, WIDTH), np.nan, np.float32), [row(1)], "unit length"),
        (features_of(2), [row(1), row(1)], "found cam1/0001.jpg twice"),
        (features_of(1), [GalleryRow(image_id="../x.jpg")], "expected a relative path"),
        (features_of(1), [replace(row(1), time=datetime(2026, 1, 1))], "with a time zone"),
    ],
)
def test_what_does_not_fit_is_refused_as_a_whole(
    gallery: GalleryTable, features: np.ndarray, rows: list[GalleryRow], said: str
) -> None:
    with pytest.raises(MuvaError, match=said):
        gallery.add(features, rows)
    assert len(gallery) == 200
    with pytest.raises(MuvaError, match="a feature of 32 values"):
        gallery.search(np.zeros(3, np.float32), top=1)


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_no_id_leads_out_of_a_folder(text: str) -> None:
    try:
        check_image_id(text)
    except MuvaError:
        return
    inside = os.path.normpath(os.path.join("/root", text))  # noqa: PTH118
    assert inside == f"/root/{text}"


def test_times_without_an_offset_are_utc() -> None:
    assert utc_time("2026-11-30T12:00") == NOON
    assert utc_time(" 2026-11-30T13:00+01:00") == NOON
    for wrong in ("yesterday", "0001-01-01T00:00+05:00"):
        with pytest.raises(MuvaError, match="ISO 8601"):
            utc_time(wrong)


def test_what_is_no_gallery_is_named(gallery: GalleryTable, tmp_path: Path) -> None:
    with pytest.raises(MuvaError, match="exists already"):
        create_gallery(gallery.uri, SOURCE)
    with pytest.raises(MuvaError, match="there is none"):
        open_gallery(str(tmp_path / "nothing.lance"))
    lance.write_dataset(pa.table({"pid": [1]}), tmp_path / "other.lance")
    with pytest.raises(MuvaError, match="that is not muva's"):
        open_gallery(str(tmp_path / "other.lance"))


def test_a_gallery_on_s3_is_searched_added_to_and_forgets(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(s3, S3Store)
    uri = f"{s3.uri}/galleries/mall.lance"
    with pytest.raises(MuvaError, match="there is none"):
        open_gallery(uri)
    made = create_gallery(uri, SOURCE)
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(MuvaError, match="Does the place exist"):
            open_gallery(uri)
    features = features_of(20)
    made.add(features, [row(number) for number in range(20)])
    assert open_gallery(uri).search(features[3], top=1)[0].row == row(3)
    assert made.forget(pids=[0]) == 10
    assert len(open_gallery(uri)) == 10
    assert not [key for key in s3.list("") if features[3].tobytes() in s3.read(key)]


def test_lance_gets_the_credentials_that_only_boto3_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = ours\naws_secret_access_key = hidden\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert storage_options("s3://bucket/a") == {
        "region": "eu-central-1",
        "endpoint": "http://127.0.0.1:9",
        "allow_http": "true",
        "access_key_id": "ours",
        "secret_access_key": "hidden",
    }
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    options = storage_options("s3://bucket/a")
    assert options is not None
    assert "access_key_id" not in options
    assert storage_options("/folder") is None
