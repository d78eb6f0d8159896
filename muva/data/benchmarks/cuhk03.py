"""CUHK03 (Li et al., CVPR 2014) out of its MATLAB file, whose version, 7.3, is HDF5.

In `cuhk03_release/cuhk-03.mat`, `detected` and `labeled` are cells of five camera pairs, each a
cell of people by ten images: five of the pair's first camera, five of its second, some of them
empty. `testsets` are 20 matrices of 100 rows: a pair and a person. Images get the names of the new
protocol (Zhong et al., CVPR 2017): `1_007_2_06.png` is pair 1, person 7, second camera, image 6. A
pair numbers its people from 1, so pid 20007 is person 7 of pair 2. Camera 1 is the first of any
pair and 2 the second, as in torchreid and fast-reid: which of the real ones each is is not known.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.listing import check_parts, checked_option, contents
from muva.data.benchmarks.matlab import matlab_variable
from muva.data.benchmarks.trials import single_shot
from muva.data.records import SPLITS, Excerpt, Record, Split
from muva.errors import MuvaError

Boxes = Literal["detected", "labelled"]
"""Who drew the boxes that people were cut out by: a detector, or annotators."""
Protocol = Literal["classic", "new"]
"""The first of the authors' 20 test sets, or the one of Zhong et al."""

BOXES: Mapping[str, str] = {"detected": "detected", "labelled": "labeled"}
"""As the archives spell them."""
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
        status="given away by its authors",
        rules="two cameras: the first and the second of each of five pairs; test people ask from "
        "the first and are sought in the second, where one image of each is drawn, ten times; the "
        "paper's figures are means over 20 test sets, of which this is the first",
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
_DAMAGE = (OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError)
"""What h5py raises for files that are damaged or hold something else."""


class _Place(NamedTuple):
    """Where an image is in the file; all count from 1."""

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
    """Records of the folder that `cuhk03_release` is in.

    The new protocol, which is CUHK03-NP's, also takes its `cuhk03_new_protocol_config_*.mat` there.
    """
    spelt = BOXES[checked_option("boxes", boxes, BOXES)]
    checked_option("protocol", protocol, get_args(Protocol))
    check_parts(root, [_FILE], what="CUHK03")
    file = root / _FILE
    places, test_people = _places(file, spelt)
    splits: dict[str, Split] = (
        {place.name: _classic_split(place, test_people) for place in places}
        if protocol == "classic"
        else _new_splits(root, spelt, {place.name for place in places})
    )
    for place in places:
        yield Record(
            domain=domain,
            image_id=f"{spelt}/{place.name}",
            split=splits[place.name],
            pid=_PIDS_OF_A_PAIR * place.pair + place.person,
            camid=place.camid,
            source=Excerpt(file=file, encoded=partial(_png, file, spelt, place)),
        )


def _places(file: Path, spelt: str) -> tuple[list[_Place], set[tuple[int, int]]]:
    """The images that are there, and the pairs and people of the first test set."""
    import h5py
    import numpy as np

    try:
        with h5py.File(file) as opened:
            mat: Any = opened
            pairs = [mat[cell][()].T for cell in mat[spelt][()].flat]
            places = [
                _Place(pair, person + 1, number + 1)
                for pair, cells in enumerate(pairs, start=1)
                for (person, number), cell in np.ndenumerate(cells)
                if mat[cell].ndim == 3  # MATLAB's empty cells are there, with less
            ]
            first = mat[mat["testsets"][()].flat[0]][()].T
            return places, {(int(pair), int(person)) for pair, person in first}
    except _DAMAGE as error:
        raise MuvaError(
            f"{file}: expected a MATLAB file of version 7.3 with the cells detected, labeled and "
            f"testsets; it cannot be read ({error}). Is it CUHK03's, and whole?"
        ) from error


def _png(file: Path, spelt: str, place: _Place) -> bytes:
    """An image out of the file, encoded without loss."""
    import h5py
    from PIL import Image

    try:
        with h5py.File(file) as opened:
            mat: Any = opened
            people = mat[mat[spelt][()].flat[place.pair - 1]]
            pixels = mat[people[place.number - 1, place.person - 1]][()].T  # MATLAB: columns first
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
    except _DAMAGE as error:
        raise OSError(f"{place.name} in {file}: {error}") from error
    return encoded.getvalue()


def _classic_split(place: _Place, test_people: set[tuple[int, int]]) -> Split:
    if (place.pair, place.person) not in test_people:
        return "train"
    return "query" if place.camid == 1 else "gallery"


def _new_splits(root: Path, spelt: str, names: set[str]) -> dict[str, Split]:
    """Each image's split by the protocol's file, which must be of these images."""
    import numpy as np

    file = root / f"cuhk03_new_protocol_config_{spelt}.mat"
    if not file.is_file():
        raise MuvaError(
            f"CUHK03 at {root}: expected the file {file.name} of the new protocol, found "
            f"{contents(root)}. It is in evaluation/data/CUHK03 of "
            "https://github.com/zhunzhong07/person-re-ranking"
        )
    listed = matlab_variable(file, "filelist", what="CUHK03").flat
    named = {number: str(np.ravel(name)[0]) for number, name in enumerate(listed, start=1)}
    splits: dict[str, Split] = {
        named.get(int(number), f"number {number}"): split
        for split in SPLITS
        for number in matlab_variable(file, f"{split}_idx", what="CUHK03").flat
    }
    if odd := sorted(names ^ set(splits)):
        raise MuvaError(
            f"{file}: expected the images of {_FILE}, found {len(odd)} that are only in one of the "
            f"two, the first {odd[0]}. Are both of the {spelt} boxes?"
        )
    return splits
