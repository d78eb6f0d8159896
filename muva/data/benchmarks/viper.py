"""VIPeR (Gray et al., "Evaluating Appearance Models for Recognition, Reacquisition, and Tracking",
PETS 2007).

`cam_a` and `cam_b` contain one image per person, like `000_45.bmp`: person 0, seen from 45 degrees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.listing import check_entries, image_files, match_file_name
from muva.data.benchmarks.trials import random_halves
from muva.data.records import Record, Split

VIPER = Benchmark(
    title="VIPeR",
    layout="viper",
    paper="Gray et al., Evaluating Appearance Models for Recognition, Reacquisition, and "
    "Tracking, PETS 2007",
    source="https://vision.soe.ucsc.edu/node/178",
    licence="none stated; the README in the archive asks users to cite the paper",
    status="distributed by its authors as VIPeR.v1.0.zip",
    rules="two cameras with one image per person; images of a are queries, b is the gallery; ten "
    "trials of 316 people",
    lists="none are official; see muva.data.benchmarks.trials",
    counts={
        "query": Counts(images=632, identities=632, cameras=1),
        "gallery": Counts(images=632, identities=632, cameras=1),
    },
    counts_from="the archive's README (632 pairs of images)",
    trials=lambda records, _root: random_halves(records, name="viper"),
)

_FOLDERS: dict[str, Split] = {"cam_a": "query", "cam_b": "gallery"}
_FILE_NAME = re.compile(r"(?P<pid>\d{3})_\d+\.")


def read_viper(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of the folder that contains `cam_a` and `cam_b`."""
    check_entries(root, list(_FOLDERS), title=VIPER.title)
    for camid, (folder, split) in enumerate(_FOLDERS.items(), start=1):
        for file in image_files(root / folder):
            name = match_file_name(
                file, _FILE_NAME, example="000_45.bmp", root=root, title=VIPER.title
            )
            yield Record(
                domain=domain,
                image_id=file.relative_to(root).as_posix(),
                split=split,
                pid=int(name["pid"]),
                camid=camid,
                source=file,
            )
