"""Pictures of an evaluation: ranked galleries, mAP between cameras, attention, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from PIL import Image

import muva
from muva.data.artifacts import Artifact
from muva.data.shards import open_dataset
from muva.model.bundle import Bundle
from muva.retrieval.results import CameraPair, Scores, Verification
from tracking.curves import roc_plot
from tracking.heat_map import heat_map
from tracking.pictures import (
    Person,
    RankedQuery,
    attention_sheet,
    part_mask_sheet,
    ranked_gallery,
)
from workflows.steps.embed import UNTRAINED, EvaluationSet
from workflows.steps.score import QueryScores, shown_queries

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

SHOWN_MASKS, SHOWN_ATTENTION = 12, 6


def draw(
    run: Run,
    model: str,
    judged: EvaluationSet,
    metrics: Artifact,
    scores: Scores,
    *,
    method: str,
) -> None:
    """Log ranked galleries, the mAP between cameras, the ROC, attention and predicted masks."""
    target = open_dataset(judged.dataset).name
    if scores.camera_pairs:
        run.log_figure("camera-pairs.png", _camera_map(target, scores.camera_pairs))
    if scores.verification is not None:
        run.log_figure("roc.png", roc_of({method: scores.verification}, target=target))
    rows = judged.rows()
    for name, sheet in _gallery_sheets(judged, rows, QueryScores.read(metrics)).items():
        run.log_image(f"{name}.png", sheet)
    if not model.startswith(UNTRAINED):
        bundle = muva.load(model)
        if bundle.model.config.parts:
            run.log_image("predicted-masks.png", _mask_sheet(judged, rows, bundle))
        run.log_image("attention.png", _attention_sheet(judged, rows, bundle))


def roc_of(verified: Mapping[str, Verification], *, target: str) -> Figure:
    """The ROC curves of methods on a target."""
    return roc_plot(
        {method: one.roc for method, one in verified.items()},
        title=f"Verification on {target}",
        eer={method: one.eer for method, one in verified.items()},
    )


def _camera_map(target: str, pairs: Sequence[CameraPair]) -> Figure:
    cameras = sorted({camera for p in pairs for camera in (p.query_camid, p.gallery_camid)})
    return heat_map(
        {(str(pair.query_camid), str(pair.gallery_camid)): pair.mean_ap for pair in pairs},
        title=f"mAP between cameras of {target}, per cent",
        rows="camera of the query",
        columns="camera of the gallery image",
        order=list(map(str, cameras)),
    )


def _gallery_sheets(
    judged: EvaluationSet, rows: pa.Table, kept: QueryScores
) -> dict[str, Image.Image]:
    """Queries from the best to the worst, and the worst queries, each with its ranked list."""
    list_of = kept.list_of

    def people(places: np.ndarray) -> list[Person]:
        chosen = rows.take(places)
        return [
            Person(image=image, pid=pid, camid=camid)
            for image, pid, camid in zip(
                judged.images(chosen["row"].to_numpy()),
                chosen["pid"].to_pylist(),
                chosen["camid"].to_pylist(),
                strict=True,
            )
        ]

    texts = {
        "ranked-gallery": (
            f"Ranked gallery, {open_dataset(judged.dataset).name}",
            "Queries from the best average precision to the worst, evenly spaced",
        ),
        "worst-queries": (
            f"Worst queries, {open_dataset(judged.dataset).name}",
            "Queries with the lowest average precision, the worst first",
        ),
    }
    sheets = {}
    for name, numbers in shown_queries(kept.average_precision).items():
        queries = [
            RankedQuery(
                query=people(kept.query[[number]])[0],
                matches=people(kept.gallery[list_of[number]]),
                average_precision=float(kept.average_precision[number]),
            )
            for number in numbers.tolist()
        ]
        title, subtitle = texts[name]
        sheets[name] = ranked_gallery(queries, title=title, subtitle=subtitle)
    return sheets


def _attention_sheet(judged: EvaluationSet, rows: pa.Table, bundle: Bundle) -> Image.Image:
    """The attention of the class token and the part tokens in the last block."""
    images = judged.images(_some(rows, SHOWN_ATTENTION)["row"].to_numpy())
    return attention_sheet(
        images,
        bundle.attention(images),
        grid=bundle.model.grid,
        tokens=["person", *bundle.model.config.parts],
        title=f"Attention of each token, {open_dataset(judged.dataset).name}",
        subtitle="Last block, mean over heads",
    )


def _some(rows: pa.Table, count: int) -> pa.Table:
    """So many of them, evenly spaced."""
    return rows.take(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))


def _mask_sheet(judged: EvaluationSet, rows: pa.Table, bundle: Bundle) -> Image.Image:
    """Some images with the masks that the predictor of the last block gives."""
    chosen = _some(rows, SHOWN_MASKS)
    images = judged.images(chosen["row"].to_numpy())
    masks = bundle.predicted_masks(images)
    return part_mask_sheet(
        images,
        {"predicted": masks},
        grid=bundle.model.grid,
        parts=bundle.model.config.parts,
        title=f"Predicted part masks, {open_dataset(judged.dataset).name}",
        captions=[f"{pid:04d}" for pid in chosen["pid"].to_pylist()],
    )
