"""The BN neck: batch normalisation of the whole feature, with a frozen bias (Sec. 3.4).

The authors' training forward runs it twice on the same batch, so its running statistics move twice
a step with momentum 0.1. One pass with momentum 1 - 0.9 * 0.9 = 0.19 gives the same statistics.
"""

from jaxtyping import Float
from torch import Tensor, nn

from muva.model.distributed import gather_batch, rank, world_size

MOMENTUM = 0.19


class BatchNormNeck(nn.BatchNorm1d):
    """Batch normalisation whose statistics are those of the batch over all workers."""

    def __init__(self, features: int):
        super().__init__(features, momentum=MOMENTUM)
        self.bias.requires_grad_(False)

    def forward(self, input: Float[Tensor, " B F"]) -> Float[Tensor, " B F"]:
        """Normalise this worker's features."""
        if not self.training:
            return super().forward(input)
        return super().forward(gather_batch(input)).chunk(world_size())[rank()]
