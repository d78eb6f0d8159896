"""Weights in half precision: cast together, and once for as many passes as do not change them.

Autocast casts each weight by itself and in every pass, and so its gradient: in a step of ViT-B/16
with three parts, 432 of some two thousand operators. In a pass over small batches on a CPU, the
casts take as long as some images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

Result = TypeVar("Result")


def with_cast_weights(
    function: Callable[..., Result], *args: Any, modules: Sequence[nn.Module], **named: Any
) -> Result:
    """Call a function while the weights of these modules are in autocast's precision, if it is on.

    The weights are those of matrix products: layer norms and embeddings stay in float32. Gradients
    reach the weights themselves, in their own precision.
    """
    runner = _Runner(function, modules)
    chosen = {
        f"{path}.{name}": weight
        for path, module in runner.named_modules()
        if isinstance(module, nn.Linear | nn.MultiheadAttention)
        for name, weight in module.named_parameters(recurse=False)
        if weight.dtype == torch.float32
    }
    device = next(iter(chosen.values())).device.type if chosen else "cpu"
    if not chosen or not torch.is_autocast_enabled(device):
        return function(*args, **named)
    cast = _CastTogether.apply(torch.get_autocast_dtype(device), *chosen.values())
    return functional_call(runner, dict(zip(chosen, cast, strict=True)), args, named)


class _Runner(nn.Module):
    """Holds modules while a function uses them."""

    def __init__(self, function: Callable[..., Any], modules: Sequence[nn.Module]):
        super().__init__()
        self._call = (function,)  # a tuple: a module would be registered a second time
        self.modules_in_use = nn.ModuleList(modules)

    def forward(self, *args: Any, **named: Any) -> Any:
        (function,) = self._call
        return function(*args, **named)


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        cast = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch.ops.aten._foreach_copy_(cast, list(weights))
        return tuple(cast)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients if gradient is not None]
        cast = [torch.empty_like(gradient, dtype=torch.float32) for gradient in given]
        torch.ops.aten._foreach_copy_(cast, given)
        of_weights = iter(cast)
        return None, *(None if g is None else next(of_weights) for g in gradients)
