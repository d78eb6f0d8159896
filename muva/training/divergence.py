"""A loss that is not finite: training stops at that step, on all workers, before weights change.

The question is asked between forward and backward, one number a step for which the host waits. To
look at the number a step later would cost no waiting, but then weights, moments and memory would
hold what made it, and nothing could be repeated. A step waits for its device anyhow: the memory's
update and fp16's scaler read numbers from it too.

Gradients that overflow under fp16 are no divergence: the scaler leaves such a step out.
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
    """Features, a loss or weights of a training are not finite, and will not be the next time."""


class DivergedError(NotFiniteError):
    """A step's loss is not finite. `checkpoint()` is the state before that step, from all workers."""

    def __init__(self, message: str, checkpoint: Callable[[], Checkpoint]):
        super().__init__(message)
        self.checkpoint = checkpoint


def is_finite(loss: Float[Tensor, ""]) -> bool:
    """Whether a loss is finite on every worker: the same answer on all of them."""
    return not on_any_worker(~loss.detach().isfinite())


def format_losses(terms: Mapping[str, Float[Tensor, ""]]) -> str:
    """Each term of a loss, for errors; where there are several workers, theirs: all must call."""
    table = gather_batch(torch.stack([value.detach() for value in terms.values()])[None]).tolist()
    workers = [
        ", ".join(f"{name} {value:.4g}" for name, value in zip(terms, values, strict=True))
        for values in table
    ]
    if len(workers) == 1:
        return workers[0]
    return "; ".join(f"worker {number}: {told}" for number, told in enumerate(workers))


def remedies(stage: str, lr: float, precision: Precision) -> str:
    """What may help a stage that diverged."""
    if precision == "fp32":
        return f"Lower {stage}.lr (it is {lr:g})"
    return f"Lower {stage}.lr (it is {lr:g}), or set {stage}.precision to fp32 (it is {precision})"


def check_features(finite: Bool[Tensor, " M"], image_ids: Sequence[str]) -> None:
    """Raises NotFiniteError that names the images whose features are not finite."""
    if finite.all():
        return
    wrong = (~finite).nonzero().flatten().tolist()
    raise NotFiniteError(
        f"the features of {len(wrong)} of {len(image_ids)} training images are not finite, for "
        f"example of {', '.join(image_ids[int(i)] for i in wrong[:3])}. Of all: are the weights "
        f"sound? Of some: look at these images and, if they are sound, set precision to fp32"
    )


def check_weights(weights: Iterable[tuple[str, Tensor]], *, epoch: int, remedy: str) -> None:
    """Raises NotFiniteError when an epoch ends with weights that are not, though its losses were.

    Such an epoch must not become a state to resume from.
    """
    wrong = [name for name, value in weights if not value.isfinite().all()]
    if wrong:
        raise NotFiniteError(
            f"stage 2 diverged in epoch {epoch}: its losses were finite, {len(wrong)} tensors of "
            f"weights are not ({', '.join(wrong[:3])}): a gradient overflowed. No state of this "
            f"epoch is kept. {remedy}"
        )
