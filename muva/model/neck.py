"""The BN neck: batch normalisation of the whole feature, with a frozen bias (Sec. 3.4).

The authors' training forward runs it twice on the same batch, so its running statistics move twice
a step with momentum 0.1. One pass with momentum 1 - 0.9 * 0.9 = 0.19 gives the same statistics.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from muva.model.distributed import gather_batch, rank, world_size

MOMENTUM = 0.19


class BatchNormNeck(nn.BatchNorm1d):
    """Batch normalisation whose statistics are those of the batch over all workers."""

    def __init__(self, features: int):
        super().__init__(features, momentum=MOMENTUM)
        self.bias.requires_grad_(False)

    def forward(self, input: Float[Tensor, " B F"]) -> Float[Tensor, " B F"]:
        """Normalise this worker's features."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        normalised = batch_norm(
            gather_batch(input),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=MOMENTUM,
            eps=self.eps,
        )
        return normalised.chunk(world_size())[rank()]
