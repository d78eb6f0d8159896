"""CUHK02: a miniature tree is read correctly, and other trees are rejected with an explanation."""

import shutil

import pytest

from muva.data.benchmarks import BENCHMARKS, read_tree
from muva.data.benchmarks.benchmark import is_complete
from muva.data.records import Record
from muva.errors import MuvaError

CUHK02 = {f"P{pair}/cam{camera}": ["001_1.png"] for pair in range(1, 6) for camera in (1, 2)}


def test_each_pair_has_its_own_people_and_cameras_all_used_for_training(
    tmp_path, tree, image_labels
):
    tree(tmp_path, CUHK02 | {"P1/cam2": ["001_1.png", "971_2.png"]})
    records = read_tree("cuhk02", tmp_path, domain="cuhk02")
    assert image_labels(records) == {
        ("P1/cam1/001_1.png", "train", 10001, 1),
        ("P1/cam2/001_1.png", "train", 10001, 2),
        ("P1/cam2/971_2.png", "train", 10971, 2),
        ("P2/cam1/001_1.png", "train", 20001, 3),
        ("P2/cam2/001_1.png", "train", 20001, 4),
        ("P3/cam1/001_1.png", "train", 30001, 5),
        ("P3/cam2/001_1.png", "train", 30001, 6),
        ("P4/cam1/001_1.png", "train", 40001, 7),
        ("P4/cam2/001_1.png", "train", 40001, 8),
        ("P5/cam1/001_1.png", "train", 50001, 9),
        ("P5/cam2/001_1.png", "train", 50001, 10),
    }


def test_the_fifth_pair_can_be_the_test_set(tmp_path, tree, image_labels):
    tree(tmp_path, CUHK02)
    whole = read_tree("cuhk02", tmp_path, domain="cuhk02")
    divided = read_tree("cuhk02", tmp_path, domain="cuhk02", options={"split": "test"})
    assert image_labels(divided) - image_labels(whole) == {
        ("P5/cam1/001_1.png", "query", 50001, 9),
        ("P5/cam2/001_1.png", "gallery", 50001, 10),
    }
    assert len(image_labels(whole) - image_labels(divided)) == 2


def test_the_published_counts_are_those_of_the_pairs():
    people_of_pair = {1: 971, 2: 306, 3: 107, 4: 193, 5: 239}  # torchreid's reader
    records = [
        Record(
            domain="cuhk02",
            image_id=f"P{pair}/cam{camera}/{person:03d}_{image}.png",
            split="train",
            pid=10_000 * pair + person,
            camid=2 * pair - 2 + camera,
            source=b"",
        )
        for pair, people in people_of_pair.items()
        for person in range(1, people + 1)
        for camera in (1, 2)
        for image in (1, 2)
    ]
    assert is_complete(BENCHMARKS["cuhk02"], records)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, _: root.parent, r"P1/cam1 is missing, found Dataset\. Is it .*Dataset\?"),
        (lambda root, _: root / "P1", r"P1/cam1 is missing, found cam1, cam2\. Is it .*Dataset\?"),
        (
            lambda root, _: shutil.rmtree(root / "P4/cam2") or root,
            "P4/cam2 is missing, found P1, P2, P3, P4, P5",
        ),
        (
            lambda root, tree: tree(root, {"P3/cam1": ["0001001.png"]}),
            r"names like 001_1\.png, found P3/cam1/0001001\.png",
        ),
    ],
    ids=["outer folder", "inner folder", "camera missing", "names of CUHK01"],
)
def test_a_tree_that_is_not_cuhk02_is_rejected(tmp_path, tree, spoil, message):
    root = spoil(tree(tmp_path / "Dataset", CUHK02), tree)
    with pytest.raises(MuvaError, match=message):
        read_tree("cuhk02", root, domain="cuhk02")


def test_an_unknown_split_is_rejected(tmp_path, tree):
    tree(tmp_path, CUHK02)
    with pytest.raises(MuvaError, match="split 'P5': expected one of train, test"):
        read_tree("cuhk02", tmp_path, domain="cuhk02", options={"split": "P5"})
