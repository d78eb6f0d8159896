"""i-LIDS: a miniature tree is read correctly, and other trees are rejected with an explanation."""

import pytest

from muva.data.benchmarks import BENCHMARKS, read_tree
from muva.data.benchmarks.benchmark import is_complete
from muva.data.records import Record
from muva.errors import MuvaError

ILIDS = {"Persons": ["0001001.jpg", "0001002.jpg", "0001003.jpg", "0002004.jpg", "0002005.jpg"]}


def test_the_first_image_of_each_person_is_a_query_and_cameras_are_unknown(
    tmp_path, tree, image_labels
):
    records = read_tree("ilids", tree(tmp_path, ILIDS), domain="ilids")
    assert image_labels(records) == {
        ("Persons/0001001.jpg", "query", 1, None),
        ("Persons/0001002.jpg", "gallery", 1, None),
        ("Persons/0001003.jpg", "gallery", 1, None),
        ("Persons/0002004.jpg", "query", 2, None),
        ("Persons/0002005.jpg", "gallery", 2, None),
    }


def test_a_trial_of_the_whole_data_set_has_60_people_with_two_images_each(tmp_path):
    records = [
        Record(
            domain="ilids",
            image_id=f"Persons/{pid:04d}{image:03d}.jpg",
            split="gallery" if image else "query",
            pid=pid,
            camid=None,
            source=b"",
        )
        for pid in range(1, 120)
        for image in range(4)
    ]
    ilids = BENCHMARKS["ilids"]
    assert is_complete(ilids, records)
    assert ilids.trials is not None
    trials = ilids.trials(records, tmp_path)
    assert [(len(t.query), len(t.gallery)) for t in trials] == [(60, 60)] * 10
    for trial in trials:
        people = [image_id[:-7] for image_id in trial.query]
        assert people == [image_id[:-7] for image_id in trial.gallery]
        assert len(set(people)) == 60
        assert not set(trial.query) & set(trial.gallery)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, _: root.parent, r"Persons is missing.*Is it .*i-LIDS_Pedestrian\?"),
        (lambda root, _: root / "Persons", r"found 0001001.*Is it .*i-LIDS_Pedestrian\?"),
        (
            lambda root, _: (root / "Persons").rename(root / "images").parent,
            r"Persons is missing, found images\. .*completely unpacked",
        ),
        (
            lambda root, tree: tree(root, {"Persons": ["person001/cam1_person001.png"]}),
            r"names like 0001002\.jpg, found Persons/person001/cam1_person001\.png",
        ),
    ],
    ids=["outer folder", "inner folder", "folder missing", "names of i-LIDS-VID"],
)
def test_a_tree_that_is_not_ilids_is_rejected(tmp_path, tree, spoil, message):
    root = spoil(tree(tmp_path / "i-LIDS_Pedestrian", ILIDS), tree)
    with pytest.raises(MuvaError, match=message):
        read_tree("ilids", root, domain="ilids")
