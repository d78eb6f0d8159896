from __future__ import annotations

import numpy as np
import pytest
import torch

from muva.model.checks import patch_grid
from muva.model.position_embedding import (
    add_part_positions,
    resize_position_embedding,
)


@pytest.mark.parametrize(
    ("stride", "grid"), [(16, (16, 8)), (12, (21, 10)), (8, (31, 15)), (1, (241, 113))]
)
def test_the_grid_of_a_stride(stride: int, grid: tuple[int, int]) -> None:
    assert patch_grid((256, 128), patch=16, stride=stride) == grid
    convolved = torch.nn.functional.conv2d(
        torch.zeros(1, 1, 256, 128), torch.zeros(1, 1, 16, 16), stride=stride
    )
    assert tuple(convolved.shape[2:]) == grid


def bilinear(rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres, edges repeated, no antialias: by hand."""
    result = np.empty((height, width, rows.shape[2]))
    for y in range(height):
        for x in range(width):
            at = [
                np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
                for i, old, new in [(y, rows.shape[0], height), (x, rows.shape[1], width)]
            ]
            (y0, x0), (fy, fx) = (np.floor(at).astype(int), np.array(at) % 1)
            y1, x1 = min(y0 + 1, rows.shape[0] - 1), min(x0 + 1, rows.shape[1] - 1)
            top = rows[y0, x0] * (1 - fx) + rows[y0, x1] * fx
            bottom = rows[y1, x0] * (1 - fx) + rows[y1, x1] * fx
            result[y, x] = top * (1 - fy) + bottom * fy
    return result


@pytest.mark.parametrize("grid", [(16, 8), (21, 10), (3, 2)])
def test_the_resize_is_bilinear_and_keeps_the_class_row(grid: tuple[int, int]) -> None:
    embedding = torch.randn(1 + 14 * 14, 5)
    resized = resize_position_embedding(embedding, from_grid=(14, 14), to_grid=grid)
    assert torch.equal(resized[0], embedding[0])
    by_hand = bilinear(embedding[1:].reshape(14, 14, 5).double().numpy(), *grid)
    np.testing.assert_allclose(resized[1:].numpy(), by_hand.reshape(-1, 5), atol=1e-5)


def test_part_tokens_start_at_the_class_tokens_position() -> None:
    embedding = torch.randn(7, 4)
    with_parts = add_part_positions(embedding, 3)
    assert torch.equal(with_parts[:4], embedding[:1].expand(4, -1))
    assert torch.equal(with_parts[4:], embedding[1:])
