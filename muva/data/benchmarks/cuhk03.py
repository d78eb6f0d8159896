"""CUHK03 (Li et al., CVPR 2014), read from its MATLAB file of version 7.3, which is HDF5.

In `cuhk03_release/cuhk-03.mat`, `detected` and `labeled` are cell arrays with one cell per camera
pair. Each cell is an array of people by ten images: five from the first camera of the pair and five
from the second, some of them empty. `testsets` are 20 matrices of 100 rows (pair, person). Images
are named as in the new protocol (Zhong et al., CVPR 2017): `1_007_2_06.png` is pair 1, person 7,
second camera, image 6. People are numbered from 1 within each pair; pid 20007 is person 7 of pair
2. Camera id 1 stands for the first camera of any pair and 2 for the second, as in torchreid and
fast-reid, because the real cameras are unknown.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.listing import check_entries, checked_option, contents
from muva.data.benchmarks.matlab import matlab_variable
from muva.data.benchmarks.trials import single_shot
from muva.data.records import SPLITS, LazyImage, Record, Split
from muva.errors import MuvaError

Boxes = Literal["detected", "labelled"]
"""How people were cropped: with boxes from a detector, or from annotators."""
Protocol = Literal["classic", "new"]
"""The first of the authors' 20 test sets, or the protocol of Zhong et al."""

BOXES: Mapping[str, str] = {"detected": "detected", "labelled": "labeled"}
"""Our name -> the spelling in the archives."""
PAPER = (
    "Li et al., DeepReID: Deep Filter Pairing Neural Network for Person Re-identification, "
    "CVPR 2014"
)
LICENCE = "CUHK's regulations; respect the privacy of the students in it (the release's README)"


def _benchmark(boxes: Boxes) -> Benchmark:
    return Benchmark(
        title=f"CUHK03, {boxes} boxes",
        layout="cuhk03",
        options={"boxes": boxes, "protocol": "classic"},
        paper=PAPER,
        source="http://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html",
        licence=LICENCE,
        status="distributed by its authors",
        rules="two cameras: the first and the second of each of five pairs; queries are from the "
        "first camera, and the gallery has one random image of each person from the second, drawn "
        "ten times; the paper averages over 20 test sets, of which this is the first",
        lists="testsets of cuhk-03.mat",
        counts={
            "train": Counts(images=None, identities=1367, cameras=2),
            "query": Counts(images=None, identities=100, cameras=1),
            "gallery": Counts(images=None, identities=100, cameras=1),
        },
        counts_from="the release's README: 1,467 people, 100 in a test set",
        trials=lambda records, _root: single_shot(records, name="cuhk03"),
    )


CUHK03_DETECTED = _benchmark("detected")
CUHK03_LABELLED = _benchmark("labelled")

_FILE = "cuhk03_release/cuhk-03.mat"
_PIDS_OF_A_PAIR = 10_000
_READ_ERRORS = (OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError)
"""Errors that h5py raises for damaged files and unexpected content."""


class _Position(NamedTuple):
    """Position of an image in the file; all numbers start from 1."""

    pair: int
    person: int
    number: int

    @property
    def camid(self) -> int:
        return 1 if self.number <= 5 else 2

    @property
    def name(self) -> str:
        return f"{self.pair}_{self.person:03}_{self.camid}_{self.number:02}.png"


def read_cuhk03(
    root: Path, *, domain: str, boxes: Boxes = "detected", protocol: Protocol = "classic"
) -> Iterator[Record]:
    """Records of the folder that contains `cuhk03_release`.

    The new protocol, that of CUHK03-NP, also requires its `cuhk03_new_protocol_config_*.mat` in the
    same folder. Raises MuvaError if a file is missing or damaged.
    """
    variable = BOXES[checked_option("boxes", boxes, BOXES)]
    checked_option("protocol", protocol, get_args(Protocol))
    check_entries(root, [_FILE], title="CUHK03")
    file = root / _FILE
    positions, test_people = _positions(file, variable)
    splits: dict[str, Split] = (
        {position.name: _classic_split(position, test_people) for position in positions}
        if protocol == "classic"
        else _new_splits(root, variable, {position.name for position in positions})
    )
    for position in positions:
        yield Record(
            domain=domain,
            image_id=f"{variable}/{position.name}",
            split=splits[position.name],
            pid=_PIDS_OF_A_PAIR * position.pair + position.person,
            camid=position.camid,
            source=LazyImage(file=file, encoded=partial(_png, file, variable, position)),
        )


def _positions(file: Path, variable: str) -> tuple[list[_Position], set[tuple[int, int]]]:
    """The non-empty images, and (pair, person) of the first test set."""
    import h5py
    import numpy as np

    try:
        with h5py.File(file) as hdf5:
            mat: Any = hdf5
            pairs = [mat[cell][()].T for cell in mat[variable][()].flat]
            positions = [
                _Position(pair, person + 1, number + 1)
                for pair, cells in enumerate(pairs, start=1)
                for (person, number), cell in np.ndenumerate(cells)
                if mat[cell].ndim == 3  # empty MATLAB cells have fewer dimensions
            ]
            first = mat[mat["testsets"][()].flat[0]][()].T
            return positions, {(int(pair), int(person)) for pair, person in first}
    except _READ_ERRORS as error:
        raise MuvaError(
            f"{file}: expected a MATLAB file of version 7.3 with the cells detected, labeled and "
            f"testsets, found a file that cannot be read ({error}). Is it the complete file of "
            "CUHK03?"
        ) from error


def _png(file: Path, variable: str, position: _Position) -> bytes:
    """One image of the file as PNG."""
    import h5py
    from PIL import Image

    try:
        with h5py.File(file) as hdf5:
            mat: Any = hdf5
            people = mat[mat[variable][()].flat[position.pair - 1]]
            pixels = mat[people[position.number - 1, position.person - 1]][
                ()
            ].T  # MATLAB is column-major
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
    except _READ_ERRORS as error:
        raise OSError(f"{position.name} in {file}: {error}") from error
    return encoded.getvalue()


def _classic_split(position: _Position, test_people: set[tuple[int, int]]) -> Split:
    if (position.pair, position.person) not in test_people:
        return "train"
    return "query" if position.camid == 1 else "gallery"


def _new_splits(root: Path, variable: str, names: set[str]) -> dict[str, Split]:
    """The split of each image according to the protocol file, which must list the same images."""
    import numpy as np

    file = root / f"cuhk03_new_protocol_config_{variable}.mat"
    if not file.is_file():
        raise MuvaError(
            f"CUHK03 at {root}: expected the file {file.name} of the new protocol, found "
            f"{contents(root)}. It is in evaluation/data/CUHK03 of "
            "https://github.com/zhunzhong07/person-re-ranking"
        )
    listed = matlab_variable(file, "filelist", title="CUHK03").flat
    named = {number: str(np.ravel(name)[0]) for number, name in enumerate(listed, start=1)}
    splits: dict[str, Split] = {
        named.get(int(number), f"number {number}"): split
        for split in SPLITS
        for number in matlab_variable(file, f"{split}_idx", title="CUHK03").flat
    }
    if unmatched := sorted(names ^ set(splits)):
        raise MuvaError(
            f"{file}: expected the images of {_FILE}, found {len(unmatched)} that are only in one "
            f"of the two, the first {unmatched[0]}. Do both have the {variable} boxes?"
        )
    return splits
