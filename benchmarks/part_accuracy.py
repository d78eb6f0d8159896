"""mAP of each grain of MUVA on an unseen domain: `python -m benchmarks.part_accuracy`.

Evaluates the models that `benchmarks.generalisation` left in a store, each on its targets: mAP of
the whole feature after the BN neck and of the slice of each grain (the person and each part), with
predicted and with true masks, and the IoU of predicted and true masks.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from benchmarks.baseline import Table, benchmark_parser, mean_of, measurement, write_results
from benchmarks.generalisation import sources_for
from muva.config import PARTS
from muva.data.artifacts import Artifact, find_artifact
from muva.data.lineage import Lineage
from muva.data.shards import open_dataset
from muva.data.store import Store
from muva.grounding.part_masks import part_masks, patch_centres
from muva.model.bundle import Bundle
from muva.models import load
from muva.retrieval.evaluation import evaluate
from muva.synthetic import BENCHMARK, REAL_LOOK
from workflows.session import open_session
from workflows.steps.encoder import LAST_EPOCH

GRAINS = ("person", *PARTS)
BATCH = 64

Figures = dict[str, float]


def main() -> int:
    """Print a table; returns 1 if there is no model to evaluate."""
    parser = benchmark_parser("part_accuracy", __doc__)
    parser.add_argument("--home", default=["runs"], nargs="+", help="where generalisation ran")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, list[Figures]] = defaultdict(list)
    for home in arguments.home:
        store = open_session(home=home).store
        for artifact in muva_models(store):
            bundle = load(artifact.uri)
            for target in targets_of(bundle):
                found[target].append(evaluate_grains(store, bundle, target))
                print(f"{artifact.address} on {target}: done", file=sys.stderr)
    if not found:
        print("no model of benchmarks.generalisation there; run it first", file=sys.stderr)
        return 1
    print_table(found)
    write_results(arguments, found, baseline_tables)
    return 0


def muva_models(store: Store) -> list[Artifact]:
    """The models of pipelines that have parts, each after its last epoch."""
    return [
        node.artifact
        for node in Lineage.of(store).complete("models")
        if node.facts.get("variant") == "muva" and node.facts.get("checkpoint") == LAST_EPOCH
    ]


def targets_of(bundle: Bundle) -> list[str]:
    """The domains for which `benchmarks.generalisation` trains on the sources of this model."""
    sources = {source.rpartition("-")[0] for source in bundle.metadata["sources"]}
    return [target for target in (*BENCHMARK, *REAL_LOOK) if {*sources_for(target)} == sources]


def evaluate_grains(store: Store, bundle: Bundle, target: str) -> Figures:
    """mAP as `predicted/GRAIN` and `true/GRAIN` (GRAIN: all, person, parts), and `iou/PART`."""
    dataset = open_dataset(find_artifact(store, "datasets", target))
    columns = ["pid", "camid", "split", *(f"box_{part}" for part in PARTS)]
    rows = dataset.rows(columns, splits=["query", "gallery"])
    images = dataset.read_images(rows["row"].to_numpy())
    true = _true_masks(rows, bundle)
    asks = np.asarray(rows["split"].to_pylist()) == "query"
    pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()

    def mean_ap(features: np.ndarray) -> float:
        return evaluate(
            query_features=features[asks],
            query_pids=pids[asks],
            query_camids=camids[asks],
            gallery_features=features[~asks],
            gallery_pids=pids[~asks],
            gallery_camids=camids[~asks],
        ).mean_ap

    figures: Figures = {}
    for kind, masks in (("predicted", None), ("true", true)):
        features = _features(bundle, images, masks)
        figures[f"{kind}/all"] = mean_ap(features)
        for grain, share in zip(GRAINS, np.split(features, len(GRAINS), axis=1), strict=True):
            figures[f"{kind}/{grain}"] = mean_ap(share)
    predicted = np.concatenate([bundle.predicted_masks(some) for some in _batches(images)])
    both, either = predicted & true.numpy(), predicted | true.numpy()
    agreement = both.sum(axis=2) / np.maximum(either.sum(axis=2), 1)
    figures |= {f"iou/{p}": float(agreement[:, i].mean()) for i, p in enumerate(PARTS)}
    return figures


def baseline_tables(found: Mapping[str, Sequence[Figures]]) -> dict[str, Table]:
    """`scores`: a row per target, means over its models."""
    columns = {
        "all": "predicted/all",
        **{grain: f"predicted/{grain}" for grain in GRAINS},
        "all_exact_masks": "true/all",
    }
    rows = [
        {"target": target, "models": len(results)}
        | {
            key: measurement(mean_of([result[column] for result in results]))
            for key, column in columns.items()
        }
        | {"iou": [float(np.mean([result[f"iou/{part}"] for result in results])) for part in PARTS]}
        for target, results in found.items()
    ]
    return {"scores": Table(rows=rows, statistic="mean over the models")}


def print_table(found: dict[str, list[Figures]]) -> None:
    """Print a row per target with means over its models."""
    columns = ["predicted/all", *(f"predicted/{grain}" for grain in GRAINS), "true/all"]
    columns += [f"iou/{part}" for part in PARTS]
    print("mAP and IoU in per cent, means over the models\n")
    print("| target | models | " + " | ".join(columns) + " |\n|---|" + "---:|" * (len(columns) + 1))
    for target, results in found.items():
        means = [100 * np.mean([result[column] for result in results]) for column in columns]
        print(f"| {target} | {len(results)} | " + " | ".join(f"{m:.1f}" for m in means) + " |")


def _true_masks(rows: pa.Table, bundle: Bundle) -> torch.Tensor:
    """True masks (M, R, L), from the boxes in the target's data set."""
    boxes_by_image = [[row[f"box_{part}"] for part in PARTS] for row in rows.to_pylist()]
    settings, patch = bundle.model.config, bundle.model.clip_shape.patch
    return part_masks(
        torch.tensor([[box or [0.0] * 4 for box in boxes] for boxes in boxes_by_image]),
        torch.tensor([[box is not None for box in boxes] for boxes in boxes_by_image]),
        row_centres=patch_centres(settings.image_height, patch=patch, stride=settings.stride),
        column_centres=patch_centres(settings.image_width, patch=patch, stride=settings.stride),
    )


@torch.inference_mode()
def _features(bundle: Bundle, images: Sequence[bytes], masks: torch.Tensor | None) -> np.ndarray:
    """Features after the BN neck, with these masks or with predicted ones."""
    features = []
    for start, some in zip(range(0, len(images), BATCH), _batches(images), strict=True):
        given = None if masks is None else masks[start : start + BATCH]
        encoded = bundle.model.encode_images(bundle.pixels(some), given)
        features.append(bundle.model.neck(encoded.feature).numpy())
    return np.concatenate(features)


def _batches(images: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


if __name__ == "__main__":
    sys.exit(main())
