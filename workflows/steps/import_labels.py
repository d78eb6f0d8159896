"""Importing pseudo-labels in the form of the authors' release, as a step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muva.config.parts import check_part
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.lineage import Role
from muva.data.shards import open_dataset
from muva.errors import MuvaError, SettingsError
from muva.grounding.labels import label_table, packed_mask, summarise_labels, write_shard_labels
from muva.grounding.release import base_name, by_base_name, grid_of, read_release
from workflows.session import Session
from workflows.steps.labels import IMPORTED
from workflows.steps.step import Step, StepResult, run_step


def import_release(
    session: Session,
    source: Artifact,
    file: Path,
    *,
    parts: Sequence[str],
    grid: tuple[int, int] | None,
    missing: bool,
) -> StepResult:
    """Import the labels in a file of the release's form; `missing`: images may have no entry."""
    for part in parts:
        try:
            check_part(part)
        except ValueError as error:
            raise SettingsError(f"--parts: {error}") from error
    dataset = open_dataset(source)
    content = read_release(file)
    first = next(iter(content.values()))
    if first.shape[0] != len(parts):
        raise MuvaError(
            f"{file}: its arrays have {first.shape[0]} rows; expected {len(parts)}, "
            f"{', '.join(parts)}. Name its parts with --parts"
        )
    masked = first.dtype == bool
    if masked and grid is None:
        grid = grid_of(first.shape[1])
    if masked and grid and grid[0] * grid[1] != first.shape[1]:
        raise MuvaError(
            f"{file}: its masks have {first.shape[1]} patches; --grid {grid[0]}x{grid[1]} has "
            f"{grid[0] * grid[1]}"
        )
    used = grid if masked else None
    rows = dataset.rows(["image_id", "split"]).to_pylist()
    named = by_base_name([row["image_id"] for row in rows], dataset=dataset.name, wanted=content)
    absent = [name for name in named if name not in content]
    # Only labels of training images are read: a file with only those is complete.
    learned_from = [base_name(row["image_id"]) for row in rows if row["split"] == "train"]
    unknown = [name for name in learned_from or named if name not in content]
    if unknown and not missing:
        raise MuvaError(
            f"{file}: has no entry for {len(unknown)} of {len(learned_from or named)} training "
            f"images of {dataset.name}, for example {unknown[0]}. Does it belong to another data "
            "set? --missing not-found accepts it"
        )
    settings = {
        "imported": hashlib.sha256(file.read_bytes()).hexdigest()[:16],
        "grid": used,
        "parts": list(parts),
        "missing": len(absent),
    }
    step = Step(
        title=f"import masks of {dataset.name}",
        store=session.store,
        kind="labels",
        name=dataset.name,
        format_version=formats.LABELS,
        settings=settings,
        inputs={Role.DATASET: [source]},
    )
    artifact = step.artifact

    def work(_: object) -> dict[str, Any]:
        for index in range(len(dataset.shards)):
            ids = dataset.read_shard(index, ["image_id"])["image_id"].to_pylist()
            rows = [
                _imported_row(image_id, part, content.get(base_name(image_id)), column, file.name)
                for image_id in ids
                for column, part in enumerate(parts)
            ]
            write_shard_labels(artifact, index, label_table(rows))
        summary = summarise_labels(artifact, dataset, parts=parts, grid=used)
        return summary | {"missing": len(absent), "extra": len(content.keys() - named.keys())}

    return run_step(step, session=session, work=work)


def _imported_row(
    image_id: str, part: str, entry: np.ndarray | None, column: int, file: str
) -> dict[str, Any]:
    values = None if entry is None else entry[column]
    masked = values is not None and values.dtype == bool
    there = values is not None and bool(values.any() if masked else not np.isnan(values).any())
    return {
        "image_id": image_id,
        "part": part,
        "found": there,
        "box": values.tolist() if there and not masked and values is not None else None,
        "mask": packed_mask(values) if there and masked and values is not None else None,
        "score": None,
        "answer": "" if entry is None else file,
        "expert": IMPORTED,
        "error": None,
    }
