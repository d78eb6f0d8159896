"""Market-1501's layout (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

`bounding_box_train`, `query` and `bounding_box_test` hold files like `0002_c1s1_000451_03.jpg`:
identity 2, camera 1, sequence 1, frame 451, box 3. In the gallery, identity 0 is a distractor (a
person or thing that no query asks for) and -1 is junk (ignored by the protocol).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from muva.data.benchmarks.listing import contents, existing_folder, image_files
from muva.data.records import Record, Split
from muva.errors import MuvaError

_FOLDERS: dict[str, Split] = {
    "bounding_box_train": "train",
    "query": "query",
    "bounding_box_test": "gallery",
}
_FILE_NAME = re.compile(r"(?P<pid>-1|\d+)_c(?P<camid>\d+)")


def read_market1501(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of a tree in Market-1501's layout."""
    existing_folder(root, what="Market-1501")
    for folder in _FOLDERS:
        if not (root / folder).is_dir():
            raise MuvaError(
                f"Market-1501 at {root}: expected the folders {', '.join(_FOLDERS)}; {folder} is "
                f"missing, found {contents(root)}. {_guess(root)}"
            )
    for folder, split in _FOLDERS.items():
        for file in image_files(root / folder):
            name = _FILE_NAME.match(file.name)
            if name is None:
                raise MuvaError(
                    f"Market-1501 at {root}: expected file names like 0002_c1s1_000451_03.jpg, "
                    f"found {folder}/{file.name}. Are these Market-1501's files?"
                )
            yield Record(
                domain=domain,
                image_id=file.relative_to(root).as_posix(),
                split=split,
                pid=int(name["pid"]),
                camid=int(name["camid"]),
                source=file,
            )


def _guess(root: Path) -> str:
    inner = [entry for entry in root.iterdir() if (entry / "bounding_box_train").is_dir()]
    if inner:
        return f"Is it {inner[0]}?"
    if (root.parent / "bounding_box_train").is_dir():
        return f"Is it {root.parent}?"
    return "Is this the archive's inner folder, completely unpacked?"
