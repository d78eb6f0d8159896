"""CUHK03: images are read unchanged from the MATLAB file, and both protocols split them."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from muva.data.artifacts import Artifact
from muva.data.benchmarks import BENCHMARKS, file_listing, read_tree
from muva.data.records import LazyImage
from muva.data.shards import write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from tests.data.benchmarks.trees import image_labels

PEOPLE = (3, 2)
"""In each of the miniature's two pairs."""
IMAGES = {
    "detected": "1_001_1_01 1_001_2_06 1_002_1_01 1_002_1_02 1_002_2_06 1_003_1_05 2_001_1_03 "
    "2_001_2_09 2_001_2_10 2_002_2_07",
    "labeled": "1_001_1_01 1_002_1_01 1_002_2_07 1_003_2_06 2_001_1_01 2_001_2_06 2_002_1_01",
}
TEST_SETS = ([[1, 2], [2, 1]], [[1, 1], [2, 2]])
NEW_PROTOCOL = {
    "train": ["1_001_1_01", "1_001_2_06", "1_003_1_05", "2_002_2_07"],
    "query": ["1_002_1_02", "1_002_2_06", "2_001_1_03", "2_001_2_09"],
    "gallery": ["1_002_1_01", "2_001_2_10"],
}
CONFIG = "cuhk03_new_protocol_config_detected.mat"


def pixels(boxes: str, name: str) -> np.ndarray:
    """An image that is higher than wide and differs for each position."""
    random = np.random.default_rng(list(f"{boxes}{name}".encode()))
    return random.integers(0, 256, (7, 3, 3), np.uint8)


def cuhk03(root: Path, images: Mapping[str, str] = IMAGES) -> Path:
    """A file as saved by MATLAB with -v7.3: cells are arrays of references, axes are reversed."""
    (root / "cuhk03_release").mkdir(parents=True)
    with h5py.File(root / "cuhk03_release" / "cuhk-03.mat", "w", userblock_size=512) as mat:
        values_of_cells = mat.create_group("#refs#")

        def reference(value: np.ndarray) -> h5py.Reference:
            stored = value.T if value.size else np.array(value.shape, np.uint64)
            dataset = values_of_cells.create_dataset(str(len(values_of_cells)), data=stored)
            dataset.attrs["MATLAB_empty"] = int(value.size == 0)
            return dataset.ref

        def cell(values: np.ndarray) -> np.ndarray:
            references = np.empty(values.shape, h5py.ref_dtype)
            for place in np.ndindex(values.shape):
                references[place] = reference(values[place])
            return references

        for boxes, names in images.items():
            pairs = np.empty((len(PEOPLE), 1), object)
            for pair, people in enumerate(PEOPLE, start=1):
                of_pair = np.empty((people, 10), object)
                for person, number in np.ndindex(of_pair.shape):
                    name = f"{pair}_{person + 1:03}_{1 + number // 5}_{number + 1:02}"
                    there = name in names
                    of_pair[person, number] = pixels(boxes, name) if there else np.empty((0, 0))
                pairs[pair - 1, 0] = cell(of_pair)
            mat[boxes] = cell(pairs).T
        test_sets = np.empty((len(TEST_SETS), 1), object)
        for number, test_set in enumerate(TEST_SETS):
            test_sets[number, 0] = np.array(test_set, float)
        mat["testsets"] = cell(test_sets).T
    return root


def with_config(root: Path, splits: Mapping[str, list[str]] = NEW_PROTOCOL) -> Path:
    """The tree with the file of the new protocol: image names and the indices of each split."""
    names = sorted(name for split in splits.values() for name in split)
    files = np.empty((len(names), 1), object)
    files[:, 0] = [f"{name}.png" for name in names]
    numbers = {
        f"{split}_idx": np.array([[names.index(name) + 1] for name in of_split], np.uint16)
        for split, of_split in splits.items()
    }
    savemat(root / CONFIG, {"filelist": files, **numbers})
    return root


def test_the_first_test_set_has_queries_from_camera_1_and_a_gallery_from_camera_2(tmp_path):
    records = read_tree("cuhk03", cuhk03(tmp_path), domain="d")
    assert image_labels(records) == {
        ("detected/1_001_1_01.png", "train", 10001, 1),
        ("detected/1_001_2_06.png", "train", 10001, 2),
        ("detected/1_002_1_01.png", "query", 10002, 1),
        ("detected/1_002_1_02.png", "query", 10002, 1),
        ("detected/1_002_2_06.png", "gallery", 10002, 2),
        ("detected/1_003_1_05.png", "train", 10003, 1),
        ("detected/2_001_1_03.png", "query", 20001, 1),
        ("detected/2_001_2_09.png", "gallery", 20001, 2),
        ("detected/2_001_2_10.png", "gallery", 20001, 2),
        ("detected/2_002_2_07.png", "train", 20002, 2),
    }


def test_labelled_boxes_are_other_images_of_the_same_people(tmp_path):
    options = {"boxes": "labelled"}
    assert image_labels(read_tree("cuhk03", cuhk03(tmp_path), domain="d", options=options)) == {
        ("labeled/1_001_1_01.png", "train", 10001, 1),
        ("labeled/1_002_1_01.png", "query", 10002, 1),
        ("labeled/1_002_2_07.png", "gallery", 10002, 2),
        ("labeled/1_003_2_06.png", "train", 10003, 2),
        ("labeled/2_001_1_01.png", "query", 20001, 1),
        ("labeled/2_001_2_06.png", "gallery", 20001, 2),
        ("labeled/2_002_1_01.png", "train", 20002, 1),
    }


def test_the_new_protocol_takes_its_splits_from_its_own_file(tmp_path):
    root = with_config(cuhk03(tmp_path))
    records = read_tree("cuhk03", root, domain="d", options={"protocol": "new"})
    assert {(record.image_id, record.split) for record in records} == {
        (f"detected/{name}.png", split) for split, names in NEW_PROTOCOL.items() for name in names
    }


@pytest.mark.parametrize(("boxes", "spelt"), [("detected", "detected"), ("labelled", "labeled")])
def test_images_are_upright_and_lossless(tmp_path, boxes, spelt):
    for record in read_tree("cuhk03", cuhk03(tmp_path), domain="d", options={"boxes": boxes}):
        assert isinstance(record.source, LazyImage)
        image = np.asarray(Image.open(io.BytesIO(record.source.encoded())))
        np.testing.assert_array_equal(image, pixels(spelt, Path(record.image_id).stem))


def test_shards_hold_all_images_of_the_file(tmp_path):
    records = read_tree("cuhk03", cuhk03(tmp_path / "cuhk03"), domain="cuhk03-detected")
    artifact = Artifact(open_store(tmp_path / "store"), "datasets", "cuhk03-detected", "0" * 16)
    summary = write_shards(records, artifact=artifact)
    assert (summary.images, summary.quarantined) == (len(IMAGES["detected"].split()), 0)


def test_a_file_damaged_after_it_was_listed_raises_an_os_error(tmp_path):
    source = read_tree("cuhk03", cuhk03(tmp_path), domain="d")[0].source
    assert isinstance(source, LazyImage)
    source.file.write_bytes(source.file.read_bytes()[:2000])
    with pytest.raises(OSError, match=r"1_001_1_01\.png in .*cuhk-03\.mat"):
        source.encoded()


def test_a_listing_distinguishes_another_file_from_the_same_one(tmp_path):
    root = cuhk03(tmp_path)
    before = file_listing(read_tree("cuhk03", root, domain="d"))
    assert file_listing(read_tree("cuhk03", root, domain="d")) == before
    shutil.rmtree(root / "cuhk03_release")
    cuhk03(root, IMAGES | {"detected": IMAGES["detected"] + " 1_003_2_10"})
    assert file_listing(read_tree("cuhk03", root, domain="d")) != before


def test_trials_have_all_queries_and_one_gallery_image_of_each_person(tmp_path):
    root = cuhk03(tmp_path)
    records = read_tree("cuhk03", root, domain="d")
    draw = BENCHMARKS["cuhk03-detected"].trials
    assert draw is not None
    trials = draw(records, root)
    assert len(trials) == 10
    assert trials == draw(records[::-1], root)
    assert {trial.query for trial in trials} == {
        ("detected/1_002_1_01.png", "detected/1_002_1_02.png", "detected/2_001_1_03.png")
    }
    assert {trial.gallery for trial in trials} == {
        ("detected/1_002_2_06.png", "detected/2_001_2_09.png"),
        ("detected/1_002_2_06.png", "detected/2_001_2_10.png"),
    }


def replaced(root: Path, variable: str) -> Path:
    with h5py.File(root / "cuhk03_release" / "cuhk-03.mat", "a") as mat:
        del mat[variable]
        mat[variable] = np.ones((1, 5))
    return root


def truncated(root: Path, name: str) -> Path:
    file = root / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return root


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda root: root / "none", {}, "expected a folder, found nothing"),
        (lambda root: root.parent, {}, r"found cuhk03\. Is it .*/cuhk03\?"),
        (lambda root: root / "cuhk03_release", {}, r"found cuhk-03\.mat\. Is it .*/cuhk03\?"),
        (
            lambda root: truncated(root, "cuhk03_release/cuhk-03.mat"),
            {},
            r"cannot be read \(.*truncated file.*the complete file of CUHK03\?",
        ),
        (lambda root: replaced(root, "detected"), {}, "expected a MATLAB file of version 7.3"),
        (lambda root: replaced(root, "testsets"), {}, "with the cells detected, labeled and tests"),
        (lambda root: root, {"boxes": "labeled"}, "boxes 'labeled': expected one of detected, lab"),
        (lambda root: root, {"protocol": "np"}, "protocol 'np': expected one of classic, new"),
        (
            lambda root: root,
            {"protocol": "new"},
            f"expected the file {CONFIG} of the new protocol, found cuhk03_release.*re-ranking",
        ),
        (
            lambda root: truncated(with_config(root), CONFIG),
            {"protocol": "new"},
            f"{CONFIG}: expected a MATLAB file",
        ),
        (
            lambda root: with_config(root, {**NEW_PROTOCOL, "gallery": ["1_003_2_06"]}),
            {"protocol": "new"},
            r"found 3 that are only in one of the two, the first 1_002_1_01\.png.*detected boxes",
        ),
    ],
)
def test_a_tree_that_is_not_cuhk03_is_rejected(tmp_path, spoil, options, message):
    root = spoil(cuhk03(tmp_path / "cuhk03"))
    with pytest.raises(MuvaError, match=message):
        read_tree("cuhk03", root, domain="d", options=options)
