"""GRID, the QMUL underground re-identification data set (Loy et al., IJCV 2010).

`probe` and `gallery` contain files like `0001_2_25023_116_134_128_330.jpeg`: person 1, camera 2,
then frame and box. 250 people have one image in each folder; 775 more gallery images, all with pid
0, show people without a probe. `features_and_partitions.mat` contains the ten official partitions
as cells of structs: `trainIdxAll{1}.personIdx` are the training identities of the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts, Trial
from muva.data.benchmarks.listing import check_entries, image_files, match_file_name
from muva.data.benchmarks.matlab import matlab_variable, structs
from muva.data.benchmarks.trials import trial_without
from muva.data.records import Record, Split

GRID = Benchmark(
    title="GRID",
    layout="grid",
    paper="Loy et al., Time-Delayed Correlation Analysis for Multi-Camera Activity Understanding, "
    "IJCV 2010; Liu et al., Person Re-Identification: What Features are Important?, ECCV "
    "workshops 2012",
    source="http://personal.ie.cuhk.edu.hk/~ccloy/downloads_qmul_underground_reid.html",
    licence="none stated; the readme in the archive asks users to cite both papers",
    status="distributed by its authors as underground_reid.zip",
    rules="eight cameras; gallery images of pid 0 are distractors; ten trials of 125 people, with "
    "all 775 distractors in the gallery",
    lists="the archive's features_and_partitions.mat (trainIdxAll)",
    distractors=frozenset({0}),
    counts={
        "query": Counts(images=250, identities=250, cameras=None),
        "gallery": Counts(images=1025, identities=251, cameras=None),
    },
    counts_from="the archive's readme (250 probes, their 250 matches and 775 others)",
    trials=lambda records, root: official_partitions(records, root),
)

_FOLDERS: dict[str, Split] = {"probe": "query", "gallery": "gallery"}
_PARTITIONS = "features_and_partitions.mat"
_FILE_NAME = re.compile(r"(?P<pid>\d{4})_(?P<camid>\d+)_\d+_\d+_\d+_\d+_\d+\.")


def read_grid(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of the folder `underground_reid`."""
    check_entries(root, [*_FOLDERS, _PARTITIONS], title=GRID.title)
    for folder, split in _FOLDERS.items():
        for file in image_files(root / folder):
            example = "0001_2_25023_116_134_128_330.jpeg"
            name = match_file_name(file, _FILE_NAME, example=example, root=root, title=GRID.title)
            yield Record(
                domain=domain,
                image_id=file.relative_to(root).as_posix(),
                split=split,
                pid=int(name["pid"]),
                camid=int(name["camid"]),
                source=file,
            )


def official_partitions(records: Sequence[Record], root: Path) -> list[Trial]:
    """The test identities of each partition; all distractors stay in the gallery."""
    file = root / _PARTITIONS
    cells = matlab_variable(file, "trainIdxAll", title=GRID.title)
    partitions = structs(cells, "personIdx", where=f"{GRID.title} at {file}")
    return [
        trial_without({int(pid) for pid in people.ravel()}, records) for (people,) in partitions
    ]
