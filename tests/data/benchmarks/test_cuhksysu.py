"""CUHK-SYSU: people are cropped from frames as annotated; other trees are rejected."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from muva.data.artifacts import Artifact
from muva.data.benchmarks import BENCHMARKS, file_listing, read_tree
from muva.data.benchmarks.benchmark import is_complete
from muva.data.records import LazyImage, Record
from muva.data.shards import write_shards
from muva.data.store import open_store
from muva.errors import MuvaError

SEEN = {
    "p1": [("s1.jpg", (1, 1, 4, 7)), ("s2.jpg", (3, 5, 9, 20))],
    "p11934": [("s1.jpg", (10, 2, 6, 16))],
}


def save_people(root, seen):
    """`Person.mat` as in the archive: structs of people, each with its structs of scenes."""
    people = np.empty((1, len(seen)), [(f, object) for f in ("idname", "nAppear", "scene")])
    for place, (name, marked) in enumerate(seen.items()):
        scenes = np.empty((1, len(marked)), [(f, object) for f in ("imname", "idlocate", "ishard")])
        for number, (frame, box) in enumerate(marked):
            scenes[0, number] = (frame, np.array([box], np.uint16), 0)
        people[0, place] = (name, len(marked), scenes)
    (root / "annotation").mkdir(parents=True, exist_ok=True)
    savemat(root / "annotation" / "Person.mat", {"Person": people})


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "dataset"
    (root / "Image" / "SSM").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("s1.jpg", "s2.jpg"):
        pixels = rng.integers(0, 256, (25, 18, 3), np.uint8)
        Image.fromarray(pixels).save(root / "Image" / "SSM" / name)
    save_people(root, SEEN)
    return root


def test_each_annotated_box_is_a_training_image(archive, image_labels):
    records = read_tree("cuhksysu", archive, domain="cuhksysu")
    assert image_labels(records) == {
        ("Image/SSM/s1.jpg#p1_1", "train", 1, None),
        ("Image/SSM/s2.jpg#p1_2", "train", 1, None),
        ("Image/SSM/s1.jpg#p11934_1", "train", 11934, None),
    }


def test_people_are_cropped_losslessly_exactly_as_in_matlab(archive):
    # This is how BCaR's script finds frames and boxes in Person.mat.
    people = loadmat(archive / "annotation" / "Person.mat")["Person"][0]
    marked = [(scene[0][0], scene[1][0]) for person in people for scene in person[2][0]]
    records = read_tree("cuhksysu", archive, domain="cuhksysu")
    for record, (name, (x, y, width, height)) in zip(records, marked, strict=True):
        assert isinstance(record.source, LazyImage)
        assert record.source.file == archive / "Image" / "SSM" / name
        frame = np.asarray(Image.open(record.source.file))
        cut_out = Image.open(io.BytesIO(record.source.encoded()))
        assert cut_out.format == "PNG"
        rows, columns = np.arange(y, y + height + 1), np.arange(x, x + width + 1)  # I(y:y+h,x:x+w)
        np.testing.assert_array_equal(cut_out, frame[np.ix_(rows - 1, columns - 1)])


def test_a_box_is_clipped_to_its_frame_and_rejected_outside_of_it(archive):
    save_people(archive, {"p1": [("s1.jpg", (11, 21, 50, 50)), ("s1.jpg", (19, 1, 5, 5))]})
    within, outside = (r.source for r in read_tree("cuhksysu", archive, domain="cuhksysu"))
    assert isinstance(within, LazyImage)
    assert isinstance(outside, LazyImage)
    assert Image.open(io.BytesIO(within.encoded())).size == (8, 5)
    with pytest.raises(OSError, match="lies outside the frame"):
        outside.encoded()


def test_the_archive_is_stored_except_for_boxes_outside_frames_and_missing_frames(
    archive, tmp_path
):
    good = {f"p{pid}": [("s1.jpg", (1, 1, 9, 9))] for pid in range(1, 21)}
    lost = {"p30": [("s9.jpg", (1, 1, 9, 9))], "p31": [("s1.jpg", (90, 90, 9, 9))]}
    save_people(archive, good | lost)
    records = read_tree("cuhksysu", archive, domain="cuhksysu")
    assert len(file_listing(records)) == 22
    artifact = Artifact(open_store(tmp_path / "store"), "datasets", "cuhksysu", "0" * 16)
    summary = write_shards(records, artifact=artifact)
    assert (summary.images, summary.quarantined, summary.cameras_known) == (20, 2, False)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("cropped_images", ["p1_s1_1.jpg", "p11422_s16929_1.jpg"]),
        ("cropped_image", ["p00001_n01_s00001_hard0.png", "p11422_n02_s16929_hard1.png"]),
    ],
    ids=["torchreid", "metabin"],
)
def test_a_tree_of_cropped_images_is_read_by_file_names(
    tmp_path, tree, image_labels, folder, names
):
    records = read_tree("cuhksysu", tree(tmp_path, {folder: names}), domain="cuhksysu")
    assert image_labels(records) == {
        (f"{folder}/{names[0]}", "train", 1, None),
        (f"{folder}/{names[1]}", "train", 11422, None),
    }


def test_the_archive_is_preferred_over_crops_beside_it(archive, tree):
    tree(archive, {"cropped_images": ["p1_s1_1.jpg"]})
    assert len(read_tree("cuhksysu", archive, domain="cuhksysu")) == 3


def test_the_published_counts_are_of_training_images_of_unknown_cameras():
    records = [
        Record(
            domain="cuhksysu", image_id=str(i), split="train", pid=i % 11934, camid=None, source=b""
        )
        for i in range(34574)
    ]
    assert is_complete(BENCHMARKS["cuhksysu"], records)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, _: root.parent, r"found dataset\. Is it .*dataset\?"),
        (lambda root, _: root / "Image", r"found SSM\. Is it .*dataset\?"),
        (
            lambda root, _: (root / "annotation/Person.mat").unlink() or root,
            "expected Image/SSM and annotation/Person.mat, or cropped_images; found Image, annot",
        ),
        (
            lambda root, _: shutil.rmtree(root / "Image") or root,
            "expected Image/SSM and annotation/Person.mat, or cropped_images; found annotation",
        ),
        (
            lambda root, tree: tree(root.parent / "crops", {"cropped_images/1": ["1.jpg"]}),
            r"names like p11422_s16929_1\.jpg, found cropped_images/1/1\.jpg",
        ),
        (
            lambda root, tree: (
                tree(root.parent / "crops", {"cropped_images": ["p1_s1_1.jpg"]}) / "cropped_images"
            ),
            r"found p1_s1_1\.jpg\. Is it .*crops\?",
        ),
        (lambda root, _: save_people(root, {"x": []}) or root, "named like p11422, found .*x"),
        (
            lambda root, _: save_people(root, {"p1": [("s1.jpg", (1, 2))]}) or root,
            "expected boxes of 4 numbers, found .* for p1",
        ),
        (
            lambda root, _: savemat(root / "annotation/Person.mat", {"Img": 1}) or root,
            "expected the variable Person, found Img",
        ),
        (
            lambda root, _: savemat(root / "annotation/Person.mat", {"Person": {"box": 1}}) or root,
            "expected structs with the fields idname, scene, found box",
        ),
    ],
    ids=[
        *("outer folder", "inner folder", "list missing", "frames missing", "other names"),
        *("folder of crops", "person's name", "box", "other list", "other fields"),
    ],
)
def test_a_tree_that_is_not_cuhksysu_is_rejected(archive, tree, spoil, message):
    with pytest.raises(MuvaError, match=message):
        read_tree("cuhksysu", spoil(archive, tree), domain="cuhksysu")
