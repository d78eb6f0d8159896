"""QMUL i-LIDS (Zheng et al., "Associating Groups of People", BMVC 2009).

`Persons` contains files like `0001002.jpg`: person 1, image 2. Cameras are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.folder import whole_split
from muva.data.benchmarks.listing import check_entries, image_files, match_file_name
from muva.data.benchmarks.trials import random_pairs
from muva.data.records import Record

ILIDS = Benchmark(
    title="QMUL i-LIDS",
    layout="ilids",
    paper="Zheng et al., Associating Groups of People, BMVC 2009",
    source="http://www.eecs.qmul.ac.uk/~jason/data/i-LIDS_Pedestrian.tgz",
    licence="none stated; the footage is the i-LIDS library of the UK Home Office",
    status="the link is dead (torchreid issue 115, 2021); DualNorm's authors distribute a copy",
    rules="cameras are unknown, so no image is ignored because of its camera; the first image of "
    "each person is a query, the others are gallery; ten trials of 60 people with one random image "
    "each as query and one as gallery, as in torchreid, MetaBIN and BCaR",
    lists="none are official; see muva.data.benchmarks.trials",
    counts={
        "query": Counts(images=119, identities=119, cameras=0),
        "gallery": Counts(images=357, identities=119, cameras=0),
    },
    counts_from="torchreid's reader (476 images of 119 people)",
    trials=lambda records, _root: random_pairs(records, name="ilids"),
)

_FILE_NAME = re.compile(r"(?P<pid>\d{4})\d{3}\.")


def read_ilids(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of the folder that contains `Persons`."""
    check_entries(root, ["Persons"], title=ILIDS.title)
    files = list(image_files(root / "Persons"))
    names = [
        match_file_name(file, _FILE_NAME, example="0001002.jpg", root=root, title=ILIDS.title)
        for file in files
    ]
    pids = [int(name["pid"]) for name in names]
    splits = whole_split("test", pids, [None] * len(pids))
    for file, pid, split in zip(files, pids, splits, strict=True):
        yield Record(
            domain=domain,
            image_id=file.relative_to(root).as_posix(),
            split=split,
            pid=pid,
            camid=None,
            source=file,
        )
