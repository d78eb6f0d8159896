"""A search over the settings of a recipe, evaluated on source domains that are held out in turn.

Ray Tune runs the trials (`workflows.tuning.driver`); what they found is in the store
(`workflows.tuning.study`). A search whose trials are all finished starts nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from muva.config import ExperimentConfig, TuneConfig, with_settings
from muva.config.search_space import Space, conflict, space_for
from muva.data.artifacts import Artifact
from muva.data.lineage import Role
from muva.data.sources import SourcesOnlyStore
from muva.errors import SettingsError
from tracking.names import ARTIFACT_TAG
from workflows.progress import say
from workflows.session import Session
from workflows.steps.ground import ground
from workflows.steps.mlflow_records import run_params, used_dataset
from workflows.steps.step import StepResult
from workflows.tuning.study import Record, Study, ranked, reuse, study_of
from workflows.tuning.trial import TrialInputs, folds_of, grounding_key, objectives_of

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run
    from workflows.runtime.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search that has been checked: its space, and that trials report its objectives."""

    space: Space
    settings: TuneConfig
    objectives: tuple[str, ...]
    config: ExperimentConfig

    def possible(self, point: Mapping[str, Any]) -> bool:
        """Whether the settings of a point are consistent."""
        return not conflict(point, self.config)


def check_search(config: ExperimentConfig) -> Search:
    """The search of a recipe's section `tune`; SettingsError if it is impossible."""
    settings = config.tune
    if settings is None:
        raise SettingsError(f"Recipe {config.name}: expected a section tune, found none")
    space = space_for(settings.space, config)
    if space.finite or settings.search == "grid":
        reasons = (conflict(point, config) for point in space.points())
        first = next(reasons)
        if first and all(reasons):
            raise SettingsError(f"Recipe {config.name}: no point of the space is possible: {first}")
    if len(config.sources) < 2:
        raise SettingsError(
            f"Recipe {config.name}: a search trains on all sources but one and is evaluated on "
            f"that one; expected two sources or more, found {len(config.sources)}"
        )
    if settings.scheduler != "none" and any(s.name == "stage2.epochs" for s in space.settings):
        raise SettingsError(
            f"Recipe {config.name}: stage2.epochs is searched, and {settings.scheduler} compares "
            "trials at equal epochs: take it out of the space, or search without a scheduler"
        )
    held_out = config.sources[: folds_of(settings, len(config.sources))]
    if settings.folds is not None and settings.folds > len(config.sources):
        raise SettingsError(
            f"Recipe {config.name}: {settings.folds} folds, but only {len(config.sources)} "
            "sources to hold out"
        )
    objectives = objectives_of(settings, held_out)
    return Search(space=space, settings=settings, objectives=objectives, config=config)


def search(
    session: Session,
    config: ExperimentConfig,
    *,
    sources: Sequence[Artifact],
    labels: Sequence[Artifact],
    workers: Workers,
) -> StepResult:
    """Search `config.tune.space`; the summary has the trials, best first, and what was reused.

    `labels` are the pseudo-labels of the sources by the recipe's own expert. Those by the other
    experts in the space are made before the first trial.
    """
    chosen = check_search(config)
    began_at = time.monotonic()
    inputs = {Role.SOURCE: list(sources), Role.LABELS: list(labels)}
    study = study_of(
        session.store,
        config,
        chosen.settings,
        chosen.space,
        objectives=chosen.objectives,
        inputs=inputs,
    )
    study.commit()
    for left_out in chosen.space.left_out:
        say(f"Not searched: {left_out}")
    with session.run(
        f"tune {study.artifact.name}",
        key=study.artifact.address,
        params={"tune": chosen.settings.model_dump(mode="json"), **run_params(config)},
    ) as run:
        if run is not None:
            run.set_tags({ARTIFACT_TAG: study.artifact.address})
            run.log_datasets(*map(used_dataset, sources), context="training")
        children = session.within(run)
        finished = study.finished()
        for record in finished:
            log_trial(children, study, record)
        computed = len(finished) < wanted_trials(chosen)
        if computed:
            from workflows.tuning.driver import run_trials

            every = _labels(session, config, chosen.space, sources, labels)
            store = SourcesOnlyStore(session.store, sources)
            trial_inputs = TrialInputs(
                session=dataclasses.replace(session, store=store, tracking_uri=None, parent=None),
                config=config.model_copy(update={"targets": (), "tune": None, "validation": None}),
                sources=tuple(dataclasses.replace(source, store=store) for source in sources),
                labels=every,
                workers=workers,
            )
            run_trials(children, study, chosen, trial_inputs, finished)
        summary = summary_of(study)
        if run is not None and (computed or not run.is_logged):
            from workflows.tuning.report import log_study

            log_study(run, study, summary)
            run.mark_logged()
    seconds = time.monotonic() - began_at
    return StepResult(artifact=study.artifact, summary=summary, seconds=seconds, computed=computed)


def summary_of(study: Study) -> dict[str, Any]:
    """The trials that have ended, best first, and the steps that they shared."""
    records = study.finished()
    return {
        "study": study.artifact.address,
        "objectives": list(study.objectives),
        "trials": [
            {key: value for key, value in record.items() if key not in ("steps", "notes")}
            for record in ranked(records, study.objectives)
        ],
        "reuse": reuse(records),
    }


def wanted_trials(chosen: Search) -> int:
    """The number of trials: what the settings say, or the size of the space if that is less."""
    trials = chosen.settings.trials
    if not chosen.space.finite:
        return trials
    return sum(1 for _ in islice(filter(chosen.possible, chosen.space.points()), trials))


def _labels(
    session: Session,
    config: ExperimentConfig,
    space: Space,
    sources: Sequence[Artifact],
    labels: Sequence[Artifact],
) -> dict[str, tuple[Artifact, ...]]:
    """The pseudo-labels of the sources for each of the grounding settings in the space."""
    made = {grounding_key(config.grounding): tuple(labels)}
    searched = [one for one in space.settings if one.name.startswith("grounding.")]
    points = dataclasses.replace(space, settings=tuple(searched)).points() if searched else []
    for point in points:
        grounding = with_settings(config, point, where=config.name).grounding
        if grounding is not None and grounding_key(grounding) not in made:
            results = ground(session, sources, grounding)
            made[grounding_key(grounding)] = tuple(result.artifact for result in results)
    return made


def log_trial(session: Session, study: Study, record: Record) -> None:
    """Log a finished trial to a child run, once."""
    artifact, params = study.trial(record["params"]), record["params"]
    if session.has_logged(artifact.address):
        return
    with session.run(f"trial {record['number']}", key=artifact.address, params=params) as run:
        if run is not None:
            _write_trial(run, record, artifact)
            run.mark_logged()


def _write_trial(run: Run, record: Record, artifact: Artifact) -> None:
    run.log_metrics({**record["metrics"], "seconds": record["seconds"]})
    for rung, value in record["rungs"].items():
        run.log_metrics({"held-out/by-rung": value}, int(rung))
    run.set_tags({ARTIFACT_TAG: artifact.address, "state": record["state"]})
    if record["state"] == "failed":
        run.set_description(record["failed"])
