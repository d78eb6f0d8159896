"""VIPeR: a miniature tree is read correctly, and other trees are rejected with an explanation."""

import shutil

import pytest

from muva.data.benchmarks import BENCHMARKS, read_tree
from muva.data.benchmarks.benchmark import Trial, is_complete
from muva.data.records import Record
from muva.errors import MuvaError

VIPER = {"cam_a": ["000_45.bmp", "873_0.bmp"], "cam_b": ["000_90.bmp", "873_180.bmp"]}


def test_camera_a_has_the_queries_and_camera_b_the_gallery(tmp_path, tree, image_labels):
    records = read_tree("viper", tree(tmp_path, VIPER), domain="viper")
    assert image_labels(records) == {
        ("cam_a/000_45.bmp", "query", 0, 1),
        ("cam_a/873_0.bmp", "query", 873, 1),
        ("cam_b/000_90.bmp", "gallery", 0, 2),
        ("cam_b/873_180.bmp", "gallery", 873, 2),
    }
    assert {r.domain for r in records} == {"viper"}


def test_a_trial_of_the_whole_data_set_has_316_people(tmp_path):
    records = [
        Record(
            domain="viper",
            image_id=f"cam_{'ab'[camera]}/{pid:03d}_0.bmp",
            split=("query", "gallery")[camera],
            pid=pid,
            camid=1 + camera,
            source=b"",
        )
        for pid in range(632)
        for camera in (0, 1)
    ]
    viper = BENCHMARKS["viper"]
    assert is_complete(viper, records)
    assert not is_complete(viper, records[1:])
    assert viper.trials is not None
    trials = viper.trials(records, tmp_path)
    assert [(len(t.query), len(t.gallery)) for t in trials] == [(316, 316)] * 10
    assert len({t.query for t in trials}) == 10


def test_a_trial_of_a_miniature_tree_has_half_of_its_people(tmp_path, tree):
    viper = BENCHMARKS["viper"]
    assert viper.trials is not None
    root = tree(tmp_path, VIPER)
    trials = viper.trials(read_tree("viper", root, domain="viper"), root)
    assert set(trials) == {
        Trial(query=("cam_a/000_45.bmp",), gallery=("cam_b/000_90.bmp",)),
        Trial(query=("cam_a/873_0.bmp",), gallery=("cam_b/873_180.bmp",)),
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, _: root / "none", "expected a folder, found nothing"),
        (lambda root, _: root.parent, r"cam_a is missing, found VIPeR\. Is it .*VIPeR\?"),
        (lambda root, _: root / "cam_a", r"cam_a is missing, found 000_45.*Is it .*VIPeR\?"),
        (
            lambda root, _: shutil.rmtree(root / "cam_b") or root,
            r"cam_b is missing, found cam_a\. .*completely unpacked",
        ),
        (
            lambda root, tree: tree(root, {"cam_b": ["0002_c1s1_000451_03.jpg"]}),
            r"names like 000_45\.bmp, found cam_b/0002_c1s1_000451_03\.jpg",
        ),
        (
            lambda root, tree: tree(root, {"cam_a": ["p000_c1_d045.png"]}),
            r"names like 000_45\.bmp, found cam_a/p000_c1_d045\.png",
        ),
    ],
    ids=["no folder", "outer folder", "inner folder", "camera missing", "market", "metabin"],
)
def test_a_tree_that_is_not_viper_is_rejected(tmp_path, tree, spoil, message):
    root = spoil(tree(tmp_path / "VIPeR", VIPER), tree)
    with pytest.raises(MuvaError, match=message):
        read_tree("viper", root, domain="viper")
