"""CUHK03-NP: the two kinds of boxes are two data sets in one tree."""

import shutil

import pytest

from muva.data.benchmarks import read_tree
from muva.errors import MuvaError
from tests.data.benchmarks.trees import image_labels, tree

CUHK03NP = {
    "detected/bounding_box_train": ["0001_c1_1.png", "0001_c2_6.png"],
    "detected/query": ["0003_c1_21.png"],
    "detected/bounding_box_test": ["0003_c2_28.png"],
    "labeled/bounding_box_train": ["0001_c1_1.png"],
    "labeled/query": ["0004_c2_33.png"],
    "labeled/bounding_box_test": ["0004_c1_31.png", "0004_c2_34.png"],
}


def test_detected_boxes_are_read_by_default(tmp_path):
    tree(tmp_path, CUHK03NP)
    records = read_tree("cuhk03np", tmp_path, domain="d")
    assert image_labels(records) == {
        ("detected/bounding_box_train/0001_c1_1.png", "train", 1, 1),
        ("detected/bounding_box_train/0001_c2_6.png", "train", 1, 2),
        ("detected/query/0003_c1_21.png", "query", 3, 1),
        ("detected/bounding_box_test/0003_c2_28.png", "gallery", 3, 2),
    }
    assert read_tree("cuhk03np", tmp_path, domain="d", options={"boxes": "detected"}) == records


def test_labelled_boxes_are_read_on_request(tmp_path):
    tree(tmp_path, CUHK03NP)
    assert image_labels(
        read_tree("cuhk03np", tmp_path, domain="d", options={"boxes": "labelled"})
    ) == {
        ("labeled/bounding_box_train/0001_c1_1.png", "train", 1, 1),
        ("labeled/query/0004_c2_33.png", "query", 4, 2),
        ("labeled/bounding_box_test/0004_c1_31.png", "gallery", 4, 1),
        ("labeled/bounding_box_test/0004_c2_34.png", "gallery", 4, 2),
    }


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda root: root / "none", {}, "expected a folder, found nothing"),
        (lambda root: root.parent, {}, r"found cuhk03-np\. Is it .*cuhk03-np\?"),
        (lambda root: root / "detected", {}, r"found bounding_box_test.*Is it .*cuhk03-np\?"),
        (
            lambda root: root / "labeled" / "query",
            {"boxes": "labelled"},
            r"labeled/bounding_box_train is missing.*Is it .*cuhk03-np\?",
        ),
        (
            lambda root: shutil.rmtree(root / "labeled") or root,
            {"boxes": "labelled"},
            "labeled/bounding_box_train is missing, found detected",
        ),
        (
            lambda root: shutil.rmtree(root / "detected" / "query") or root,
            {},
            "detected/query is missing",
        ),
        (
            lambda root: tree(root, {"detected/query": ["1_001_1_01.png"]}),
            {},
            r"file names like 0001_c1_21\.png, found detected/query/1_001_1_01\.png",
        ),
        (
            lambda root: tree(root, {"detected/query": ["0005_c2_f0046985.jpg"]}),
            {},
            "a file name of DukeMTMC-reID; use the layout dukemtmc",
        ),
        (lambda root: root, {"boxes": "labeled"}, "'labeled': expected one of detected, labelled"),
    ],
)
def test_a_tree_that_is_not_cuhk03np_is_rejected(tmp_path, spoil, options, message):
    root = spoil(tree(tmp_path / "cuhk03-np", CUHK03NP))
    with pytest.raises(MuvaError, match=message):
        read_tree("cuhk03np", root, domain="d", options=options)
