"""Masked attention: part masks as an additive bias, and open_clip's blocks run with that bias.

Tokens are [class, part_1..part_R, patch_1..patch_L]. A part token and the patches outside its mask
do not attend to each other, nor do different part tokens; all other pairs do (Sec. 3.3).
"""

import torch
from jaxtyping import Bool, Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

INFINITY, MINUS_INFINITY = float("inf"), float("-inf")


def hard_gate(allowed: Bool[Tensor, " B R L"]) -> Float[Tensor, " B R L"]:
    """0 where a part and a patch may attend to each other, minus infinity elsewhere."""
    blocked = ~allowed
    return blocked.float().masked_fill(blocked, MINUS_INFINITY)


def attention_bias(gate: Float[Tensor, " B R L"]) -> Float[Tensor, " B T T"]:
    """Extend a gate between parts and patches to an additive bias between all tokens.

    Every token may attend to the class token, so no softmax is over an empty set. The bias
    propagates gradients to the gate.
    """
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


def run_block(
    block: ResidualAttentionBlock,
    tokens: Float[Tensor, " B T D"],
    *,
    bias: Float[Tensor, " B T T"] | None = None,
    causal: bool = False,
    outputs: int | None = None,
) -> Float[Tensor, " B outputs D"]:
    """Run a block of open_clip with one attention bias per image, shared by all heads.

    The block's own forward needs a bias per image and head, which would be a copy for each head.
    With `outputs`, only the first so many tokens are computed: after the last block, nothing reads
    the others.
    """
    attention, width = block.attn, tokens.shape[-1]
    normed = block.ln_1(tokens)
    weight, shift = attention.in_proj_weight, attention.in_proj_bias
    if outputs is None:
        query, key, value = linear(normed, weight, shift).chunk(3, dim=-1)
    else:
        query = linear(normed[:, :outputs], weight[:width], shift[:width])
        key, value = linear(normed, weight[width:], shift[width:]).chunk(2, dim=-1)
        tokens = tokens[:, :outputs]
        bias = None if bias is None else bias[:, :outputs]
    heads = attention.num_heads
    mixed = _attend(
        split_heads(query, heads),
        split_heads(key, heads),
        split_heads(value, heads),
        bias=None if bias is None else bias[:, None].to(query.dtype),
        causal=causal,
    )
    tokens = tokens + block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def attention_weights(
    block: ResidualAttentionBlock,
    tokens: Float[Tensor, " B T D"],
    *,
    bias: Float[Tensor, " B T T"] | None = None,
    outputs: int,
) -> Float[Tensor, " B outputs T"]:
    """The attention weights of the first tokens in `run_block`, averaged over heads.

    Each row sums to 1.
    """
    attention, width = block.attn, tokens.shape[-1]
    normed = block.ln_1(tokens)
    weight, shift = attention.in_proj_weight, attention.in_proj_bias
    query = linear(normed[:, :outputs], weight[:width], shift[:width])
    key = linear(normed, weight[width : 2 * width], shift[width : 2 * width])
    query, key = (split_heads(one, attention.num_heads) for one in (query, key))
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if bias is not None:
        scores = scores + bias[:, None, :outputs]
    return scores.softmax(dim=-1).mean(dim=1)


def _attend(
    query: Float[Tensor, " B heads queries d"],
    key: Float[Tensor, " B heads T d"],
    value: Float[Tensor, " B heads T d"],
    *,
    bias: Float[Tensor, " B 1 queries T"] | None,
    causal: bool,
) -> Float[Tensor, " B heads queries d"]:
    half_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if causal or not half_on_cpu:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal)
    # The fused kernel is slow in bf16 on CPUs: 58 ms forward and backward for 64 images, 132 tokens
    # and 2 heads on one core with AMX; plain products take 15 ms (in float32: 34 and 33 ms).
    # Forward only, 16 images, 12 heads, two cores with AVX512-BF16: 18 ms, plain 13 (24 and 40).
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    scores = scores if bias is None else scores + bias
    return scores.softmax(dim=-1).to(value.dtype) @ value


def split_heads(tokens: Float[Tensor, " B T D"], heads: int) -> Float[Tensor, " B heads T d"]:
    """Split the width into heads, as a separate dimension."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def transformer_blocks(transformer: nn.Module) -> list[ResidualAttentionBlock]:
    """The blocks of an open_clip transformer, in order."""
    blocks = list(transformer.get_submodule("resblocks").children())
    return [block for block in blocks if isinstance(block, ResidualAttentionBlock)]
