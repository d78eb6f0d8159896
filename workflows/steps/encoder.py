"""Stage 2 as a step: the image encoder, by a Ray Train group that saves its state as it goes."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util import get_current_placement_group

import muva
from muva.data.artifacts import Artifact, fingerprint, open_artifact
from muva.errors import MuvaError
from muva.model.bundle import BUNDLE_FORMAT
from muva.model.precision import resolve_precision
from muva.models import store_bundle
from muva.training.divergence import DivergedError
from muva.training.stage2 import train_image_encoder
from muva.training.stage2_state import load_weights
from workflows.progress import track
from workflows.runtime.capacity import Room
from workflows.runtime.cluster import ANYWHERE, ray_cluster
from workflows.runtime.messages import Board, attend, gather
from workflows.runtime.workers import MOST_FAILURES, Workers
from workflows.session import Session
from workflows.steps.checkpoints import (
    delete_states,
    newest_state,
    save_diverged,
    save_state,
    saved_state,
)
from workflows.steps.mask_pictures import draw_masks, is_shown, masks_of
from workflows.steps.prompts import learned_contexts
from workflows.steps.run_lineage import used_dataset, used_model
from workflows.steps.step import Done, Step, Tell, do_step
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import OnJudged, follow, posting, report_epochs
from workflows.steps.validation import VERDICTS, Judging, best, validation_config

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

SUMMARY = "summary.json"
RAY_NOTES = "ray"
CHOSEN, CHOSEN_FORMAT = "chosen", 1
HELD_OUT_ROLE = "held out"
"""Role of a source that is judged by as a whole, among the inputs of a model."""
TRAINING = "training"
"""Role of the training, among the inputs of a model that is one of its earlier epochs."""
START_FORMAT = 2
"""What a training takes over from `--init`: 2 added the classifier."""


def encoder_step(
    session: Session,
    inputs: TrainingInputs,
    addresses: dict[str, str],
    prompts: Done,
    workers: Workers,
    *,
    name: str,
    on_judged: OnJudged | None = None,
) -> Done:
    """The model of these sources and prompts, trained where it is not there."""
    config = inputs.config
    settings = {
        "model": config.model.model_dump(mode="json"),
        "stage2": config.stage2.model_dump(mode="json"),
        "seed": config.seed,
    }
    if inputs.init is not None:
        settings["start"] = START_FORMAT
    if config.validation is not None:
        settings["validation"] = config.validation.model_dump(mode="json")
        settings["held_out_domain"] = addresses.get(HELD_OUT_ROLE)
    address = fingerprint([settings, prompts.artifact.fingerprint])
    artifact = Artifact(session.store, "models", name, address)

    def work(tell: Tell) -> dict[str, Any]:
        with ray_cluster(), track(f"stage 2 of {name}: image encoder") as progress:
            board = Board()
            on_message = follow(progress, tell, "stage2", config.stage2.epochs, on_judged)

            def hear(message: tuple[str, Any]) -> None:
                kind, content = message
                if kind == "masks":
                    if tell.run is not None:
                        draw_masks(tell.run, content, config.model.parts)
                elif kind != "group":
                    on_message(message)
                elif session.shared is not None:  # within a trial, which may be stopped
                    session.shared.watch(content)

            _train(
                inputs,
                prompts.artifact,
                artifact,
                workers,
                board=board,
                on_message=hear,
                shows=tell.run is not None,
            )
        summary = json.loads(artifact.store.read(artifact.key(SUMMARY)))
        delete_states(artifact, keep=_kept_for_good(config.stage2.epochs, workers.keep_every))
        for notes in (VERDICTS, RAY_NOTES):
            artifact.delete_part(notes)
        return summary

    def report(run: Run, summary: dict[str, Any]) -> None:
        report_epochs("stage2")(run, summary)
        run.metrics(_cost(summary))
        run.used(*map(used_dataset, map(open_artifact, inputs.sources.domains)), context="training")
        if inputs.sources.held_out_domain is not None:
            held_out = open_artifact(inputs.sources.held_out_domain)
            run.used(used_dataset(held_out), context="held out")
        run.model(used_model(artifact.uri), made=True)

    step = Step(
        label=f"stage 2 of {name}",
        artifact=artifact,
        format_version=BUNDLE_FORMAT,
        config=settings,
        inputs={**addresses, "prompts": prompts.artifact.address},
    )
    return do_step(step, session=session, work=work, report=report)


def _cost(summary: Mapping[str, Any]) -> dict[str, float]:
    """Hours of the devices that it took; none for a model of before they were told."""
    if "device" not in summary:
        return {}
    spent_s = sum(epoch["memory_pass_s"] + epoch["steps_s"] for epoch in summary["history"])
    hours = spent_s / 3600 * summary["workers"]
    if summary["device"] == "cpu":
        return {"cost/core-hours": hours * summary["threads"]}
    return {"cost/gpu-hours": hours}


def chosen_of(training: Artifact) -> Artifact:
    """Where the epoch of a training lies that was best on held-out sources."""
    return Artifact(
        training.store,
        "models",
        f"{training.name}-{CHOSEN}",
        fingerprint([training.address, CHOSEN_FORMAT]),
    )


def chosen_step(session: Session, training: Done) -> Done:
    """The model of the epoch that a training's verdicts choose; the training has written it."""
    verdict = best(training.summary["verdicts"])
    made_from = training.artifact.manifest()
    assert made_from is not None

    def report(run: Run, summary: dict[str, Any]) -> None:
        model_id = run.model(used_model(step.artifact.uri), made=True)
        verdict = {name: v for name, v in summary["verdict"].items() if name != "epoch"}
        run.metrics(verdict, model_id=model_id)

    step = Step(
        label=f"choice of {training.artifact.name}: epoch {verdict['epoch']}",
        artifact=chosen_of(training.artifact),
        format_version=BUNDLE_FORMAT,
        config={"chosen": "on held-out sources", "seed": made_from["config"]["seed"]},
        inputs={**made_from["inputs"], TRAINING: training.artifact.address},
    )
    return do_step(step, session=session, work=lambda _: {"verdict": verdict}, report=report)


def epoch_step(session: Session, training: Artifact, epoch: int) -> Done:
    """The model behind an epoch whose state `--keep-every` has kept, by the name `NAME-epoch-N`.

    Raises MuvaError where that epoch was not kept, or for a model that is no training's last.
    """
    made_from = training.manifest()
    if made_from is None or "prompts" not in made_from["inputs"] or TRAINING in made_from["inputs"]:
        raise MuvaError(
            f"{training.uri}: expected a model that `muva train` has left after its last epoch"
        )
    artifact = Artifact(
        training.store,
        "models",
        f"{training.name}-epoch-{epoch}",
        fingerprint([training.address, epoch]),
    )

    def work(_: object) -> dict[str, Any]:
        state = saved_state(training, epoch)
        bundle = muva.load(training.uri)
        load_weights(bundle.model, state)
        store_bundle(artifact, bundle.model, metadata={**bundle.metadata, "epoch": epoch})
        return {"epoch": epoch}

    step = Step(
        label=f"{training.name} after epoch {epoch}",
        artifact=artifact,
        format_version=BUNDLE_FORMAT,
        config={"epoch": epoch, "seed": made_from["config"]["seed"]},
        inputs={**made_from["inputs"], TRAINING: training.address},
    )

    def report(run: Run, _: dict[str, Any]) -> None:
        run.model(used_model(artifact.uri), made=True)

    return do_step(step, session=session, work=work, report=report)


def _train_encoder(task: Mapping[str, Any]) -> None:
    """Stage 2 in each of Ray Train's workers."""
    try:
        _run_stage2(task)
    except DivergedError as error:
        # It is the same on all workers: the first one tells.
        if ray.train.get_context().get_world_rank() == 0:
            made_from = {"inputs": task["inputs"].as_json(), "prompts": task["prompts"].uri}
            mistake = save_diverged(task["artifact"], error, made_from=made_from)
            task["board"].post(("mistake", mistake), wait=True)
    except MuvaError as mistake:
        # Ray would start the workers again, and they would end here again: the driver is told.
        task["board"].post(("mistake", mistake), wait=True)


def _run_stage2(task: Mapping[str, Any]) -> None:
    """Trains; the first worker writes states and, at the end, the bundle."""
    inputs: TrainingInputs = task["inputs"]
    prompts: Artifact = task["prompts"]
    artifact: Artifact = task["artifact"]
    leads = ray.train.get_context().get_world_rank() == 0
    group = get_current_placement_group()
    if leads and group is not None:
        task["board"].post(("group", group))
    device = ray.train.torch.get_device()
    torch.set_num_threads(task["threads"])
    state, history = newest_state(artifact)
    model, images = inputs.open(predicts_masks=True)
    model.contexts.data.copy_(learned_contexts(prompts))
    judging = Judging(inputs.config, artifact)
    last = history[-1]["epoch"] if history else 0
    judging.catch_up(last)
    if state is not None and judging.ends(last):
        load_weights(model, state)
        epochs = iter(())
    else:
        epochs = train_image_encoder(
            model=model,
            images=images,
            settings=inputs.config.stage2,
            seed=inputs.config.seed,
            device=device,
            state=state,
            progress=posting(task["board"], "batches") if leads else None,
            compute=task["compute"],
        )
    for report in epochs:
        last = report.epoch
        history.append({"epoch": last, **report.metrics, **report.seconds})
        if leads:
            kept = [*judging.best_so_far(last), *_kept_for_good(last, task["keep_every"])]
            save_state(artifact, report, history, keep=kept)
            task["board"].post(("epoch", history[-1]))
            shown = task["shows"] and is_shown(last, inputs.config.stage2.epochs)
            if shown and (masks := masks_of(last, model, images, device)):
                task["board"].post(("masks", masks))
        judging.report(last, report.metrics)
        if judging.ends(last):
            break
    if leads:
        metadata = {"sources": task["sources"], "prompts": prompts.address}
        store_bundle(artifact, model, metadata={**metadata, "epoch": last})
        verdicts = judging.verdicts(last)
        if verdicts:
            epoch = best(verdicts)["epoch"]
            load_weights(model, saved_state(artifact, epoch))
            store_bundle(chosen_of(artifact), model, metadata={**metadata, "epoch": epoch})
        precision = resolve_precision(inputs.config.stage2.precision, device)
        summary = {
            "identities": model.identities,
            "feature_dim": model.feature_dim,
            "workers": ray.train.get_context().get_world_size(),
            "threads": task["threads"],
            "device": device.type,
            "compute": dataclasses.asdict(task["compute"]),
            "precision": precision,
            "history": history,
            "verdicts": verdicts,
        }
        artifact.store.write(artifact.key(SUMMARY), json.dumps(summary).encode())


def _kept_for_good(epoch: int, every: int | None) -> list[int]:
    """Epochs up to this one whose states stay when the training is done."""
    return list(range(every, epoch + 1, every)) if every else []


def _train(
    inputs: TrainingInputs,
    prompts: Artifact,
    artifact: Artifact,
    workers: Workers,
    *,
    board: Board,
    on_message: Callable[[tuple[str, Any]], None],
    shows: bool,
) -> None:
    """Trains by a Ray Train group; a single worker on processors needs none, only a task.

    The task's process goes on to the next one, where a group is two new processes and what they
    import: ten seconds that searches of short trials would mostly consist of. `shows`: pictures of
    masks are wanted.
    """
    task = {
        "inputs": inputs,
        "prompts": prompts,
        "artifact": artifact,
        "sources": [Path(uri).name for uri in inputs.sources.domains],
        "threads": workers.threads,
        "compute": workers.how,
        "keep_every": workers.keep_every,
        "board": board,
        "shows": shows,
    }
    room = Room(processes=workers.count, cpus=task["threads"], gpus=int(workers.use_gpu))
    validation = validation_config(inputs, artifact, workers, board)
    if workers.count == 1 and not workers.use_gpu and validation is None:
        alone = _train_alone.options(
            num_cpus=workers.threads, runtime_env=workers.runtime_env
        ).remote(task)
        try:
            gather([alone], board=board, on_message=on_message, room=room)
        except BaseException:
            ray.cancel(alone, force=True)
            raise
        return
    trainer = ray.train.torch.TorchTrainer(
        _train_encoder,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.threads},
        ),
        run_config=ray.train.RunConfig(
            # Our states are in the store; Ray keeps its own notes beside them, one set a try.
            name=uuid.uuid4().hex,
            storage_path=f"{artifact.uri}/{RAY_NOTES}",
            failure_config=ray.train.FailureConfig(max_failures=MOST_FAILURES),
            worker_runtime_env=workers.runtime_env,
        ),
        validation_config=validation,
    )
    attend(trainer.fit, board=board, on_message=on_message, room=room)


@ray.remote(max_retries=MOST_FAILURES, scheduling_strategy=ANYWHERE)
def _train_alone(task: dict[str, Any]) -> None:
    """Stage 2 in this process, by Ray Train's local mode."""
    ray.train.torch.TorchTrainer(
        _train_encoder,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
    ).fit()
