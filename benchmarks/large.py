"""The paper's recipe at full size, on weights in OpenAI's format: `make check-large`.

Writes ViT-B/16 and ViT-L/14 with random weights as OpenAI publishes CLIP, compares the loaded
models with open_clip's own loader, and trains ViT-B/16 for a few steps on rendered people with the
settings of `base`: 256 x 128, three parts, batches of 64, both stages, a bundle, features. A model
with random weights cannot recognise people, so the checks are that everything trainable changes,
that nothing else does, that losses are finite, and that shapes are the paper's. Prints images per
second and peak memory of each phase; `benchmarks.paper --rates` reads them as JSON.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transformer import QuickGELU

from benchmarks.baseline import Table, benchmark_parser, exit_code, measurement, write_results
from benchmarks.openai_files import VIT_B_16, VIT_L_14, Sizes, random_clip, write_archive
from benchmarks.phases import PHASE_TITLES, Learned, best_device, device_name, learn, measured
from muva.config import ExperimentConfig, load_recipe
from muva.data.shards import open_dataset
from muva.model.bundle import pretrained_clip
from muva.model.clip import load_clip
from muva.model.precision import resolve_precision
from workflows.progress import say
from workflows.runtime.cluster import ray_cluster
from workflows.session import open_session
from workflows.steps.ground import ground
from workflows.steps.import_data import datasets_of
from workflows.steps.training_inputs import TrainingInputs

SOURCE = "syn-boulevard"
TEST_PEOPLE = 8
LARGE_SIZE = (252, 126)
"""Size of the images that ViT-L/14 embeds, a multiple of its patches of 14."""
LARGE_IMAGES = 16
CLOSE = 1e-4

Check = tuple[str, str, bool]
"""A check: what was checked, what was found, and whether it passed."""


@dataclass(frozen=True, kw_only=True)
class Large:
    """The results of a run."""

    figures: dict[str, Any]
    """The results as JSON: device, precision, settings, phases."""
    checks: list[Check]


def main() -> int:
    """Measure and print; with --check, exit with 1 if a check fails."""
    parser = benchmark_parser("large", __doc__, check="exit 1 where a check fails")
    parser.add_argument("--people", type=int, default=32, help="to learn from; 8 images of each")
    parser.add_argument("--epochs", type=int, default=2, help="of each stage")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    config = load_recipe(
        "base",
        overrides=[
            f"sources=[{SOURCE}]",
            f"synthetic.train_people={arguments.people}",
            f"synthetic.test_people={TEST_PEOPLE}",
            "synthetic.height=256",
            "synthetic.width=128",
            f"stage1.epochs={arguments.epochs}",
            f"stage2.epochs={arguments.epochs}",
            *arguments.overrides,
        ],
    )
    with tempfile.TemporaryDirectory(prefix="muva-large-") as folder:
        found = run(Path(folder), config)
    print(table(found.figures))
    print("\n| check | found | |\n|---|---|---|")
    for name, value, good in found.checks:
        print(f"| {name} | {value} | {'as it should be' if good else 'WRONG'} |")
    write_results(arguments, found.figures, baseline_tables)
    return exit_code(arguments, [name for name, _, good in found.checks if not good])


def run(
    folder: Path,
    config: ExperimentConfig,
    *,
    base: Sizes = VIT_B_16,
    large: Sizes = VIT_L_14,
    large_size: tuple[int, int] = LARGE_SIZE,
) -> Large:
    """Run the recipe on ViT-B/16, then embed images with ViT-L/14; files go to `folder`."""
    device = best_device()
    file = folder / "ViT-B-16.pt"
    checks = [*_file_checks(file, base)]
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"clip": str(file)})}
    )
    inputs, pictures = _people(folder, config)
    learned = learn(
        {
            "stage1": partial(inputs.open, predicts_masks=False),
            "stage2": partial(inputs.open, predicts_masks=True),
        },
        config,
        device=device,
        pictures=pictures,
        folder=folder / "bundle",
    )
    checks += learning_checks(learned, config, base)
    file.unlink()
    figures = {
        "device": device_name(device),
        "torch": torch.__version__,
        "clip": "ViT-B-16",
        "precision": resolve_precision(config.stage2.precision, device),
        "image": [config.model.image_height, config.model.image_width],
        "stride": config.model.stride,
        "parts": list(config.model.parts),
        "batch": config.stage2.batch_size,
        "phases": {name: dataclasses.asdict(phase) for name, phase in learned.phases.items()},
        "losses": learned.losses,
    }
    file = folder / "ViT-L-14.pt"
    checks += _file_checks(file, large)
    height, width = large_size
    clip = pretrained_clip(str(file), image_height=height, image_width=width, stride=large.patch)
    clip.to(device)
    few, batch = pictures[:LARGE_IMAGES], LARGE_IMAGES // 2
    with measured(device) as pace:
        features = []
        for at in range(0, len(few), batch):
            images = few[at : at + batch]
            features.append(clip.embed(images))
            pace.tick()
    figures["large"] = {
        "clip": "ViT-L-14",
        "image": list(large_size),
        **dataclasses.asdict(pace.phase(len(few), batch)),
    }
    checks.append(_features_check("ViT-L-14's features", np.concatenate(features), large.embed_dim))
    return Large(figures=figures, checks=checks)


def _file_checks(file: Path, sizes: Sizes) -> list[Check]:
    """Write a CLIP as OpenAI publishes it, and compare loading it with open_clip's own loader."""
    write_archive(random_clip(sizes), sizes, file)
    say(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB, TorchScript, random weights")
    ours = load_clip(str(file), image_size=(sizes.resolution, sizes.resolution), stride=sizes.patch)
    quick = sum(isinstance(module, QuickGELU) for module in ours.modules())
    blocks = sizes.vision_layers + sizes.text_layers
    images = torch.randn(2, 3, sizes.resolution, sizes.resolution)
    texts = open_clip.tokenize(["a photo of a person", "legs"], sizes.context_length)
    with torch.inference_mode():
        found = [ours.encode_image(images), ours.encode_text(texts)]
        del ours
        theirs = open_clip.load_openai_model(str(file), precision="fp32", device="cpu")
        expected = [
            theirs.get_submodule("visual")(images),
            theirs.encode_text(texts),  # pyright: ignore[reportCallIssue]
        ]
    apart = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return [
        (f"{file.stem}: blocks with QuickGELU", f"{quick} of {blocks}", quick == blocks),
        (
            f"{file.stem}: features from open_clip's own",
            f"{apart:.1e} apart, at most {CLOSE:.0e}",
            apart <= CLOSE,
        ),
    ]


def _people(folder: Path, config: ExperimentConfig) -> tuple[TrainingInputs, list[bytes]]:
    """Rendered people with their part boxes, imported as by the commands, and the test images."""
    session = dataclasses.replace(open_session(home=folder / "runs"), tracking_uri=None)
    assert config.grounding is not None
    with ray_cluster():
        imported = datasets_of(session, config.sources, config.synthetic)
        datasets = [done.artifact for done in imported.values()]
        labels = [done.artifact for done in ground(session, datasets, config.grounding)]
    inputs = TrainingInputs.of(config, sources=datasets, labels=labels)
    dataset = open_dataset(datasets[0])
    rows = dataset.rows(splits=["query", "gallery"])
    return inputs, dataset.read_images(rows["row"].to_numpy())


def learning_checks(learned: Learned, config: ExperimentConfig, sizes: Sizes) -> list[Check]:
    """Checks after a few steps of both stages."""
    losses = [loss for stage in learned.losses.values() for loss in stage]
    grains = 1 + len(config.model.parts)
    return [
        (
            "losses",
            f"{len(learned.losses['prompts'])} + {len(learned.losses['steps'])} steps, "
            f"{min(losses):.3f} to {max(losses):.3f}",
            bool(losses) and bool(np.isfinite(losses).all()),
        ),
        ("learning weights that stayed", _named(learned.unmoved), not learned.unmoved),
        ("frozen weights that moved", _named(learned.thawed), not learned.thawed),
        _features_check("features", learned.features, grains * sizes.embed_dim),
        (
            "the bundle's features from the model's",
            f"{learned.deviation:.1e} apart",
            learned.deviation <= CLOSE,
        ),
    ]


def _features_check(name: str, features: np.ndarray, width: int) -> Check:
    lengths = np.linalg.norm(features, axis=1)
    good = features.shape[1] == width and bool(np.allclose(lengths, 1, atol=1e-3))
    return name, f"{features.shape[0]} of width {features.shape[1]}, expected {width}", good


def _named(names: Sequence[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
    )


def baseline_tables(figures: dict[str, Any]) -> dict[str, Table]:
    """`phases`: what each phase did, how fast, and its peak memory."""
    rows = [
        {
            "phase": PHASE_TITLES.get(name, name),
            "count": phase["count"],
            "unit": "identities" if name == "prompts" else "images",
            "rate": measurement(phase["per_s"]),
            "cores": phase["cores"],
            "memory_gb": (phase["gpu_peak_mb"] or phase["peak_mb"]) / 1000,
        }
        for name, phase in {
            **figures["phases"],
            figures["large"]["clip"]: figures["large"],
        }.items()
    ]
    return {"phases": Table(rows=rows)}


def table(figures: dict[str, Any]) -> str:
    """The phases as a table."""
    height, width = figures["image"]
    lines = [
        f"{figures['clip']}, {height} x {width}, stride {figures['stride']}, batches of "
        f"{figures['batch']}, {figures['precision']}, on {figures['device']}",
        "",
        "| phase | done | seconds | per second | cores | peak memory, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, phase in {**figures["phases"], figures["large"]["clip"]: figures["large"]}.items():
        unit = "identities" if name == "prompts" else "images"
        memory = f"{phase['peak_mb']:.0f}"
        if phase["gpu_peak_mb"] is not None:
            memory += f" + {phase['gpu_peak_mb']:.0f} on the GPU"
        lines.append(
            f"| {name} | {phase['count']} {unit} | {phase['seconds']:.1f} | {phase['per_s']:.1f} "
            f"| {phase['cores']:.1f} | {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
