"""PRID-2011: a miniature tree is read correctly; other trees are rejected."""

import shutil

import pytest

from muva.data.benchmarks import BENCHMARKS, read_tree
from muva.data.benchmarks.benchmark import is_complete
from muva.data.records import Record, Split
from muva.errors import MuvaError

PRID = {
    "single_shot/cam_a": ["person_0001.png", "person_0200.png", "person_0201.png"],
    "single_shot/cam_b": ["person_0001.png", "person_0200.png", "person_0201.png"],
    "multi_shot/cam_a/person_0001": ["0001.png"],
}


def test_numbers_above_200_are_read_only_in_camera_b(tmp_path, tree, image_labels):
    records = read_tree("prid2011", tree(tmp_path, PRID), domain="prid2011")
    assert image_labels(records) == {
        ("single_shot/cam_a/person_0001.png", "query", 1, 1),
        ("single_shot/cam_a/person_0200.png", "query", 200, 1),
        ("single_shot/cam_b/person_0001.png", "gallery", 1, 2),
        ("single_shot/cam_b/person_0200.png", "gallery", 200, 2),
        ("single_shot/cam_b/person_0201.png", "gallery", 201, 2),
    }


def test_a_trial_of_the_whole_data_set_has_100_people_and_a_gallery_of_649(tmp_path):
    people: dict[Split, int] = {"query": 200, "gallery": 749}
    records = [
        Record(
            domain="prid2011",
            image_id=f"{split}/{pid}",
            split=split,
            pid=pid,
            camid=camid,
            source=b"",
        )
        for camid, split in enumerate(people, start=1)
        for pid in range(1, people[split] + 1)
    ]
    prid = BENCHMARKS["prid2011"]
    assert is_complete(prid, records)
    assert prid.trials is not None
    trials = prid.trials(records, tmp_path)
    assert [(len(t.query), len(t.gallery)) for t in trials] == [(100, 649)] * 10
    only_in_b = {f"gallery/{pid}" for pid in range(201, 750)}
    for trial in trials:
        asking = {image_id.replace("query", "gallery") for image_id in trial.query}
        assert set(trial.gallery) == asking | only_in_b


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, _: root.parent, r"single_shot/cam_a is missing.*Is it .*prid_2011\?"),
        (lambda root, _: root / "single_shot", r"found cam_a, cam_b\. Is it .*prid_2011\?"),
        (
            lambda root, _: shutil.rmtree(root / "single_shot") or root,
            r"single_shot/cam_a is missing, found multi_shot\. .*completely unpacked",
        ),
        (
            lambda root, tree: tree(root, {"single_shot/cam_a": ["0001.png"]}),
            r"names like person_0001\.png, found single_shot/cam_a/0001\.png",
        ),
    ],
    ids=["outer folder", "inner folder", "only multi-shot", "other names"],
)
def test_a_tree_that_is_not_prid2011_is_rejected(tmp_path, tree, spoil, message):
    root = spoil(tree(tmp_path / "prid_2011", PRID), tree)
    with pytest.raises(MuvaError, match=message):
        read_tree("prid2011", root, domain="prid2011")
