"""Pickles of the authors' release: read as arrays and plain containers, and never executed."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from muva.errors import MuvaError
from muva.grounding.release import by_base_name, grid_of, read_release, write_release


def stored(folder: Path, content: object, protocol: int = 4) -> Path:
    file = folder / "release.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


def masks(count: int = 3, patches: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"{i:04d}_c1.jpg": rng.random((3, patches)) < 0.3 for i in range(count)}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_masks_of_zero_and_minus_infinity_are_read(tmp_path, protocol, dtype):
    true = masks()
    content = {name: np.where(mask, 0, -np.inf).astype(dtype) for name, mask in true.items()}
    found = read_release(stored(tmp_path, OrderedDict(content), protocol))
    assert found.keys() == true.keys()
    assert all(np.array_equal(found[name], true[name]) for name in true)


def test_written_files_have_the_format_of_the_release(tmp_path):
    write_release(tmp_path / "out.pkl", masks())
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    for name, mask in masks().items():
        assert content[name].dtype == np.float32
        assert np.array_equal(content[name] == 0, mask)
        assert np.isneginf(content[name][~mask]).all()
    assert [file.name for file in tmp_path.iterdir()] == ["out.pkl"]
    assert all(np.array_equal(m, masks()[n]) for n, m in read_release(tmp_path / "out.pkl").items())


def test_boxes_are_read_too(tmp_path):
    content = {"a.jpg": [[0.1, 0.2, 0.3, 0.4], None, (0, 0.5, 1, 1)]}
    [boxes] = read_release(stored(tmp_path, content)).values()
    assert boxes[0] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert np.isnan(boxes[1]).all()


class Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


def test_a_pickle_that_names_a_command_is_rejected_and_not_executed(tmp_path):
    trap = tmp_path / "it-ran"
    file = stored(tmp_path, {"a.jpg": Evil(trap)})
    with pytest.raises(MuvaError, match=r"names posix\.system, .* was not executed"):
        read_release(file)
    assert not trap.exists()
    pickle.loads(file.read_bytes())
    assert trap.exists()  # the trap itself works


def test_objects_in_arrays_are_rejected(tmp_path):
    trap = tmp_path / "it-ran"
    array = np.array([[Evil(trap)]], dtype=object)
    with pytest.raises(MuvaError):
        read_release(stored(tmp_path, {"a.jpg": array}))
    assert not trap.exists()
    with pytest.raises(MuvaError, match="an array of 'O8' instead of numbers"):
        read_release(stored(tmp_path, {"a.jpg": np.array([["x", "y"]], dtype=object)}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict from base names to arrays, found list"),
        ({}, "found an empty one"),
        ({3: np.zeros((3, 32))}, "expected base names, found the key 3"),
        ({"a": np.zeros(32)}, r"a: expected an array .* found shape \(32,\)"),
        ({"a": np.ones((3, 32))}, "a: expected 0 within the part and minus infinity .* found 1"),
        ({"a": np.full((3, 32), np.nan)}, "a: expected 0 within the part"),
        ({"a": [[0.1, 0.2, 30, 0.4]]}, "expected boxes as fractions"),
        ({"a": [[0.5, 0.2, 0.3, 0.4]]}, "x0 < x1"),
        (
            {"a": np.zeros((3, 32)), "b": np.zeros((3, 32)), "c": np.zeros((3, 8))},
            r"found \(3, 8\) for c and \(3, 32\) for most",
        ),
    ],
)
def test_content_in_another_format_is_reported(tmp_path, content, message):
    with pytest.raises(MuvaError, match=message):
        read_release(stored(tmp_path, content))


def test_a_file_that_is_not_a_pickle_is_reported(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(MuvaError, match=r"x\.pkl: cannot be read .* expected a pickle"):
        read_release(tmp_path / "x.pkl")


def test_base_names_that_two_images_share_are_named():
    assert by_base_name(["train/a.jpg", "query/b.jpg"], dataset="town") == {
        "a.jpg": "train/a.jpg",
        "b.jpg": "query/b.jpg",
    }
    with pytest.raises(MuvaError, match=r"name a\.jpg belongs to both train/a\.jpg and query/a"):
        by_base_name(["train/a.jpg", "query/a.jpg"], dataset="town")
    only = by_base_name(["train/a.jpg", "query/a.jpg"], dataset="town", wanted={"b.jpg"})
    assert list(only) == ["a.jpg"]


def test_a_grid_is_twice_as_high_as_wide_unless_it_is_given():
    assert (grid_of(128), grid_of(32)) == ((16, 8), (8, 4))
    with pytest.raises(MuvaError, match=r"100 patches do not form a grid .* --grid ROWSxCOLUMNS"):
        grid_of(100)
