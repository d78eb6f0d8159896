"""Gates between part tokens and patches: part masks as numbers that attention adds to its scores.

Tokens are [class, part_1..part_R, patch_1..patch_L]. A part token and the patches outside its mask
do not attend to each other, nor do different part tokens; all other pairs do (Sec. 3.3).
"""

from __future__ import annotations

import functools
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from muva.model.tracing import is_traced

INFINITY, MINUS_INFINITY = float("inf"), float("-inf")


class PartGate:
    """What attention adds to the scores between parts and patches, in both directions."""

    def __init__(self, values: Float[Tensor, " B R L"]):
        self.values = values

    @cached_property
    def bias(self) -> Float[Tensor, " B T T"]:
        """The same for all pairs of tokens, for kernels that need a dense bias."""
        return attention_bias(self.values)


def hard_gate(allowed: Bool[Tensor, " B R L"]) -> Float[Tensor, " B R L"]:
    """0 where a part and a patch may attend to each other, minus infinity elsewhere."""
    blocked = ~allowed
    return blocked.float().masked_fill(blocked, MINUS_INFINITY)


def attention_bias(gate: Float[Tensor, " B R L"]) -> Float[Tensor, " B T T"]:
    """Extend a gate between parts and patches to an additive bias between all tokens.

    Every token may attend to the class token, so no softmax is over an empty set. The bias
    propagates gradients to the gate.
    """
    if is_traced() or torch.compiler.is_compiling():
        return _traceable_bias(gate)
    return _DenseBias.apply(gate)


class _DenseBias(torch.autograd.Function):
    """Three operators forward and one backward; a graph of `cat` and `pad` has over twenty."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor) -> Tensor:
        parts, patches = gate.shape[1:]
        ctx.leading = leading = 1 + parts
        between_parts = _bias_between_parts(parts, patches, gate.dtype, gate.device)
        bias = between_parts.repeat(len(gate), 1, 1)
        bias[:, 1:leading, leading:] = gate
        bias[:, leading:, 1:leading] = gate.mT
        return bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (of_bias,) = gradients
        leading = ctx.leading
        return of_bias[:, 1:leading, leading:] + of_bias[:, leading:, 1:leading].mT


@functools.cache
def _bias_between_parts(
    parts: int, patches: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, " T T"]:
    """Minus infinity between different parts, zero elsewhere."""
    tokens = 1 + parts + patches
    with torch.inference_mode(False):  # a training may use what an inference has made
        bias = torch.zeros(tokens, tokens, dtype=dtype, device=device)
        others = torch.full((parts, parts), MINUS_INFINITY, dtype=dtype, device=device)
        bias[1 : 1 + parts, 1 : 1 + parts] = others.fill_diagonal_(0)
        return bias


def _traceable_bias(gate: Float[Tensor, " B R L"]) -> Float[Tensor, " B T T"]:
    # No torch.zeros or torch.eye, here and in hard_gate: a traced graph would contain the device on
    # which it was traced, and run on no other.
    parts, patches = map(int, gate.shape[1:])  # constants of a model, unlike the batch size
    zero = (gate[..., :1] > INFINITY).to(gate.dtype)
    other_parts = [
        pad(zero[:, part : part + 1], (part, parts - 1 - part), value=MINUS_INFINITY)
        for part in range(parts)
    ]
    part_rows = torch.cat([zero, torch.cat(other_parts, dim=1), gate], dim=2)
    leading_rows = pad(part_rows, (0, 0, 1, 0))
    return torch.cat([leading_rows, pad(gate.mT, (1, patches))], dim=1)
