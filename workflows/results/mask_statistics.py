"""The figures and pictures of a label set's report: geometry, agreement, what to look at."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from muva.data.images import decode_rgb
from muva.data.shards import Dataset
from muva.errors import MuvaError
from muva.grounding import quality
from muva.grounding.labels import LabelSet
from muva.grounding.release import base_name
from muva.grounding.rules import MAX_AREA
from tracking.mask_report import MaskStatistics, Outlier, OverlapStatistics, PartStatistics
from tracking.pictures import part_distributions, part_mask_sheet

SHOWN = 12
FINE_GRID = (64, 32)
"""Rows and columns on which boxes are drawn."""


def mask_figures(
    dataset: Dataset, labels: LabelSet, other: LabelSet | None = None
) -> tuple[MaskStatistics, np.ndarray]:
    """What the report says in numbers, and how far each image's parts are trusted (M, R)."""
    rows = dataset.rows(["image_id", "camid"])
    if tuple(rows["image_id"].to_pylist()) != labels.image_ids:
        raise MuvaError(f"{labels.artifact.uri}: its rows are not those of {dataset.name}")
    camids = rows["camid"].to_numpy() if dataset.summary.cameras_known else None
    boxes, found = (values.numpy() for values in labels.boxes(labels.image_ids))
    details = labels.details()
    scores = label_scores(labels, details)
    aside = details.filter(details["error"].is_valid())
    reasons = dict(zip(aside["image_id"].to_pylist(), aside["error"].to_pylist(), strict=True))
    trusted = quality.confidence(boxes, found, labels.parts, labels.grid)
    told = trusted if scores is None else np.where(np.isnan(scores), trusted, scores)
    rates, by_camera = quality.detection_rates(found, camids)
    area, middle = quality.areas(boxes), quality.centres(boxes)
    order = quality.disordered(boxes, found, labels.parts)
    agreed = [None] * len(labels.parts) if other is None else _agreed(labels, other)
    parts = [
        PartStatistics(
            part=part,
            found=float(rates[column]),
            found_by_camera={camid: float(of[column]) for camid, of in by_camera.items()},
            area=_quartiles(area[found[:, column], column]),
            centre_x=_quartiles(middle[found[:, column], column, 0]),
            centre_y=_quartiles(middle[found[:, column], column, 1]),
            disordered=float(order[:, column].mean()),
            whole_image=float((area[:, column] > MAX_AREA)[found[:, column]].mean())
            if found[:, column].any()
            else 0.0,
            confidence=number_or_none(float(np.nanmedian(told[found[:, column], column])))
            if found[:, column].any()
            else None,
            agreement=_agreement(agreed[column]),
        )
        for column, part in enumerate(labels.parts)
    ]
    overlaps = []
    for (one, two), values in quality.pairwise_iou(boxes, found).items():
        known = values[~np.isnan(values)]
        overlaps.append(
            OverlapStatistics(
                parts=(labels.parts[one], labels.parts[two]),
                median_iou=float(np.median(known)) if len(known) else None,
                duplicates=float((known > quality.SAME_BOX_IOU).mean()) if len(known) else 0.0,
            )
        )
    manifest = labels.artifact.manifest()
    assert manifest is not None
    return MaskStatistics(
        dataset=dataset.name,
        labels=labels.artifact.address,
        against=other.artifact.address if other else None,
        config=manifest["config"],
        images=len(labels.image_ids),
        failed=manifest["summary"]["failed"],
        reasons=dict(islice(reasons.items(), SHOWN)),
        without_any=float((~found.any(axis=1)).mean()),
        parts=parts,
        overlaps=overlaps,
        outliers=_outliers(labels, boxes, found, trusted),
    ), trusted


def _outliers(
    labels: LabelSet, boxes: np.ndarray, found: np.ndarray, trusted: np.ndarray
) -> list[Outlier]:
    """The images with the least trusted parts, and what is odd about those."""
    away = quality.deviations(boxes, found, labels.grid)
    wrong, same = (
        quality.disordered(boxes, found, labels.parts),
        quality.duplicates(boxes, found),
    )
    outliers = []
    for row in quality.lowest_confidence_first(trusted)[:SHOWN]:
        if not found[row].any():
            continue
        column = int(np.nanargmin(trusted[row]))
        most = int(away[:, row, column].argmax())
        why = [f"{quality.MEASURES[most]}, {away[most, row, column]:.1f} deviations"]
        why += ["out of order"] if wrong[row, column] else []
        why += ["shares its box"] if same[row, column] else []
        outliers.append(
            Outlier(
                image_id=labels.image_ids[row],
                part=labels.parts[column],
                confidence=float(trusted[row, column]),
                why="; ".join(why),
            )
        )
    return outliers


def _agreed(labels: LabelSet, other: LabelSet) -> list[quality.Agreement | None]:
    """How far they agree on each part; masks are compared patch by patch, on their own grid."""
    shared = [part for part in labels.parts if part in other.parts]
    ids = labels.image_ids
    boxes, found = (values.numpy() for values in labels.boxes(ids, parts=shared))
    other_boxes, other_found = (values.numpy() for values in other.boxes(ids, parts=shared))
    grid = labels.grid or other.grid
    if grid:
        pair = (one.masks_on_grid(grid, ids, parts=shared).numpy() for one in (labels, other))
        ious = quality.mask_iou(*pair)
    else:
        ious = quality.iou(boxes, other_boxes)
    by_part = dict(zip(shared, quality.agreement(found, other_found, ious), strict=True))
    return [by_part.get(part) for part in labels.parts]


def mask_pictures(
    dataset: Dataset, labels: LabelSet, trusted: np.ndarray
) -> dict[str, Image.Image]:
    """Name -> picture: random overlays, the least trusted ones, distributions."""
    rng = np.random.default_rng(0)
    count = min(SHOWN, len(labels.image_ids))
    anyone = np.sort(rng.choice(len(labels.image_ids), count, replace=False))
    boxes, found = (values.numpy() for values in labels.boxes(labels.image_ids))
    area, middle = quality.areas(boxes), quality.centres(boxes)[..., 1]
    values = {
        part: (area[found[:, column], column], middle[found[:, column], column])
        for column, part in enumerate(labels.parts)
    }
    return {
        "overlays": _sheet(dataset, labels, anyone, trusted, title="Some images"),
        "least-trusted": _sheet(
            dataset,
            labels,
            quality.lowest_confidence_first(trusted)[:count],
            trusted,
            title="The least trusted",
        ),
        "distributions": part_distributions(values),
    }


def _sheet(
    dataset: Dataset, labels: LabelSet, rows: np.ndarray, trusted: np.ndarray, *, title: str
) -> Image.Image:
    ids = [labels.image_ids[row] for row in rows]
    grid = labels.grid or FINE_GRID
    lowest = [np.nan_to_num(trusted[row], nan=1.0).min() for row in rows]
    return part_mask_sheet(
        [decode_rgb(image) for image in dataset.read_images(rows)],
        {"labels": labels.masks_on_grid(grid, ids).numpy()},
        grid=grid,
        parts=labels.parts,
        title=title,
        subtitle=f"{labels.artifact.address}; below each image its lowest confidence, its name",
        captions=[f"{low:.2f}  {base_name(i)}" for i, low in zip(ids, lowest, strict=True)],
    )


def label_scores(labels: LabelSet, details: pa.Table) -> np.ndarray | None:
    """Scores (M, R) of the expert, None where it gave none."""
    if details["score"].null_count == len(details):
        return None
    scores = details["score"].to_numpy(zero_copy_only=False).astype(float)
    placed = np.full((len(labels.image_ids), len(labels.parts)), np.nan)
    rows = labels.row_indices(details["image_id"].to_pylist())
    placed[rows, [labels.parts.index(part) for part in details["part"].to_pylist()]] = scores
    return placed


def _quartiles(values: np.ndarray) -> tuple[float, float, float] | None:
    if not len(values):
        return None
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def _agreement(agreed: quality.Agreement | None) -> dict[str, Any] | None:
    if agreed is None:
        return None
    return {name: number_or_none(value) for name, value in dataclasses.asdict(agreed).items()}


def number_or_none(value: Any) -> Any:
    """As JSON has it: NaN is null."""
    return None if isinstance(value, float) and math.isnan(value) else value
