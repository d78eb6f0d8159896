"""MLPs with QuickGELU, with fewer passes over their hidden activations."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn.functional import silu

from muva.model.tracing import is_traced

SLOPE = 1.702
"""The constant of QuickGELU."""


def quick_gelu_mlp(
    mlp: nn.Sequential, tokens: Float[Tensor, " *batch D"]
) -> Float[Tensor, " *batch E"]:
    """The MLP of these tokens: a linear layer, an activation, and a second linear layer.

    QuickGELU(x) = x sigmoid(c x) = SiLU(c x) / c, and the two products with c are part of the
    matrix products before and after. MLPs with another activation are computed as they are.
    """
    inner, activation, outer = mlp
    if not isinstance(activation, QuickGELU) or is_traced():
        return mlp(tokens)
    rows = tokens.flatten(0, -2)
    parameters = (inner.weight, inner.bias, outer.weight, outer.bias)
    device = tokens.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, *parameters = (part.to(dtype) for part in (rows, *parameters))
    return _QuickGeluMlp.apply(rows, *parameters).unflatten(0, tokens.shape[:-1])


class _QuickGeluMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, " M D"],
        inner: Float[Tensor, " H D"],
        inner_bias: Float[Tensor, " H"],
        outer: Float[Tensor, " E H"],
        outer_bias: Float[Tensor, " E"],
    ) -> Float[Tensor, " M E"]:
        with torch.autocast(rows.device.type, enabled=False):
            hidden = torch.addmm(inner_bias, rows, inner.T, beta=SLOPE, alpha=SLOPE)
            activated = silu(hidden)
            ctx.save_for_backward(rows, inner, outer, hidden, activated)
            return torch.addmm(outer_bias, activated, outer.T, alpha=1 / SLOPE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, outer, hidden, activated = ctx.saved_tensors
        (of_result,) = gradients
        with torch.autocast(rows.device.type, enabled=False):
            # The constant before SiLU and that after it cancel.
            of_hidden = torch.ops.aten.silu_backward(of_result @ outer, hidden)
            needs_rows, needs_inner, _, needs_outer, _ = ctx.needs_input_grad
            of_rows = of_hidden @ inner if needs_rows else None
            if not (needs_inner or needs_outer):
                return of_rows, None, None, None, None
            of_outer = (of_result.T @ activated).div_(SLOPE)
            return of_rows, of_hidden.T @ rows, of_hidden.sum(0), of_outer, of_result.sum(0)
