"""The image encoder's training pass as two CUDA graphs: one launch forward, one on the way back.

A step is some two thousand small kernels, and in half precision a GPU is done with each before the
processor has launched the next. A graph is recorded once and replayed, with the same kernels on the
same memory, so losses and gradients are the same.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import set_warn_on_accumulate_grad_stream_mismatch

from muva.errors import MuvaError
from muva.model.distributed import world_size
from muva.model.image_encoder import ImageEncoder, ImageFeatures
from muva.model.precision import autocast_without_cache

_OUTPUTS = ("feature", "mask_logits", "mask_probabilities")
"""Of `ImageFeatures`, in the order of a recorded pass; without parts there is but the first."""

GraphedForward = Callable[[Tensor], tuple[Tensor, ...]]


class GraphedEncoder:
    """An encoder's `forward` that records the training pass of each kind of batch it meets.

    Other passes, those of evaluation and under true masks, go their usual way. A pass's outputs and
    gradients lie where the next one puts its own: they are good until then.
    """

    def __init__(self, encoder: ImageEncoder):
        self._encoder, self._encode = encoder, encoder.forward
        self._recorded: dict[tuple[object, ...], GraphedForward] = {}

    def __call__(
        self, images: Float[Tensor, " B 3 H W"], part_masks: Tensor | None = None
    ) -> ImageFeatures:
        """See `ImageEncoder.forward`."""
        if part_masks is not None or not (self._encoder.training and torch.is_grad_enabled()):
            return self._encode(images, part_masks)
        device = images.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        kind = (images.device, images.shape, images.stride(), images.dtype, half)
        if kind not in self._recorded:
            self._recorded[kind] = self._record(images)
        outputs = self._recorded[kind](images)
        return ImageFeatures(**dict(zip(_OUTPUTS, outputs, strict=False)))

    def _record(self, images: Tensor) -> GraphedForward:
        if images.device.type != "cuda" or world_size() > 1:
            raise MuvaError(
                f"CUDA graphs record the pass of one worker on a CUDA GPU, not of {world_size()} "
                f"on {images.device.type}: leave cuda_graphs out"
            )
        # Gradients are added up on the stream of the recording, on purpose.
        set_warn_on_accumulate_grad_stream_mismatch(False)
        # What is recorded casts the weights in every replay: a cache would keep the first ones.
        with torch.cuda.device(images.device), autocast_without_cache(images.device.type):
            recorded = torch.cuda.make_graphed_callables(
                TensorOutputs(self._encoder, self._encode), (images.clone(),)
            )
        return cast(GraphedForward, recorded)


class TensorOutputs(nn.Module):
    """The pass in tensors alone; a graph's gradients go to the parameters of its module."""

    def __init__(self, encoder: ImageEncoder, encode: Callable[[Tensor], ImageFeatures]):
        super().__init__()
        self._encoder, self._encode = encoder, encode

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What there is of feature, mask logits and mask probabilities."""
        encoded = self._encode(images)
        outputs = (getattr(encoded, name) for name in _OUTPUTS)
        return tuple(output for output in outputs if output is not None)
