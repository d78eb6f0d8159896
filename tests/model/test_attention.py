from __future__ import annotations

import math

import pytest
import torch

from muva.model.attention import run_block, transformer_blocks
from muva.model.clip import vision_tower
from muva.model.part_gate import PartGate, attention_bias, hard_gate
from tests.model.small import small_clip

PARTS, PATCHES = 3, 6
TOKENS = 1 + PARTS + PATCHES


def masks() -> torch.Tensor:
    return torch.rand(2, PARTS, PATCHES, generator=torch.Generator().manual_seed(0)) < 0.5


def test_the_bias_says_which_tokens_attend_to_which() -> None:
    bias = attention_bias(hard_gate(masks()))
    for image in range(2):
        for query in range(TOKENS):
            for key in range(TOKENS):
                parts = [token - 1 for token in (query, key) if 1 <= token <= PARTS]
                patches = [token - 1 - PARTS for token in (query, key) if token > PARTS]
                allowed = True
                if len(parts) == 2:
                    allowed = query == key
                if parts and patches:
                    allowed = bool(masks()[image, parts[0], patches[0]])
                assert bias[image, query, key] == (0 if allowed else -math.inf)


def test_a_soft_gate_keeps_its_values_and_gradient() -> None:
    gate = torch.randn(2, PARTS, PATCHES, requires_grad=True)
    bias = attention_bias(gate)
    assert torch.equal(bias[:, 1 : 1 + PARTS, 1 + PARTS :], gate)
    assert torch.equal(bias, bias.mT)
    bias[bias.isfinite()].sum().backward()
    assert gate.grad is not None and (gate.grad == 2).all()


def test_a_gated_block_is_open_clips_block_with_the_bias_per_head() -> None:
    clip = small_clip(vision_width=128).eval()
    block = transformer_blocks(vision_tower(clip).transformer)[0]
    tokens = torch.randn(2, TOKENS, 128)
    bias = attention_bias(hard_gate(masks()))
    expected = block(tokens, attn_mask=bias.repeat_interleave(2, dim=0))
    gate = PartGate(hard_gate(masks()))
    torch.testing.assert_close(run_block(block, tokens, gate=gate), expected)


@pytest.mark.parametrize("gated", [True, False])
def test_asking_for_the_first_tokens_gives_the_first_tokens(gated: bool) -> None:
    block = transformer_blocks(vision_tower(small_clip()).transformer)[1]
    tokens = torch.randn(2, TOKENS, 64)
    gate = PartGate(hard_gate(masks())) if gated else None
    whole = run_block(block, tokens, gate=gate)
    torch.testing.assert_close(run_block(block, tokens, gate=gate, outputs=4), whole[:, :4])


def test_causal_attention_is_that_of_clips_text_transformer() -> None:
    clip = small_clip().eval()
    block = transformer_blocks(clip.transformer)[0]
    tokens = torch.randn(2, 32, 64)
    expected = block(tokens, attn_mask=clip.attn_mask)
    torch.testing.assert_close(run_block(block, tokens, causal=True), expected)
