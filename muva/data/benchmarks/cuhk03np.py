"""CUHK03-NP: CUHK03 (Li et al., CVPR 2014) with the new protocol of Zhong et al. (CVPR 2017).

`detected` and `labeled` contain the same people, cropped by a detector and by annotators, each with
the three folders of Market-1501. Files are named like `0001_c1_21.png`: identity 1, camera 1, image
21. There are no distractors and no junk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.cuhk03 import BOXES, LICENCE, PAPER, Boxes
from muva.data.benchmarks.listing import checked_option
from muva.data.benchmarks.market_tree import CUHK03NP_NAMES, read_market_tree
from muva.data.records import Record


def _benchmark(boxes: Boxes, *, train: int, gallery: int) -> Benchmark:
    return Benchmark(
        title=f"CUHK03-NP, {boxes} boxes",
        layout="cuhk03np",
        options={"boxes": boxes},
        paper="Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR "
        f"2017; {PAPER}",
        source="https://github.com/zhunzhong07/person-re-ranking/tree/master/CUHK03-NP",
        licence=LICENCE,
        status="its authors link to it from the source",
        rules="two cameras: the first and the second of each of CUHK03's five pairs; no junk and "
        "no distractors",
        lists="the archive's folders",
        counts={
            "train": Counts(images=train, identities=767, cameras=2),
            "query": Counts(images=1400, identities=700, cameras=2),
            "gallery": Counts(images=gallery, identities=700, cameras=2),
        },
        counts_from="the README of CUHK03-NP",
    )


CUHK03NP_DETECTED = _benchmark("detected", train=7365, gallery=5332)
CUHK03NP_LABELLED = _benchmark("labelled", train=7368, gallery=5328)


def read_cuhk03np(root: Path, *, domain: str, boxes: Boxes = "detected") -> Iterator[Record]:
    """Records of a tree in the layout of CUHK03-NP, with these boxes."""
    within = BOXES[checked_option("boxes", boxes, BOXES)]
    return read_market_tree(root, domain=domain, names=CUHK03NP_NAMES, within=within)
