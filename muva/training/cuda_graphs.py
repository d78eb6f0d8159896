"""The image encoder's training pass as two CUDA graphs: the forward and the backward pass.

A step consists of some two thousand small kernels, and in half precision a GPU finishes each of
them before the CPU has launched the next. A graph is captured once and then replayed with the same
kernels on the same memory, so losses and gradients are unchanged.
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
"""Fields of `ImageFeatures` in the order of a captured pass; without parts, only the first."""

GraphedForward = Callable[[Tensor], tuple[Tensor, ...]]


class GraphedEncoder:
    """A replacement for an encoder's `forward` that captures one graph per kind of training batch.

    Other passes, such as evaluation and passes under given masks, run without a graph. Outputs and
    gradients are valid until the next pass, which overwrites their memory.
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
                f"CUDA graphs need a single worker on a CUDA GPU, found {world_size()} worker(s) "
                f"on {images.device.type}: train without --cuda-graphs"
            )
        # Gradients are accumulated on the capture stream on purpose.
        set_warn_on_accumulate_grad_stream_mismatch(False)
        # Every replay must cast the weights again: autocast's cache would keep the first ones.
        with torch.cuda.device(images.device), autocast_without_cache(images.device.type):
            recorded = torch.cuda.make_graphed_callables(
                TensorOutputs(self._encoder, self._encode), (images.clone(),)
            )
        return cast(GraphedForward, recorded)


class TensorOutputs(nn.Module):
    """The encoder with tensors as outputs, the only outputs that a CUDA graph can have."""

    def __init__(self, encoder: ImageEncoder, encode: Callable[[Tensor], ImageFeatures]):
        super().__init__()
        self._encoder, self._encode = encoder, encode

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature, mask logits and mask probabilities, without those that are None."""
        encoded = self._encode(images)
        outputs = (getattr(encoded, name) for name in _OUTPUTS)
        return tuple(output for output in outputs if output is not None)
