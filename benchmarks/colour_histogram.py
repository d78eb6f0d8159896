"""Re-identification of synthetic people by colour alone: `python -m benchmarks.colour_histogram`.

The features of a person are HSV histograms of horizontal stripes. Columns: across cameras (the
protocol), by camera of the query, and within a camera, where light and viewpoint are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.baseline import Table, benchmark_parser, write_results
from muva.retrieval import evaluate
from muva.synthetic import BENCHMARK, DOMAINS, render

STRIPES = 6
BINS = (8, 4, 4)
"""Bins of hue, saturation and value."""
HSV_RANGES = (0, 180, 0, 256, 0, 256)
MARGIN = 5
"""The outer fifths of the width, which are mostly background, are cropped."""

TRAIN_PEOPLE = TEST_PEOPLE = 100
HEIGHT, WIDTH = 128, 64
QUERY, GALLERY = 0, 1
"""Image indices of queries and gallery."""


@dataclass(frozen=True)
class People:
    """Features of N images: image `index` of each person from each camera."""

    features: NDArray[np.float32]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]


def main() -> None:
    """Print one row per domain."""
    parser = benchmark_parser("colour_histogram", __doc__)
    parser.add_argument("--domains", nargs="+", default=list(BENCHMARK), choices=list(DOMAINS))
    parser.add_argument("--people", type=int, default=TEST_PEOPLE, help="test people per domain")
    arguments = parser.parse_args()

    print("per cent; rank-1 / mAP\n")
    print("| domain | across cameras | query from camera 1, 2, .. (rank-1) | within a camera |")
    print("|---|---|---|---|")
    figures = {}
    for domain in arguments.domains:
        query, gallery = (described(domain, arguments.people, index) for index in (QUERY, GALLERY))
        across = score(query, gallery)
        by_camera = [
            score(of_camera(query, camid), gallery)["rank1"]
            for camid in range(1, DOMAINS[domain].cameras + 1)
        ]
        within = within_cameras(query, gallery)
        figures[domain] = {"across": across, "rank1_by_camera": by_camera, "within": within}
        each = ", ".join(f"{100 * rank1:.1f}" for rank1 in by_camera)
        print(f"| {domain} | {_per_cent(across)} | {each} | {_per_cent(within)} |", flush=True)
    write_results(arguments, figures, baseline_tables)


def baseline_tables(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Table]:
    """`scores`: a row per domain."""
    rows = [
        {
            "domain": domain,
            "across": of["across"],
            "by_camera": of["rank1_by_camera"],
            "within": of["within"],
        }
        for domain, of in results.items()
    ]
    return {"scores": Table(rows=rows)}


def described(domain: str, people: int, index: int) -> People:
    """Histograms of one image per test person and camera."""
    pids = range(TRAIN_PEOPLE + 1, TRAIN_PEOPLE + people + 1)
    who = np.array(list(product(pids, range(1, DOMAINS[domain].cameras + 1))))
    features = [
        colour_histogram(
            render(
                domain, pid=int(pid), camid=int(camid), index=index, height=HEIGHT, width=WIDTH
            ).image
        )
        for pid, camid in who
    ]
    return People(np.stack(features), who[:, 0], who[:, 1])


def colour_histogram(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Square roots of the HSV histograms of an RGB image (H, W, 3), by stripe from the top."""
    width = image.shape[1]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[:, width // MARGIN : width - width // MARGIN]
    stripes = []
    for stripe in np.array_split(hsv, STRIPES, axis=0):
        counts = cv2.calcHist(
            [np.ascontiguousarray(stripe)], [0, 1, 2], None, list(BINS), list(HSV_RANGES)
        )
        stripes.append(np.sqrt(counts.ravel() / counts.sum()))
    return np.concatenate(stripes).astype(np.float32)


def of_camera(people: People, camid: int) -> People:
    """The images of one camera."""
    chosen = people.camids == camid
    return People(people.features[chosen], people.pids[chosen], people.camids[chosen])


def score(query: People, gallery: People, *, across_cameras: bool = True) -> dict[str, float]:
    """Rank-1 and mAP; without camera ids, matches from the same camera count."""
    result = evaluate(
        query_features=query.features,
        query_pids=query.pids,
        query_camids=query.camids if across_cameras else None,
        gallery_features=gallery.features,
        gallery_pids=gallery.pids,
        gallery_camids=gallery.camids if across_cameras else None,
        query_ids=_ids(query, QUERY),
        gallery_ids=_ids(gallery, GALLERY),
    )
    return {"rank1": result.cmc[1], "mean_ap": result.mean_ap}


def within_cameras(query: People, gallery: People) -> dict[str, float]:
    """Rank-1 and mAP within each camera, averaged over the cameras."""
    scores = [
        score(of_camera(query, camid), of_camera(gallery, camid), across_cameras=False)
        for camid in np.unique(query.camids)
    ]
    return {key: float(np.mean([each[key] for each in scores])) for key in scores[0]}


def _ids(people: People, index: int) -> list[str]:
    return [f"{pid}_{camid}_{index}" for pid, camid in zip(people.pids, people.camids, strict=True)]


def _per_cent(figures: dict[str, float]) -> str:
    return f"{100 * figures['rank1']:.1f} / {100 * figures['mean_ap']:.1f}"


if __name__ == "__main__":
    main()
