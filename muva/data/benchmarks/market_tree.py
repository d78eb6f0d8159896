"""Trees in Market-1501's form: a folder for each split, person and camera in the file names.

DukeMTMC-reID and CUHK03-NP took the form over and name their files otherwise. One in the place of
another would be read without complaint and be another benchmark, so the names must fit. Market's
may lack what tells nothing of person and camera, as in many people's own trees in its form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from muva.data.benchmarks.listing import check_entries, image_files
from muva.data.records import Record, Split
from muva.errors import MuvaError

_FOLDERS: dict[str, Split] = {
    "bounding_box_train": "train",
    "query": "query",
    "bounding_box_test": "gallery",
}


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """How a data set in this form names its files."""

    title: str
    """Whose they are."""
    layout: str
    """What reads them."""
    example: str
    pattern: re.Pattern[str]
    """How they begin; its groups are `pid` and `camid`."""


MARKET1501_NAMES = FileNames(
    title="Market-1501",
    layout="market1501",
    example="0002_c1s1_000451_03.jpg",
    pattern=re.compile(r"(?P<pid>-1|\d+)_c(?P<camid>\d+)(?!\d|_f\d)"),
)
DUKEMTMC_NAMES = FileNames(
    title="DukeMTMC-reID",
    layout="dukemtmc",
    example="0001_c2_f0046182.jpg",
    pattern=re.compile(r"(?P<pid>\d+)_c(?P<camid>\d+)_f\d+"),
)
CUHK03NP_NAMES = FileNames(
    title="CUHK03-NP",
    layout="cuhk03np",
    example="0001_c1_21.png",
    pattern=re.compile(r"(?P<pid>\d+)_c(?P<camid>\d+)_\d+\."),
)


def read_market_tree(
    root: Path, *, domain: str, names: FileNames, within: str = "."
) -> Iterator[Record]:
    """Records of the tree in the folder `within` of the root, with files of these names."""
    folders: dict[str, Split] = {
        Path(within, folder).as_posix(): split for folder, split in _FOLDERS.items()
    }
    check_entries(root, list(folders), title=names.title)
    for folder, split in folders.items():
        for file in image_files(root / folder):
            name = names.pattern.match(file.name)
            if name is None:
                raise MuvaError(
                    f"{names.title} at {root}: expected file names like {names.example}, found "
                    f"{folder}/{file.name}. {_hint(file.name, names)}"
                )
            yield Record(
                domain=domain,
                image_id=file.relative_to(root).as_posix(),
                split=split,
                pid=int(name["pid"]),
                camid=int(name["camid"]),
                source=file,
            )


def _hint(file_name: str, expected: FileNames) -> str:
    for names in (MARKET1501_NAMES, DUKEMTMC_NAMES, CUHK03NP_NAMES):
        if names.pattern.match(file_name):
            return f"It is a name of {names.title}'s, which the layout {names.layout} reads"
    return f"Are these {expected.title}'s files?"
