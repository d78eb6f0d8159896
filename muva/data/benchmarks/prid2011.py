"""PRID-2011, single shot (Hirzer et al., "Person Re-Identification by Descriptive and
Discriminative Classification", SCIA 2011).

`single_shot/cam_a` and `single_shot/cam_b` contain one image per person, like `person_0001.png`.
Only the first 200 numbers are the same person in both: `person_0201.png` shows two people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.listing import check_entries, image_files, match_file_name
from muva.data.benchmarks.trials import random_halves
from muva.data.records import Record, Split

PRID2011 = Benchmark(
    title="PRID-2011",
    layout="prid2011",
    paper="Hirzer et al., Person Re-Identification by Descriptive and Discriminative "
    "Classification, SCIA 2011",
    source="https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/PRID11/",
    licence="see its page",
    status="distributed by its authors",
    rules="two cameras with one image per person; the 200 people in both are queries from a (its "
    "other 185 are not read), and all of b is the gallery; ten trials of 100 people, with the 549 "
    "people who are only in b in the gallery",
    lists="none are official; see muva.data.benchmarks.trials",
    counts={
        "query": Counts(images=200, identities=200, cameras=1),
        "gallery": Counts(images=749, identities=749, cameras=1),
    },
    counts_from="its page (200 people in both cameras, 749 in b)",
    trials=lambda records, _root: random_halves(records, name="prid2011"),
)

_FOLDERS: dict[str, Split] = {"single_shot/cam_a": "query", "single_shot/cam_b": "gallery"}
_FILE_NAME = re.compile(r"person_(?P<pid>\d{4})\.")
_IN_BOTH = 200


def read_prid2011(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of the folder that contains `single_shot`."""
    check_entries(root, list(_FOLDERS), title=PRID2011.title)
    for camid, (folder, split) in enumerate(_FOLDERS.items(), start=1):
        for file in image_files(root / folder):
            name = match_file_name(
                file, _FILE_NAME, example="person_0001.png", root=root, title=PRID2011.title
            )
            pid = int(name["pid"])
            if split == "query" and pid > _IN_BOTH:
                continue
            yield Record(
                domain=domain,
                image_id=file.relative_to(root).as_posix(),
                split=split,
                pid=pid,
                camid=camid,
                source=file,
            )
