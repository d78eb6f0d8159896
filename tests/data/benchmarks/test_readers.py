"""Readers: miniature trees in each layout are read correctly; others are rejected."""

import csv
import errno
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from muva.data.artifacts import Artifact
from muva.data.benchmarks import file_listing, read_tree
from muva.data.shards import open_dataset, write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.synthetic import synthetic_records
from tests.data.benchmarks.trees import image_labels, tree

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000001_00.jpg"],
    "query": ["0003_c1s1_000001_00.jpg"],
    "bounding_box_test": ["0003_c4s6_000002_01.jpg", "0000_c1s1_000003_01.jpg", "-1_c3s2_1_1.jpg"],
}


def test_market1501_reads_splits_people_and_cameras_from_names(tmp_path):
    tree(tmp_path, MARKET)
    (tmp_path / "bounding_box_test" / "Thumbs.db").write_bytes(b"")
    records = read_tree("market1501", tmp_path, domain="market1501")
    assert image_labels(records) == {
        ("bounding_box_train/0002_c1s1_000451_03.jpg", "train", 2, 1),
        ("bounding_box_train/0002_c2s1_000001_00.jpg", "train", 2, 2),
        ("query/0003_c1s1_000001_00.jpg", "query", 3, 1),
        ("bounding_box_test/0003_c4s6_000002_01.jpg", "gallery", 3, 4),
        ("bounding_box_test/0000_c1s1_000003_01.jpg", "gallery", 0, 1),
        ("bounding_box_test/-1_c3s2_1_1.jpg", "gallery", -1, 3),
    }
    assert {r.domain for r in records} == {"market1501"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root / "none", "expected a folder, found nothing"),
        (lambda root: root / "query" / MARKET["query"][0], "expected a folder, found a file"),
        (lambda root: root.parent, r"found town\. Is it .*town\?"),
        (lambda root: root / "query", r"bounding_box_train is missing.*Is it .*town\?"),
        (
            lambda root: shutil.rmtree(root / "query") or root,
            "query is missing, found bounding_box_test, bounding_box_train",
        ),
        (
            lambda root: tree(root, {"query": ["person.jpg"]}),
            r"file names like 0002_c1s1_000451_03\.jpg, found query/person\.jpg",
        ),
    ],
    ids=["no folder", "file", "outer folder", "inner folder", "split missing", "other names"],
)
def test_a_tree_that_is_not_market1501_is_rejected(tmp_path, spoil, message):
    root = spoil(tree(tmp_path / "town", MARKET))
    with pytest.raises(MuvaError, match=message):
        read_tree("market1501", root, domain="market1501")


@pytest.mark.parametrize("layout", ["market1501", "cuhk03np"])
@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["query", "bounding_box_test"], {"query", "gallery"}),
        (["bounding_box_train"], {"train"}),
    ],
)
def test_a_tree_may_have_only_images_for_testing_or_for_training(tmp_path, layout, folders, splits):
    within = "detected/" if layout == "cuhk03np" else ""
    tree(tmp_path, {f"{within}{folder}": ["0001_c1_21.png"] for folder in folders})
    records = read_tree(layout, tmp_path, domain="d")
    assert {record.split for record in records} == splits


@pytest.mark.parametrize(
    ("layout", "train", "others"),
    [
        ("market1501", "bounding_box_train", ["query", "bounding_box_test"]),
        ("folder", "train", ["query/1", "gallery/1"]),
    ],
)
def test_a_split_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch, layout, train, others):
    tree(tmp_path, {folder: ["0001_c1_21.png"] for folder in others})
    (tmp_path / train).symlink_to(tmp_path / "not_mounted")
    with pytest.raises(MuvaError, match=f"{train} is a link that leads nowhere"):
        read_tree(layout, tmp_path, domain="d")
    (tmp_path / train).unlink()
    (tmp_path / train).mkdir()
    scandir = os.scandir

    def refusing(place):
        if Path(place) == tmp_path / train:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)  # a test that runs as root is refused nothing
    with pytest.raises(MuvaError, match=rf"{train}: expected a folder that can be read"):
        read_tree(layout, tmp_path, domain="d")


def test_a_synthetic_domain_in_market1501_layout_is_the_same_data_set(tmp_path):
    domain = "syn-station"
    origin = list(
        synthetic_records(
            domain, train_people=2, test_people=2, images_per_camera=2, height=64, width=32
        )
    )
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    for r in origin:
        index = Path(r.image_id).stem.rpartition("_")[2]
        file = tmp_path / folders[r.split] / f"{r.pid:04d}_c{r.camid}s1_{int(index):06d}_00.jpg"
        file.parent.mkdir(exist_ok=True)
        assert isinstance(r.source, bytes)
        file.write_bytes(r.source)
    columns = ["split", "pid", "camid", "width", "height", "sha256"]
    rows = []
    for name, records in {
        "origin": origin,
        "tree": read_tree("market1501", tmp_path, domain=domain),
    }.items():
        store = open_store(tmp_path / "stores" / name)
        artifact = Artifact(store, "datasets", domain, "0" * 16)
        summary = write_shards(records, artifact=artifact)
        from dataclasses import asdict

        artifact.commit(format_version=1, config={}, inputs={}, summary=asdict(summary))
        rows.append(open_dataset(artifact).rows(columns).to_pylist())
    assert len(rows[0]) == len(origin)
    assert rows[0] == rows[1]


def test_a_folder_per_person_is_numbered_by_name(tmp_path):
    tree(tmp_path, {"bob": ["1.png", "2.png"], "alice": ["1.jpg"], ".cache/x": ["1.jpg"]})
    assert image_labels(read_tree("folder", tmp_path, domain="d", options={"split": "train"})) == {
        ("alice/1.jpg", "train", 0, None),
        ("bob/1.png", "train", 1, None),
        ("bob/2.png", "train", 1, None),
    }


NESTED = {f"cam0{camid}/person0{pid}": ["x.png"] for camid in (1, 2) for pid in (1, 2, 3, 4, 5, 6)}
IN_SPLITS = {
    f"{split}/{place}/person{pid}": ["x.png"]
    for place in ("door", "hall")
    for split, pid in (("train", 1), ("train", 2), ("query", 3), ("gallery", 3), ("gallery", 4))
}


@pytest.mark.parametrize(
    ("files", "split", "found", "people"),
    [
        (NESTED, "train", "cam01, cam02, which hold the folders person01, person02, person03", 6),
        ({f"train/{folder}": n for folder, n in NESTED.items()}, None, "cam01, cam02", 6),
        (IN_SPLITS, None, "door, hall, which hold the folders person1, person2, person3", 4),
        (
            {
                f"{day}/{pid}/{track}": ["x.png"]
                for day in "ab"
                for pid in (1, 2, 3)
                for track in "pq"
            },
            "train",
            "a, b, which hold the folders 1, 2, 3",
            3,
        ),
        (
            {"crops/1": ["x.png"], "crops/2": ["x.png"]},
            "train",
            "the single folder crops, which holds",
            2,
        ),
    ],
    ids=["cameras", "cameras in a split", "places in splits", "days and tracks", "outer folder"],
)
def test_folders_above_those_of_people_are_not_people(tmp_path, files, split, found, people):
    tree(tmp_path, files)
    options = {} if split is None else {"split": split}
    with pytest.raises(MuvaError, match=found) as refused:
        read_tree("folder", tmp_path, domain="d", options=options)
    message = str(refused.value)
    remedy, _, otherwise = message.partition("If ")
    named = {
        option.replace("-", "_"): expression
        for option, expression in re.findall(r"--(\w+-regex) '(.+?)'", remedy)
    }
    assert ("camid_regex" in named) == ("single" not in found)
    records = read_tree("folder", tmp_path, domain="d", options=options | named)
    assert len({record.pid for record in records}) == people
    if "camid_regex" in named:
        assert len({record.camid for record in records}) == 2
    (expression,) = re.findall(r"--pid-regex '(.+?)'", otherwise)
    records = read_tree("folder", tmp_path, domain="d", options=options | {"pid_regex": expression})
    assert len({record.pid for record in records}) == (1 if "single" in found else 2)


def test_folders_named_almost_like_splits_are_not_people(tmp_path):
    tree(tmp_path, {"Train/1": ["a.png"], "Probe/2": ["a.png"], "Gallery/2": ["b.png"]})
    with pytest.raises(MuvaError, match=r"train, query, gallery, found Gallery, Probe, Train\."):
        read_tree("folder", tmp_path, domain="d", options={"split": "train"})


def test_folders_of_cameras_with_images_in_them_are_not_people(tmp_path):
    tree(tmp_path, {"Camera 1": ["0001.png", "0002.png"], "Camera 2": ["0001.png"]})
    with pytest.raises(MuvaError, match="named like cameras, Camera 1, Camera 2, with images"):
        read_tree("folder", tmp_path, domain="d")
    options = {"pid_regex": r"(\d+)\.", "camid_regex": "^([^/]+)/", "split": "train"}
    assert image_labels(read_tree("folder", tmp_path, domain="d", options=options)) == {
        ("Camera 1/0001.png", "train", 1, 1),
        ("Camera 1/0002.png", "train", 2, 1),
        ("Camera 2/0001.png", "train", 1, 2),
    }


@pytest.mark.parametrize(
    "files",
    [
        {"1/cam1": ["a.png"], "1/cam2": ["a.png"], "2/cam1": ["a.png"]},
        {"1/cam1": ["a.png"], "1/cam2": ["a.png"]},
        {f"{pid}/{track}": ["a.png"] for pid in (1, 2, 3) for track in (1, 2, 3)},
        {"1": ["a.png"], "2/x": ["a.png"], "2/y": ["a.png"], "2/z": ["a.png"]},
        {"c1": ["a.png"], "c2": ["a.png"]},
        {f"{pid}/{pid}{track}": ["a.png"] for pid in (1, 2) for track in "abc"},
    ],
)
def test_folders_within_those_of_people_stay_part_of_them(tmp_path, files):
    tree(tmp_path, files)
    records = read_tree("folder", tmp_path, domain="d", options={"split": "train"})
    assert {r.image_id.partition("/")[0] for r in records} == {f.partition("/")[0] for f in files}
    for record in records:
        assert record.pid == read_pid(record.image_id, files)


def read_pid(image_id: str, files: dict) -> int:
    names = sorted({folder.partition("/")[0] for folder in files})
    own = image_id.partition("/")[0]
    return int(own) if own.isdecimal() else names.index(own)


def test_folders_named_by_numbers_keep_them_across_splits(tmp_path):
    tree(
        tmp_path,
        {"train/0007": ["a.jpg"], "query/12": ["a.jpg"], "gallery/0012": ["b.jpg", "sub/c.jpg"]}
        | {"gallery/-1": ["junk.jpg"]},
    )
    assert image_labels(read_tree("folder", tmp_path, domain="d")) == {
        ("train/0007/a.jpg", "train", 7, None),
        ("query/12/a.jpg", "query", 12, None),
        ("gallery/0012/b.jpg", "gallery", 12, None),
        ("gallery/0012/sub/c.jpg", "gallery", 12, None),
        ("gallery/-1/junk.jpg", "gallery", -1, None),
    }


def test_a_flat_folder_is_read_by_regular_expressions_and_split_for_testing(tmp_path):
    tree(tmp_path, {".": ["p1_east_1.jpg", "p1_east_2.jpg", "p1_west_1.jpg", "p2_east_1.jpg"]})
    options = {"pid_regex": r"^p(\d+)_", "camid_regex": r"_(\w+)_\d"}
    assert image_labels(read_tree("folder", tmp_path, domain="d", options=options)) == {
        ("p1_east_1.jpg", "query", 1, 1),
        ("p1_east_2.jpg", "gallery", 1, 1),
        ("p1_west_1.jpg", "query", 1, 2),
        ("p2_east_1.jpg", "query", 2, 1),
    }


SPARSE = [f"{pid:04}_c{camid}.png" for pid in range(1, 13) for camid in (1, 2)]
REGEX = {"pid_regex": r"^(\d+)_", "camid_regex": r"_c(\d)"}


@pytest.mark.parametrize("extra", [[], ["0001_c1_b.png"]])
def test_with_one_image_in_each_camera_every_person_has_a_query_and_a_match(tmp_path, extra):
    tree(tmp_path, {".": [*SPARSE, *extra]})
    records = read_tree("folder", tmp_path, domain="d", options=REGEX)
    gallery = {(r.pid, r.camid) for r in records if r.split == "gallery"}
    queries = [(r.pid, r.camid) for r in records if r.split == "query"]
    assert {pid for pid, _ in queries} == set(range(1, 13))
    valid = [
        (pid, camid)
        for pid, camid in queries
        if any(pid == of_gallery and camid != seen_by for of_gallery, seen_by in gallery)
    ]
    assert len(valid) == 12
    assert len(queries) - len(valid) == len(extra), "a second image in a camera leaves its query"


def test_the_last_of_several_cameras_is_the_gallery(tmp_path):
    tree(tmp_path, {".": ["1_c1.png", "1_c2.png", "1_c3.png", "2_c1.png", "2_c1_b.png"]})
    records = read_tree("folder", tmp_path, domain="d", options=REGEX)
    assert [r.split for r in records] == ["query", "query", "gallery", "query", "gallery"]


def test_images_of_which_none_shows_a_person_again_cannot_be_divided(tmp_path):
    tree(tmp_path, {"1": ["a.png"], "2": ["a.png"]})
    with pytest.raises(MuvaError, match=r"2 images of 2 people cannot be divided.*--split train"):
        read_tree("folder", tmp_path, domain="d")
    assert len(read_tree("folder", tmp_path, domain="d", options={"split": "train"})) == 2


def test_without_cameras_the_first_image_of_a_person_is_a_query(tmp_path):
    tree(tmp_path, {"a": ["1.jpg", "2.jpg", "3.jpg"]})
    records = read_tree("folder", tmp_path, domain="d")
    assert [r.split for r in records] == ["query", "gallery", "gallery"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, "expected images, found nothing"),
        ({"docs": []}, {}, "expected images, found nothing"),
        ({".": ["1.jpg"]}, {}, r"found the image 1\.jpg in none.*--pid-regex"),
        ({"train": ["1.jpg"]}, {}, r"found the image train/1\.jpg in none"),
        ({"train/a": ["1.jpg"], "other/b": ["1.jpg"]}, {}, "found 1 outside, for example other/b"),
        ({".": ["x.jpg", "1.jpg"]}, {"pid_regex": r"(\d)"}, r"1 of 2 file names, .* in x\.jpg"),
        ({".": ["1.jpg"]}, {"pid_regex": r"\d"}, "expected one group in parentheses, found 0"),
        ({".": ["1.jpg"]}, {"pid_regex": "("}, "is not a regular expression"),
        ({"a": ["1.jpg"]}, {"split": "validation"}, "expected one of train, test"),
        ({"a": ["1.jpg"]}, {"colour": "red"}, "has no option colour; it has camid_regex"),
        (
            {"query/a": ["1.jpg"]},
            {"split": "train"},
            "expected no option split in addition, found 'train'",
        ),
        ({"a": ["1\udcff.jpg"]}, {}, r"1\\udcff\.jpg': expected a file name in UTF-8"),
    ],
)
def test_folders_that_cannot_be_read_are_explained(tmp_path, files, options, message):
    tree(tmp_path, files)
    with pytest.raises(MuvaError, match=message):
        read_tree("folder", tmp_path, domain="d", options=options)


def listed(root: Path, rows: list[dict], form: str) -> Path:
    file = root / f"list.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_columns_of_a_list_are_read(tmp_path, form):
    corners = dict(zip(("x0", "y0", "x1", "y1"), (0.25, 0.0, 0.75, 0.25), strict=True))
    seen = {f"head_{name}": value for name, value in corners.items()}
    hidden = {f"head_{name}": None for name in corners}
    rows = [
        {"path": "a/1.jpg", "pid": "0002", "camid": 3, "split": "query", "note": "x", **seen},
        {"path": "a/2.jpg", "pid": "2", "camid": 4, "split": "gallery", "note": "y", **hidden},
    ]
    file = listed(tmp_path, rows, form)
    records = read_tree("manifest", file, domain="d")
    assert image_labels(records) == {("a/1.jpg", "query", 2, 3), ("a/2.jpg", "gallery", 2, 4)}
    assert records[0].source == tmp_path / "a" / "1.jpg"
    out_of_sight = {"upper_body": None, "legs": None}
    assert records[0].boxes == {"head": (0.25, 0.0, 0.75, 0.25), **out_of_sight}
    assert records[1].boxes == {"head": None, **out_of_sight}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_list_may_contain_only_paths_and_pids(tmp_path, form):
    rows = [{"path": f"{i}.jpg", "pid": name} for i, name in enumerate(["eve", "adam", "eve"])]
    file = listed(tmp_path, rows, form)
    assert image_labels(read_tree("manifest", file, domain="d")) == {
        ("0.jpg", "query", 1, None),
        ("1.jpg", "query", 0, None),
        ("2.jpg", "gallery", 1, None),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "x"}, r"columns path and pid, found file\. The first line must be a header"),
        ({"path": "a", "pid": ""}, "pid is empty in row 1"),
        ({"path": "a", "pid": 1, "split": "val"}, "found 'val' in row 1"),
        ({"path": "a", "pid": 1, "legs_x0": 0.1}, "corners of a part, legs_y0 is missing"),
        (
            {"path": "a", "pid": 1, "legs_x0": 0, "legs_y0": 0, "legs_x1": 64, "legs_y1": 128},
            "fractions of the image, not pixels",
        ),
        (
            {"path": "a", "pid": 1, "legs_x0": "", "legs_y0": 0, "legs_x1": 1, "legs_y1": 1},
            "found the legs box",
        ),
    ],
)
def test_lists_that_cannot_be_read_are_explained(tmp_path, row, message):
    with pytest.raises(MuvaError, match=message):
        read_tree("manifest", listed(tmp_path, [row], "csv"), domain="d")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_integral_floats_are_integers_and_empty_cameras_are_unknown(tmp_path, form):
    rows = [
        {"path": "a.jpg", "pid": 1.0, "camid": 2.0, "split": "query"},
        {"path": "b.jpg", "pid": 1.0, "camid": None, "split": "gallery"},
        {"path": "c.jpg", "pid": -1.0, "camid": 3.0, "split": "gallery"},
    ]
    if form == "parquet":
        rows[1]["camid"] = float("nan")
    file = listed(tmp_path, rows, form)
    if form == "csv":
        assert "b.jpg,1.0,,gallery" in file.read_text(), "as pandas writes it"
    assert image_labels(read_tree("manifest", file, domain="d")) == {
        ("a.jpg", "query", 1, 2),
        ("b.jpg", "gallery", 1, None),
        ("c.jpg", "gallery", -1, 3),
    }


def test_a_pid_that_is_not_a_number_is_empty(tmp_path):
    rows = [{"path": "a.jpg", "pid": 1.0}, {"path": "b.jpg", "pid": float("nan")}]
    with pytest.raises(MuvaError, match="pid is empty in row 2"):
        read_tree("manifest", listed(tmp_path, rows, "parquet"), domain="d")


@pytest.mark.parametrize(
    "text",
    [
        "path,pid,camid,split\na.jpg, 7, 1,query\nb.jpg,7 ,,gallery\nc.jpg, -1,2 , gallery\n",
        "path,pid,camid,split\na.jpg,7,1,query\nb.jpg,7,nan,gallery\nc.jpg,-1,2,gallery\n",
        "path;pid;camid;split\na.jpg;7,0;1,0;query\nb.jpg;7,0;NA;gallery\nc.jpg;-1,0;2,0;gallery\n",
    ],
)
def test_blanks_missing_values_and_decimal_commas_make_no_other_people(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    assert image_labels(read_tree("manifest", tmp_path / "list.csv", domain="d")) == {
        ("a.jpg", "query", 7, 1),
        ("b.jpg", "gallery", 7, None),
        ("c.jpg", "gallery", -1, 2),
    }


def test_a_locale_without_utf_8_is_not_blamed_on_the_names_of_files(tree, tmp_path, monkeypatch):
    root = tree(tmp_path / "people", {"1": ["\udcff.png"]})
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(MuvaError, match=r"read as ascii.*PYTHONUTF8=1"):
        read_tree("folder", root, domain="d", options={"split": "train"})


def test_blanks_around_the_names_of_folders_make_no_other_people(tree, tmp_path):
    root = tree(tmp_path / "people", {" -1": ["c1.png"], "7 ": ["c1.png"], "9": ["c2.png"]})
    options = {"camid_regex": r"/c([^.]+)"}
    (root / "9" / "c2.png").rename(root / "9" / "c2 .png")
    records = read_tree("folder", root, domain="d", options=options | {"split": "train"})
    assert {(record.pid, record.camid) for record in records} == {(-1, 1), (7, 1), (9, 2)}


@pytest.mark.parametrize("text", ["nan", " ", "NULL"])
def test_a_text_that_stands_for_a_missing_pid_is_no_person(tmp_path, text):
    (tmp_path / "list.csv").write_text(f"path,pid\na.jpg,1\nb.jpg,{text}\n")
    with pytest.raises(MuvaError, match="pid is empty in row 2"):
        read_tree("manifest", tmp_path / "list.csv", domain="d")


def test_thousands_are_not_cut_off(tmp_path):
    (tmp_path / "list.csv").write_text("path;pid\na.jpg;1,000\nb.jpg;1\n")
    options = {"split": "train"}
    records = read_tree("manifest", tmp_path / "list.csv", domain="d", options=options)
    assert len({record.pid for record in records}) == 2


def test_boxes_may_have_decimal_commas_and_captions_and_boxes_may_be_missing(tmp_path):
    corners = ("head_x0", "head_y0", "head_x1", "head_y1")
    (tmp_path / "list.csv").write_text(
        f"path;pid;split;caption;{';'.join(corners)}\n"
        "a.jpg;7;query;a man;0,1;0,2;0,5;0,3\nb.jpg;7;gallery;;NaN;NaN;NaN;NaN\n"
    )
    missing = [None, float("nan")]
    table = {"path": ["a.jpg", "b.jpg"], "pid": [7, 7], "split": ["query", "gallery"]}
    table |= {
        name: [value, missing[1]] for name, value in zip(corners, (0.1, 0.2, 0.5, 0.3), strict=True)
    }
    pq.write_table(pa.table({**table, "caption": missing}), tmp_path / "list.parquet")
    for suffix, captions in ((".csv", ["a man", None]), (".parquet", [None, None])):
        records = read_tree("manifest", tmp_path / f"list{suffix}", domain="d")
        heads = [record.boxes and record.boxes["head"] for record in records]
        assert heads == [(0.1, 0.2, 0.5, 0.3), None]
        assert [record.caption for record in records] == captions


def test_junk_stays_junk_among_names(tmp_path):
    rows = [{"path": f"{pid}.jpg", "pid": pid} for pid in ("alice", "-1", "bob", "1.5")]
    records = read_tree("manifest", listed(tmp_path, rows, "csv"), domain="d")
    assert [record.pid for record in records] == [1, -1, 2, 0]


def test_a_person_is_the_same_whether_written_as_an_integer_or_as_a_float(tmp_path):
    tree(tmp_path, {"train": ["0007_a.png", "7.0_a.png", "12.50_a.png"]})
    options = {"pid_regex": "^(.+)_"}
    records = read_tree("folder", tmp_path, domain="d", options=options)
    assert [record.pid for record in records] == [0, 1, 2], "12.50 is a name, so all are"
    (tmp_path / "train" / "12.50_a.png").unlink()
    records = read_tree("folder", tmp_path, domain="d", options=options)
    assert [record.pid for record in records] == [7, 7]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path,pid,camid", "a b.jpg,7,3"),
        ("path, pid, camid", "a b.jpg, 7, 3"),
        ("Path,PID,CamID", "a b.jpg,7,3"),
        ("path\tpid\tcamid", "a b.jpg\t7\t3"),
        ("Path;Pid;Camid;note", "a b.jpg;7;3;x,y"),
        ('"path"|"pid"|"camid"', '"a b.jpg"|7|3'),
        ("A,a,path,pid,camid", "1,2,a b.jpg,7,3"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lists_are_read_as_spreadsheets_write_them(tmp_path, header, row, encoding):
    file = tmp_path / ("list.tsv" if "\t" in header else "list.csv")
    file.write_bytes(f"{header}\r\n{row}\r\n".encode(encoding))
    labels = image_labels(read_tree("manifest", file, domain="d", options={"split": "train"}))
    assert labels == {("a b.jpg", "train", 7, 3)}


def test_a_list_in_another_encoding_is_named(tmp_path):
    file = tmp_path / "list.csv"
    file.write_bytes("path,pid\n1.jpg,1\nJürgen.jpg,2\n".encode("latin-1"))
    with pytest.raises(MuvaError, match=r"text in UTF-8, found other bytes in line 3.*iconv"):
        read_tree("manifest", file, domain="d")
    file.write_bytes("path,pid\n1.jpg,1\n".encode("utf-16-le"))
    with pytest.raises(MuvaError, match="as in UTF-16 without a byte order mark"):
        read_tree("manifest", file, domain="d")


@pytest.mark.parametrize("header", ["path,pid,pid", "path,Pid,PID"])
def test_a_column_that_is_repeated_is_refused(tmp_path, header):
    file = tmp_path / "list.csv"
    file.write_text(f"{header}\na.jpg,1,2\n")
    with pytest.raises(MuvaError, match="found pid repeatedly"):
        read_tree("manifest", file, domain="d")


def test_some_cameras_of_a_folder_may_be_unknown(tmp_path):
    tree(tmp_path, {".": ["1_c2.png", "1_.png", "2_c1.png"]})
    options = {"pid_regex": r"^(\d+)_", "camid_regex": r"_(?:c(\d))?\."}
    assert image_labels(read_tree("folder", tmp_path, domain="d", options=options)) == {
        ("1_.png", "query", 1, None),
        ("1_c2.png", "gallery", 1, 2),
        ("2_c1.png", "query", 2, 1),
    }
    with pytest.raises(MuvaError, match=r"1 of 3 file names.*If some cameras are unknown"):
        read_tree("folder", tmp_path, domain="d", options=options | {"camid_regex": r"_c(\d)"})


def test_files_that_are_not_lists_are_rejected(tmp_path):
    (tmp_path / "list.txt").write_text("path,pid\n")
    (tmp_path / "list.parquet").write_text("path,pid\n")
    (tmp_path / "list.csv").write_bytes(b"")
    for name, message in {
        "list.txt": r"ends in \.csv, \.tsv or \.parquet",
        "list.parquet": "cannot be read",
        "list.csv": "cannot be read",
        "none.csv": "found nothing",
        ".": "found a folder",
    }.items():
        with pytest.raises(MuvaError, match=message):
            read_tree("manifest", tmp_path / name, domain="d")


def test_an_unknown_layout_is_rejected_with_the_closest_name(tmp_path):
    with pytest.raises(MuvaError, match="layout 'market' is unknown; closest: market1501"):
        read_tree("market", tmp_path, domain="d")


def test_a_listing_changes_if_and_only_if_the_tree_does(tmp_path):
    tree(tmp_path, MARKET)
    before = file_listing(read_tree("market1501", tmp_path, domain="d"))
    assert file_listing(read_tree("market1501", tmp_path, domain="d")[::-1]) == before
    (tmp_path / "query" / MARKET["query"][0]).write_bytes(b"changed")
    assert file_listing(read_tree("market1501", tmp_path, domain="d")) != before


@pytest.mark.parametrize("column", ["pid", "camid", "split", "caption", "head_x0"])
def test_a_listing_changes_with_the_annotations_of_a_list(tmp_path, column):
    columns = {"path": "a.jpg", "pid": "1", "camid": "1", "split": "train", "caption": "red"}
    columns |= {"head_x0": "0.1", "head_y0": "0.1", "head_x1": "0.5", "head_y1": "0.5"}
    other = {"pid": "2", "camid": "2", "split": "gallery", "caption": "blue", "head_x0": "0.2"}

    def listing(row):
        file = tmp_path / "list.csv"
        file.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
        return file_listing(read_tree("manifest", file, domain="d"))

    assert listing(columns) == listing(columns)
    assert listing(columns | {column: other[column]}) != listing(columns)
