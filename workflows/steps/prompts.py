"""Stage 1 as a step: the prompts of the sources.

Each Ray task learns a share of the identities (`workflows.steps.prompt_tasks`) and saves its own
checkpoints. An interrupted stage resumes with the shares with which it was started, whatever the
number of workers is now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muva.config import clip_editions
from muva.data import formats
from muva.data.artifacts import Artifact
from workflows.progress import track
from workflows.session import Session
from workflows.steps.step import MetricLogger, Step, StepResult, run_step
from workflows.steps.training_inputs import TrainingInputs, without_mask_settings
from workflows.steps.training_messages import log_epochs

if TYPE_CHECKING:
    import torch

    from workflows.runtime.workers import Workers

CONTEXTS = "contexts.safetensors"


def prompts_step(session: Session, inputs: TrainingInputs, *, name: str) -> Step:
    """Declare the prompts of these sources."""
    config = inputs.config
    settings = {
        "model": without_mask_settings(config.model).model_dump(mode="json"),
        "prompts": config.prompts.model_dump(mode="json"),
        "stage1": config.stage1.model_dump(mode="json"),
        "seed": config.seed,
        **clip_editions(config.model.clip),
    }
    if config.train_on != "train":
        settings["train_on"] = config.train_on
    if inputs.sources.held_out_share:
        settings["held_out_share"] = inputs.sources.held_out_share
    return Step(
        title=f"stage 1 of {name}",
        store=session.store,
        kind="prompts",
        name=name,
        format_version=formats.PROMPTS,
        settings=settings,
        inputs=inputs.step_inputs(),
    )


def learn_prompts(
    session: Session, step: Step, inputs: TrainingInputs, workers: Workers
) -> StepResult:
    """The prompts of a declared step, learned if missing."""

    def work(log_metrics: MetricLogger) -> dict[str, Any]:
        from workflows.runtime.cluster import ray_cluster
        from workflows.steps.checkpoints import delete_checkpoints
        from workflows.steps.prompt_tasks import learn_shares

        with ray_cluster(), track(f"{step.title}: prompts") as progress:
            summary = learn_shares(inputs, step.artifact, workers, progress, log_metrics)
        delete_checkpoints(step.artifact)
        return summary

    return run_step(step, session=session, work=work, log=log_epochs("stage1"))


def learned_contexts(prompts: Artifact) -> torch.Tensor:
    """The contexts (N, G, K, W) of a finished prompts artifact."""
    from safetensors.torch import load

    return load(prompts.store.read(prompts.key(CONTEXTS)))["contexts"]
