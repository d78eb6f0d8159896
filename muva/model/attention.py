"""Masked attention: part masks as an additive bias, and open_clip's blocks run with that bias.

Tokens are [class, part_1..part_R, patch_1..patch_L]. A part token and the patches outside its mask
do not attend to each other, nor do different part tokens; all other pairs do (Sec. 3.3).
"""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear

from muva.model.attention_kernels import attend
from muva.model.part_gate import PartGate
from muva.model.quick_gelu import quick_gelu_mlp


def run_block(
    block: ResidualAttentionBlock,
    tokens: Float[Tensor, " B T D"],
    *,
    gate: PartGate | None = None,
    causal: bool = False,
    outputs: int | None = None,
) -> Float[Tensor, " B outputs D"]:
    """Run a block of open_clip with one gate per image, shared by all heads.

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
    heads = attention.num_heads
    mixed = attend(
        split_heads(query, heads),
        split_heads(key, heads),
        split_heads(value, heads),
        gate=gate,
        causal=causal,
    )
    tokens = tokens + block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
    return tokens + block.ls_2(quick_gelu_mlp(block.mlp, block.ln_2(tokens)))


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


def split_heads(tokens: Float[Tensor, " B T D"], heads: int) -> Float[Tensor, " B heads T d"]:
    """Split the width into heads, as a separate dimension."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def transformer_blocks(transformer: nn.Module) -> list[ResidualAttentionBlock]:
    """The blocks of an open_clip transformer, in order."""
    blocks = list(transformer.get_submodule("resblocks").children())
    return [block for block in blocks if isinstance(block, ResidualAttentionBlock)]
