"""Divergence: training stops on all workers at a non-finite loss, before any weight changes.

The loss is checked between the forward and the backward pass, which synchronises the host with the
device once per step. Checking it one step later would avoid the synchronisation, but by then
weights, moments and memory would have changed and the step could not be repeated. Each step
synchronises anyway: the memory's update and the fp16 gradient scaler read numbers from the device.

Gradients that overflow in fp16 are not a divergence: the scaler skips such a step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from muva.errors import MuvaError
from muva.model.distributed import gather_batch, on_any_worker
from muva.model.precision import Precision
from muva.training.report import Checkpoint


class NotFiniteError(MuvaError):
    """Features, a loss or weights are not finite; running the same step again gives the same."""


class DivergedError(NotFiniteError):
    """A step's loss is not finite. `checkpoint()`, called on all workers, precedes that step."""

    def __init__(self, message: str, checkpoint: Callable[[], Checkpoint]):
        super().__init__(message)
        self.checkpoint = checkpoint


def is_finite(loss: Float[Tensor, ""]) -> bool:
    """Whether a loss is finite on every worker. All workers get the same answer."""
    return not on_any_worker(~loss.detach().isfinite())


def format_losses(terms: Mapping[str, Float[Tensor, ""]]) -> str:
    """The terms of a loss as text for errors. A collective call: every worker must make it."""
    table = gather_batch(torch.stack([value.detach() for value in terms.values()])[None]).tolist()
    workers = [
        ", ".join(f"{name} {value:.4g}" for name, value in zip(terms, values, strict=True))
        for values in table
    ]
    if len(workers) == 1:
        return workers[0]
    return "; ".join(f"worker {number}: {losses}" for number, losses in enumerate(workers))


def remedies(stage: str, lr: float, precision: Precision) -> str:
    """Settings that may help a stage that diverged, as a sentence for errors."""
    if precision == "fp32":
        return f"Lower {stage}.lr (it is {lr:g})"
    return f"Lower {stage}.lr (it is {lr:g}), or set {stage}.precision to fp32 (it is {precision})"


def check_features(finite: Bool[Tensor, " M"], image_ids: Sequence[str]) -> None:
    """Check that the features of all M training images are finite.

    Raises:
        NotFiniteError: some are not; the message names the images.
    """
    if finite.all():
        return
    wrong = (~finite).nonzero().flatten().tolist()
    raise NotFiniteError(
        f"the features of {len(wrong)} of {len(image_ids)} training images are not finite, for "
        f"example {', '.join(image_ids[int(i)] for i in wrong[:3])}. If all are affected, check "
        f"the weights; if only some are, look at these images and, if they are intact, set "
        f"precision to fp32"
    )


def check_weights(weights: Iterable[tuple[str, Tensor]], *, epoch: int, remedy: str) -> None:
    """Check that an epoch whose losses were finite also ended with finite weights.

    Otherwise it must not become a checkpoint to resume from.

    Raises:
        NotFiniteError: some weights are not finite.
    """
    wrong = [name for name, value in weights if not value.isfinite().all()]
    if wrong:
        raise NotFiniteError(
            f"stage 2 diverged in epoch {epoch}: its losses were finite, but {len(wrong)} weight "
            f"tensors are not ({', '.join(wrong[:3])}), because a gradient overflowed. No "
            f"checkpoint of this epoch is kept. {remedy}"
        )
