"""A study in the store: the space and how it is searched, and a record of each trial that ended.

The study is an artifact of its own, and so is each trial. A trial records its settings when it
starts, so that a study that was killed resumes with the trials that were running.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from muva.config import ExperimentConfig, TuneConfig, clip_editions, with_settings
from muva.config.search_space import Choice, Space
from muva.data import formats
from muva.data.artifacts import Artifact, artifact_at, find_artifact, list_artifacts
from muva.data.lineage import Inputs, Role, inputs_in, inputs_on_disk
from muva.data.store import Store
from muva.errors import MuvaError
from workflows.steps.step import Step
from workflows.tuning.trial import State, TrialProgress

if TYPE_CHECKING:
    from workflows.runtime.claims import UsedStep

_STARTED = "begun.json"

NOT_OF_THE_STUDY = ("trials", "budget_hours", "concurrent_trials", "space")
"""Settings of a search that may change when it is resumed."""

Record = dict[str, Any]
"""A trial: number, params, state, failed, metrics, by_seed, rungs, seconds, steps, notes."""
_ORDER: tuple[State, ...] = ("complete", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Study:
    """The artifact of a study, and what identifies it."""

    artifact: Artifact
    config: Mapping[str, Any]
    """Space, search and experiment, which are hashed into its address."""
    inputs: Inputs
    recipe: Mapping[str, Any]
    """The recipe that it was started with, including its targets, which no trial gets."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics that it maximises, the most important one first."""
        return tuple(self.config["objectives"])

    @property
    def base(self) -> ExperimentConfig:
        """The recipe that it was started with."""
        return ExperimentConfig.model_validate(self.recipe)

    def commit(self) -> None:
        """Record the study in the store."""
        self.artifact.commit(
            format_version=formats.STUDY,
            config=dict(self.config),
            inputs=inputs_on_disk(self.inputs),
            summary={"recipe": dict(self.recipe)},
            facts={"datasets": [source.name for source in self.inputs[Role.SOURCE]]},
        )
        self.artifact.set_latest()

    def trial(self, params: Mapping[str, Any]) -> Artifact:
        """The artifact of the trial with these settings."""
        return self._trial(params).artifact

    def _trial(self, params: Mapping[str, Any]) -> Step:
        return Step(
            title="trial",
            store=self.artifact.store,
            kind="trials",
            name=f"{self.artifact.name}-{self.artifact.fingerprint}",
            format_version=formats.TRIAL,
            settings={"params": dict(params)},
            inputs={Role.STUDY: [self.artifact]},
        )

    def begin(self, number: int, params: Mapping[str, Any]) -> None:
        """Record that a trial has started."""
        trial = self.trial(params)
        note = json.dumps({"number": number, "params": dict(params)})
        trial.store.write(trial.key(_STARTED), note.encode())

    def finish(self, record: Record) -> Artifact:
        """Save the record of a trial."""
        step = self._trial(record["params"])
        step.commit(summary=record, seconds=record["seconds"])
        return step.artifact

    def finished(self) -> list[Record]:
        """The records of all trials that have ended, by number."""
        manifests = (trial.manifest(format_version=formats.TRIAL) for trial in self._trials())
        records = [manifest["summary"] for manifest in manifests if manifest is not None]
        return sorted(records, key=lambda record: record["number"])

    def begun(self) -> list[dict[str, Any]]:
        """Number and params of the trials that have started and not ended."""
        notes = [
            json.loads(trial.store.read(trial.key(_STARTED)))
            for trial in self._trials()
            if trial.manifest() is None
        ]
        return sorted(notes, key=lambda note: note["number"])

    def _trials(self) -> Iterator[Artifact]:
        """The trials of this study: all artifacts with the name of its trials."""
        name = self._trial({}).name
        for artifact in list_artifacts(self.artifact.store, "trials", unfinished=True):
            if artifact.name == name and artifact.store.exists(artifact.key(_STARTED)):
                yield artifact


def study_of(
    store: Store,
    recipe: ExperimentConfig,
    settings: TuneConfig,
    space: Space,
    *,
    objectives: Sequence[str],
    inputs: Inputs,
) -> Study:
    """The study of this space, search, experiment and sources."""
    search = settings.model_dump(mode="json", exclude=set(NOT_OF_THE_STUDY))
    experiment = recipe.model_copy(update={"targets": (), "tune": None, "validation": None})
    config = {
        "space": space.as_data(),
        "search": search,
        "objectives": list(objectives),
        "experiment": experiment.result_settings(),
        **clip_editions(recipe.model.clip, *_searched_clips(space)),
    }
    # Through JSON, so that a study that is read from the store is equal.
    config = json.loads(json.dumps(config))
    step = Step(
        title="study",
        store=store,
        kind="studies",
        name=recipe.name if space.name == recipe.name else f"{recipe.name}-{space.name}",
        format_version=formats.STUDY,
        settings=config,
        inputs=inputs,
    )
    return Study(
        artifact=step.artifact,
        config=config,
        inputs=inputs,
        recipe=recipe.model_copy(update={"tune": None}).model_dump(mode="json"),
    )


def _searched_clips(space: Space) -> list[str]:
    choices = [one.values for one in space.settings if one.name == "model.clip"]
    return [clip for choice in choices if isinstance(choice, Choice) for clip in choice.values]


def find_study(store: Store, reference: str | None) -> Study:
    """The study with a name or an address; by default the latest. MuvaError if there is none."""
    known = list_artifacts(store, "studies")
    if not known:
        raise MuvaError(
            f"{store.uri}: holds no search yet. `muva tune SPACE --recipe RECIPE` starts one"
        )
    if reference is None:
        artifact = max(known, key=Artifact.latest_since)
    else:
        try:
            artifact = find_artifact(store, "studies", reference)
        except MuvaError as error:
            names = sorted({one.name for one in known})
            raise MuvaError(
                f"no search {reference!r} in the store {store.uri}; there are {', '.join(names)}"
            ) from error
    manifest = artifact.manifest(format_version=formats.STUDY)
    assert manifest is not None
    inputs = {
        role: [artifact_at(store, address) for address in addresses]
        for role, addresses in inputs_in(manifest).items()
    }
    return Study(
        artifact=artifact,
        config=manifest["config"],
        inputs=inputs,
        recipe=manifest["summary"]["recipe"],
    )


def record_of(
    number: int,
    params: Mapping[str, Any],
    progress: TrialProgress,
    *,
    steps: Sequence[UsedStep],
    rungs: Mapping[int, float],
    notes: Mapping[str, Any],
) -> Record:
    """The record of a trial that ended with this last report."""
    return {
        "number": number,
        "params": dict(params),
        "state": progress.state,
        "failed": progress.failed,
        "metrics": progress.metrics,
        "by_seed": progress.by_seed,
        "rungs": {str(rung): value for rung, value in rungs.items()},
        "seconds": progress.seconds,
        "steps": [asdict(step) for step in steps],
        "notes": dict(notes),
    }


def ranked(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The complete trials, best first, then the stopped and the failed ones.

    Sorted by the first objective; with two, the Pareto-optimal trials come before the others.
    """

    def place(record: Record) -> tuple[Any, ...]:
        complete = record["state"] == "complete"
        beaten = complete and len(objectives) > 1 and not _unbeaten(record, records, objectives)
        value = record["metrics"].get(objectives[0], 0.0)
        return _ORDER.index(record["state"]), beaten, -value, record["number"]

    return sorted(records, key=place)


def pareto(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The Pareto-optimal ones among the complete trials."""
    return [
        record
        for record in ranked(records, objectives)
        if record["state"] == "complete" and _unbeaten(record, records, objectives)
    ]


def _unbeaten(record: Record, records: Sequence[Record], objectives: Sequence[str]) -> bool:
    mine = [record["metrics"][objective] for objective in objectives]
    for other in records:
        if other["state"] != "complete":
            continue
        theirs = [other["metrics"][objective] for objective in objectives]
        if theirs != mine and all(t >= m for t, m in zip(theirs, mine, strict=True)):
            return False
    return True


def best_of(study: Study, records: Sequence[Record]) -> Record:
    """The best complete trial; MuvaError if no trial is complete."""
    best = next(iter(ranked(records, study.objectives)), None)
    if best is None or best["state"] != "complete":
        raise MuvaError(
            f"{study.artifact.address}: no trial is complete yet. The command that started the "
            "search resumes it"
        )
    return best


def best_recipe(study: Study, record: Record) -> ExperimentConfig:
    """The study's recipe with a trial's settings; its epochs are the recipe's own."""
    base = study.base
    changes = {**record["params"], "name": f"{base.name}-tuned"}
    return with_settings(base, changes, where=f"{base.name} with trial {record['number']}")


def reuse(records: Sequence[Record]) -> dict[str, Any]:
    """What trials reused of each other, in seconds from the manifests of the steps.

    `spent_s` counts each step once; `alone_s` counts it for every trial that used it, as a search
    without artifacts would have to.
    """
    uses = [step for record in records for step in record["steps"]]
    once = {step["address"]: step for step in uses}
    kinds: dict[str, dict[str, float]] = {}
    for step in uses:
        kind = step["address"].split("/")[0]
        kinds.setdefault(kind, {"used": 0, "computed": 0, "alone_s": 0.0, "spent_s": 0.0})
        kinds[kind]["used"] += 1
        kinds[kind]["alone_s"] += step["seconds"]
    for address, step in once.items():
        kind = address.split("/")[0]
        kinds[kind]["computed"] += 1
        kinds[kind]["spent_s"] += step["seconds"]
    alone_s = sum(one["alone_s"] for one in kinds.values())
    spent_s = sum(one["spent_s"] for one in kinds.values())
    return {
        "used": len(uses),
        "computed": len(once),
        "alone_s": round(alone_s, 1),
        "spent_s": round(spent_s, 1),
        "saved_s": round(alone_s - spent_s, 1),
        "saved": round(1 - spent_s / alone_s, 4) if alone_s else 0.0,
        "kinds": {
            kind: {name: round(value, 1) for name, value in figures.items()}
            for kind, figures in kinds.items()
        },
    }
