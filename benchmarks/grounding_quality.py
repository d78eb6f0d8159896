"""Accuracy of an expert on synthetic people: `python -m benchmarks.grounding_quality`.

Compares the boxes for people that no pre-training has seen, as JPEGs, with the renderer's exact
boxes, by domain: the median IoU of each part, the fraction not found, and images per second and
core. `--check` exits with 1 if a benchmark domain misses a goal; the shipped expert was trained on
none of them.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.baseline import Table, benchmark_parser, exit_code, measurement, write_results
from muva.config import PARTS, PHRASES, GroundingConfig
from muva.grounding.expert import Expert, GroundingImage
from muva.grounding.experts import choose_expert
from muva.grounding.quality import iou
from muva.synthetic import BENCHMARK, DOMAINS, PRETRAINING, REAL_LOOK, render
from muva.synthetic.sensor import encode_jpeg

MIN_IOU, MAX_MISSED, MIN_RATE = 0.75, 0.03, 30.0
"""Goals: median IoU of each part, fraction not found, images per second and core."""

FIRST_PID = 5001
BATCH, JPEG_QUALITY = 32, 95
NO_BOX = (0.0, 0.0, 0.0, 0.0)

Figures = dict[str, Any]


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("grounding_quality", __doc__, check="exit 1 below a goal")
    parser.add_argument("--expert", default="tiny")
    parser.add_argument("--checkpoint", default="", help="its weights [the shipped ones]")
    parser.add_argument("--people", type=int, default=60, help="per domain, under each camera")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = GroundingConfig(expert=arguments.expert, checkpoint=arguments.checkpoint)
    expert = choose_expert(config).load()
    print("| domain | " + " | ".join(f"IoU {part}" for part in PARTS), end=" | ")
    print("not found | invented | images/s and core |\n|---|" + "---|" * (len(PARTS) + 3))
    found: dict[str, Figures] = {}
    for domain in (*BENCHMARK, *REAL_LOOK, *PRETRAINING):
        found[domain] = evaluate_expert(expert, domain, arguments.people)
        print(_row(domain, found[domain]), flush=True)
    write_results(arguments, found, partial(baseline_tables, expert=arguments.expert))
    missed = [miss for domain in BENCHMARK for miss in _misses(domain, found[domain])]
    return exit_code(arguments, missed)


def baseline_tables(found: dict[str, Figures], *, expert: str) -> dict[str, Table]:
    """The expert's name: a row per domain."""
    goal = {"iou": MIN_IOU, "not_found": MAX_MISSED, "rate": MIN_RATE}
    rows = [
        {"domain": domain, "unseen": "people unseen" if domain in PRETRAINING else "domain unseen"}
        | figures["iou"]
        | {
            "not_found": figures["not_found"],
            "invented": figures["invented"],
            "rate": measurement(figures["images_per_s_and_core"]),
        }
        | ({"goal": goal} if domain in BENCHMARK else {})
        for domain, figures in found.items()
    ]
    images = next(iter(found.values()))["images"]
    return {expert: Table(rows=rows, statistic=f"median IoU of {images} images")}


def evaluate_expert(expert: Expert, domain: str, people: int) -> Figures:
    """Median IoU by part, fractions not found and invented, images per second of CPU time."""
    shots = [
        render(domain, pid=pid, camid=camid, index=0, height=128, width=64)
        for pid in range(FIRST_PID, FIRST_PID + people)
        for camid in range(1, DOMAINS[domain].cameras + 1)
    ]
    encoded = [encode_jpeg(shot.image, quality=JPEG_QUALITY) for shot in shots]
    answers = []
    started = time.process_time()
    for start in range(0, len(encoded), BATCH):
        images = [
            GroundingImage(image_id=str(number), encoded=data, annotated=None)
            for number, data in enumerate(encoded[start : start + BATCH])
        ]
        answers += expert.ground(images, PHRASES)
    rate = len(encoded) / (time.process_time() - started)
    figures: Figures = {"images": len(encoded), "images_per_s_and_core": rate, "iou": {}}
    missed, invented = [], []
    for column, part in enumerate(PARTS):
        pairs = [(shot.boxes[part], a[column].box) for shot, a in zip(shots, answers, strict=True)]
        visible = [(true, predicted) for true, predicted in pairs if true is not None]
        true, predicted = (
            np.array([box or NO_BOX for box in boxes]) for boxes in zip(*visible, strict=True)
        )
        figures["iou"][part] = float(np.median(iou(true, predicted)))
        missed += [predicted is None for _, predicted in visible]
        invented += [predicted is not None for true, predicted in pairs if true is None]
    figures["not_found"] = float(np.mean(missed))
    figures["invented"] = float(np.mean(invented)) if invented else None
    return figures


def _row(domain: str, figures: Figures) -> str:
    ious = " | ".join(f"{figures['iou'][part]:.3f}" for part in PARTS)
    invented = "-" if figures["invented"] is None else f"{figures['invented']:.1%}"
    rate = f"{figures['images_per_s_and_core']:.0f}"
    return f"| {domain} | {ious} | {figures['not_found']:.1%} | {invented} | {rate} |"


def _misses(domain: str, figures: Figures) -> list[str]:
    missed = [
        f"{domain}: {part} {value:.3f}, goal {MIN_IOU}"
        for part, value in figures["iou"].items()
        if value < MIN_IOU
    ]
    if figures["not_found"] >= MAX_MISSED:
        missed.append(f"{domain}: {figures['not_found']:.1%} not found, goal {MAX_MISSED:.0%}")
    if figures["images_per_s_and_core"] < MIN_RATE:
        rate = figures["images_per_s_and_core"]
        missed.append(f"{domain}: {rate:.0f} images/s and core, goal {MIN_RATE:.0f}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
