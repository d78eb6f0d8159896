"""Pseudo-labels as a step: an expert finds the body parts of every image.

The labels of a shard are written as soon as it is done, so that interrupted work resumes with the
missing shards. Drivers that ground the same data set at the same time share its shards: none
computes what another has finished. One pool of actors serves all data sets of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muva.config import GroundingConfig
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.lineage import Role
from muva.data.shards import Dataset, open_dataset
from muva.grounding.experts import ChosenExpert, choose_expert, label_config
from workflows.progress import track
from workflows.session import Session
from workflows.steps.labels import IMPORTED, choose_labels
from workflows.steps.step import MetricLogger, Step, StepResult, found_step, run_step

if TYPE_CHECKING:
    from PIL import Image

    from tracking.runs import Run
    from workflows.runtime.expert_pool import Actors, GroundingProgress

SHOWN_IMAGES = 12
SHOWN_GRID = (16, 8)


def ground(
    session: Session,
    sources: Sequence[Artifact],
    config: GroundingConfig,
    actors: Actors | None = None,
) -> list[StepResult]:
    """The pseudo-labels of data sets, in the same order, by the expert that the settings name.

    The expert `imported` stands for the newest labels that `muva masks import` made.
    """
    if config.rules:
        from muva.grounding.rules import check_rules

        check_rules(config.rules)
    if config.expert == IMPORTED:
        labels = [choose_labels(session, open_dataset(one), expert=IMPORTED) for one in sources]
        results = [found_step(one, format_version=formats.LABELS) for one in labels]
    else:
        results = _grounded(session, sources, config, actors)
    if not config.rules:
        return results
    from workflows.steps.refine import refine

    return [
        refine(session, source, raw.artifact, config.rules)
        for source, raw in zip(sources, results, strict=True)
    ]


def labels_of(session: Session, source: Artifact, config: GroundingConfig) -> Artifact:
    """The artifact of the pseudo-labels that `ground` makes for a data set, finished or not."""
    if config.expert == IMPORTED:
        raw = choose_labels(session, open_dataset(source), expert=IMPORTED)
    else:
        raw = labels_step(session, source, config, choose_expert(config)).artifact
    if not config.rules:
        return raw
    from workflows.steps.refine import refine_step

    return refine_step(session, source, raw, config.rules).artifact


def labels_step(
    session: Session, source: Artifact, config: GroundingConfig, expert: ChosenExpert
) -> Step:
    """Declare the pseudo-labels of a data set by an expert."""
    name = open_dataset(source).name
    return Step(
        title=f"ground {name}",
        store=session.store,
        kind="labels",
        name=name,
        format_version=formats.LABELS,
        settings=label_config(expert, config.phrases),
        inputs={Role.DATASET: [source]},
    )


def _grounded(
    session: Session, sources: Sequence[Artifact], config: GroundingConfig, actors: Actors | None
) -> list[StepResult]:
    expert = choose_expert(config)
    datasets = [open_dataset(source) for source in sources]
    steps = [labels_step(session, source, config, expert) for source in sources]
    progress = _label_missing(steps, datasets, config, expert, actors)
    return [
        _finish(session, step, dataset, config, progress.get(step.artifact.address))
        for step, dataset in zip(steps, datasets, strict=True)
    ]


def _label_missing(
    steps: Sequence[Step],
    datasets: Sequence[Dataset],
    config: GroundingConfig,
    expert: ChosenExpert,
    actors: Actors | None,
) -> Mapping[str, GroundingProgress]:
    """Label all shards that have no labels yet; address -> the progress of its job."""
    missing = [
        (step, dataset)
        for step, dataset in zip(steps, datasets, strict=True)
        if step.manifest() is None
    ]
    if not missing:
        return {}
    from muva.grounding.labels import labelled_shards, max_quarantined
    from workflows.runtime.cluster import ray_cluster
    from workflows.runtime.expert_pool import Actors, GroundingJob, ground_shards

    jobs = []
    for step, dataset in missing:
        step.start()
        jobs.append(
            GroundingJob(
                dataset=dataset,
                labels=step.artifact,
                shards=set(range(len(dataset.shards))) - labelled_shards(step.artifact),
                max_quarantined=max_quarantined(dataset.summary.images, config.quarantine_limit),
            )
        )
    total = sum(dataset.summary.images for _, dataset in missing)
    before = total - sum(job.dataset.shards[shard].rows for job in jobs for shard in job.shards)
    if before == total:
        return {}
    names = ", ".join(dataset.name for _, dataset in missing)
    with ray_cluster(), track(f"ground {names}") as shown:
        shown.update(before, total)
        progress = ground_shards(
            jobs,
            expert,
            config.phrases,
            actors=actors or Actors(),
            on_progress=lambda every: shown.update(
                before + sum(one.done + one.in_flight for one in every),
                total,
                note=_pace(every),
            ),
        )
    addresses = [step.artifact.address for step, _ in missing]
    return dict(zip(addresses, progress, strict=True))


def _finish(
    session: Session,
    step: Step,
    dataset: Dataset,
    config: GroundingConfig,
    progress: GroundingProgress | None,
) -> StepResult:
    """Commit and log the labels of a data set whose shards are all labelled."""

    def work(log_metrics: MetricLogger) -> dict[str, Any]:
        from muva.grounding.labels import summarise_labels

        if progress is not None:
            log_metrics(
                {
                    "grounded/images": progress.images,
                    "grounded/failed": progress.failed,
                    "grounded/images_per_s": progress.images_per_s,
                    "grounded/decode_s": progress.decode_s,
                    "grounded/model_s": progress.model_s,
                },
                None,
            )
        return summarise_labels(
            step.artifact,
            dataset,
            parts=list(config.phrases),
            quarantine_limit=config.quarantine_limit,
        )

    def log(run: Run, summary: dict[str, Any]) -> None:
        run.set_tags({"source": dataset.name, "expert": config.expert})
        found = {f"found/{part}": share for part, share in summary["found"].items()}
        run.log_metrics(found | {"images": summary["images"], "failed": summary["failed"]})
        run.log_image("pseudo-labels.png", _sheet(dataset, step.artifact))

    spent_s = progress.elapsed_s if progress is not None else 0.0
    return run_step(step, session=session, work=work, log=log, spent_s=spent_s)


def _pace(progress: Sequence[GroundingProgress]) -> str:
    actors, starting = progress[0].actors, progress[0].starting
    notes = []
    if not (actors or starting):
        notes.append("no actor fits on any node at the moment")
    if starting:
        notes.append(f"{actors} of {actors + starting} actors started")
    elapsed_s = max(one.elapsed_s for one in progress)
    images = sum(one.images + one.in_flight for one in progress)
    if images and elapsed_s:
        notes.append(f"{images / elapsed_s:.0f} images/s")
    if failed := sum(one.failed for one in progress):
        notes.append(f"{failed} quarantined")
    return ", ".join(notes)


def _sheet(dataset: Dataset, labels: Artifact) -> Image.Image:
    """Some images with their part masks."""
    import numpy as np

    from muva.data.images import decode_to_show
    from muva.grounding.labels import open_labels
    from tracking.pictures import part_mask_sheet

    chosen = np.linspace(0, dataset.summary.images - 1, SHOWN_IMAGES).astype(int)
    shard_of, row_of = dataset.locate_rows(chosen)
    shards = np.unique(shard_of).tolist()  # only the few that are shown
    shown: list[dict[str, Any]] = []
    for shard in shards:
        rows = dataset.read_shard(shard, ["image_id", "pid", "image"])
        shown += rows.take(row_of[shard_of == shard]).to_pylist()
    opened = open_labels(labels, dataset=dataset, shards=shards)
    masks = opened.masks_on_grid(SHOWN_GRID, [row["image_id"] for row in shown])
    return part_mask_sheet(
        [decode_to_show(row["image"]) for row in shown],
        {"pseudo-label": masks.numpy()},
        grid=SHOWN_GRID,
        parts=opened.parts,
        title=f"Pseudo-labels of {dataset.name}",
        captions=[f"{row['pid']:04d}" for row in shown],
    )
