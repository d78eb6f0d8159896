"""Refining pseudo-labels by rules, as a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.lineage import Role
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from muva.grounding.labels import (
    open_labels,
    read_shard_labels,
    summarise_labels,
    write_shard_labels,
)
from muva.grounding.rules import RULES_VERSION, apply_rules, check_rules
from workflows.progress import track
from workflows.session import Session
from workflows.steps.step import Step, StepResult, run_step


def refine_step(session: Session, source: Artifact, raw: Artifact, rules: Sequence[str]) -> Step:
    """Declare the pseudo-labels that these rules make from `raw` ones."""
    name = open_dataset(source).name
    return Step(
        title=f"refine {name}",
        store=session.store,
        kind="labels",
        name=name,
        format_version=formats.LABELS,
        settings={"refined": True, "rules": list(rules), "version": RULES_VERSION},
        inputs={Role.DATASET: [source], Role.LABELS: [raw]},
    )


def refine(session: Session, source: Artifact, raw: Artifact, rules: Sequence[str]) -> StepResult:
    """Make pseudo-labels from `raw` ones by these rules; the raw ones are not changed."""
    check_rules(rules)
    dataset = open_dataset(source)
    step = refine_step(session, source, raw, rules)
    artifact = step.artifact

    def work(_: object) -> dict[str, Any]:
        labels = open_labels(raw, dataset=dataset)
        if labels.grid:
            raise MuvaError(
                f"{raw.uri}: contains masks; expected boxes, which the rules refine. Choose labels "
                "with boxes with --expert"
            )
        boxes, found = (values.numpy() for values in labels.boxes(labels.image_ids))
        boxes, found, counts = apply_rules(boxes, found, labels.parts, rules)
        with track(f"refine {dataset.name}") as progress:
            for index in labels.shards:
                table = read_shard_labels(raw, index)
                at = (
                    labels.row_indices(table["image_id"].to_pylist()),
                    [labels.parts.index(part) for part in table["part"].to_pylist()],
                )
                write_shard_labels(artifact, index, _with_boxes(table, boxes[at], found[at]))
                progress.update(index + 1, len(labels.shards))
        summary = summarise_labels(artifact, dataset, parts=labels.parts, quarantine_limit=1.0)
        return summary | {"rules": counts}

    return run_step(step, session=session, work=work)


def _with_boxes(table: pa.Table, boxes: np.ndarray, found: np.ndarray) -> pa.Table:
    """The rows with the refined boxes; a dropped box has no score."""
    lists = [box.tolist() if there else None for box, there in zip(boxes, found, strict=True)]
    scores = [
        score if there else None
        for score, there in zip(table["score"].to_pylist(), found, strict=True)
    ]
    for name, values in (("found", found.tolist()), ("box", lists), ("score", scores)):
        column = table.column_names.index(name)
        field = table.schema.field(name)
        table = table.set_column(column, field, pa.array(values, field.type))
    return table
