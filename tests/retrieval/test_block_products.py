"""Cosines in bfloat16 are within their bounds, and no rank depends on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from muva.retrieval import match_ranks
from muva.retrieval.block_products import BFLOAT16_UNIT, BlockProducts, bfloat16_is_fast
from muva.retrieval.match_ranks import MatchRanks
from muva.retrieval.verification import ranks_and_verification
from tests.retrieval.test_match_ranks import naive, rule_of

pytestmark = pytest.mark.skipif(
    not bfloat16_is_fast(), reason="this processor has no instructions for bfloat16"
)


def directions(seed: int, count: int, width: int, *, spread: float = 1.0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    common = torch.randn(1, width, generator=drawn)
    return normalize(common + spread * torch.randn(count, width, generator=drawn))


def worst_case(width: int) -> torch.Tensor:
    """Rows whose numbers are all rounded by almost the most, and in the same direction."""
    largest = (1 + 0.99 * BFLOAT16_UNIT) / width**0.5  # the next bfloat16 is 2 units further
    scaled = torch.full((2, width), largest)
    power = 2.0 ** np.ceil(np.log2(1 / width**0.5))
    return normalize(scaled) if width & (width - 1) else scaled * power * width**0.5


@pytest.mark.parametrize("width", [16, 64, 300, 2048])
@pytest.mark.parametrize("spread", [0.05, 0.5, 5.0])
def test_rounded_cosines_are_within_their_bound(width: int, spread: float) -> None:
    queries, images = directions(1, 70, width, spread=spread), directions(1, 90, width)
    products = BlockProducts(queries, columns=100, bfloat16=True)
    found = products.cosines(images)
    exact = (normalize(queries.double()) @ normalize(images.double()).T).numpy()
    off = np.abs(found.cosines - exact)
    bound = found.errors[:, None] + found.relative_error * np.abs(found.cosines)
    assert (off <= bound).all()
    assert bound.max() < 0.02, "useless"
    assert off.max() > 1e-4, "not in bfloat16"


@pytest.mark.parametrize("width", [16, 256, 1024])
def test_the_bound_holds_where_all_numbers_are_rounded_the_same_way(width: int) -> None:
    rows = worst_case(width)
    found = BlockProducts(rows, columns=2, bfloat16=True).cosines(rows)
    exact = (rows.double() @ rows.double().T).numpy()
    off = np.abs(found.cosines - exact)
    bound = found.errors[:, None] + found.relative_error * np.abs(found.cosines)
    assert (off <= bound).all()
    assert off.max() > 0.3 * bound.max(), "not the worst case"


def test_a_change_to_float32_takes_effect_at_once() -> None:
    queries, images = directions(2, 5, 40), directions(3, 7, 40)
    products = BlockProducts(queries, columns=7, bfloat16=True)
    rough = products.cosines(images).cosines.copy()
    products.use_float32()
    found = products.cosines(images)
    np.testing.assert_allclose(found.cosines, (queries @ images.T).numpy(), atol=1e-6)
    assert not np.allclose(rough, found.cosines, atol=1e-6)
    assert not products.bfloat16 and found.relative_error == 0


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    width=st.sampled_from([3, 17, 200]),
    spread=st.sampled_from([0.001, 0.1, 3.0]),
    block_bytes=st.integers(500, 100_000),
    allowed=st.sampled_from([0.0, 0.08, 1.0]),
)
def test_ranks_are_those_of_float64_however_many_are_in_doubt(
    seed: int, width: int, spread: float, block_bytes: int, allowed: float
) -> None:
    query, gallery = (
        (3 * directions(seed, count, width, spread=spread)).numpy() for count in (9, 60)
    )
    rule = rule_of(9, 60, people=5, seed=seed)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(match_ranks, "_MANY_PAIRS", 0)
        changed.setattr(match_ranks, "_PROBED_COLUMNS", 10)
        changed.setattr(match_ranks, "MAX_DOUBTFUL", allowed)
        found, _ = ranks_and_verification(
            query, gallery, rule, block_bytes=block_bytes, verify=False
        )
    assert [found.of(index).tolist() for index in range(9)] == naive(query, gallery, rule)


def test_features_of_extreme_size_rank_as_others() -> None:
    query, gallery = (directions(seed, 30, 8).numpy() for seed in (4, 5))
    rule = rule_of(30, 30, people=4, seed=0)

    def ranks(scale: float) -> MatchRanks:
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(match_ranks, "_MANY_PAIRS", 0)
            scaled = np.float32(scale)
            found, _ = ranks_and_verification(query * scaled, gallery * scaled, rule, verify=False)
        return found

    for scale in (2.0**-70, 2.0**120):
        assert np.array_equal(ranks(scale).ranks, ranks(1).ranks)


def test_many_pairs_are_computed_in_bfloat16_with_the_ranks_of_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, gallery = (directions(seed, 1100, 32, spread=2.0).numpy() for seed in (6, 7))
    rule = rule_of(1100, 1100, people=90, seed=1)
    used: list[bool] = []
    cosines = BlockProducts.cosines

    def counted(self: BlockProducts, images: torch.Tensor) -> object:
        used.append(self.bfloat16)
        return cosines(self, images)

    monkeypatch.setattr(BlockProducts, "cosines", counted)
    fast, _ = ranks_and_verification(query, gallery, rule, verify=False)
    assert used[0]
    monkeypatch.setattr(match_ranks, "bfloat16_is_fast", lambda: False)
    slow, _ = ranks_and_verification(query, gallery, rule, verify=False)
    assert not used[-1]
    assert np.array_equal(fast.ranks, slow.ranks)
    assert np.array_equal(fast.within, slow.within)
