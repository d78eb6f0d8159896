"""Images per second of stage 2 compared with the bare CLIP: `python -m benchmarks.training`.

`rates`: ViT-B/16 with random weights at 256 x 128, three parts. The feature pass is compared with
the forward pass of the visual tower, a step (forward, losses, backward, Adam, memory) with the
tower's forward and backward pass, and with a matrix product from the model, in one process and in
turns; medians. Batches are small, so that it takes minutes. `settings`: the same step with each
setting of `Compute`, and with other implementations of Adam; on CPUs in a separate process for each
to measure its peak memory, which a GPU reports itself. The first step, which compiles and
allocates, is excluded. `precision`: the demo's tiny model is trained on two synthetic domains and
evaluated on a third, in each precision, with the same seed. `--check` exits with 1 if a goal is
missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from benchmarks.baseline import (
    DTYPES,
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    per_second,
    write_results,
)
from benchmarks.memory import peak_memory_mb
from benchmarks.openai_files import VIT_B_16, openai_state_dict, random_clip
from benchmarks.phases import NoiseImages, best_device, device_name
from muva.config import AugmentationConfig, ExperimentConfig, load_recipe, with_settings
from muva.data.artifacts import open_artifact
from muva.data.draw import Draw
from muva.model.clip import build_clip, load_clip, vision_tower
from muva.model.muva_model import MuvaModel, build_model
from muva.model.precision import Precision, autocast, resolve_precision
from muva.training.centroids import dataset_centroids
from muva.training.compute import Compute, apply_compute
from muva.training.optimisers import stage2_optimiser
from muva.training.stage2 import training_step
from muva.training.visual_memory import new_memory
from workflows.runtime.cluster import ray_cluster
from workflows.session import open_session
from workflows.steps.pipeline import run_pipeline

MIN_OF_BARE = {
    "fp32": {"feature pass": 1.0, "step": 1.05},
    "bf16": {"feature pass": 0.95, "step": 1.3},
}
"""Goals: our rates relative to those of the bare tower."""
MIN_OF_FLOAT32 = 4.0
"""Goal: bf16 relative to our float32."""
WORKS = ("rates", "settings", "precision")
BATCH, ROUNDS = 16, 3
IDENTITIES = 64
PRODUCT = (3072, 768)
"""Output and input width of the first layer of a block's MLP."""
PRODUCTS = 10
"""Products per timing: a GPU finishes a single one before the next is launched."""

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "fp32"},
    "bf16": {},
    "fp16": {"precision": "fp16"},
    "micro-batches of a half": {"micro_batches": 2},
    "micro-batches of a quarter": {"micro_batches": 4},
    "activation checkpointing": {"compute": Compute(activation_checkpointing=True)},
    "both, of a quarter": {
        "compute": Compute(activation_checkpointing=True),
        "micro_batches": 4,
    },
    "channels last": {"compute": Compute(channels_last=True)},
    "deterministic": {"compute": Compute(deterministic=True)},
    "compile": {"compute": Compute(compile=True)},
    "CUDA graphs": {"compute": Compute(cuda_graphs=True)},
    "CUDA graphs, float32": {"compute": Compute(cuda_graphs=True), "precision": "fp32"},
    "CUDA graphs, compile": {"compute": Compute(cuda_graphs=True, compile=True)},
    "Adam by foreach": {"adam": "foreach"},
    "Adam in a loop": {"adam": "loop"},
    "bf16, again": {},
}
"""In bf16 with fused Adam unless noted; the last one shows how stable the machine was."""

TARGET, SOURCES = "syn-station", ["syn-boulevard", "syn-harbour"]
EPOCHS, PEOPLE = 3, 60


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("training", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each timing")
    parser.add_argument(
        "--settings", nargs="+", choices=list(SETTINGS), help="[all that the device has]"
    )
    parser.add_argument("--one", choices=list(SETTINGS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one_setting(arguments.one, arguments.batch, arguments.rounds)))
        return 0
    found: dict[str, Any] = {"device": device_name(best_device()), "batch": arguments.batch}
    print(f"batches of {arguments.batch}, on {found['device']}")
    missed: list[str] = []
    if "rates" in arguments.works:
        found["rates"] = rates(arguments.batch, arguments.rounds)
        print_rates(found["rates"])
        missed = misses(found["rates"])
    if "settings" in arguments.works:
        print("\n| setting | steps, images/s | ratio | features, images/s | peak memory, MB |")
        print("|---|---:|---:|---:|---:|")
        found["settings"] = {}
        for name in arguments.settings or settings_here():
            measure = one_setting if _together(name) else _measured_apart
            found["settings"][name] = measure(name, arguments.batch, arguments.rounds)
            print_setting(name, found["settings"])
    if "precision" in arguments.works:
        with tempfile.TemporaryDirectory() as folder:
            found["precision"] = precisions(Path(folder))
        print_precisions(found["precision"])
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, missed)


def baseline_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """`rates`, `settings`, `precision`: what was measured of them."""
    graphed = best_device().type == "cuda"
    rates_ = [
        ({"run": "steps with `--cuda-graphs`"} if graphed else {})
        | {
            "precision": DTYPES[precision],
            "bare_forward": measurement(of["bare forward"]),
            "feature_pass": measurement(of["feature pass"]),
            "feature_ratio": of["feature pass"] / of["bare forward"],
            "bare_backward": measurement(of["bare forward and backward"]),
            "step": measurement(of["step"]),
            "step_ratio": of["step"] / of["bare forward and backward"],
            "product": measurement(of["product"]),
            "goal": ", ".join(f"{goal:g}" for goal in MIN_OF_BARE[precision].values()),
        }
        for precision, of in found.get("rates", {}).items()
    ]
    settings = found.get("settings", {})
    settings_ = [
        {
            "setting": name.replace("bf16", DTYPES["bf16"]),
            "steps": measurement(of["steps"]),
            "ratio": of["steps"] / settings.get("bf16", of)["steps"],
            "features": measurement(of["features"]),
            "memory_mb": of["peak_mb"],
        }
        for name, of in settings.items()
    ]
    precisions_ = [
        {
            "precision": DTYPES[precision],
            "losses": of["losses"],
            "mean_ap": of["mean_ap"],
            "rank1": of["rank1"],
            "memory_pass_s": measurement(of["epoch"]["memory_pass_s"]),
            "steps_s": measurement(of["epoch"]["steps_s"]),
        }
        for precision, of in found.get("precision", {}).items()
    ]
    tables = {"rates": rates_, "settings": settings_, "precision": precisions_}
    return {name: Table(rows=rows, statistic="medians") for name, rows in tables.items()}


def settings_here() -> list[str]:
    """The settings that apply to this device: CPUs have neither CUDA graphs nor fast fp16."""
    if best_device().type == "cuda":
        return list(SETTINGS)
    return [
        name
        for name, setting in SETTINGS.items()
        if setting.get("precision") != "fp16" and not setting.get("compute", Compute()).cuda_graphs
    ]


class Held:
    """A batch of noise on the device, so that only the model is timed."""

    augmentation = AugmentationConfig()

    def __init__(
        self, config: ExperimentConfig, batch: int, grid: tuple[int, int], device: torch.device
    ):
        each = config.stage2.images_per_identity
        noise = NoiseImages(config, identities=-(-batch // each), each=each, grid=grid)
        self.labels = noise.labels[:batch]
        self.image_ids = noise.image_ids[:batch]
        pixels, masks = noise.batch(Draw(np.arange(batch)))
        self.pixels = pixels.to(device)
        self.masks = None if masks is None else masks.to(device)

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """See `muva.training.loader.TrainingImages`."""
        rows = torch.from_numpy(draw.indices).to(self.pixels.device)
        return self.pixels[rows], None if self.masks is None else self.masks[rows]


class Stage2:
    """The model with everything that a step needs."""

    def __init__(self, batch: int, *, adam: str = "fused", recipe: str = "base"):
        self.config = load_recipe(recipe)
        self.device = best_device()
        self.model = build_model(
            random_clip_of(self.config),
            model=self.config.model,
            prompts=self.config.prompts,
            identities=IDENTITIES,
            seed=0,
        ).to(self.device)
        self.model.contexts.requires_grad_(False)
        self.images = Held(self.config, batch, self.model.grid, self.device)
        self._prototypes = self.model.prototypes()
        self._optimiser = _adam(self.model, self.config, adam)
        centroids = torch.randn(IDENTITIES, self.model.feature_dim, device=self.device)
        self._memory = new_memory(normalize(centroids), self.config.stage2)
        self._scaler = torch.amp.GradScaler(self.device.type)

    def features(self, precision: Precision, compute: Compute) -> None:
        """The feature pass over the batch."""
        dataset_centroids(
            self.model,
            self.images,
            device=self.device,
            batch_size=len(self.images.labels),
            precision=precision,
            necked=True,
            compute=compute,
        )

    def step(self, precision: Precision, compute: Compute) -> None:
        """One step on the batch."""
        training_step(
            self.model.train(),
            images=compute.pixels(self.images.pixels, self.device),
            labels=torch.as_tensor(self.images.labels, device=self.device),
            part_masks=self.images.masks,
            prototypes=self._prototypes,
            memory=self._memory,
            optimiser=self._optimiser,
            settings=self.config.stage2,
            precision=precision,
            scaler=self._scaler if precision == "fp16" else None,
            micro_batch=compute.micro_batch,
        )


def rates(batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Precision -> method -> images per second; `product` is in 10^9 operations per second."""
    ours = Stage2(batch)
    device = ours.device
    bare = vision_tower(random_clip_of(ours.config)).to(device).train()
    pixels = ours.images.pixels
    plain = Compute()
    graphed = Compute(cuda_graphs=device.type == "cuda")

    def forward(precision: Precision) -> None:
        with torch.no_grad(), autocast(precision, device):
            bare(pixels)

    def backward(precision: Precision) -> None:
        bare.zero_grad()
        with autocast(precision, device):
            feature = bare(pixels)
        feature.float().square().mean().backward()

    out, width = PRODUCT
    tokens = torch.randn(batch * (1 + 3 + 128), width, device=device)
    weight = torch.randn(out, width, device=device)
    operations = PRODUCTS * 2 * len(tokens) * out * width
    in_half = tokens.bfloat16(), weight.bfloat16()
    found: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        factors = in_half if precision == "bf16" else (tokens, weight)
        ways: dict[str, Callable[[], object]] = {
            "product": lambda factors=factors: [linear(*factors) for _ in range(PRODUCTS)],
            "bare forward": lambda p=precision: forward(p),
            "feature pass": lambda p=precision: ours.features(p, plain),
            "bare forward and backward": lambda p=precision: backward(p),
            "step": lambda p=precision: ours.step(p, graphed),
        }
        with apply_compute(ours.model.image_encoder, graphed):
            seconds = timed(ways, rounds=rounds, device=device)
        found[precision] = {
            way: per_second(operations / 1e9 if way == "product" else batch, spent)
            for way, spent in seconds.items()
        }
    return found


def timed(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each, in turns, so that other load affects all equally."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, work in ways.items():
            gc.collect()
            started_at = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:  # the first round only warms up
                seconds[way].append(time.perf_counter() - started_at)
    return {way: median_of(spent) for way, spent in seconds.items()}


def misses(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Descriptions of the missed goals."""
    full, half = found["fp32"], found["bf16"]
    missed = [
        f"{DTYPES[precision]}, {ours}: {of[ours] / of[bare]:.2f} of the {bare}, goal "
        f"{MIN_OF_BARE[precision][ours]}"
        for precision, of in found.items()
        for ours, bare in _PAIRS.items()
        if of[ours] < MIN_OF_BARE[precision][ours] * of[bare]
    ]
    return missed + [
        f"bf16, {ours}: {half[ours] / full[ours]:.2f} times float32, goal {MIN_OF_FLOAT32:g} "
        f"(the product alone: {half['product'] / full['product']:.2f})"
        for ours in _PAIRS
        if half[ours] < MIN_OF_FLOAT32 * full[ours]
    ]


_PAIRS = {"feature pass": "bare forward", "step": "bare forward and backward"}


def one_setting(name: str, batch: int, rounds: int, *, recipe: str = "base") -> dict[str, float]:
    """Images per second of steps and of the feature pass, and this process's peak memory."""
    setting = SETTINGS[name]
    stage2 = Stage2(batch, adam=setting.get("adam", "fused"), recipe=recipe)
    compute = setting.get("compute", Compute())
    if "micro_batches" in setting:
        compute = dataclasses.replace(compute, micro_batch=batch // setting["micro_batches"])
    precision = setting.get("precision", "bf16")
    device = stage2.device
    if device.type == "cuda":
        gc.collect()  # memory of the previous setting
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with peak_memory_mb() as peak, apply_compute(stage2.model.image_encoder, compute):
        started_at = time.perf_counter()
        stage2.step(precision, compute)
        first_s = time.perf_counter() - started_at
        ways = {
            "features": lambda: stage2.features(precision, compute),
            "steps": lambda: stage2.step(precision, compute),
        }
        seconds = timed(ways, rounds=rounds, device=device)
    gpu = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return {
        **{way: per_second(batch, spent) for way, spent in seconds.items()},
        "first_s": first_s,
        "peak_mb": peak[0] if gpu is None else gpu,
    }


def _together(name: str) -> bool:
    """Whether a setting can run in this process: cuBLAS reads its determinism setting only once."""
    deterministic = SETTINGS[name].get("compute", Compute()).deterministic
    return best_device().type == "cuda" and not deterministic


def _measured_apart(name: str, batch: int, rounds: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training", "--one", name]
    done = subprocess.run(
        [*command, "--batch", str(batch), "--rounds", str(rounds)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def precisions(home: Path) -> dict[str, dict[str, Any]]:
    """Precision -> the losses of stage 2's epochs, and mAP on an unseen domain."""
    session = dataclasses.replace(open_session(home=home), tracking_uri=None)
    found: dict[str, dict[str, Any]] = {}
    with ray_cluster():
        for precision in ("fp32", "bf16", "fp16"):
            settings = {
                "sources": SOURCES,
                "targets": [TARGET],
                "variants": ["muva"],
                "synthetic.train_people": PEOPLE,
                "synthetic.test_people": PEOPLE,
                "tune": None,
                "grounding.expert": "annotated",
                "stage1.precision": precision,
                "stage2.precision": precision,
                "stage1.epochs": EPOCHS,
                "stage2.epochs": EPOCHS,
                "stage2.milestones": [EPOCHS],
            }
            config = with_settings(load_recipe("demo"), settings, where="demo")
            report = run_pipeline(session, config)
            manifest = open_artifact(report.models["muva"]).manifest()
            assert manifest is not None
            history = manifest["summary"]["history"]
            found[precision] = {
                "losses": [epoch["loss"] for epoch in history],
                "mean_ap": report.targets[TARGET]["muva"].mean_ap,
                "rank1": report.targets[TARGET]["muva"].rank1,
                "epoch": {
                    name: median_of([epoch[name] for epoch in history])
                    for name in ("memory_pass_s", "steps_s", "waiting_s")
                },
            }
    return found


def print_rates(found: Mapping[str, Mapping[str, float]]) -> None:
    """The results of `rates` as a table."""
    print("\n| precision | bare forward | feature pass | ratio | bare forward and backward | step "
          "| ratio | product, 10^9/s |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for precision, of in found.items():
        cells = [
            f"{of[bare]:.2f} | {of[ours]:.2f} | {of[ours] / of[bare]:.2f}"
            for ours, bare in _PAIRS.items()
        ]
        print(f"| {precision} | {' | '.join(cells)} | {of['product']:.0f} |")
    gains = {way: found["bf16"][way] / found["fp32"][way] for way in found["fp32"]}
    print("\nbf16 by float32: " + ", ".join(f"{way} {gain:.2f}" for way, gain in gains.items()))
    print(f"auto here: {resolve_precision('auto', best_device())}", flush=True)


def print_setting(name: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """The row of a setting; the ratio is relative to steps in bf16."""
    of, plain = found[name], found.get("bf16", found[name])
    print(
        f"| {name} | {of['steps']:.2f} | {of['steps'] / plain['steps']:.2f} | {of['features']:.2f} "
        f"| {of['peak_mb']:.0f} |",
        flush=True,
    )


def print_precisions(found: Mapping[str, Mapping[str, Any]]) -> None:
    """The results of each precision compared with float32."""
    full = np.array(found["fp32"]["losses"])
    print(f"\nTiny model, {' + '.join(SOURCES)} -> {TARGET}, {EPOCHS} epochs of each stage\n")
    print("| precision | loss by epoch | furthest from float32 | mAP | rank-1 | memory pass, s | "
          "steps, s | waiting, s |")  # fmt: skip
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for precision, of in found.items():
        losses = np.array(of["losses"])
        apart = float(np.abs(losses / full - 1).max())
        spent = " | ".join(f"{value:.2f}" for value in of["epoch"].values())
        print(
            f"| {precision} | {', '.join(f'{loss:.3f}' for loss in losses)} | {apart:.2%} "
            f"| {100 * of['mean_ap']:.1f} | {100 * of['rank1']:.1f} | {spent} |"
        )


def random_clip_of(config: ExperimentConfig) -> open_clip.CLIP:
    """ViT-B/16 with random weights, which run at the same speed, or the shipped tiny CLIP."""
    model = config.model
    size = (model.image_height, model.image_width)
    if model.clip == "tiny":
        return load_clip(model.clip, image_size=size, stride=model.stride)
    return build_clip(_random_weights(), image_size=size, stride=model.stride)


@functools.cache
def _random_weights() -> dict[str, Tensor]:
    return openai_state_dict(random_clip(VIT_B_16), VIT_B_16)


def _adam(model: MuvaModel, config: ExperimentConfig, form: str) -> torch.optim.Optimizer:
    ours = stage2_optimiser(model, config.stage2)
    if form == "fused":
        return ours
    groups = [
        {name: group[name] for name in ("params", "lr", "weight_decay")}
        for group in ours.param_groups
    ]
    return torch.optim.Adam(groups, foreach=form == "foreach", fused=False)


if __name__ == "__main__":
    sys.exit(main())
