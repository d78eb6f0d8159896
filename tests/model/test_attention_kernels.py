from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muva.model import attention_kernels
from muva.model.attention import run_block, transformer_blocks
from muva.model.attention_kernels import (
    AttentionShape,
    KernelSetting,
    attend,
    attention_computed_by,
    faster_kernel,
    measured_kernels,
)
from muva.model.clip import vision_tower
from muva.model.part_gate import PartGate
from muva.model.plain_attention import plain_attention
from tests.model.small import small_clip

SHAPE = (3, 2, 7, 16)
PARTS, PATCHES = 2, 4


@pytest.fixture(autouse=True)
def new_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been measured yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(attention_kernels, "_chosen", {})


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and a gate."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    gate = torch.randn(3, PARTS, PATCHES, generator=generator)
    gate[0, 0, 1] = gate[2, 1, 3] = -math.inf
    return query, key, value, gate


def attended(kernel: KernelSetting = "auto", *, queries: int = 7) -> Tensor:
    query, key, value, gate = drawn()
    with attention_computed_by(kernel):
        return attend(query[:, :, :queries], key, value, gate=PartGate(gate), causal=False)


def naive(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, causal: bool) -> Tensor:
    images, heads, tokens, width = query.shape
    mixed = torch.zeros(SHAPE, dtype=torch.float64)
    for image in range(images):
        for head in range(heads):
            for row in range(tokens):
                scores = [
                    float(query[image, head, row].double() @ key[image, head, column].double())
                    / math.sqrt(width)
                    + (0.0 if gate is None else added(gate[image], row, column))
                    for column in range(row + 1 if causal else tokens)
                ]
                weights = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
                mixed[image, head, row] = weights @ value[image, head, : len(scores)].double()
    return mixed


def added(gate: Tensor, row: int, column: int) -> float:
    parts = [token - 1 for token in (row, column) if 1 <= token <= PARTS]
    patches = [token - 1 - PARTS for token in (row, column) if token > PARTS]
    if len(parts) == 2:
        return 0.0 if row == column else -math.inf
    return float(gate[parts[0], patches[0]]) if parts and patches else 0.0


@pytest.mark.parametrize("kernel", ["fused", "plain"])
@pytest.mark.parametrize("kind", ["open", "causal", "gated"])
def test_both_kernels_compute_attention(kernel: KernelSetting, kind: str) -> None:
    query, key, value, values = drawn()
    gate = PartGate(values) if kind == "gated" else None
    with attention_computed_by(kernel):
        mixed = attend(query, key, value, gate=gate, causal=kind == "causal")
    expected = naive(query, key, value, values if gate else None, kind == "causal")
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["fused", "plain"])
@pytest.mark.parametrize("queries", [1 + PARTS, 5, 7])
def test_the_first_queries_have_the_results_that_they_have_among_all(
    kernel: KernelSetting, queries: int
) -> None:
    torch.testing.assert_close(
        attended(kernel, queries=queries), attended(kernel)[:, :, :queries], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("queries", [1 + PARTS, 7])
@pytest.mark.parametrize("kind", ["open", "causal", "given gate", "learned gate"])
def test_the_gradients_of_the_plain_products_are_numerical_ones(queries: int, kind: str) -> None:
    query, key, value, gate = (part.double() for part in drawn())
    gate.nan_to_num_(neginf=-3.0)
    inputs = [query[:, :, :queries].clone(), key, value, gate]
    for part in inputs[: 4 if kind == "learned gate" else 3]:
        part.requires_grad_()

    def attention(*inputs: Tensor) -> Tensor:
        query, key, value, gate = inputs
        gated = gate if "gate" in kind else None
        return plain_attention(query, key, value, gate=gated, causal=kind == "causal")

    assert torch.autograd.gradcheck(attention, inputs)


def test_both_kernels_have_the_same_gradients() -> None:
    found = []
    for kernel in ("fused", "plain"):
        parts = [part.requires_grad_() for part in drawn()]
        query, key, value, gate = parts
        with attention_computed_by(kernel):
            mixed = attend(query, key, value, gate=PartGate(gate), causal=False)
        mixed.square().sum().backward()
        found.append([part.grad for part in parts])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_shape_is_measured_once_per_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    attended()
    measured = measured_kernels()
    (name,) = measured
    assert name.startswith(
        "float32, 4 x 2 heads, 7 x 7 tokens of 16, given gate of 2 parts, forward, "
    )
    assert measured[name].keys() == {"fused", "plain"}
    monkeypatch.setattr(attention_kernels, "_chosen", {})  # another process
    attended()
    assert measured_kernels() == measured


@pytest.mark.parametrize(
    ("plain_ms", "expected"), [(0.5, "plain"), (0.95, "fused"), (2.0, "fused")]
)
def test_the_plain_products_are_used_where_they_are_clearly_faster(
    plain_ms: float, expected: str, tmp_path: Path
) -> None:
    attended()
    (file,) = tmp_path.rglob("*.json")
    (name,) = measured_kernels()
    file.write_text(json.dumps({name: {"fused": 1.0, "plain": plain_ms}}))
    attention_kernels._chosen.clear()
    attended()
    assert list(attention_kernels._chosen.values()) == [expected]
    assert faster_kernel(measured_kernels()[name]) == expected


def test_a_pass_with_a_gradient_is_measured_by_itself() -> None:
    query, key, value, gate = drawn()
    for _ in range(2):
        attend(query.requires_grad_(), key, value, gate=PartGate(gate), causal=False)
        gate.requires_grad_()
        with torch.no_grad():
            attend(query, key, value, gate=PartGate(gate), causal=False)
    assert [(shape.kind, shape.gradient) for shape in attention_kernels._chosen] == [
        ("given gate", True),
        ("given gate", False),
        ("learned gate", True),
    ]


def test_a_measurement_draws_no_numbers_of_the_training() -> None:
    before = torch.get_rng_state()
    attended()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"float32": 3}'])
def test_a_damaged_file_is_measured_anew(content: str, tmp_path: Path) -> None:
    attended()
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    attention_kernels._chosen.clear()
    attended()
    assert len(measured_kernels()) == 1


def test_without_a_cache_folder_a_process_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    torch.testing.assert_close(attended(), attended("fused"), rtol=1e-5, atol=1e-6)
    assert len(attention_kernels._chosen) == 1


def test_measuring_inside_a_checkpointed_block_leaves_its_gradients_alone() -> None:
    block = transformer_blocks(vision_tower(small_clip()).transformer)[0]
    tokens = torch.randn(2, 10, 64, requires_grad=True)
    checkpoint(run_block, block, tokens, use_reentrant=False).square().sum().backward()
    found = tokens.grad
    tokens.grad = None
    run_block(block, tokens).square().sum().backward()
    torch.testing.assert_close(found, tokens.grad)


def test_a_shape_reads_well() -> None:
    shape = AttentionShape(
        dtype=torch.bfloat16,
        images=16,
        heads=12,
        queries=132,
        tokens=132,
        width=64,
        kind="learned gate",
        parts=3,
        gradient=True,
        threads=2,
    )
    assert str(shape) == (
        "bfloat16, 16 x 12 heads, 132 x 132 tokens of 64, learned gate of 3 parts, forward and "
        "backward, 2 threads"
    )
