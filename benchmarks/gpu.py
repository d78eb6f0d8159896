"""Everything that only a GPU can show, in one go: `python -m benchmarks.gpu --minutes 12`.

One line after the other, the most important ones first, each in a process of its own, as long as
there is time; after each, the results so far are written. Without a GPU the same code runs with
small sizes on the CPU, which tests it and measures nothing. `--check` exits with 1 if a line failed
or a goal is missed.

`pipeline`: the demo's pipeline through Ray Train on the GPU, and its metrics beside the CPU's.
`tests`: tests/gpu. `SETTING at BATCH`: steps and feature pass of ViT-B/16 with three parts, as a
share of the card's own product in bfloat16. `exports`: TorchScript and ONNX files on the GPU.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

import muva
from benchmarks.baseline import Table, benchmark_parser, exit_code, write_results
from benchmarks.phases import best_device, device_name
from benchmarks.training import Stage2, one_setting, timed
from muva.config import load_recipe, with_settings
from muva.model.export import INPUT, OUTPUT, check_pixels, export
from muva.training.compute import Compute
from workflows.runtime.cluster import ray_cluster
from workflows.session import open_session
from workflows.steps.pipeline import run_pipeline

STEP_GOAL, FEATURES_GOAL = 0.4, 0.5
"""Goals: the fraction of the card's product that the best setting reaches."""
SETTINGS = ("bf16", "CUDA graphs", "CUDA graphs, compile", "compile", "float32")
BATCHES = (64, 128, 256)
MINUTES = 12.0
LEAST_S = 20.0
"""A line is not begun with less time left."""
TARGET, SOURCES, PEOPLE, EPOCHS = "syn-station", ["syn-boulevard", "syn-harbour"], 60, 3
PRODUCT, SMALL_PRODUCT = 8192, 512
"""Size of the square matrices whose product is the limit."""
PROVIDER = "CUDAExecutionProvider"
"""Of onnxruntime-gpu; the onnxruntime of the requirements has none."""
FAR_APART = 0.05
"""mAP of the same training on a GPU and on the CPU, in half precision, on one seed."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is computed."""

    small: bool

    @property
    def recipe(self) -> str:
        """The recipe whose model is trained."""
        return "demo" if self.small else "base"

    @property
    def rounds(self) -> int:
        """Repetitions of each timing."""
        return 1 if self.small else 10


def main() -> int:
    """Measure and print; with --check, exit with 1 if a line failed or a goal is missed."""
    parser = benchmark_parser("gpu", __doc__, check="exit 1 when a line failed or a goal is missed")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all lines together")
    parser.add_argument("--only", nargs="+", choices=list(lines()), help="these lines [all]")
    parser.add_argument("--small", action="store_true", help="small sizes, as without a GPU")
    parser.add_argument("--one", choices=list(lines()), help="run one line in this process")
    arguments = parser.parse_args()
    sizes = Sizes(small=arguments.small or best_device().type == "cpu")
    if arguments.one:
        print(json.dumps(lines()[arguments.one](sizes)))
        return 0
    ends_at = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"device": device_name(best_device()), "small": sizes.small}
    print(f"on {found['device']}{', with small sizes' if sizes.small else ''}", flush=True)
    for name in arguments.only or lines():
        found[name] = ran(name, small=sizes.small, ends_at=ends_at)
        print(
            f"{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in found[name].items()), flush=True
        )
        write_results(arguments, found, baseline_tables)
    return exit_code(arguments, misses(found))


def lines() -> dict[str, Callable[[Sizes], dict[str, Any]]]:
    """The lines by name, the most important one first."""
    settings = {
        f"{setting} at {batch}": partial(setting_line, setting, batch)
        for batch, setting in product(BATCHES, SETTINGS)
    }
    return {
        "product": product_line,
        "pipeline": pipeline_line,
        "tests": tests_line,
        **settings,
        "exports": exports_line,
    }


def ran(name: str, *, small: bool, ends_at: float) -> dict[str, Any]:
    """The results of a line, or the reason why there are none."""
    left = ends_at - time.monotonic()
    if left < LEAST_S:
        return {"not_run": "no time left"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", name]
    process = subprocess.Popen(
        [*command, *(["--small"] if small else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # Ray's processes too
        process.communicate()
        return {"not_run": f"not finished within the {left:.0f} s that were left"}
    if process.returncode:
        return {"failed": err.strip().splitlines()[-1] if err.strip() else "without a message"}
    return json.loads(out.splitlines()[-1])


def product_line(sizes: Sizes) -> dict[str, float]:
    """Operations per second of a product of large matrices, by precision."""
    device, size = best_device(), SMALL_PRODUCT if sizes.small else PRODUCT
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        ways = {"product": lambda one=one, other=other: [linear(one, other) for _ in range(10)]}
        seconds = timed(ways, rounds=sizes.rounds, device=device)["product"]
        found[f"{name}_tflops"] = 10 * 2 * size**3 / seconds / 1e12
    return found


def setting_line(setting: str, batch: int, sizes: Sizes) -> dict[str, float]:
    """Images per second, share of the product, and peak memory with one setting of `Compute`."""
    on_gpu = best_device().type == "cuda"
    # What only a GPU has, and what takes a CPU minutes, is replaced by what the CPU has.
    name = setting if on_gpu else {"float32": "float32"}.get(setting, "bf16")
    batch = min(batch, 8) if sizes.small else batch
    found = one_setting(name, batch, sizes.rounds, recipe=sizes.recipe)
    limit = 1e12 * product_line(sizes)["bf16_tflops"]
    work = operations(sizes)
    return {
        "batch": batch,
        "steps_per_s": found["steps"],
        "steps_share": found["steps"] * work["step"] / limit,
        "features_per_s": found["features"],
        "features_share": found["features"] * work["features"] / limit,
        "peak_mb": found["peak_mb"],
    }


def operations(sizes: Sizes) -> dict[str, float]:
    """Operations of products for an image, in a step and in the feature pass."""
    images = 4
    stage2 = Stage2(images, recipe=sizes.recipe)
    found = {}
    for name, work in (("step", stage2.step), ("features", stage2.features)):
        with FlopCounterMode(display=False) as counter:
            work("fp32", Compute(attention="fused"))
        found[name] = counter.get_total_flops() / images
    return found


def pipeline_line(sizes: Sizes) -> dict[str, float]:
    """mAP and seconds of the demo's pipeline through Ray Train on the GPU and on the CPU."""
    found: dict[str, float] = {}
    devices = {"gpu": 1, "cpu": 0} if best_device().type == "cuda" else {"cpu": 0}
    people, epochs = (8, 1) if sizes.small else (PEOPLE, EPOCHS)
    for device, gpus in devices.items():
        with tempfile.TemporaryDirectory() as home, ray_cluster():
            session = replace(open_session(home=home), tracking_uri=None)
            changed = {
                "sources": SOURCES,
                "targets": [TARGET],
                "variants": ["muva"],
                "synthetic.train_people": people,
                "synthetic.test_people": people,
                "tune": None,
                "grounding.expert": "annotated",
                "stage1.epochs": epochs,
                "stage2.epochs": epochs,
                "stage2.milestones": [epochs],
                "execution.gpus_per_worker": gpus,
            }
            config = with_settings(load_recipe("demo"), changed, where="demo")
            started_at = time.perf_counter()
            report = run_pipeline(session, config)
            found[f"{device}_s"] = time.perf_counter() - started_at
            scores = report.targets[TARGET]["muva"]
            found |= {f"{device}_mean_ap": scores.mean_ap, f"{device}_rank1": scores.rank1}
    return found


def tests_line(sizes: Sizes) -> dict[str, str]:
    """How many tests of tests/gpu passed."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    counted = re.findall(r"^.*\d+ (?:passed|failed|skipped).* in .*$", done.stdout, re.MULTILINE)
    if done.returncode or not counted:
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        said = " ".join((done.stdout + done.stderr)[-500:].split())
        raise RuntimeError("; ".join(failed) or said)
    return {"tests": counted[-1]}


def exports_line(sizes: Sizes) -> dict[str, Any]:
    """Greatest difference between the shipped model's features and those of its exports."""
    device = best_device()
    bundle = muva.load("synthetic")
    pixels = check_pixels(bundle)
    expected = bundle.embed_pixels(pixels)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        script, onnx = Path(folder) / "model.torchscript", Path(folder) / "model.onnx"
        export(bundle, script, form="torchscript", model="synthetic", takes="chw")
        export(bundle, onnx, form="onnx", model="synthetic", takes="chw")
        with torch.inference_mode():
            features = torch.jit.load(f"{script}", map_location=device)(pixels.to(device))
        found["torchscript"] = float(np.abs(features.cpu().numpy() - expected).max())
        import onnxruntime

        available = onnxruntime.get_available_providers()
        found["onnx_provider"] = PROVIDER if PROVIDER in available else available[-1]
        session = onnxruntime.InferenceSession(onnx, providers=[found["onnx_provider"]])
        (output,) = session.run([OUTPUT], {INPUT: pixels.numpy()})
        found["onnx"] = float(np.abs(output - expected).max())
    return found


def misses(found: Mapping[str, Any]) -> list[str]:
    """Lines that failed, and goals that were missed."""
    missed = [
        f"{name}: {of['failed']}"
        for name, of in found.items()
        if isinstance(of, Mapping) and "failed" in of
    ]
    pipeline = found.get("pipeline", {})
    if {"gpu_mean_ap", "cpu_mean_ap"} <= pipeline.keys():
        apart = abs(pipeline["gpu_mean_ap"] - pipeline["cpu_mean_ap"])
        if apart > FAR_APART:
            missed.append(f"pipeline: mAP on the GPU and the CPU differ by {apart:.3f}")
    if found["small"]:
        return missed
    for name, goal in (("steps_share", STEP_GOAL), ("features_share", FEATURES_GOAL)):
        shares = [of[name] for of in found.values() if isinstance(of, Mapping) and name in of]
        if shares and max(shares) < goal:
            missed.append(f"{name.replace('_', ' ')}: at most {max(shares):.2f}, expected {goal}")
    return missed


def baseline_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """`settings`: a row per setting and batch that ran."""
    rows = [
        {"setting": name.partition(" at ")[0], **of}
        for name, of in found.items()
        if isinstance(of, Mapping) and "steps_share" in of
    ]
    return {"settings": Table(rows=rows)}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


if __name__ == "__main__":
    sys.exit(main())
