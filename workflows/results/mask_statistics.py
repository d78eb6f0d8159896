"""The statistics and pictures of a label set's report: geometry, agreement, outliers."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from muva.data.images import decode_to_show
from muva.data.shards import Dataset, StoredImages
from muva.errors import MuvaError
from muva.grounding import quality
from muva.grounding.labels import LabelSet
from muva.grounding.release import base_name
from muva.grounding.rules import MAX_AREA
from tracking.mask_report import MaskStatistics, Outlier, OverlapStatistics, PartStatistics
from tracking.pictures import part_distributions, part_mask_sheet

MAX_SHOWN = 12
FINE_GRID = (64, 32)
"""Rows and columns of the grid on which boxes are drawn."""


def mask_statistics(
    dataset: Dataset, labels: LabelSet, other: LabelSet | None = None
) -> tuple[MaskStatistics, np.ndarray]:
    """The report's statistics, and the confidence (M, R) in each part of each image."""
    rows = dataset.rows(["image_id", "camid"])
    if tuple(rows["image_id"].to_pylist()) != labels.image_ids:
        raise MuvaError(f"{labels.artifact.uri}: its images are not those of {dataset.name}")
    camids = rows["camid"].to_numpy() if dataset.summary.cameras_known else None
    boxes, found = (values.numpy() for values in labels.boxes(labels.image_ids))
    details = labels.details()
    scores = label_scores(labels, details)
    failed = details.filter(details["error"].is_valid())
    reasons = dict(zip(failed["image_id"].to_pylist(), failed["error"].to_pylist(), strict=True))
    confidence = quality.confidence(boxes, found, labels.parts, labels.grid)
    reported = confidence if scores is None else np.where(np.isnan(scores), confidence, scores)
    rates, by_camera = quality.detection_rates(found, camids)
    area, centres = quality.areas(boxes), quality.centres(boxes)
    disordered = quality.disordered(boxes, found, labels.parts)
    agreements = [None] * len(labels.parts) if other is None else _agreements(labels, other)
    parts = [
        PartStatistics(
            part=part,
            found=float(rates[column]),
            found_by_camera={camid: float(rate[column]) for camid, rate in by_camera.items()},
            area=_quartiles(area[found[:, column], column]),
            centre_x=_quartiles(centres[found[:, column], column, 0]),
            centre_y=_quartiles(centres[found[:, column], column, 1]),
            disordered=float(disordered[:, column].mean()),
            whole_image=float((area[:, column] > MAX_AREA)[found[:, column]].mean())
            if found[:, column].any()
            else 0.0,
            confidence=number_or_none(float(np.nanmedian(reported[found[:, column], column])))
            if found[:, column].any()
            else None,
            agreement=_agreement_data(agreements[column]),
        )
        for column, part in enumerate(labels.parts)
    ]
    overlaps = []
    for (one, two), values in quality.pairwise_iou(boxes, found).items():
        defined = values[~np.isnan(values)]
        overlaps.append(
            OverlapStatistics(
                parts=(labels.parts[one], labels.parts[two]),
                median_iou=float(np.median(defined)) if len(defined) else None,
                duplicates=float((defined > quality.SAME_BOX_IOU).mean()) if len(defined) else 0.0,
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
        reasons=dict(islice(reasons.items(), MAX_SHOWN)),
        without_any=float((~found.any(axis=1)).mean()),
        parts=parts,
        overlaps=overlaps,
        outliers=_outliers(labels, boxes, found, confidence),
    ), confidence


def _outliers(
    labels: LabelSet, boxes: np.ndarray, found: np.ndarray, confidence: np.ndarray
) -> list[Outlier]:
    """The images with the parts of lowest confidence, and what is unusual about those parts."""
    deviations = quality.deviations(boxes, found, labels.grid)
    disordered = quality.disordered(boxes, found, labels.parts)
    duplicates = quality.duplicates(boxes, found)
    outliers = []
    for row in quality.lowest_confidence_first(confidence)[:MAX_SHOWN]:
        if not found[row].any():
            continue
        column = int(np.nanargmin(confidence[row]))
        worst = int(deviations[:, row, column].argmax())
        why = [f"{quality.MEASURES[worst]}, {deviations[worst, row, column]:.1f} deviations"]
        why += ["out of order"] if disordered[row, column] else []
        why += ["shares its box"] if duplicates[row, column] else []
        outliers.append(
            Outlier(
                image_id=labels.image_ids[row],
                part=labels.parts[column],
                confidence=float(confidence[row, column]),
                why="; ".join(why),
            )
        )
    return outliers


def _agreements(labels: LabelSet, other: LabelSet) -> list[quality.Agreement | None]:
    """How far two label sets agree on each part; masks are compared patch by patch."""
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
    dataset: Dataset, labels: LabelSet, confidence: np.ndarray
) -> dict[str, Image.Image]:
    """Name -> picture: random images, those of lowest confidence, distributions."""
    rng = np.random.default_rng(0)
    count = min(MAX_SHOWN, len(labels.image_ids))
    random_rows = np.sort(rng.choice(len(labels.image_ids), count, replace=False))
    boxes, found = (values.numpy() for values in labels.boxes(labels.image_ids))
    area, centre_y = quality.areas(boxes), quality.centres(boxes)[..., 1]
    values = {
        part: (area[found[:, column], column], centre_y[found[:, column], column])
        for column, part in enumerate(labels.parts)
    }
    return {
        "overlays": _sheet(dataset, labels, random_rows, confidence, title="Random images"),
        "least-trusted": _sheet(
            dataset,
            labels,
            quality.lowest_confidence_first(confidence)[:count],
            confidence,
            title="Lowest confidence",
        ),
        "distributions": part_distributions(values),
    }


def _sheet(
    dataset: Dataset, labels: LabelSet, rows: np.ndarray, confidence: np.ndarray, *, title: str
) -> Image.Image:
    ids = [labels.image_ids[row] for row in rows]
    grid = labels.grid or FINE_GRID
    lowest = [np.nan_to_num(confidence[row], nan=1.0).min() for row in rows]
    return part_mask_sheet(
        [decode_to_show(image) for image in StoredImages(dataset, rows)],
        {"labels": labels.masks_on_grid(grid, ids).numpy()},
        grid=grid,
        parts=labels.parts,
        title=title,
        subtitle=f"{labels.artifact.address}; below each image its lowest confidence and its name",
        captions=[f"{low:.2f}  {base_name(i)}" for i, low in zip(ids, lowest, strict=True)],
    )


def label_scores(labels: LabelSet, details: pa.Table) -> np.ndarray | None:
    """The expert's scores (M, R), or None if it gives none."""
    if details["score"].null_count == len(details):
        return None
    scores = details["score"].to_numpy(zero_copy_only=False).astype(float)
    by_image = np.full((len(labels.image_ids), len(labels.parts)), np.nan)
    rows = labels.row_indices(details["image_id"].to_pylist())
    by_image[rows, [labels.parts.index(part) for part in details["part"].to_pylist()]] = scores
    return by_image


def _quartiles(values: np.ndarray) -> tuple[float, float, float] | None:
    if not len(values):
        return None
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def _agreement_data(agreement: quality.Agreement | None) -> dict[str, Any] | None:
    if agreement is None:
        return None
    return {name: number_or_none(value) for name, value in dataclasses.asdict(agreement).items()}


def number_or_none(value: Any) -> Any:
    """None (JSON's null) instead of NaN, and other values unchanged."""
    return None if isinstance(value, float) and math.isnan(value) else value
