"""DukeMTMC-reID: its names differ from Market-1501's, and incomplete copies are rejected."""

import shutil

import pytest

from muva.data.benchmarks import read_tree
from muva.errors import MuvaError
from tests.data.benchmarks.trees import image_labels, tree

DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c8_f0000001.jpg"],
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c5_f0051341.jpg", "7139_c2_f0160815.jpg"],
}


def test_dukemtmc_reads_splits_people_and_cameras_from_names(tmp_path):
    records = read_tree("dukemtmc", tree(tmp_path, DUKE), domain="dukemtmc")
    assert image_labels(records) == {
        ("bounding_box_train/0001_c2_f0046182.jpg", "train", 1, 2),
        ("bounding_box_train/0001_c8_f0000001.jpg", "train", 1, 8),
        ("query/0005_c2_f0046985.jpg", "query", 5, 2),
        ("bounding_box_test/0005_c5_f0051341.jpg", "gallery", 5, 5),
        ("bounding_box_test/7139_c2_f0160815.jpg", "gallery", 7139, 2),
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root / "none", "DukeMTMC-reID at .*none: expected a folder, found nothing"),
        (lambda root: root.parent, r"found duke\. Is it .*duke\?"),
        (lambda root: root / "query", r"bounding_box_train is missing.*Is it .*duke\?"),
        (
            lambda root: shutil.rmtree(root / "bounding_box_test") or root,
            "bounding_box_test is missing, found bounding_box_train, query",
        ),
        (
            lambda root: tree(root, {"query": ["0002_c1s1_000451_03.jpg"]}),
            "a file name of Market-1501; use the layout market1501",
        ),
        (
            lambda root: tree(root, {"query": ["person.jpg"]}),
            r"like 0001_c2_f0046182\.jpg, found query/person\.jpg\. Are these the files of Duke",
        ),
    ],
    ids=["no folder", "outer folder", "inner folder", "split missing", "Market's", "other names"],
)
def test_a_tree_that_is_not_dukemtmc_is_rejected(tmp_path, spoil, message):
    root = spoil(tree(tmp_path / "duke", DUKE))
    with pytest.raises(MuvaError, match=message):
        read_tree("dukemtmc", root, domain="dukemtmc")


def test_market1501_with_names_of_dukemtmc_points_to_the_other_layout(tmp_path):
    name = "0001_c2_f0046182.jpg"
    root = tree(tmp_path, {folder: [name] for folder in DUKE})
    with pytest.raises(MuvaError, match=f"{name}.*use the layout dukemtmc"):
        read_tree("market1501", root, domain="mine")


def test_custom_trees_may_omit_the_sequences_of_market1501(tmp_path):
    root = tree(tmp_path, {folder: ["0007_c12_3.jpg"] for folder in DUKE})
    records = read_tree("market1501", root, domain="mine")
    assert {(record.pid, record.camid) for record in records} == {(7, 12)}
