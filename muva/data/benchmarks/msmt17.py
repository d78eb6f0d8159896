"""MSMT17 (Wei et al., CVPR 2018), with faces (V1) or with blurred faces (V2), by its own lists.

V1 has the folders `train` and `test`, V2 `mask_train_v2` and `mask_test_v2`. Both have
`list_train.txt`, `list_val.txt`, `list_query.txt` and `list_gallery.txt` beside them. Their lines
look like `0000/0000_000_01_0303morning_0015_0.jpg 0`: a file, whose third number is the camera, and
its identity. Training uses train and val together, like CLIP-ReID and the counts in the paper;
torchreid and fast-reid leave out the 2,373 images of val by default. In the lists, test identities
start from 0 again; here they start from 1041, after the training identities, as in fast-reid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.listing import check_entries, checked_option, contents, exists
from muva.data.records import Record, Split
from muva.errors import MuvaError

Version = Literal["1", "2"]


def _benchmark(version: Version, *, faces: str, counts_from: str) -> Benchmark:
    return Benchmark(
        title=f"MSMT17 V{version}",
        layout="msmt17",
        options={"version": version},
        paper="Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, "
        "CVPR 2018",
        source="http://www.pkuvmc.com/publications/msmt17.html",
        licence="research only, under an agreement with its authors",
        status="available from its authors on request; their page has been down since about 2021",
        rules=f"15 cameras; {faces}; val is part of train; test identities are the numbers in "
        "the lists plus 1041; no junk and no distractors",
        lists="list_train, list_val, list_query and list_gallery of the archive",
        counts={
            "train": Counts(images=32621, identities=1041, cameras=15),
            "query": Counts(images=11659, identities=3060, cameras=15),
            "gallery": Counts(images=82161, identities=3060, cameras=15),
        },
        counts_from=counts_from,
    )


MSMT17 = _benchmark("1", faces="faces are visible", counts_from="torchreid, following the paper")
MSMT17_V2 = _benchmark(
    "2", faces="faces are blurred", counts_from="torchreid, which has the same counts for V1 and V2"
)

_NAMES: dict[Version, str] = {"1": "msmt17", "2": "msmt17-v2"}
_FOLDERS: dict[Version, tuple[str, str]] = {
    "1": ("train", "test"),
    "2": ("mask_train_v2", "mask_test_v2"),
}
_LISTS: dict[str, Split] = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
_LINE = re.compile(r"(?P<path>\S*?\d+_\d+_(?P<camid>\d+)_\S*)\s+(?P<pid>\d+)")
_FIRST_TEST_PID = 1041


def read_msmt17(root: Path, *, domain: str, version: Version = "1") -> Iterator[Record]:
    """Records of a tree in the layout of MSMT17, of this version; MuvaError for other trees."""
    checked_option("version", version, _FOLDERS)
    title = f"MSMT17 V{version}"
    other: Version = "2" if version == "1" else "1"
    if _is_version(root, other) and not _is_version(root, version):
        raise MuvaError(
            f"{title} at {root}: expected the folders {' and '.join(_FOLDERS[version])}, found "
            f"{' and '.join(_FOLDERS[other])}. That is V{other}, the data set {_NAMES[other]}"
        )
    check_entries(root, _FOLDERS[version], title=title)
    train_folder, test_folder = _FOLDERS[version]
    records = []
    for name, split in _LISTS.items():
        folder = train_folder if split == "train" else test_folder
        records += _listed(root, name, split, folder=folder, domain=domain)
    missing = [record.image_id for record in records if not exists(root / record.image_id)]
    if missing:
        raise MuvaError(
            f"{title} at {root}: expected the {len(records)} files of its lists, found "
            f"{len(missing)} of them missing, the first {missing[0]}. Was it unpacked completely?"
        )
    yield from records


def _is_version(root: Path, version: Version) -> bool:
    return all((root / folder).is_dir() for folder in _FOLDERS[version])


def _listed(root: Path, name: str, split: Split, *, folder: str, domain: str) -> Iterator[Record]:
    if not (root / name).is_file():
        raise MuvaError(
            f"MSMT17 at {root}: expected the lists {', '.join(_LISTS)}; {name} is missing, found "
            f"{contents(root)}. They are part of the archive, but some copies lack them"
        )
    lines = (root / name).read_text("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise MuvaError(
                f"MSMT17 at {root}: expected lines like 0000/0000_000_01_0303morning_0015_0.jpg 0, "
                f"found {line!r} in line {number} of {name}. Is this a list of MSMT17?"
            )
        yield Record(
            domain=domain,
            image_id=f"{folder}/{found['path']}",
            split=split,
            pid=int(found["pid"]) + (0 if split == "train" else _FIRST_TEST_PID),
            camid=int(found["camid"]),
            source=root / folder / found["path"],
        )
