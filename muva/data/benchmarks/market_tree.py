"""Trees in the layout of Market-1501: one folder per split, with person and camera in file names.

DukeMTMC-reID and CUHK03-NP use the same layout with other file names. If one were read as another,
nothing would fail, but the benchmark would be wrong; file names are therefore checked. For
Market-1501 only the parts with person and camera are required, since many custom data sets in its
layout omit the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from muva.data.benchmarks.listing import check_entries, existing_folder, image_files
from muva.data.records import Record, Split
from muva.errors import MuvaError

_FOLDERS: dict[str, Split] = {
    "bounding_box_train": "train",
    "query": "query",
    "bounding_box_test": "gallery",
}


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """How a data set with this layout names its files."""

    title: str
    """Title of the data set."""
    layout: str
    """Name of its reader."""
    example: str
    pattern: re.Pattern[str]
    """Matches the beginning of a file name; its groups are `pid` and `camid`."""


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
    """Records of the tree in the folder `within` of the root, with these file names.

    It may have training images alone, or query and gallery alone.
    """
    folders: dict[str, Split] = {
        Path(within, folder).as_posix(): split for folder, split in _FOLDERS.items()
    }
    for folder in _expected(root, folders, title=names.title):
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
                split=folders[folder],
                pid=int(name["pid"]),
                camid=int(name["camid"]),
                source=file,
            )


def _expected(root: Path, folders: Mapping[str, Split], *, title: str) -> list[str]:
    """The folders to read; MuvaError if there are none, or only one of query and gallery."""
    existing_folder(root, title=title)
    sets = [[f for f, s in folders.items() if (s == "train") == train] for train in (True, False)]
    found = [one for one in sets if any(os.path.lexists(root / folder) for folder in one)]
    expected = [folder for one in found or sets for folder in one]
    check_entries(root, expected, title=title)
    return expected


def _hint(file_name: str, expected: FileNames) -> str:
    for names in (MARKET1501_NAMES, DUKEMTMC_NAMES, CUHK03NP_NAMES):
        if names.pattern.match(file_name):
            return f"This is a file name of {names.title}; use the layout {names.layout}"
    return f"Are these the files of {expected.title}?"
