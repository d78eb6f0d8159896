"""Images per second of a model in each export format: `python -m benchmarks.serving`.

PyTorch, TorchScript and ONNX Runtime, also in half precision, on batches in memory, in turns in a
single process, at the sizes of the tiny CLIP and of ViT-B/16, with three parts and random weights;
medians. Then the effect of half precision on mAP, on synthetic people, of the shipped tiny CLIP or
of `--model`. `--check` exits with 1 if a format's features differ from PyTorch's.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import muva
from benchmarks.baseline import (
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    per_second,
    write_results,
)
from benchmarks.openai_files import VIT_B_16, openai_state_dict, random_clip
from benchmarks.phases import device_name
from benchmarks.training import timed
from muva.config import ModelConfig, PromptConfig
from muva.model.bundle import Bundle, bundle_of_model
from muva.model.clip import build_clip, load_clip
from muva.model.export import (
    MAX_DIFFERENCE,
    MIN_COSINE_HALF,
    SUFFIXES,
    Form,
    RetrievalGraph,
    export,
    open_exported,
)
from muva.model.muva_model import build_model
from muva.retrieval import evaluate
from muva.synthetic import DOMAINS, render

BATCH, ROUNDS, THREADS = 16, 5, 1
TARGET, PEOPLE = "syn-station", 100
PYTORCH, HALF = "PyTorch", ", half"
FORMS: dict[str, Form] = {"TorchScript": "torchscript", "ONNX Runtime": "onnx"}
SIZES = {
    "tiny": ModelConfig(clip="tiny", image_height=128, image_width=64, stride=8),
    "ViT-B-16": ModelConfig(),
}


def main() -> int:
    """Measure and print; with --check, exit with 1 if features differ."""
    parser = benchmark_parser("serving", __doc__, check="exit 1 where features differ")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each timing")
    parser.add_argument("--threads", type=int, default=THREADS, help="of every form")
    parser.add_argument("--model", help="a model's URI, to tell what half precision costs it")
    parser.add_argument("--people", type=int, default=PEOPLE, help="0: leave the mAP out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = device_name(torch.device("cpu"))
    print(f"batches of {arguments.batch}, on {device}\n", flush=True)
    found: dict[str, Any] = {"device": device, "batch": arguments.batch, "sizes": {}}
    if arguments.sizes:
        print("| size | form | images/s | by PyTorch | largest difference | least cosine |")
        print("|---|---|---:|---:|---:|---:|")
    for size in arguments.sizes:
        bundle = random_model(SIZES[size])
        found["sizes"][size] = measured(bundle, batch=arguments.batch, rounds=arguments.rounds)
        print_size(size, found["sizes"][size])
    if arguments.people:
        bundle = muva.load(arguments.model) if arguments.model else shipped_model()
        found["half"] = half_cost(bundle, people=arguments.people)
        print_half(arguments.model or "the tiny CLIP without training", found["half"])
    write_results(arguments, found, baseline_tables)
    missed = misses(found["sizes"])
    return exit_code(arguments, missed)


def random_model(config: ModelConfig, *, seed: int = 0) -> Bundle:
    """A model of this size with random weights, which run at the same speed."""
    size = (config.image_height, config.image_width)
    if config.clip == "tiny":
        clip = load_clip(config.clip, image_size=size, stride=config.stride)
    else:
        state = openai_state_dict(random_clip(VIT_B_16), VIT_B_16)
        clip = build_clip(state, image_size=size, stride=config.stride)
    model = build_model(clip, model=config, prompts=PromptConfig(), identities=1, seed=seed)
    return bundle_of_model(model.eval(), metadata={})


def shipped_model() -> Bundle:
    """The tiny CLIP as a model without parts, whose weights are trained."""
    return random_model(SIZES["tiny"].model_copy(update={"parts": ()}))


def measured(bundle: Bundle, *, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Format -> images per second, and the difference of its features from PyTorch's in float32."""
    size = {"height": bundle.image_height, "width": bundle.image_width}
    people = [
        render("syn-harbour", pid=1 + n, camid=1 + n % 2, index=1, **size).image
        for n in range(batch)
    ]
    pixels = bundle.pixels(people)
    ways: dict[str, Callable[[Tensor], np.ndarray]] = {PYTORCH: _pytorch(bundle)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for half in (False, True):
            for name, form in FORMS.items():
                file = Path(folder) / f"{half}{SUFFIXES[form][0]}"
                export(bundle, file, form=form, model="random", half=half)
                graph = RetrievalGraph(bundle, half=half)
                ways[name + HALF * half] = open_exported(file, form=form, graph=graph)
        features = {name: way(pixels) for name, way in ways.items()}
        seconds = timed(
            {name: lambda way=way: way(pixels) for name, way in ways.items()},
            rounds=rounds,
            device=torch.device("cpu"),
        )
    expected = features[PYTORCH]
    return {
        name: {
            "images_per_s": per_second(batch, seconds[name]),
            "largest_difference": float(np.abs(features[name] - expected).max()),
            "least_cosine": float((features[name] * expected).sum(axis=1).min()),
        }
        for name in ways
    }


def _pytorch(bundle: Bundle) -> Callable[[Tensor], np.ndarray]:
    return lambda pixels: bundle.encode(pixels).numpy()


def misses(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Descriptions of formats whose features differ from PyTorch's."""
    missed = []
    for size, forms in found.items():
        for name, of in forms.items():
            if name.endswith(HALF):
                if of["least_cosine"] < MIN_COSINE_HALF:
                    missed.append(
                        f"{size}, {name}: a cosine of {of['least_cosine']:.4f}, expected "
                        f"{MIN_COSINE_HALF}"
                    )
            elif of["largest_difference"] > MAX_DIFFERENCE:
                missed.append(
                    f"{size}, {name}: features differ by {of['largest_difference']:.1e}, expected "
                    f"{MAX_DIFFERENCE}"
                )
    return missed


def baseline_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """The name of each size: a row per form; `half`: mAP and rank-1 in both precisions."""
    tables = {}
    for size, forms in found["sizes"].items():
        rows = [
            {
                "form": name,
                "rate": measurement(of["images_per_s"]),
                "share": of["images_per_s"] / forms[PYTORCH]["images_per_s"],
                "largest_difference": of["largest_difference"],
                "least_cosine": of["least_cosine"],
                "goal": {"least_cosine": MIN_COSINE_HALF}
                if name.endswith(HALF)
                else {"largest_difference": MAX_DIFFERENCE},
            }
            for name, of in forms.items()
        ]
        tables[size] = Table(rows=rows, statistic="medians")
    half = [{"precision": precision, **of} for precision, of in found.get("half", {}).items()]
    return {**tables, "half": Table(rows=half)}


def half_cost(bundle: Bundle, *, people: int, domain: str = TARGET) -> dict[str, dict[str, float]]:
    """Precision -> mAP and rank-1 on synthetic people, seen twice by each camera of a domain.

    The half is an exported file, as it is given away.
    """
    size = {"height": bundle.image_height, "width": bundle.image_width}
    shots = [
        (pid, camid, index)
        for index in (0, 1)
        for pid in range(1, people + 1)
        for camid in range(1, DOMAINS[domain].cameras + 1)
    ]
    images = [
        render(domain, pid=pid, camid=camid, index=index, **size).image
        for pid, camid, index in shots
    ]
    pids, camids, indices = np.array(shots).T
    asks = indices == 0
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "half.torchscript"
        export(bundle, file, form="torchscript", model="half", half=True)
        of_half = open_exported(file, form="torchscript", graph=RetrievalGraph(bundle, half=True))
        batches = [images[first : first + 64] for first in range(0, len(images), 64)]
        features = {
            "float32": bundle.embed(images),
            "half": np.concatenate([of_half(bundle.pixels(batch)) for batch in batches]),
        }
    found = {}
    for precision, of in features.items():
        result = evaluate(
            query_features=of[asks],
            query_pids=pids[asks],
            query_camids=camids[asks],
            gallery_features=of[~asks],
            gallery_pids=pids[~asks],
            gallery_camids=camids[~asks],
        )
        found[precision] = {"mean_ap": result.mean_ap, "rank1": result.cmc[1]}
    return found


def print_size(size: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """The rows of a model size."""
    plain = found[PYTORCH]["images_per_s"]
    for name, of in found.items():
        print(
            f"| {size} | {name} | {of['images_per_s']:.1f} | {of['images_per_s'] / plain:.2f} | "
            f"{of['largest_difference']:.1e} | {of['least_cosine']:.5f} |",
            flush=True,
        )


def print_half(model: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """The effect of half precision as a table."""
    full, half = found["float32"], found["half"]
    print(f"\nOf {model} on {TARGET}, per cent:\n")
    print("| precision | mAP | rank-1 |\n|---|---:|---:|")
    for precision, of in found.items():
        print(f"| {precision} | {100 * of['mean_ap']:.2f} | {100 * of['rank1']:.2f} |")
    print(f"\nhalf precision costs {100 * (full['mean_ap'] - half['mean_ap']):.3f} points of mAP")


if __name__ == "__main__":
    sys.exit(main())
