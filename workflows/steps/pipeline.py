"""The pipeline of a recipe, from images to metrics per domain: one run, with a child per step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from muva.config import (
    ExperimentConfig,
    to_yaml,
    with_settings,
)
from muva.data.artifacts import Artifact, fingerprint
from muva.errors import SettingsError
from muva.retrieval.results import Scores
from tracking.curves import cmc_plot
from tracking.descriptions import pipeline_description
from tracking.names import pipeline_name, score_metrics
from tracking.source import command
from workflows.runtime.on_demand import cluster_on_demand
from workflows.runtime.workers import Workers
from workflows.session import Session
from workflows.steps.domain_map import map_of_domains
from workflows.steps.embed import UNTRAINED
from workflows.steps.encoder import CHOSEN
from workflows.steps.evaluate import Evaluation, evaluate_on
from workflows.steps.ground import ground, labels_of
from workflows.steps.import_data import datasets_of
from workflows.steps.mlflow_records import run_params, used_dataset, used_model
from workflows.steps.step import StepResult
from workflows.steps.train import Training, check_training, declare_training, train

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

VARIANTS = {"clip": "CLIP (zero-shot)", "global_only": "global-only", "muva": "MUVA"}
"""The variants that are compared, and their titles in tables."""
_CHOSEN = f", {CHOSEN}"


@dataclass(kw_only=True)
class PipelineReport:
    """The results of a pipeline, and how long its steps took."""

    targets: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """Target -> variant -> scores. A variant whose epochs were validated on held-out sources has
    two entries: the last epoch (`muva`), and the chosen epoch (`muva, chosen`)."""
    models: dict[str, str] = field(default_factory=dict)
    """Variant, as above -> the URI of its bundle, or `clip:NAME`."""
    datasets: dict[str, Artifact] = field(default_factory=dict)
    labels: dict[str, Artifact] = field(default_factory=dict)
    """Source -> its pseudo-labels."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Step -> how long it took this time; next to nothing if it was skipped."""

    computed: bool = False
    """Whether any step was computed this time, rather than skipped."""

    def note(self, step: str, result: StepResult | Evaluation) -> None:
        """Add a step's time."""
        self.seconds[step] = round(result.seconds, 2)
        self.computed |= result.computed


def run_recipe(session: Session, config: ExperimentConfig) -> PipelineReport:
    """Run a whole recipe in an MLflow run with a child for each step."""
    with recipe_run(session, config) as (_, _, report):
        return report


@contextmanager
def recipe_run(
    session: Session, config: ExperimentConfig
) -> Iterator[tuple[Run | None, Session, PipelineReport]]:
    """Run a whole recipe; its MLflow run, a session for further steps within it, and the report.

    The results are logged when the context ends, with what its steps noted in the report.
    """
    with pipeline_run(session, config) as (run, children):
        report = run_pipeline(children, config)
        map_domains(children, config, report)
        yield run, children, report
        if run is not None and (report.computed or not run.is_logged):
            log_pipeline(run, config, report)


def run_pipeline(session: Session, config: ExperimentConfig) -> PipelineReport:
    """Run a whole recipe: data sets, pseudo-labels, one training per variant, and every target.

    The runs are children of the session's parent; `pipeline_run` opens one.
    """
    report, workers = PipelineReport(), Workers.of(config.execution)
    imports = datasets_of(session, [*config.sources, *config.targets], config.synthetic)
    for name, result in imports.items():
        report.note(f"import {name}", result)
        report.datasets[name] = result.artifact
    sources = [report.datasets[name] for name in config.sources]
    trained = [variant for variant in config.variants if variant != "clip"]
    if not all(_declared(session, config, one, report).is_finished for one in trained):
        check_training(config, sources, workers)
    if config.grounding is not None and "muva" in config.variants:
        for source, result in zip(sources, ground(session, sources, config.grounding), strict=True):
            report.note(f"ground {source.name}", result)
            report.labels[source.name] = result.artifact
    for variant in config.variants:
        models = _models_of(session, config, variant, report, workers)
        report.models |= models
        settings = variant_of(config, variant)
        for target in config.targets:
            for which, model in models.items():
                evaluation = evaluate_on(
                    session,
                    model,
                    report.datasets[target],
                    settings,
                    name=_name_of(config, which),
                    facts=_facts(config, variant),
                )
                report.note(f"evaluate {which} on {target}", evaluation)
                report.targets.setdefault(target, {})[which] = evaluation.scores
    return report


@contextmanager
def pipeline_run(
    session: Session, config: ExperimentConfig
) -> Iterator[tuple[Run | None, Session]]:
    """Open the run of a pipeline; the run, and a session whose runs are its children.

    A cluster is started by the first step that needs one, and its nodes' metrics are recorded.
    Raises SettingsError for a recipe without domains.
    """
    if not config.sources or not config.targets:
        raise SettingsError(
            f"Recipe {config.name}: expected sources to train on and targets to evaluate on, found "
            f"sources={list(config.sources)} targets={list(config.targets)}. Name them with "
            "--set sources=[A,B] --set targets=[C]"
        )
    name = pipeline_name(config.name, sources=config.sources, targets=config.targets)
    with session.run(
        f"{name} · seed {config.seed}",
        key=f"pipeline-{fingerprint(config)}",
        params=run_params(config),
        tags={
            "recipe": config.name,
            "source": " + ".join(config.sources),
            "target": " + ".join(config.targets),
            "seed": str(config.seed),
        },
    ) as run:
        if run is not None and not run.is_logged:
            run.log_text("config.yaml", to_yaml(config))

        def record_nodes() -> AbstractContextManager[None]:
            from workflows.runtime.node_metrics import node_metrics_recorded

            return node_metrics_recorded(run)

        with cluster_on_demand(beside=record_nodes):
            yield run, session.within(run)


def log_pipeline(run: Run, config: ExperimentConfig, report: PipelineReport) -> None:
    """Log the scores, curves, inputs and description of a pipeline to its run."""
    from workflows.steps.pictures import roc_of

    last = list(report.models)[-1]
    used = {name: used_dataset(artifact) for name, artifact in report.datasets.items()}
    run.log_datasets(*map(used.__getitem__, config.sources), context="training")
    run.log_datasets(*map(used.__getitem__, config.targets), context="evaluation")
    for model in report.models.values():
        run.log_model(used_model(model), made=not model.startswith(UNTRAINED))
    for target, results in report.targets.items():
        run.log_metrics(score_metrics(target, results[last]))
        curves = {variant_title(which): scores.curve for which, scores in results.items()}
        means = {variant_title(which): scores.mean_ap for which, scores in results.items()}
        run.log_figure(
            f"cmc/{target}.png", cmc_plot(curves, title=f"CMC on {target}", mean_ap=means)
        )
        verified = {
            variant_title(which): scores.verification
            for which, scores in results.items()
            if scores.verification is not None
        }
        if verified:
            run.log_figure(f"roc/{target}.png", roc_of(verified, target=target))
    run.set_description(
        pipeline_description(
            {
                target: {
                    variant_title(which): (scores.mean_ap, scores.rank1)
                    for which, scores in results.items()
                }
                for target, results in report.targets.items()
            },
            valid_queries={
                target: results[last].valid_of_all for target, results in report.targets.items()
            },
            command=command(),
        )
    )
    run.mark_logged()


def map_domains(session: Session, config: ExperimentConfig, report: PipelineReport) -> None:
    """Map the images of all domains, before training and by the last model."""
    last = list(report.models)[-1]
    name = _name_of(config, last)
    models = {"clip": UNTRAINED + config.model.clip, name: report.models[last]}
    datasets = list(report.datasets.values())
    result = map_of_domains(session, models, datasets, config.model, name=name)
    report.note("map of domains", result)


def variant_of(config: ExperimentConfig, variant: str) -> ExperimentConfig:
    """The recipe's settings for one of the variants; all other settings are the same."""
    if variant == "muva":
        return config
    return with_settings(config, {"model.parts": [], "grounding": None}, where=config.name)


def variant_title(which: str) -> str:
    """The title of a variant in tables and pictures."""
    if which.endswith(_CHOSEN):
        return f"{VARIANTS[which.removesuffix(_CHOSEN)]}, chosen on held-out sources"
    return VARIANTS[which]


def as_data(report: PipelineReport) -> dict[str, Any]:
    """The report as JSON-compatible data: fractions, seconds, addresses."""
    return {
        "targets": {
            target: {
                variant: {
                    "mean_ap": scores.mean_ap,
                    "rank1": scores.rank1,
                    "queries": scores.queries,
                    "valid_queries": scores.valid_queries,
                }
                for variant, scores in results.items()
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
    """The model of a variant, trained if missing; and the chosen one if an epoch is chosen."""
    if variant == "clip":
        return {variant: UNTRAINED + config.model.clip}
    trained = train(session, _declared(session, config, variant, report), workers)
    report.note(f"stage 1 {variant}", trained.prompts)
    report.note(f"stage 2 {variant}", trained.encoder)
    models = {variant: trained.encoder.artifact.uri}
    if trained.chosen is not None:
        models[variant + _CHOSEN] = trained.chosen.artifact.uri
    return models


def _declared(
    session: Session, config: ExperimentConfig, variant: str, report: PipelineReport
) -> Training:
    """Declare the training of a variant, and pseudo-labels that have not been made yet."""
    settings = variant_of(config, variant)
    sources = [report.datasets[name] for name in config.sources]
    labels = None
    if settings.model.parts and settings.grounding is not None:
        labels = [
            report.labels.get(source.name) or labels_of(session, source, settings.grounding)
            for source in sources
        ]
    return declare_training(
        session,
        settings,
        sources=sources,
        labels=labels,
        name=_name_of(config, variant),
        facts=_facts(config, variant),
    )


def _facts(config: ExperimentConfig, variant: str) -> dict[str, str]:
    return {"recipe": config.name, "variant": variant}


def _name_of(config: ExperimentConfig, variant: str) -> str:
    """The name of a variant's model and results, which differs between recipes."""
    if variant == "clip":
        return variant
    return f"{config.name}-{variant.replace('_', '-').replace(', ', '-')}"
