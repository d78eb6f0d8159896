"""What each benchmark records fits the columns that its page shows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import baseline, tables
from benchmarks.augmentation import TITLES, TOGETHER
from benchmarks.baseline import median_of, save_baseline

PARTS = {"head": 0.8, "upper_body": 0.7, "legs": 0.6}
SCORES = {"rank1": 0.5, "mean_ap": 0.25}
RATE = median_of([1.0, 2.0, 4.0])
SEEDS = [0.25, 0.5, 0.75]
BY_VARIANT = {"syn-station": {"clip": SEEDS, "global_only": SEEDS, "muva": [0.5, 0.5, 0.5]}}
BY_EXPERT = {"syn-station": {"annotated": SEEDS, "tiny": [0.5, 0.5, 0.5]}}
PHASE = {
    "count": 256, "seconds": 9.0, "per_s": 5.7, "cores": 0.7, "peak_mb": 2500.0, "gpu_peak_mb": None
}  # fmt: skip
WAYS = ("product", "bare forward", "feature pass", "bare forward and backward", "step")
FORM = {"images_per_s": RATE, "largest_difference": 0.0, "least_cosine": 1.0}
STEP = {"prompts": 1e-9, "masks": 1e-8, "centroids": 1e-7, "statistics": 1e-6}
TRAINING = {
    "dtype": "float32", "workers": 2, "micro_batch": 3, "of_limit": 0.1, "steps": [STEP, STEP],
    "weights": 1e-6, "key_biases": 1e-4, "moved": 1e-3, "workers_alike": True,
}  # fmt: skip
ALONE = {"what": "training: who is on which row", "images": 1000, "seconds": 1.0, "peak_mb": 9.0}
ROUND = {
    "disturbed": "driver", "stage": "models", "workers": 2, "after": 1, "epochs": 5,
    "seconds": 30.0, "apart": 0.0, "right": True,
}  # fmt: skip
GROUNDED = {
    "disturbed": "s3", "after_shards": None, "seconds": 3.0, "computed_twice": 1, "right": True
}  # fmt: skip
STUDIED = {"default": {"by_seed": SEEDS}, "best": {"by_seed": SEEDS}, "gain": 0.01}

GALLERY_PHASES = {
    "build": {
        "add_s": 1.0,
        "index_s": 1.0,
        "peak_mb": 100.0,
        "probes": 8,
        "partitions": 16,
        "disk_gb": 0.1,
    },
    "search": {"recall": 0.9, "p50_ms": 1.0, "p95_ms": 2.0, "peak_mb": 100.0},
    "filtered": {"p50_ms": 1.0, "p95_ms": 2.0},
    "growing": {"p50_ms": 1.0, "p95_ms": 2.0, "found": 1.0, "peak_mb": 100.0},
}
RESULTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "augmentation": (
        {
            f"{height} x {height // 2}": {
                title: {"ours": RATE, "torchvision": RATE} for title in (*TITLES.values(), TOGETHER)
            }
            for height in (128, 256)
        },
        {},
    ),
    "gallery": (
        {
            "images": 1000,
            "people": GALLERY_PHASES,
            "random": GALLERY_PHASES,
            "exact": {"product_ms": 1.0, "ours_ms": 1.1, "times": 1.1, "peak_mb": 100.0},
            "sizes": {"10000": {"first_ms": 9.0, "p50_ms": 1.0, "p95_ms": 1.0, "peak_mb": 90.0}},
        },
        {},
    ),
    "gallery_engines": (
        [
            {
                "kind": "people",
                "engine": "faiss IVF244,SQ4",
                "probes": 8,
                "candidates": 10,
                "recall": 0.9,
                "p95_ms": 9.0,
                "build_s": 1.0,
                "build_mb": 100.0,
                "search_mb": 90.0,
            }
        ],
        {},
    ),
    "browsing": ({"a trial, last tenth": RATE, "page: a run": 0.01}, {}),
    "colour_histogram": (
        {"syn-station": {"across": SCORES, "rank1_by_camera": [0.1] * 4, "within": SCORES}},
        {},
    ),
    "extraction": (
        {
            name: {
                "images": 2048, "bare": RATE, "ours": 6.0, "share": 0.95, "memory_mb": 900.0,
                "growth": 0.01,
            }
            for name in ("ViT-B-16", "tiny")
        },
        {},
    ),
    "gpu": (
        {
            "device": "a GPU",
            "small": False,
            "product": {"bf16_tflops": 700.0},
            "bf16 at 64": {
                "batch": 64, "steps_per_s": 900.0, "steps_share": 0.1,
                "features_per_s": 5000.0, "features_share": 0.2, "peak_mb": 6000.0,
            },
        },
        {},
    ),
    "operators": (
        {
            precision: {"step": 1500, "encoder": 900, "features": 200, "frequent": {"mm": 200}}
            for precision in ("fp32", "bf16")
        },
        {},
    ),
    "parts_cost": (
        [
            {
                "threads": 1,
                "precision": "bf16",
                "epochs": {
                    name: {"memory_pass_s": RATE, "steps_s": RATE, "epoch_s": RATE}
                    for name in ("global-only", "MUVA")
                },
                "ratio": 1.1,
            }
        ],
        {},
    ),
    "worker_startup": ({"torch alone": RATE, "stage 1": RATE}, {}),
    "generalisation": ({"seeds": [0, 1, 2], "mean_ap": BY_VARIANT, "rank1": BY_VARIANT}, {}),
    "grounding_faults": ([GROUNDED, GROUNDED], {}),
    "grounding_http": (
        {
            "busy": 0.97,
            "answers_per_s": 430.0,
            "actor_cores_per_200": 0.3,
            "driver_cores_per_200": 0.01,
            "failed_share": 0.05,
            "images": 6400,
            "quarantined": 100,
            "wrong": [],
        },
        {},
    ),
    "grounding_quality": (
        {
            domain: {
                "images": 240, "images_per_s_and_core": 130.0, "iou": PARTS, "not_found": 0.0,
                "invented": None,
            }
            for domain in ("syn-station", "syn-mall")
        },
        {"expert": "tiny"},
    ),
    "grounding_speed": (
        {
            "bare_images_per_s": RATE, "one_images_per_s": RATE, "two_images_per_s": RATE,
            "overhead": RATE, "two_over_one": RATE, "two_over_one_least": 1.0,
            "two_over_one_most": 4.0, "driver_mb_few": 1.0, "driver_mb_many": 3.0,
            "recognition_s": 0.1, "summary_s": 5.0,
        },
        {},
    ),
    "input": (
        {
            "rates": {
                by: dict.fromkeys(("bare", "in order", "P x K", "decoded before"), RATE)
                for by in ("thread", "2 processes")
            }
        },
        {},
    ),
    "label_cost": ({"seeds": [0, 1, 2], "mAP": BY_EXPERT, "rank-1": BY_EXPERT}, {"expert": "tiny"}),
    "large": (
        {
            "phases": {"features": PHASE, "prompts": PHASE},
            "large": {"clip": "ViT-L-14", "image": [252, 126], **PHASE},
        },
        {},
    ),
    "paper": (
        [{"row": "MA->D", "phases": {"grounding": {"work": 9, "per_s": None, "hours": None}}}],
        {},
    ),
    "parity": (
        {
            "model.json": [
                {"name": "loss", "difference": 1e-6, "limit": 2e-5, "note": "", "verdict": "ok"},
                {"name": "sizes", "difference": 0.0, "limit": 0.0, "note": "", "verdict": "ok"},
            ]
        },
        {},
    ),
    "part_accuracy": (
        {
            "syn-station": [
                {
                    **dict.fromkeys(
                        ("predicted/all", "predicted/person", "true/all", *(
                            f"{kind}/{part}" for kind in ("predicted", "iou") for part in PARTS
                        )),
                        value,
                    )
                }
                for value in SEEDS
            ]
        },
        {},
    ),
    "picture_statistics": (
        {
            "rows": [{"statistic": "L", "world": "1 to 2", "real": "1 to 2", "covered": True}],
            "looks": [
                {"statistic": "L", "real": "1 to 2", "syn-plaza": 1.5, "syn-concourse": 1.2}
            ],
        },
        {},
    ),
    "pipeline_faults": (
        [
            {
                "outage": outage, "seconds": 150.0, "exit_codes": [1, 0], "said": "a | b",
                "apart": apart, "reused": 6, "computed": 4, "faults": [],
            }
            for outage, apart in (("none", 0.0), ("node", 0.0))
        ],
        {},
    ),
    "prompts": (
        {
            "auto": "bf16", "identities_per_s": {"plain": RATE, "ours": 6.0, "ours, auto": 8.4},
            "times": 27.0, "apart": {"loss": 0.0},
        },
        {},
    ),
    "render": (
        {
            "start_up_s": 2.0,
            "images_per_s_and_core": {"128 x 64": {"syn-mall": 29.0}},
            "world": 43.0,
        },
        {},
    ),
    "retrieval": (
        {
            name: {
                way: {"seconds": RATE, "peak_mb": 494.0, "mean_ap": 0.5, "times": 1.5}
                for way in ways
            }
            for name, ways in (
                ("market1501", ("product", "dense", "ours", "float32", "verified")),
                ("msmt17-reranked", ("product", "ours")),
            )
        },
        {},
    ),
    "scale": (
        {
            "phases": {
                "grounding": {"phase": "grounding", "work": 9, "per_s": None, "hours": None},
                "prompts": {"phase": "prompts", "work": 9, "per_s": 17.4, "hours": 100.0},
            },
            "alone": [ALONE],
        },
        {"images": 10_000, "price": 0.1},
    ),
    "scaling_equivalence": ([TRAINING, {**TRAINING, "micro_batch": None}], {}),
    "serve": (
        {
            "rates": {
                "ViT-B-16": {
                    "bare": RATE, "served": RATE, "share": 0.9, "p50_ms": 300.0, "p95_ms": 400.0,
                    "requests": 99,
                }
            },
            "faults": {
                "under_load": {"answers": 900, "lost": 0, "mixed": 0},
                "malformed": {"requests": 1000, "unexplained": []},
            },
        },
        {},
    ),
    "serving": (
        {
            "sizes": {"tiny": {"PyTorch": FORM, "ONNX Runtime, half": FORM}},
            "half": {"float32": SCORES, "half": SCORES},
        },
        {},
    ),
    "startup": (
        [{"command": "muva --help", "cpu_s": RATE, "wall_s": RATE, "goal_s": 0.5}],
        {},
    ),
    "thresholds": (
        {
            "syn-station": {
                "one": {"far/0.01": [0.02], "tar/0.01": [0.5], "far/0.001": [0.0], "tar/0.001": [0]}
            }
        },
        {},
    ),
    "training": (
        {
            "rates": {precision: dict.fromkeys(WAYS, RATE) for precision in ("fp32", "bf16")},
            "settings": {"bf16": {"steps": RATE, "features": RATE, "peak_mb": 4428.0}},
            "precision": {
                "fp32": {
                    "losses": [3.0, 2.0, 1.0], **SCORES,
                    "epoch": {"memory_pass_s": RATE, "steps_s": RATE, "waiting_s": RATE},
                }
            },
        },
        {},
    ),
    "training_faults": ({"rounds": [ROUND, ROUND], "elastic": {}}, {}),
    "tuning": (
        {
            "reuse": {
                "trials": 20, "spent_s": 508.0, "alone_s": 1383.0, "saved": 0.63,
                "saved_without_data_and_labels": 0.6,
            },
            "concurrency": {
                "seconds": {
                    "sequential": 343.0, "two at once": 199.0, "sequential, all cores each": 293.0
                },
                "of_sequential": 0.58,
            },
            "study": {"held_out": STUDIED, "target": STUDIED},
        },
        {},
    ),
    "zero_shot": ({"syn-station": SCORES, "syn-mall": SCORES}, {"name": "tiny"}),
}  # fmt: skip
"""Benchmark -> results as it writes them to `--json`, and the settings that its tables take."""


OF_OTHER_OPTIONS = {"ViT-B-16", "small", "synthetic", "tiny-of-two-domains"}
"""Tables of a benchmark that was called with another model than the one above."""


@pytest.mark.parametrize("name", RESULTS)
def test_a_benchmark_records_what_its_page_shows(name: str, tmp_path: Path) -> None:
    results, settings = RESULTS[name]
    benchmark = importlib.import_module(f"benchmarks.{name}")
    file = tables.BASELINES / f"{name}.json"
    copy = tmp_path / file.name
    shown = json.loads(file.read_text(encoding="utf-8"))["tables"] if file.exists() else {}
    if shown:
        copy.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")

    recorded = benchmark.baseline_tables(results, **settings)
    save_baseline(copy, recorded, benchmark=name)

    saved = json.loads(copy.read_text(encoding="utf-8"))["tables"]
    for table in recorded:
        if not recorded[table].rows:
            continue
        assert saved[table]["run"]["recorded"] == "measured"
        rows = tables.table_lines(saved[table], where=table)[2:]
        assert rows
        assert all(row.replace("|", "").strip() for row in rows)
    assert set(shown) - OF_OTHER_OPTIONS <= set(recorded)


def test_every_benchmark_that_is_a_command_records_a_baseline() -> None:
    modules = {file.stem for file in Path(baseline.__file__).parent.glob("*.py")}
    commands = {
        name
        for name in modules - {"tables"}
        if "__main__" in (Path(baseline.__file__).parent / f"{name}.py").read_text()
    }
    assert commands == set(RESULTS)
