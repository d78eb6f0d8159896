"""Market-1501 (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

`bounding_box_train`, `query` and `bounding_box_test` contain files like `0002_c1s1_000451_03.jpg`:
identity 2, camera 1, sequence 1, frame 451, box 3. In the gallery, identity 0 stands for
distractors (people or objects that match no query) and -1 for junk (ignored by the protocol).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.market_tree import MARKET1501_NAMES, read_market_tree
from muva.data.records import Record

MARKET1501 = Benchmark(
    title="Market-1501",
    layout="market1501",
    paper="Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015",
    source="https://zheng-lab-anu.github.io/Project/project_reid.html",
    licence="none stated; for research",
    status="distributed by its authors",
    rules="six cameras; in the gallery, pid 0 stands for distractors and pid -1 for ignored junk",
    lists="the archive's folders",
    distractors=frozenset({0}),
    counts={
        "train": Counts(images=12936, identities=751, cameras=6),
        "query": Counts(images=3368, identities=750, cameras=6),
        "gallery": Counts(images=19732, identities=751, cameras=6),
    },
    counts_from="the paper",
)


def read_market1501(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of a tree in the layout of Market-1501."""
    return read_market_tree(root, domain=domain, names=MARKET1501_NAMES)
