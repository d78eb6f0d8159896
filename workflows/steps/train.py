"""`muva train`: prompts (stage 1), then the image encoder (stage 2), on pooled source domains.

Both loops are the library's and know nothing of Ray. Each writes its state beside its artifact as
it goes, so a killed training continues from the last state it saved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from muva.config import ExperimentConfig, words_of
from muva.data.artifacts import Artifact, open_artifact
from muva.data.shards import open_dataset
from muva.data.sources import Sources
from muva.errors import MuvaError
from muva.grounding.labels import labelled_parts
from muva.model.clip import check_clip
from muva.training.sampler import check_batches
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.workers import Workers
from workflows.session import Session
from workflows.steps.encoder import HELD_OUT_ROLE, chosen_step, encoder_step
from workflows.steps.labels import IMPORTED
from workflows.steps.prompts import prompts_step
from workflows.steps.step import Done
from workflows.steps.training_inputs import TrainingInputs
from workflows.steps.training_messages import OnJudged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The two stages' steps."""

    prompts: Done
    encoder: Done
    """Its artifact is the model after its last epoch."""
    chosen: Done | None
    """The model of the epoch that was best on held-out sources, where some are held out."""

    @property
    def model(self) -> Artifact:
        """The model bundle: the chosen one, where there is a choice."""
        return (self.chosen or self.encoder).artifact


def check_training(config: ExperimentConfig, sources: Sequence[Artifact], workers: Workers) -> None:
    """Tells before anything is computed what a training of all these sources would end with.

    Raises:
        MuvaError: too few identities for a batch or to hold out, more workers than can share it or
            than there is room for, parts that no expert is asked for, or a CLIP that nothing is
            known of.
    """
    check_clip(config.model.clip)
    grounding = config.grounding
    if grounding is not None and grounding.expert != IMPORTED:
        lacking = [part for part in config.model.parts if part not in grounding.phrases]
        if lacking:
            raise MuvaError(
                f"model.parts names {', '.join(lacking)}, of which no label would tell: "
                f"grounding.phrases has phrases for {', '.join(grounding.phrases)}. Give each "
                f"part one, as --set grounding.phrases.{lacking[0]}='the "
                f"{words_of(lacking[0])}', take it out of model.parts, or import labels of it: "
                "`muva masks import`, then --set grounding.expert=imported"
            )
    with ray_cluster():
        workers.check()
    divided = Sources.of(sources, config)
    divided.held_out()
    identities = divided.identities()
    for stage, world in ((config.stage1, 1), (config.stage2, workers.count)):
        check_batches(
            identities,
            batch_size=stage.batch_size,
            images_per_identity=stage.images_per_identity,
            world=world,
        )


def check_parts(config: ExperimentConfig, labels: Sequence[Artifact]) -> None:
    """Raises MuvaError unless every source has labels of all the model's parts."""
    known = {one.name: labelled_parts(one) for one in labels}
    lacking = {
        name: [part for part in config.model.parts if part not in parts]
        for name, parts in known.items()
    }
    if not any(lacking.values()):
        return
    everywhere = [part for part in config.model.parts if all(part in p for p in known.values())]
    told = "; ".join(f"{name} has {', '.join(parts)}" for name, parts in known.items())
    raise MuvaError(
        f"model.parts is {', '.join(config.model.parts)}, but not all sources have labels of each: "
        f"{told}. All have {', '.join(everywhere) or 'none of them'}: ground the others with "
        f"phrases for what they lack, or set model.parts=[{', '.join(everywhere)}]"
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
    on_judged: OnJudged | None = None,
) -> Trained:
    """Both stages on these data sets; `labels` are their pseudo-labels, None without parts.

    Who `config.validation` holds out is judged by and not learned from; `on_judged` gets the epoch
    and the metrics of each judgement, as they come.
    """
    check_training(config, sources, workers)
    check_parts(config, labels or ())
    inputs = TrainingInputs.of(config, sources=sources, labels=labels, init=init)
    learned = [open_artifact(uri) for uri in inputs.sources.domains]
    addresses = {f"source {i}": source.address for i, source in enumerate(learned)}
    addresses |= {f"labels {i}": open_artifact(uri).address for i, uri in enumerate(inputs.labels)}
    if init is not None:
        addresses["init"] = init.address
    if inputs.sources.held_out_domain is not None:
        addresses[HELD_OUT_ROLE] = open_artifact(inputs.sources.held_out_domain).address
    contents = [open_dataset(source).fingerprint for source in learned]
    prompts = prompts_step(session, inputs, addresses, contents, workers, name=name)
    encoder = encoder_step(
        session, inputs, addresses, prompts, workers, name=name, on_judged=on_judged
    )
    chosen = None
    if config.validation is not None:
        chosen = chosen_step(session, encoder)
    return Trained(prompts=prompts, encoder=encoder, chosen=chosen)
