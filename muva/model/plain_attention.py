"""Attention by plain matrix products, with a gate between parts and patches.

A dense bias between all tokens would be as large as the scores of a head, although only the pairs
of a part and a patch differ from zero. Here, the gate is added to these scores alone, in place, and
the gradient is written out, so that nothing of the scores' size is copied for it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from muva.model.part_gate import MINUS_INFINITY
from muva.model.tracing import is_traced


def plain_attention(
    query: Float[Tensor, " B heads Q d"],
    key: Float[Tensor, " B heads T d"],
    value: Float[Tensor, " B heads T d"],
    *,
    gate: Float[Tensor, " B R L"] | None = None,
    causal: bool = False,
) -> Float[Tensor, " B heads Q d"]:
    """Scaled dot-product attention of the first Q of T tokens to all of them.

    With a gate, the tokens are [class, parts, patches] and Q > R.
    """
    return _PlainAttention.apply(query, key, value, gate, causal)


def attention_to_values(
    query: Float[Tensor, " B Q D"], value: Float[Tensor, " B T D"]
) -> Float[Tensor, " B Q D"]:
    """Attention whose keys are its values: softmax(query value^T) value."""
    if is_traced():
        return (query @ value.mT).softmax(dim=-1).to(value.dtype) @ value
    return _AttentionToValues.apply(query, value)


class _PlainAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, causal: bool
    ) -> Tensor:
        # Contiguous per head: a batched product would transpose a strided matrix by copying it.
        query_h, key_h, value_h = (part.flatten(0, 1) for part in (query, key, value))
        scale = query.shape[-1] ** -0.5
        with torch.autocast(query.device.type, enabled=False):
            scores_h = torch.bmm(query_h * scale, key_h.mT)
            scores = scores_h.unflatten(0, query.shape[:2])
            if gate is not None:
                _add_gate(scores, gate)
            if causal:
                shape = scores.shape[-2:]
                scores += scores.new_full(shape, MINUS_INFINITY).triu_(diagonal=1)
            weights_h = scores_h.softmax(dim=-1)
            ctx.save_for_backward(query_h, key_h, value_h, weights_h)
            ctx.heads, ctx.scale = query.shape[:2], scale
            ctx.gate = None if gate is None else (gate.shape[1], gate.dtype)
            return torch.bmm(weights_h, value_h).unflatten(0, ctx.heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_h, key_h, value_h, weights_h = ctx.saved_tensors
        of_result_h = gradients[0].flatten(0, 1)
        with torch.autocast(query_h.device.type, enabled=False):
            of_value_h = torch.bmm(weights_h.mT, of_result_h)
            of_scores_h = torch.ops.aten._softmax_backward_data(
                torch.bmm(of_result_h, value_h.mT), weights_h, -1, weights_h.dtype
            )
            of_gate = None
            if ctx.needs_input_grad[3]:
                of_gate = _gradient_of_gate(of_scores_h.unflatten(0, ctx.heads), *ctx.gate)
            of_query_h = torch.bmm(of_scores_h, key_h) * ctx.scale
            of_key_h = torch.bmm(of_scores_h.mT, query_h) * ctx.scale
        of_heads = (part.unflatten(0, ctx.heads) for part in (of_query_h, of_key_h, of_value_h))
        return *of_heads, of_gate, None


class _AttentionToValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, value: Tensor) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            weights = torch.bmm(query, value.mT).softmax(dim=-1)
            ctx.save_for_backward(query, value, weights)
            return torch.bmm(weights, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        query, value, weights = ctx.saved_tensors
        (of_result,) = gradients
        with torch.autocast(query.device.type, enabled=False):
            of_scores = torch.ops.aten._softmax_backward_data(
                torch.bmm(of_result, value.mT), weights, -1, weights.dtype
            )
            of_value = torch.bmm(weights.mT, of_result).baddbmm_(of_scores.mT, query)
            return torch.bmm(of_scores, value), of_value


def _add_gate(scores: Float[Tensor, " B heads Q T"], gate: Float[Tensor, " B R L"]) -> None:
    parts, leading = gate.shape[1], 1 + gate.shape[1]
    shared = gate[:, None].to(scores.dtype)
    scores[:, :, 1:leading, leading:] += shared
    scores[:, :, leading:, 1:leading] += shared.mT[:, :, : scores.shape[2] - leading]
    if parts > 1:
        others = scores.new_full((parts, parts), MINUS_INFINITY).fill_diagonal_(0)
        scores[:, :, 1:leading, 1:leading] += others


def _gradient_of_gate(
    of_scores: Float[Tensor, " B heads Q T"], parts: int, dtype: torch.dtype
) -> Float[Tensor, " B R L"]:
    leading = 1 + parts
    of_gate = of_scores[:, :, 1:leading, leading:].sum(dim=1, dtype=dtype)
    of_patches = of_scores[:, :, leading:, 1:leading]
    of_gate[:, :, : of_patches.shape[2]] += of_patches.sum(dim=1, dtype=dtype).mT
    return of_gate
