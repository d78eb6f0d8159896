"""CUHK02 (Li and Wang, "Locally Aligned Feature Transforms across Views", CVPR 2013).

`P1` to `P5` are camera pairs; `cam1` and `cam2` in each contain files like `001_1.png`: person 1 of
the pair, image 1. People are numbered within each pair, so our pids are 10,000 times the pair plus
the person: 20001 is person 1 of P2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.folder import WholeSplit
from muva.data.benchmarks.listing import check_entries, checked_option, image_files, match_file_name
from muva.data.records import Record, Split

CUHK02 = Benchmark(
    title="CUHK02",
    layout="cuhk02",
    paper="Li and Wang, Locally Aligned Feature Transforms across Views, CVPR 2013",
    source="http://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html",
    licence="see its page",
    status="distributed by its authors",
    rules="five camera pairs, each with its own people; all images are used for training; some "
    "people also appear in CUHK01",
    lists="none needed; with split=test, the fifth pair is the test set, as in torchreid",
    counts={"train": Counts(images=7264, identities=1816, cameras=10)},
    counts_from="NEU-Gou's awesome-reid-dataset; by pair in torchreid's reader",
)

_PAIRS, _CAMERAS = range(1, 6), (1, 2)
_TEST_PAIR = 5
_FILE_NAME = re.compile(r"(?P<person>\d{3})_")
_PIDS_OF_A_PAIR = 10_000


def read_cuhk02(root: Path, *, domain: str, split: WholeSplit = "train") -> Iterator[Record]:
    """Records of the folder that contains `P1` to `P5`.

    With split="train" everything is used for training; with split="test" P5 is the test set, with
    camera 1 as queries and camera 2 as gallery.
    """
    checked_option("split", split, get_args(WholeSplit))
    cameras = [(pair, camera) for pair in _PAIRS for camera in _CAMERAS]
    folders = [f"P{pair}/cam{camera}" for pair, camera in cameras]
    check_entries(root, folders, title=CUHK02.title)
    for camid, ((pair, camera), folder) in enumerate(zip(cameras, folders, strict=True), start=1):
        of_camera: Split = "train"
        if split == "test" and pair == _TEST_PAIR:
            of_camera = "query" if camera == 1 else "gallery"
        for file in image_files(root / folder):
            name = match_file_name(
                file, _FILE_NAME, example="001_1.png", root=root, title=CUHK02.title
            )
            yield Record(
                domain=domain,
                image_id=file.relative_to(root).as_posix(),
                split=of_camera,
                pid=pair * _PIDS_OF_A_PAIR + int(name["person"]),
                camid=camid,
                source=file,
            )
