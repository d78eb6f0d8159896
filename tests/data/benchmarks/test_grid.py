"""GRID: a miniature tree and its partitions are read correctly; other trees are rejected."""

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from muva.data.benchmarks import BENCHMARKS, read_tree
from muva.data.benchmarks.benchmark import Trial, is_complete
from muva.data.benchmarks.grid import official_partitions
from muva.data.records import Record, Split
from muva.errors import MuvaError

PROBES = ["0001_1_25004_107_32_106_221.jpeg", "0002_5_25085_135_13_47_159.jpeg"]
MATCHES = ["0001_2_25023_116_134_128_330.jpeg", "0002_6_25061_176_131_112_299.jpeg"]
DISTRACTORS = ["0000_1_25698_101_16_87_246.jpeg", "0000_8_26113_116_13_72_212.jpeg"]
GRID = {"probe": PROBES, "gallery": [*MATCHES, *DISTRACTORS]}


def save_partitions(root, partitions):
    """As in the archive: one cell per partition, with a struct whose third field is its people."""
    cells = np.empty((1, len(partitions)), object)
    for place, people in enumerate(partitions):
        person_idx = np.array([people], np.uint8)
        cells[0, place] = {
            "probeImIdx": 2 * person_idx,
            "galleryImIdx": 2 * person_idx - 1,
            "personIdx": person_idx,
        }
    savemat(root / "features_and_partitions.mat", {"trainIdxAll": cells, "ftrset": np.eye(3)})


@pytest.fixture
def grid(tmp_path, tree):
    root = tree(tmp_path / "underground_reid", GRID)
    save_partitions(root, [[2], [1]])
    return root


def test_probes_are_queries_and_the_gallery_has_their_matches_and_distractors(grid, image_labels):
    assert image_labels(read_tree("grid", grid, domain="grid")) == {
        (f"probe/{PROBES[0]}", "query", 1, 1),
        (f"probe/{PROBES[1]}", "query", 2, 5),
        (f"gallery/{MATCHES[0]}", "gallery", 1, 2),
        (f"gallery/{MATCHES[1]}", "gallery", 2, 6),
        (f"gallery/{DISTRACTORS[0]}", "gallery", 0, 1),
        (f"gallery/{DISTRACTORS[1]}", "gallery", 0, 8),
    }


def test_a_trial_tests_the_people_that_its_official_partition_does_not_train_on(grid):
    trials = BENCHMARKS["grid"].trials
    assert trials is not None
    distractors = tuple(f"gallery/{name}" for name in DISTRACTORS)
    assert trials(read_tree("grid", grid, domain="grid"), grid) == [
        Trial(query=(f"probe/{PROBES[0]}",), gallery=(*distractors, f"gallery/{MATCHES[0]}")),
        Trial(query=(f"probe/{PROBES[1]}",), gallery=(*distractors, f"gallery/{MATCHES[1]}")),
    ]


def test_a_trial_of_the_whole_data_set_has_125_people_and_a_gallery_of_900(tmp_path):
    rng = np.random.default_rng(0)
    partitions = [1 + rng.permutation(250)[:125] for _ in range(10)]
    save_partitions(tmp_path, partitions)
    pids: dict[Split, list[int]] = {
        "query": [*range(1, 251)],
        "gallery": [*range(1, 251), *[0] * 775],
    }
    records = [
        Record(domain="grid", image_id=f"{pid}/{i}", split=split, pid=pid, camid=1, source=b"")
        for split in pids
        for i, pid in enumerate(pids[split])
    ]
    assert is_complete(BENCHMARKS["grid"], records)
    trials = official_partitions(records, tmp_path)
    assert [(len(t.query), len(t.gallery)) for t in trials] == [(125, 900)] * 10
    # This is how torchreid reads the training identities of a partition.
    cells = loadmat(tmp_path / "features_and_partitions.mat")["trainIdxAll"][0]
    for place, trial in enumerate(trials):
        trained = set(cells[place][0][0][2][0].tolist())
        asking = {int(image_id.split("/")[0]) for image_id in trial.query}
        assert asking == set(range(1, 251)) - trained


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, _: root.parent, r"probe is missing, .*Is it .*underground_reid\?"),
        (lambda root, _: root / "gallery", r"probe is missing, .*Is it .*underground_reid\?"),
        (
            lambda root, _: (root / "features_and_partitions.mat").unlink() or root,
            "features_and_partitions.mat is missing, found gallery, probe",
        ),
        (
            lambda root, tree: tree(root, {"probe": ["0001_c1s1_000451_03.jpg"]}),
            r"names like 0001_2_.*\.jpeg, found probe/0001_c1s1_000451_03\.jpg",
        ),
    ],
    ids=["outer folder", "inner folder", "list missing", "other names"],
)
def test_a_tree_that_is_not_grid_is_rejected(grid, tree, spoil, message):
    with pytest.raises(MuvaError, match=message):
        read_tree("grid", spoil(grid, tree), domain="grid")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ftrset": np.eye(3)}, "expected the variable trainIdxAll, found ftrset"),
        ({"trainIdxAll": np.eye(3)}, "the fields personIdx, found float64 numbers"),
        ({"trainIdxAll": {"idx": 1}}, "the fields personIdx, found idx"),
        (b"", "expected a MATLAB file, found one that cannot be read"),
        (b"interrupted" * 50, "expected a MATLAB file, found one that cannot be read"),
    ],
    ids=["no list", "matrix", "other fields", "empty", "no MATLAB file"],
)
def test_unreadable_partitions_are_explained(grid, content, message):
    file = grid / "features_and_partitions.mat"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        savemat(file, content)
    with pytest.raises(MuvaError, match=message):
        official_partitions([], grid)
