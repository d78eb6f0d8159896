"""`muva run`: a recipe from images to numbers per domain, one parent run with a child per step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from muva.config import (
    ExperimentConfig,
    to_yaml,
    with_settings,
)
from muva.data.artifacts import Artifact, fingerprint
from muva.errors import SettingsError
from tracking.descriptions import pipeline_description
from tracking.names import pipeline_name, retrieval_metrics
from tracking.pictures import cmc_plot
from tracking.source import command
from workflows.runtime.workers import Workers
from workflows.session import Session
from workflows.steps.domain_map import domain_map_step
from workflows.steps.embed import UNTOUCHED
from workflows.steps.encoder import CHOSEN
from workflows.steps.evaluate import TargetReport, evaluate_on
from workflows.steps.ground import ground
from workflows.steps.import_data import datasets_of
from workflows.steps.run_lineage import told_settings, used_dataset, used_model
from workflows.steps.train import check_training, train

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

VARIANTS = {"clip": "CLIP as it is", "global_only": "global-only", "muva": "MUVA"}
"""What is compared, in the words of the table."""
_CHOSEN = f", {CHOSEN}"


@dataclass(kw_only=True)
class PipelineReport:
    """What a pipeline found, and what it took."""

    targets: dict[str, dict[str, TargetReport]] = field(default_factory=dict)
    """Target -> variant -> its retrieval results. Of a variant whose epochs were judged on held-out
    sources there are two: after the last epoch (`muva`), and the epoch chosen (`muva, chosen`)."""
    models: dict[str, str] = field(default_factory=dict)
    """Variant likewise -> URI of its bundle, or `clip:NAME`."""
    datasets: dict[str, Artifact] = field(default_factory=dict)
    labels: dict[str, Artifact] = field(default_factory=dict)
    """Source -> its pseudo-labels."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Step -> what it took just now; a step that was there already takes next to nothing."""

    def note(self, step: str, seconds: float) -> None:
        """Adds a step's time."""
        self.seconds[step] = round(seconds, 2)


def run_pipeline(session: Session, config: ExperimentConfig, *, workers: Workers) -> PipelineReport:
    """Everything that a recipe names: data, masks, a training per variant, every target.

    The runs are children of the session's parent; `pipeline_run` opens one.
    """
    report = PipelineReport()
    imports = datasets_of(session, [*config.sources, *config.targets], config.synthetic)
    for name, done in imports.items():
        report.note(f"import {name}", done.seconds)
        report.datasets[name] = done.artifact
    sources = [report.datasets[name] for name in config.sources]
    if set(config.variants) != {"clip"}:
        check_training(config, sources, workers)
    if config.grounding is not None and "muva" in config.variants:
        for source in sources:
            done = ground(session, source, config.grounding)
            report.note(f"ground {source.name}", done.seconds)
            report.labels[source.name] = done.artifact
    for variant in config.variants:
        models = _models_of(session, config, variant, report, workers)
        report.models |= models
        settings = variant_of(config, variant)
        for target in config.targets:
            for which, model in models.items():
                found = evaluate_on(
                    session, model, report.datasets[target], settings, name=_name_of(which)
                )
                report.note(f"evaluate {which} on {target}", found.seconds)
                report.targets.setdefault(target, {})[which] = found
    return report


@contextmanager
def pipeline_run(session: Session, config: ExperimentConfig) -> Iterator[Run | None]:
    """The parent run of a recipe's pipeline. Raises SettingsError for a recipe without domains."""
    if not config.sources or not config.targets:
        raise SettingsError(
            f"Recipe {config.name}: expected sources to learn from and targets to be judged on, "
            f"found sources={list(config.sources)} targets={list(config.targets)}: name them with "
            "--set sources=[A,B] --set targets=[C]"
        )
    name = pipeline_name(config.name, sources=config.sources, targets=config.targets)
    with session.run(
        f"{name} · seed {config.seed}",
        key=f"pipeline-{fingerprint(config)}",
        params=told_settings(config),
        tags={
            "recipe": config.name,
            "source": " + ".join(config.sources),
            "target": " + ".join(config.targets),
            "seed": str(config.seed),
        },
    ) as run:
        if run is not None:
            run.log_text("config.yaml", to_yaml(config))
        yield run


def tell_run(run: Run, config: ExperimentConfig, report: PipelineReport) -> None:
    """Writes a pipeline's numbers, curves, origins and description into its run."""
    last = list(report.models)[-1]
    used = {name: used_dataset(artifact) for name, artifact in report.datasets.items()}
    run.log_datasets(*map(used.__getitem__, config.sources), context="training")
    run.log_datasets(*map(used.__getitem__, config.targets), context="evaluation")
    for model in report.models.values():
        run.log_model(used_model(model), made=not model.startswith(UNTOUCHED))
    for target, results in report.targets.items():
        found = results[last]
        run.log_metrics(
            retrieval_metrics(target, mean_ap=found.mean_ap, cmc=found.cmc, mean_inp=found.mean_inp)
        )
        curves = {told_variant(which): result.curve for which, result in results.items()}
        means = {told_variant(which): result.mean_ap for which, result in results.items()}
        run.log_figure(
            f"cmc/{target}.png", cmc_plot(curves, title=f"CMC on {target}", mean_ap=means)
        )
    run.set_description(
        pipeline_description(
            {
                target: {
                    told_variant(which): (found.mean_ap, found.rank1)
                    for which, found in results.items()
                }
                for target, results in report.targets.items()
            },
            command=command(),
        )
    )


def map_domains(session: Session, config: ExperimentConfig, report: PipelineReport) -> None:
    """Where images of all domains lie, before training and by the last model."""
    last = list(report.models)[-1]
    models = {"clip": UNTOUCHED + config.model.clip, _name_of(last): report.models[last]}
    datasets = list(report.datasets.values())
    done = domain_map_step(session, models, datasets, config.model, name=_name_of(last))
    report.note("map of domains", done.seconds)


def variant_of(config: ExperimentConfig, variant: str) -> ExperimentConfig:
    """The recipe's settings for one of the compared variants; all else stays equal."""
    if variant == "muva":
        return config
    return with_settings(config, {"model.parts": [], "grounding": None}, where=config.name)


def told_variant(which: str) -> str:
    """A variant of a report in the words of tables and pictures."""
    if which.endswith(_CHOSEN):
        return f"{VARIANTS[which.removesuffix(_CHOSEN)]}, chosen on held-out sources"
    return VARIANTS[which]


def as_data(report: PipelineReport) -> dict[str, Any]:
    """The report as plain data: fractions, seconds, addresses."""
    return {
        "targets": {
            target: {
                variant: {"mean_ap": found.mean_ap, "rank1": found.rank1}
                for variant, found in results.items()
            }
            for target, results in report.targets.items()
        },
        "models": report.models,
        "seconds": report.seconds,
    }


def _models_of(
    session: Session,
    config: ExperimentConfig,
    variant: str,
    report: PipelineReport,
    workers: Workers,
) -> dict[str, str]:
    """The variant's model, trained where it is not there, and the chosen one where one is."""
    if variant == "clip":
        return {variant: UNTOUCHED + config.model.clip}
    settings = variant_of(config, variant)
    trained = train(
        session,
        settings,
        sources=[report.datasets[name] for name in config.sources],
        labels=[report.labels[name] for name in config.sources] if settings.model.parts else None,
        workers=workers,
        name=_name_of(variant),
    )
    report.note(f"stage 1 {variant}", trained.prompts.seconds)
    report.note(f"stage 2 {variant}", trained.encoder.seconds)
    models = {variant: trained.encoder.artifact.uri}
    if trained.chosen is not None:
        models[variant + _CHOSEN] = trained.chosen.artifact.uri
    return models


def _name_of(variant: str) -> str:
    return variant.replace("_", "-").replace(", ", "-")
