"""MSMT17: identities come from the lists, and the two versions are not confused."""

from pathlib import Path

import pytest

from muva.data.artifacts import Artifact
from muva.data.benchmarks import read_tree
from muva.data.shards import write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from tests.data.benchmarks.trees import image_labels, tree

LISTS = {
    "list_train.txt": [
        "0000/0000_000_01_0303morning_0015_0.jpg 0",
        "0001/0001_001_12_0303noon_0006_2_ex.jpg 1",
    ],
    "list_val.txt": ["0000/0000_045_05_0303morning_0006_2.jpg 0"],
    "list_query.txt": ["0000/0000_000_03_0302afternoon_0934_0.jpg 0"],
    "list_gallery.txt": [
        "0000/0000_004_15_0113noon_1558_1.jpg 0",
        "0001/0001_000_02_0113noon_0001_1.jpg 1",
    ],
}
FOLDERS = {"1": ("train", "test"), "2": ("mask_train_v2", "mask_test_v2")}


def msmt17(root: Path, version: str) -> Path:
    for name, lines in LISTS.items():
        folder = FOLDERS[version][name in ("list_query.txt", "list_gallery.txt")]
        tree(root, {folder: [line.split()[0] for line in lines]})
        (root / name).write_text("".join(f"{line}\n" for line in lines))
    return root


@pytest.mark.parametrize("version", ["1", "2"])
def test_test_identities_are_numbered_after_those_of_train_and_val(tmp_path, version):
    train, test = FOLDERS[version]
    root = msmt17(tmp_path, version)
    records = read_tree("msmt17", root, domain="d", options={"version": version})
    assert image_labels(records) == {
        (f"{train}/0000/0000_000_01_0303morning_0015_0.jpg", "train", 0, 1),
        (f"{train}/0001/0001_001_12_0303noon_0006_2_ex.jpg", "train", 1, 12),
        (f"{train}/0000/0000_045_05_0303morning_0006_2.jpg", "train", 0, 5),
        (f"{test}/0000/0000_000_03_0302afternoon_0934_0.jpg", "query", 1041, 3),
        (f"{test}/0000/0000_004_15_0113noon_1558_1.jpg", "gallery", 1041, 15),
        (f"{test}/0001/0001_000_02_0113noon_0001_1.jpg", "gallery", 1042, 2),
    }


def test_shards_accept_its_identities_although_both_lists_start_from_0(tmp_path):
    records = read_tree("msmt17", msmt17(tmp_path / "v1", "1"), domain="msmt17")
    artifact = Artifact(open_store(tmp_path / "store"), "datasets", "msmt17", "0" * 16)
    splits = write_shards(records, artifact=artifact).splits
    assert {name: split["identities"] for name, split in splits.items()} == {
        "train": 2,
        "query": 1,
        "gallery": 2,
    }


@pytest.mark.parametrize(("version", "other"), [("1", "msmt17-v2"), ("2", "msmt17")])
def test_the_other_version_is_named(tmp_path, version, other):
    root = msmt17(tmp_path, "2" if version == "1" else "1")
    with pytest.raises(MuvaError, match=rf"MSMT17 V{version} at .* the data set {other}$"):
        read_tree("msmt17", root, domain="d", options={"version": version})


def test_with_two_versions_side_by_side_the_requested_one_is_suggested(tmp_path):
    for version in FOLDERS:
        msmt17(tmp_path / f"MSMT17_V{version}", version)
    for version in FOLDERS:
        with pytest.raises(MuvaError, match=rf"Is it .*MSMT17_V{version}\?"):
            read_tree("msmt17", tmp_path, domain="d", options={"version": version})


def without(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).unlink()
    return root


def with_line(root: Path, line: str) -> Path:
    with (root / "list_val.txt").open("a") as file:
        file.write(line)
    return root


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda root: root / "none", {}, "expected a folder, found nothing"),
        (lambda root: root.parent, {}, r"train is missing, found MSMT17_V1\. Is it .*MSMT17_V1\?"),
        (lambda root: root / "test", {}, r"train is missing, found 0000, 0001\. Is it .*MSMT17_V1"),
        (
            lambda root: without(root, "list_val.txt"),
            {},
            "list_val.txt is missing, found list_gallery.txt.*part of the archive",
        ),
        (
            lambda root: without(
                root,
                "train/0000/0000_045_05_0303morning_0006_2.jpg",
                "test/0001/0001_000_02_0113noon_0001_1.jpg",
            ),
            {},
            r"the 6 files of its lists, found 2 of them missing, the first train/0000/0000_045_05",
        ),
        (lambda root: with_line(root, "a.jpg 0\n"), {}, r"found 'a\.jpg 0' in line 2 of list_val"),
        (lambda root: with_line(root, "0000/0000_045_05_x.jpg\n"), {}, "in line 2 of list_val"),
        (lambda root: root, {"version": "V1"}, "version 'V1': expected one of 1, 2"),
    ],
)
def test_a_tree_that_is_not_msmt17_is_rejected(tmp_path, spoil, options, message):
    root = spoil(msmt17(tmp_path / "MSMT17_V1", "1"))
    with pytest.raises(MuvaError, match=message):
        read_tree("msmt17", root, domain="d", options=options)
