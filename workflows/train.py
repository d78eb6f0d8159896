"""`muva train`: prompts (stage 1), then the image encoder (stage 2), on pooled source domains.

Stage 1 is one Ray task, stage 2 a Ray Train group; both loops are the library's and know nothing of
Ray. Each writes its state beside its artifact as it goes, so a killed training continues from the
last state it saved.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import ray
import ray.train
import ray.train.torch
import torch
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import muva
from muva.config import ExperimentConfig, ModelConfig, load_recipe
from muva.data.artifacts import Artifact, check_name, fingerprint, open_artifact
from muva.data.protocols import Pool, identities_to_learn, pool
from muva.data.shards import open_dataset
from muva.data.training_images import TrainingImages
from muva.errors import MuvaError
from muva.grounding.labels import open_labels
from muva.grounding.part_masks import patch_centres
from muva.model.bundle import BUNDLE_FORMAT
from muva.model.clip import check_clip, load_clip
from muva.model.muva_model import MuvaModel, build_model, check_same_settings
from muva.model.precision import resolve_precision
from muva.models import described, find_model, store_bundle
from muva.training.divergence import DivergedError
from muva.training.images import image_features
from muva.training.sampler import check_batches
from muva.training.stage1 import learn_prompts
from muva.training.stage2 import train_image_encoder
from tracking.names import grouped
from workflows.board import Board, attend, gather
from workflows.cluster import ANYWHERE, cpus, gpus, ray_cluster
from workflows.data import datasets_of
from workflows.ground import ground
from workflows.masks import IMPORTED
from workflows.progress import Track, as_text, say, track
from workflows.session import (
    NAMES,
    Session,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)
from workflows.states import delete_states, newest_state, save_diverged, save_state
from workflows.steps import Done, Step, Tell, do_step

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

PROMPTS_FORMAT = 1
CONTEXTS = "contexts.safetensors"
SUMMARY = "summary.json"
RAY_NOTES = "ray"
START_FORMAT = 2
"""What a training takes over from `--init`: 2 added the classifier."""
SAVE_STATE_EVERY_S = 30.0
MOST_FAILURES = 3
"""Lost workers that a training survives; each costs what was done since the last saved state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that share a training's batches."""

    count: int = 1
    cpus_each: int | None = None
    """None: the cluster's cores divided among them."""
    micro_batch: int | None = None
    """Images that each encodes at a time in stage 2, for memory's sake; None: its whole share."""

    @property
    def threads(self) -> int:
        """Cores of each worker."""
        return self.cpus_each or max(1, cpus() // self.count)

    def check(self) -> None:
        """Raises MuvaError when the cluster would never have room for them all."""
        if self.count * self.threads > cpus():
            raise MuvaError(
                f"{self.count} workers of {self.threads} cores each: this cluster has {cpus()} "
                "cores in all; ask for fewer with --workers or --cpus-per-worker"
            )

    @property
    def use_gpu(self) -> bool:
        """Whether the cluster has a GPU for every worker."""
        return gpus() >= self.count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The two stages' steps."""

    prompts: Done
    encoder: Done

    @property
    def model(self) -> Artifact:
        """The model bundle."""
        return self.encoder.artifact


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a training process opens for itself, by address: no data travel with the task."""

    datasets: tuple[str, ...]
    """URIs of the sources, in their order."""
    labels: tuple[str, ...]
    """URIs of their pseudo-labels; empty without parts."""
    init: str | None
    """URI of a model to start from instead of CLIP."""
    config: ExperimentConfig

    def as_json(self) -> dict[str, Any]:
        """What `read` makes the same of."""
        return {**vars(self), "config": self.config.model_dump(mode="json")}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> TrainingInputs:
        """Undo `as_json`."""
        return cls(
            datasets=tuple(stored["datasets"]),
            labels=tuple(stored["labels"]),
            init=stored["init"],
            config=ExperimentConfig.model_validate(stored["config"]),
        )

    def open(self, *, predicts_masks: bool) -> tuple[MuvaModel, TrainingImages]:
        """A fresh model for the sources' identities, and their images with part masks.

        Stage 1 predicts no masks: its model has the predictor's default settings.
        """
        model = self.config.model
        if not predicts_masks:
            model = without_mask_settings(model)
        pooled = pool(
            [open_dataset(open_artifact(uri)) for uri in self.datasets],
            everyone=self.config.train_on == "all",
        )
        size = (model.image_height, model.image_width)
        fresh = build_model(
            load_clip(model.clip, image_size=size, stride=model.stride),
            model=model,
            prompts=self.config.prompts,
            identities=len(pooled.identities),
            seed=self.config.seed,
        )
        if self.init is not None:
            start = muva.load(self.init)
            known = knows_the_same(
                start.metadata, start.model.identities, self.datasets, fresh.identities
            )
            fresh.start_from(
                start.model, mask_predictor=predicts_masks, classifier=known and predicts_masks
            )
        images = TrainingImages(
            pooled,
            height=model.image_height,
            width=model.image_width,
            mean=model.mean,
            std=model.std,
            part_masks=self._part_masks(pooled, model, fresh.clip_shape.patch)
            if model.parts
            else None,
            grid=fresh.grid,
        )
        return fresh, images

    def _part_masks(self, pooled: Pool, model: ModelConfig, patch: int) -> torch.Tensor:
        """The pooled images' masks on the model's patch grid (M, R, L)."""
        rows = patch_centres(model.image_height, patch=patch, stride=model.stride)
        columns = patch_centres(model.image_width, patch=patch, stride=model.stride)
        masks = []
        for dataset, uri in zip(pooled.datasets, self.labels, strict=True):
            labels = open_labels(open_artifact(uri), dataset=dataset)
            masks.append(
                labels.masks(
                    pooled.image_ids_of(dataset),
                    row_centres=rows,
                    column_centres=columns,
                    parts=model.parts,
                )
            )
        return torch.cat(masks)


def knows_the_same(
    metadata: Mapping[str, Any], known: int, sources: Sequence[str], identities: int
) -> bool:
    """Whether a model's classes are the identities of these sources (URIs), in the same order.

    Only a model that was trained here says so; of an imported one nobody knows whose they are.
    """
    return known == identities and metadata.get("sources") == [Path(uri).name for uri in sources]


def check_training(config: ExperimentConfig, sources: Sequence[Artifact], workers: Workers) -> None:
    """Tells before anything is computed what a training of all these sources would end with.

    Raises:
        MuvaError: too few identities for a batch, more workers than can share it or than there is
            room for, parts that no expert is asked for, or a CLIP that nothing is known of.
    """
    check_clip(config.model.clip)
    grounding = config.grounding
    if grounding is not None and grounding.expert != IMPORTED:
        lacking = [part for part in config.model.parts if part not in grounding.phrases]
        if lacking:
            raise MuvaError(
                f"model.parts names {', '.join(lacking)}, of which no label would tell: "
                f"grounding.phrases has phrases for {', '.join(grounding.phrases)}. Give each "
                "part one, or take the parts out of model.parts"
            )
    with ray_cluster():
        workers.check()
    everyone = config.train_on == "all"
    identities = sum(
        identities_to_learn(open_dataset(source), everyone=everyone) for source in sources
    )
    for stage, world in ((config.stage1, 1), (config.stage2, workers.count)):
        check_batches(
            identities,
            batch_size=stage.batch_size,
            images_per_identity=stage.images_per_identity,
            world=world,
        )


def train(
    session: Session,
    config: ExperimentConfig,
    *,
    sources: Sequence[Artifact],
    labels: Sequence[Artifact] | None,
    workers: Workers,
    name: str,
    init: Artifact | None = None,
) -> Trained:
    """Both stages on these data sets; `labels` are their pseudo-labels, None without parts."""
    check_training(config, sources, workers)
    inputs = TrainingInputs(
        datasets=tuple(source.uri for source in sources),
        labels=tuple(label.uri for label in labels or ()),
        init=init.uri if init else None,
        config=config,
    )
    addresses = {f"source {i}": source.address for i, source in enumerate(sources)}
    addresses |= {f"labels {i}": label.address for i, label in enumerate(labels or ())}
    if init is not None:
        addresses["init"] = init.address
    contents = [open_dataset(source).fingerprint for source in sources]
    prompts = _prompts_step(session, inputs, addresses, contents, workers, name=name)
    encoder = _encoder_step(session, inputs, addresses, prompts, workers, name=name)
    return Trained(prompts=prompts, encoder=encoder)


def _prompts_step(
    session: Session,
    inputs: TrainingInputs,
    addresses: dict[str, str],
    contents: list[str],
    workers: Workers,
    *,
    name: str,
) -> Done:
    config = inputs.config
    settings = {
        "model": without_mask_settings(config.model).model_dump(mode="json"),
        "prompts": config.prompts.model_dump(mode="json"),
        "stage1": config.stage1.model_dump(mode="json"),
        "seed": config.seed,
    }
    if config.train_on != "train":
        settings["train_on"] = config.train_on
    labels = [open_artifact(uri).address for uri in inputs.labels]
    made_from = [contents, labels, inputs.init and open_artifact(inputs.init).address]
    artifact = Artifact(session.store, "prompts", name, fingerprint([settings, made_from]))

    def work(tell: Tell) -> dict[str, Any]:
        with ray_cluster(), track(f"stage 1 of {name}: prompts") as progress:
            board = Board()
            threads = min(cpus(), workers.count * workers.threads)
            learn = _learn_prompts.options(num_cpus=threads, num_gpus=min(1, gpus()))
            task = learn.remote(inputs, artifact, threads, board)
            on_message = _follow(progress, tell, "stage1", config.stage1.epochs)
            summary = gather([task], board=board, on_message=on_message)[0]
        delete_states(artifact)
        return summary

    step = Step(
        label=f"stage 1 of {name}",
        artifact=artifact,
        format_version=PROMPTS_FORMAT,
        config=settings,
        inputs=addresses,
    )
    return do_step(step, session=session, work=work, report=_report_epochs("stage1"))


def _encoder_step(
    session: Session,
    inputs: TrainingInputs,
    addresses: dict[str, str],
    prompts: Done,
    workers: Workers,
    *,
    name: str,
) -> Done:
    config = inputs.config
    settings = {
        "model": config.model.model_dump(mode="json"),
        "stage2": config.stage2.model_dump(mode="json"),
        "seed": config.seed,
    }
    if inputs.init is not None:
        settings["start"] = START_FORMAT
    address = fingerprint([settings, prompts.artifact.fingerprint])
    artifact = Artifact(session.store, "models", name, address)

    def work(tell: Tell) -> dict[str, Any]:
        with ray_cluster(), track(f"stage 2 of {name}: image encoder") as progress:
            board = Board()
            trainer = _trainer(inputs, prompts.artifact, artifact, workers, board)
            on_message = _follow(progress, tell, "stage2", config.stage2.epochs)
            attend(trainer.fit, board=board, on_message=on_message)
        summary = json.loads(artifact.store.read(artifact.key(SUMMARY)))
        delete_states(artifact)
        return summary

    step = Step(
        label=f"stage 2 of {name}",
        artifact=artifact,
        format_version=BUNDLE_FORMAT,
        config=settings,
        inputs={**addresses, "prompts": prompts.artifact.address},
    )
    return do_step(step, session=session, work=work, report=_report_epochs("stage2"))


def without_mask_settings(model: ModelConfig) -> ModelConfig:
    """The settings that stage 1 depends on: true masks replace the predictor's there.

    So experiments that differ in nothing but gating or predictor share their prompts.
    """
    plain = ModelConfig()
    unused = ("gating", "mask_max_value", "mask_temperature", "predictor_heads",
              "predictor_layer_norm", "predictor_shortcut")  # fmt: skip
    return model.model_copy(update={key: getattr(plain, key) for key in unused})


@ray.remote(max_retries=MOST_FAILURES, scheduling_strategy=ANYWHERE)
def _learn_prompts(
    inputs: TrainingInputs, artifact: Artifact, threads: int, board: Board
) -> dict[str, Any]:
    """Stage 1 in one process: the prompts are written, the manifest's summary returned."""
    # Set here, for sums depend on it and Ray may reuse a process that had another number.
    torch.set_num_threads(threads)
    device = _device()
    settings = inputs.config.stage1
    state, history = newest_state(artifact)
    model, images = inputs.open(predicts_masks=False)
    precision = resolve_precision(settings.precision, device)
    features = image_features(
        model.to(device),
        images,
        device=device,
        batch_size=settings.batch_size,
        precision=precision,
        progress=_posting(board, "features"),
    )
    saved_at = time.monotonic()
    epochs = learn_prompts(
        model=model,
        features=features,
        labels=images.labels,
        settings=settings,
        seed=inputs.config.seed,
        state=state,
    )
    try:
        for report in epochs:
            history.append({"epoch": report.epoch, **report.metrics})
            board.post(("epoch", history[-1]))
            if time.monotonic() - saved_at > SAVE_STATE_EVERY_S:
                save_state(artifact, report, history)
                saved_at = time.monotonic()
    except DivergedError as error:
        raise save_diverged(artifact, error, made_from={"inputs": inputs.as_json()}) from error
    contexts = {"contexts": model.contexts.detach().cpu().contiguous()}
    artifact.store.write(artifact.key(CONTEXTS), save_tensors(contexts))
    return {"identities": model.identities, "precision": precision, "history": history}


def learned_contexts(prompts: Artifact) -> torch.Tensor:
    """The contexts (N, G, K, W) of a made prompts artifact."""
    return load_tensors(prompts.store.read(prompts.key(CONTEXTS)))["contexts"]


def _train_encoder(task: Mapping[str, Any]) -> None:
    """Stage 2 in each of Ray Train's workers."""
    try:
        _run_stage2(task)
    except DivergedError as error:
        # It is the same on all workers: the first one tells.
        if ray.train.get_context().get_world_rank() == 0:
            made_from = {"inputs": task["inputs"].as_json(), "prompts": task["prompts"].uri}
            mistake = save_diverged(task["artifact"], error, made_from=made_from)
            task["board"].post(("mistake", mistake))
    except MuvaError as mistake:
        # Ray would start the workers again, and they would end here again: the driver is told.
        task["board"].post(("mistake", mistake))


def _run_stage2(task: Mapping[str, Any]) -> None:
    """Trains; the first worker writes states and, at the end, the bundle."""
    inputs: TrainingInputs = task["inputs"]
    prompts: Artifact = task["prompts"]
    artifact: Artifact = task["artifact"]
    leads = ray.train.get_context().get_world_rank() == 0
    device = ray.train.torch.get_device()
    torch.set_num_threads(task["threads"])
    state, history = newest_state(artifact)
    model, images = inputs.open(predicts_masks=True)
    model.contexts.data.copy_(learned_contexts(prompts))
    for report in train_image_encoder(
        model=model,
        images=images,
        settings=inputs.config.stage2,
        seed=inputs.config.seed,
        device=device,
        state=state,
        progress=_posting(task["board"], "batches") if leads else None,
        micro_batch=task["micro_batch"],
    ):
        history.append({"epoch": report.epoch, **report.metrics})
        if leads:
            save_state(artifact, report, history)
            task["board"].post(("epoch", history[-1]))
        ray.train.report({"epoch": report.epoch, **report.metrics})
    if leads:
        store_bundle(
            artifact, model, metadata={"sources": task["sources"], "prompts": prompts.address}
        )
        precision = resolve_precision(inputs.config.stage2.precision, device)
        summary = {
            "identities": model.identities,
            "feature_dim": model.feature_dim,
            "workers": ray.train.get_context().get_world_size(),
            "micro_batch": task["micro_batch"],
            "precision": precision,
            "history": history,
        }
        artifact.store.write(artifact.key(SUMMARY), json.dumps(summary).encode())


def _trainer(
    inputs: TrainingInputs,
    prompts: Artifact,
    artifact: Artifact,
    workers: Workers,
    board: Board,
) -> ray.train.torch.TorchTrainer:
    return ray.train.torch.TorchTrainer(
        _train_encoder,
        train_loop_config={
            "inputs": inputs,
            "prompts": prompts,
            "artifact": artifact,
            "sources": [Path(uri).name for uri in inputs.datasets],
            "threads": workers.threads,
            "micro_batch": workers.micro_batch,
            "board": board,
        },
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
        ),
    )


def _follow(
    progress: Track, tell: Tell, stage: str, epochs: int
) -> Callable[[tuple[str, Any]], None]:
    """What the driver does with a training's messages: shows them, and writes epochs to MLflow."""
    epoch = 0

    def on_message(message: tuple[str, Any]) -> None:
        nonlocal epoch
        kind, content = message
        if kind == "mistake":
            raise content
        if kind == "epoch":
            epoch = content["epoch"]
            tell(grouped(stage, _metrics(content)), epoch)
            progress.update(epoch, epochs, note=f"loss {content['loss']:.3f}")
        else:
            done, total = content["done"], content["total"]
            progress.update(epoch, epochs, note=f"{kind} {done} of {total}")

    return on_message


def _posting(board: Board, kind: str) -> Callable[[int, int], None]:
    """A progress function that tells the driver, once a second at most."""
    told_at = 0.0

    def post(done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > 1:
            told_at = time.monotonic()
            board.post((kind, {"done": done, "total": total}))

    return post


def _report_epochs(stage: str) -> Callable[[Run, dict[str, Any]], None]:
    def report(run: Run, summary: dict[str, Any]) -> None:
        for epoch in summary["history"]:
            run.metrics(grouped(stage, _metrics(epoch)), epoch["epoch"])

    return report


def _metrics(epoch: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in epoch.items() if name != "epoch"}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def worker_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a verb the options of a training's workers, and `workers` made of them."""

    @click.option(
        "--workers",
        "count",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that share a batch.",
    )
    @click.option(
        "--cpus-per-worker", type=click.IntRange(min=1), help="Cores of each. [all, divided]"
    )
    @click.option(
        "--micro-batch",
        type=click.IntRange(min=1),
        help="Images that each encodes at a time, with the same result. [its whole share]",
    )
    @functools.wraps(verb)
    def with_workers(
        *args: object,
        count: int,
        cpus_per_worker: int | None,
        micro_batch: int | None,
        **kwargs: object,
    ) -> Any:
        workers = Workers(count=count, cpus_each=cpus_per_worker, micro_batch=micro_batch)
        return verb(*args, workers=workers, **kwargs)

    return with_workers


@click.command("train")
@click.option("--sources", type=NAMES, help="Data sets to learn from. [the recipe's]")
@click.option("--init", help="Start from this model instead of CLIP.")
@click.option(
    "--name",
    default="muva",
    show_default=True,
    callback=lambda ctx, param, value: check_name(value),
    help="What to call the model.",
)
@recipe_option
@override_option
@worker_options
@json_option
@session_options
def train_verb(
    sources: tuple[str, ...] | None,
    init: str | None,
    name: str,
    recipe: str,
    overrides: tuple[str, ...],
    workers: Workers,
    as_json: bool,
    session: Session,
) -> None:
    """Learn prompts and image encoder on source domains; grounds them where that is missing.

    \b
    muva train --sources syn-boulevard,syn-harbour --recipe demo
    muva train --sources mine --init muva --set stage2.epochs=10
    """
    config = load_recipe(recipe, overrides=overrides)
    names = sources or config.sources
    if not names:
        raise click.UsageError("--sources is missing: which data sets shall be learned from?")
    config = config.model_copy(update={"sources": names, "targets": ()})
    start = find_model(session.store, init) if init else None
    if start is not None:
        settings = ModelConfig.model_validate(described(start)["model"])
        check_same_settings(config.model, settings)
    with ray_cluster():
        datasets = [d.artifact for d in datasets_of(session, names, config.synthetic).values()]
        check_training(config, datasets, workers)
        taken = _taken_over(start, datasets, config) if start is not None else None
        if taken:
            say(as_text(_start_table(taken, title=f"Start: {init}")))
        labels = None
        if config.model.parts and config.grounding is not None:
            labels = [ground(session, dataset, config.grounding).artifact for dataset in datasets]
        trained = train(
            session, config, sources=datasets, labels=labels, workers=workers, name=name, init=start
        )
    uri = trained.model.uri
    print_result(
        {"model": uri, **trained.encoder.summary, **({"start": taken} if taken else {})},
        as_json=as_json,
        text=f"{uri}\nmuva.load({uri!r}).embed(images) gives features",
    )


def _taken_over(
    start: Artifact, sources: Sequence[Artifact], config: ExperimentConfig
) -> list[dict[str, str]]:
    """What a training takes from the model that it starts from, and what it makes anew."""
    description = described(start)
    everyone = config.train_on == "all"
    identities = sum(identities_to_learn(open_dataset(s), everyone=everyone) for s in sources)
    uris = [source.uri for source in sources]
    known = knows_the_same(description["metadata"], description["identities"], uris, identities)
    masks = ["part tokens", "mask predictor"] if config.model.parts else []
    rows = [(what, "taken", "") for what in ("image encoder", *masks, "BN neck")]
    why = "" if known else f"{description['identities']} there, of other people or of unknown ones"
    rows.append(("classifier", "taken" if known else "new", why or "the same people"))
    rows.append(("contexts", "new", "stage 1 learns them for the features of this start"))
    rows.append(("text side", "new", f"of {config.model.clip}, frozen"))
    return [dict(zip(("what", "outcome", "note"), row, strict=True)) for row in rows]


def _start_table(rows: Sequence[Mapping[str, str]], *, title: str) -> Table:
    table = Table("here", "outcome", "note", title=title)
    for row in rows:
        table.add_row(row["what"], row["outcome"], escape(row["note"]))
    return table
