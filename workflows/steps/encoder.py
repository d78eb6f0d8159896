"""Stage 2 as a step: a group of workers trains the image encoder and saves checkpoints.

The workers run `workflows.steps.encoder_tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from muva.data import formats
from muva.data.artifacts import Artifact, open_artifact
from muva.data.lineage import Role
from muva.errors import MuvaError
from workflows.progress import track
from workflows.session import Session
from workflows.steps.mlflow_records import used_dataset, used_model
from workflows.steps.step import MetricLogger, Step, StepResult, run_step
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import OnValidated, log_epochs, training_message_handler

if TYPE_CHECKING:
    from tracking.runs import Run
    from workflows.runtime.workers import Workers

SUMMARY = "summary.json"
RAY_NOTES = "ray"
VALIDATION = "verdicts"
"""The folder of validation results within the artifact of a training."""
HELD_OUT = "held-out/mAP"
"""The metric by which an epoch is chosen: the mean over the validation domains."""
CHOSEN = "chosen"
LAST_EPOCH, ON_SOURCES = "last epoch", "chosen on held-out sources"
"""How the epoch of a model was chosen: the last epoch, or the best on held-out sources."""
START_FORMAT = 2
"""The version of what a training takes from the model of `--init`; 2 added the classifier."""

ValidationResult = dict[str, Any]
"""`epoch`, and metrics by name: `held-out/mAP` and those of each domain."""


def encoder_step(
    session: Session,
    inputs: TrainingInputs,
    prompts: Artifact,
    *,
    name: str,
    facts: Mapping[str, Any] | None = None,
) -> Step:
    """Declare the model of these sources and prompts, after its last epoch."""
    config = inputs.config
    settings = {
        "model": config.model.model_dump(mode="json"),
        "stage2": config.stage2.result_settings(),
        "seed": config.seed,
        **config.augmentation.as_section(),
    }
    if inputs.init is not None:
        settings["start"] = START_FORMAT
    made_from = {**inputs.step_inputs(), Role.PROMPTS: [prompts]}
    if config.validation is not None:
        settings["validation"] = config.validation.model_dump(mode="json")
        if inputs.sources.held_out_domain is not None:
            made_from[Role.HELD_OUT] = [open_artifact(inputs.sources.held_out_domain)]
    return Step(
        title=f"stage 2 of {name}",
        store=session.store,
        kind="models",
        name=name,
        format_version=formats.BUNDLE,
        settings=settings,
        inputs=made_from,
        facts={**(facts or {}), "checkpoint": LAST_EPOCH, "seed": config.seed},
    )


def chosen_step(training: Step) -> Step:
    """Declare the model of the epoch that was best on held-out sources."""
    return Step(
        title=f"chosen epoch of {training.name}",
        store=training.store,
        kind="models",
        name=f"{training.name}-{CHOSEN}",
        format_version=formats.BUNDLE,
        settings={"chosen": "on held-out sources"},
        inputs={Role.TRAINING: [training.artifact]},
        facts={**training.facts, "checkpoint": ON_SOURCES},
    )


def best(results: list[ValidationResult]) -> ValidationResult:
    """The result with the highest mean mAP; ties go to the earliest epoch."""
    return max(results, key=lambda result: (result[HELD_OUT], -result["epoch"]))


def train_encoder(
    session: Session,
    step: Step,
    inputs: TrainingInputs,
    prompts: Artifact,
    workers: Workers,
    *,
    on_validated: OnValidated | None = None,
) -> StepResult:
    """The model of a declared step, trained if missing."""
    config, artifact = inputs.config, step.artifact

    def work(log_metrics: MetricLogger) -> dict[str, Any]:
        from workflows.runtime.cluster import ray_cluster
        from workflows.runtime.messages import MessageQueue
        from workflows.runtime.train_group import TrainGroup
        from workflows.steps.checkpoints import delete_checkpoints
        from workflows.steps.encoder_tasks import EncoderTask, kept_for_good, train_in_worker
        from workflows.steps.mask_pictures import draw_masks
        from workflows.steps.validation import epoch_validator

        with ray_cluster(), track(f"{step.title}: image encoder") as progress:
            queue = MessageQueue()
            handle = training_message_handler(
                progress, log_metrics, "stage2", config.stage2.epochs, on_validated
            )

            def on_message(message: tuple[str, Any]) -> None:
                kind, content = message
                if kind == "masks":
                    if log_metrics.run is not None:
                        draw_masks(log_metrics.run, content, config.model.parts)
                elif kind != "placement group":
                    handle(message)
                elif session.shared is not None:  # in a trial, which may be stopped
                    session.shared.watch(content)

            task = EncoderTask(
                inputs=inputs,
                prompts=prompts,
                artifact=artifact,
                chosen=chosen_step(step).artifact,
                threads=workers.threads,
                compute=workers.compute,
                keep_every=workers.keep_every,
                queue=queue,
                draws_masks=log_metrics.run is not None,
            )
            group = TrainGroup(
                workers=workers,
                storage=f"{artifact.uri}/{RAY_NOTES}",
                validate=epoch_validator(inputs, artifact, queue),
            )
            group.run(train_in_worker, {"task": task}, queue=queue, on_message=on_message)
        summary = json.loads(artifact.store.read(artifact.key(SUMMARY)))
        kept = kept_for_good(config.stage2.epochs, workers.keep_every)
        delete_checkpoints(artifact, keep=kept)
        for folder in (VALIDATION, RAY_NOTES):
            artifact.delete_part(folder)
        return summary

    def log(run: Run, summary: dict[str, Any]) -> None:
        log_epochs("stage2")(run, summary)
        run.log_metrics(_cost(summary))
        run.log_datasets(
            *map(used_dataset, map(open_artifact, inputs.sources.domains)), context="training"
        )
        if inputs.sources.held_out_domain is not None:
            held_out = open_artifact(inputs.sources.held_out_domain)
            run.log_datasets(used_dataset(held_out), context="held out")
        run.log_model(used_model(artifact.uri), made=True)

    return run_step(step, session=session, work=work, log=log)


def _cost(summary: Mapping[str, Any]) -> dict[str, float]:
    """Device hours of the training; empty for models made before these were recorded."""
    if "device" not in summary:
        return {}
    spent_s = sum(epoch["memory_pass_s"] + epoch["steps_s"] for epoch in summary["history"])
    hours = spent_s / 3600 * summary["workers"]
    if summary["device"] == "cpu":
        return {"cost/core-hours": hours * summary["threads"]}
    return {"cost/gpu-hours": hours}


def choose_epoch(session: Session, training_step: Step, training: StepResult) -> StepResult:
    """The model of the best epoch on held-out sources, which the training has written."""
    result = best(training.summary["verdicts"])
    step = chosen_step(training_step)

    def log(run: Run, summary: dict[str, Any]) -> None:
        model_id = run.log_model(used_model(step.artifact.uri), made=True)
        metrics = {name: value for name, value in summary["verdict"].items() if name != "epoch"}
        run.log_metrics(metrics, model_id=model_id)

    return run_step(step, session=session, work=lambda _: {"verdict": result}, log=log)


def model_of_epoch(session: Session, training: Artifact, epoch: int) -> StepResult:
    """Make a model of an epoch that `--keep-every` has kept, with the name `NAME-epoch-N`.

    Raises MuvaError if that epoch was not kept, or the model is not the last one of a training.
    """
    made_from = training.manifest()
    if made_from is None or made_from["facts"].get("checkpoint") != LAST_EPOCH:
        raise MuvaError(
            f"{training.uri}: expected the model that `muva train` made after its last epoch"
        )
    step = Step(
        title=f"{training.name} after epoch {epoch}",
        store=training.store,
        kind="models",
        name=f"{training.name}-epoch-{epoch}",
        format_version=formats.BUNDLE,
        settings={"epoch": epoch},
        inputs={Role.TRAINING: [training]},
        facts={**made_from["facts"], "checkpoint": f"epoch {epoch}"},
    )

    def work(_: object) -> dict[str, Any]:
        import muva
        from muva.models import store_bundle
        from muva.training.stage2_checkpoint import load_weights
        from workflows.steps.checkpoints import checkpoint_of_epoch

        checkpoint = checkpoint_of_epoch(training, epoch)
        bundle = muva.load(training.uri)
        load_weights(bundle.model, checkpoint)
        store_bundle(step.artifact, bundle.model, metadata={**bundle.metadata, "epoch": epoch})
        return {"epoch": epoch}

    def log(run: Run, _: dict[str, Any]) -> None:
        run.log_model(used_model(step.artifact.uri), made=True)

    return run_step(step, session=session, work=work, log=log)
