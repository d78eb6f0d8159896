"""Both stages of a training as steps: prompts (stage 1), then the image encoder (stage 2).

The training loops are in the library and know nothing of Ray. Each saves checkpoints in the folder
of its artifact, so that a killed training resumes from the last one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muva.config import ExperimentConfig
from muva.config.parts import words_of
from muva.data.artifacts import Artifact
from muva.errors import MuvaError
from workflows.session import Session
from workflows.steps.encoder import choose_epoch, chosen_step, encoder_step, train_encoder
from workflows.steps.labels import IMPORTED
from workflows.steps.prompts import learn_prompts, prompts_step
from workflows.steps.step import Step, StepResult
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import OnValidated

if TYPE_CHECKING:
    from workflows.runtime.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The declaration of a training."""

    config: ExperimentConfig
    sources: Sequence[Artifact]
    labels: Sequence[Artifact]
    inputs: TrainingInputs
    prompts: Step
    encoder: Step

    @property
    def is_finished(self) -> bool:
        """Whether all of its artifacts are complete."""
        steps = [self.prompts, self.encoder]
        if self.config.validation is not None:
            steps.append(chosen_step(self.encoder))
        return all(step.manifest() is not None for step in steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The results of a training."""

    prompts: StepResult
    encoder: StepResult
    """The step whose artifact is the model after the last epoch."""
    chosen: StepResult | None
    """The model of the best epoch on held-out sources, if some are held out."""

    @property
    def model(self) -> Artifact:
        """The model bundle: that of the chosen epoch, if one is chosen."""
        return (self.chosen or self.encoder).artifact


def declare_training(
    session: Session,
    config: ExperimentConfig,
    *,
    sources: Sequence[Artifact],
    labels: Sequence[Artifact] | None,
    name: str,
    init: Artifact | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Training:
    """Declare a training on these data sets; `labels` are their pseudo-labels, None without parts.

    `facts` are recorded with the model: the recipe and the variant that it belongs to.
    """
    inputs = TrainingInputs.of(config, sources=sources, labels=labels, init=init)
    prompts = prompts_step(session, inputs, name=name)
    encoder = encoder_step(session, inputs, prompts.artifact, name=name, facts=facts)
    return Training(
        config=config,
        sources=sources,
        labels=labels or (),
        inputs=inputs,
        prompts=prompts,
        encoder=encoder,
    )


def check_training(config: ExperimentConfig, sources: Sequence[Artifact], workers: Workers) -> None:
    """Check, before a training on these sources starts, for errors with which it would end.

    Raises:
        MuvaError: there is only one identity, or too few for a batch or to hold out, more workers
            than can share a batch or fit on the cluster, parts without a phrase, or an unknown
            CLIP.
    """
    from muva.data.sources import Sources
    from muva.model.checks import check_clip
    from muva.training.sampler import check_batches
    from workflows.runtime.cluster import ray_cluster

    check_clip(config.model.clip)
    grounding = config.grounding
    if grounding is not None and grounding.expert != IMPORTED:
        lacking = [part for part in config.model.parts if part not in grounding.phrases]
        if lacking:
            raise MuvaError(
                f"model.parts names {', '.join(lacking)}, which would have no pseudo-labels: "
                f"grounding.phrases has phrases for {', '.join(grounding.phrases)}. Give each "
                f"part a phrase, for example with --set grounding.phrases.{lacking[0]}='the "
                f"{words_of(lacking[0])}'; remove it from model.parts; or import labels of it: "
                "`muva masks import`, then --set grounding.expert=imported"
            )
    divided = Sources.of(sources, config)
    divided.held_out()
    identities = divided.identities()
    if identities == 1:
        names = ", ".join(source.name for source in sources)
        raise MuvaError(
            f"the training images of {names} show only one person: a model learns to tell people "
            "apart, for which it takes at least two. Add a source; if the images show more people, "
            "import them again with the options that say where the pid is (`muva data import "
            "--help`)"
        )
    with ray_cluster():
        workers.check()
    stages = (("stage1", config.stage1, 1), ("stage2", config.stage2, workers.count))
    for name, stage, world in stages:
        check_batches(
            identities,
            batch_size=stage.batch_size,
            images_per_identity=stage.images_per_identity,
            world=world,
            stage=name,
        )


def check_parts(config: ExperimentConfig, labels: Sequence[Artifact]) -> None:
    """Raise MuvaError unless every source has pseudo-labels of all parts of the model."""
    from muva.grounding.labels import labelled_parts

    known = {one.name: labelled_parts(one) for one in labels}
    lacking = {
        name: [part for part in config.model.parts if part not in parts]
        for name, parts in known.items()
    }
    if not any(lacking.values()):
        return
    everywhere = [part for part in config.model.parts if all(part in p for p in known.values())]
    listed = "; ".join(f"{name} has {', '.join(parts)}" for name, parts in known.items())
    raise MuvaError(
        f"model.parts is {', '.join(config.model.parts)}, but not all sources have pseudo-labels "
        f"of each: {listed}. All have {', '.join(everywhere) or 'none of them'}: ground the others "
        f"with phrases for what they lack, or set model.parts=[{', '.join(everywhere)}]"
    )


def train(
    session: Session,
    training: Training,
    workers: Workers,
    *,
    on_validated: OnValidated | None = None,
) -> Trained:
    """Compute those stages of a declared training that are missing.

    People whom `config.validation` holds out are used for validation and not for training.
    `on_validated` is called with the epoch and the metrics of each validation.
    """
    config, inputs = training.config, training.inputs
    if not training.is_finished:
        check_training(config, training.sources, workers)
        check_parts(config, training.labels)
    prompts = learn_prompts(session, training.prompts, inputs, workers)
    encoder = train_encoder(
        session,
        training.encoder,
        inputs,
        prompts.artifact,
        workers,
        on_validated=on_validated,
    )
    chosen = None
    if config.validation is not None:
        chosen = choose_epoch(session, training.encoder, encoder)
    return Trained(prompts=prompts, encoder=encoder, chosen=chosen)
