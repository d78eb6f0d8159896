"""Are synthetic pictures like real ones? `python -m benchmarks.picture_statistics`.

Computes percentiles of simple statistics over the images of the open world and of other synthetic
domains, and compares them with those of real cameras in `real_statistics.json`: six cameras of a
public sample of MARS, and a public sample of Market-1501. With `--check`, exits with 1 unless the
middle half of every real camera (25th to 75th percentile) lies within the open world's 5th to 95th,
and the medians of the domains with the look of real cameras lie within these middle halves.

Each image is resized to 64 x 128 pixels. `L`, `a` and `b` are means of CIE Lab, `Lstd` is the
standard deviation of L, `sat` the mean saturation (HSV), `sharp` the standard deviation of the
Laplacian of the grey image (3 x 3, 0 to 255), `noise` the median absolute difference to a 3 x 3
median. `border_*` are of the six left and the six right columns. `clip_hi` and `clip_lo` are the
shares of pixels whose largest channel is above 250 or below 12.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.baseline import Table, benchmark_parser, exit_code, write_results
from muva.synthetic import REAL_LOOK, render
from muva.synthetic.arrays import Levels
from muva.synthetic.domain import find_domain
from muva.synthetic.world import network_name

REAL = Path(__file__).with_name("real_statistics.json")
WIDTH, HEIGHT = 64, 128
BORDER_PX = 6
PERCENTILES = (5, 25, 50, 75, 95)
FIRST_NETWORK = 100_000
"""Networks that nothing is trained on."""
DOMAIN_PEOPLE = 25

Statistics = dict[str, float]


def main() -> int:
    """Measure and print; with --check, exit with 1 if a real camera lies outside."""
    parser = benchmark_parser(
        "picture_statistics", __doc__, check="exit 1 unless the open world covers all real cameras"
    )
    parser.add_argument("--networks", type=int, default=60, help="networks of the open world")
    parser.add_argument("--people", type=int, default=2, help="people of each network")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    world = percentiles(
        [image_statistics(image) for image in world_images(arguments.networks, arguments.people)]
    )
    real = json.loads(REAL.read_text())["groups"]
    rows = compared(world, real)
    print("| statistic | open world, 5 to 95 % | real cameras, 25 to 75 % | covered |")
    print("|---|---|---|---|")
    for row in rows:
        covered = "yes" if row["covered"] else f"no: {', '.join(row['outside'])}"
        print(f"| {row['statistic']} | {row['world']} | {row['real']} | {covered} |")
    missed = [f"{row['statistic']}: {', '.join(row['outside'])}" for row in rows if row["outside"]]
    medians = {
        name: percentiles([image_statistics(image) for image in domain_images(name)])
        for name in REAL_LOOK
    }
    looks = located(medians, real)
    print(f"\n| statistic | {' | '.join(REAL_LOOK)} | real cameras, 25 to 75 % |")
    print(f"|---|{'---|' * len(REAL_LOOK)}---|")
    for row in looks:
        found = " | ".join(f"{row[name]:.3g}" for name in REAL_LOOK)
        print(f"| {row['statistic']} | {found} | {row['real']} |")
        missed += [f"{row['statistic']}: {name}" for name in row["outside"]]
    write_results(arguments, {"world": world, "rows": rows, "looks": looks}, baseline_tables)
    return exit_code(arguments, missed)


def baseline_tables(results: Mapping[str, Any]) -> dict[str, Table]:
    """`compared`: the ranges of each statistic; `looks`: the medians of the domains."""
    rows = [
        {key: row[key] for key in ("statistic", "world", "real")}
        | {"covered": "yes" if row["covered"] else "no"}
        for row in results["rows"]
    ]
    looks = [
        {"statistic": row["statistic"], "real": row["real"]}
        | {name: float(f"{row[name]:.3g}") for name in REAL_LOOK}
        for row in results["looks"]
    ]
    return {
        "compared": Table(rows=rows, statistic="percentiles over images"),
        "looks": Table(rows=looks, statistic="medians over images"),
    }


def world_images(networks: int, people: int) -> Iterator[Levels]:
    """One image of each person and camera of the networks from `FIRST_NETWORK`."""
    for number in range(FIRST_NETWORK, FIRST_NETWORK + networks):
        name = network_name(number)
        for camid in range(1, find_domain(name).cameras + 1):
            for pid in range(1, people + 1):
                yield render(name, pid=pid, camid=camid, index=0, height=HEIGHT, width=WIDTH).image


def domain_images(name: str) -> Iterator[Levels]:
    """One image of each of the first people of a domain, from each camera."""
    for camid in range(1, find_domain(name).cameras + 1):
        for pid in range(1, DOMAIN_PEOPLE + 1):
            yield render(name, pid=pid, camid=camid, index=0, height=HEIGHT, width=WIDTH).image


def image_statistics(image: Levels) -> Statistics:
    """The statistics of an image (H, W, 3), RGB."""
    if image.shape[:2] != (HEIGHT, WIDTH):
        shrinks = image.shape[0] > HEIGHT
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=method).astype(np.uint8)
    unit = image.astype(np.float32) / 255
    lab = cv2.cvtColor(unit, cv2.COLOR_RGB2LAB)
    border = np.concatenate([lab[:, :BORDER_PX], lab[:, -BORDER_PX:]], axis=1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    smooth = cv2.medianBlur(grey, 3)
    largest = image.max(axis=2)
    found = {
        "L": lab[..., 0].mean(),
        "a": lab[..., 1].mean(),
        "b": lab[..., 2].mean(),
        "Lstd": lab[..., 0].std(),
        "sat": cv2.cvtColor(unit, cv2.COLOR_RGB2HSV)[..., 1].mean(),
        "sharp": cv2.Laplacian(grey, cv2.CV_64F).std(),
        "noise": np.median(np.abs(grey.astype(int) - smooth)),
        "border_L": border[..., 0].mean(),
        "border_a": border[..., 1].mean(),
        "border_b": border[..., 2].mean(),
        "border_std": border[..., 0].std(),
        "clip_hi": (largest > 250).mean(),
        "clip_lo": (largest < 12).mean(),
    }
    return {name: float(value) for name, value in found.items()}


def percentiles(of_images: Sequence[Statistics]) -> dict[str, list[float]]:
    """Statistic -> its `PERCENTILES` over the images."""
    return {
        name: np.percentile([one[name] for one in of_images], PERCENTILES).round(3).tolist()
        for name in of_images[0]
    }


def compared(
    world: Mapping[str, Sequence[float]], real: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[dict[str, Any]]:
    """For each statistic, the ranges, and the real groups whose middle half is not covered."""
    rows = []
    for name, (low, _, _, _, high) in world.items():
        halves = {group: (of[name][1], of[name][3]) for group, of in real.items()}
        outside = [group for group, (a, b) in halves.items() if a < low or b > high]
        first, last = min(a for a, _ in halves.values()), max(b for _, b in halves.values())
        rows.append(
            {
                "statistic": name,
                "world": f"{low:.3g} to {high:.3g}",
                "real": f"{first:.3g} to {last:.3g}",
                "covered": not outside,
                "outside": outside,
            }
        )
    return rows


def located(
    domains: Mapping[str, Mapping[str, Sequence[float]]],
    real: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[dict[str, Any]]:
    """For each statistic, the domains' medians, and which lie outside the real middle halves."""
    rows = []
    for name in next(iter(domains.values())):
        low, high = (
            min(of[name][1] for of in real.values()),
            max(of[name][3] for of in real.values()),
        )
        medians = {domain: of[name][2] for domain, of in domains.items()}
        outside = [domain for domain, median in medians.items() if not low <= median <= high]
        rows.append(
            {"statistic": name, "real": f"{low:.3g} to {high:.3g}", "outside": outside, **medians}
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
