"""Boxes to patches: the rule compared with a loop, and its properties on any grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muva.data.training_images import flip_part_masks
from muva.grounding.part_masks import part_masks, patch_centres


@st.composite
def grids(draw):
    """Patch centres along both sides, for any image, patch and stride."""
    patch, stride = draw(st.sampled_from([(16, 16), (16, 12), (8, 8), (14, 14), (16, 5)]))
    height, width = (draw(st.integers(patch, 300)) for _ in range(2))
    return tuple(patch_centres(size, patch=patch, stride=stride) for size in (height, width))


corner = st.floats(0, 1, width=32)


@st.composite
def boxes_(draw):
    (x0, x1), (y0, y1) = (
        sorted(draw(st.lists(corner, min_size=2, max_size=2, unique=True))) for _ in range(2)
    )
    return x0, y0, x1, y1


def masks_of(box, grid, *, found=True):
    boxes = torch.tensor(box, dtype=torch.float64).view(1, 1, 4)
    rows, columns = grid
    mask = part_masks(boxes, torch.tensor([[found]]), row_centres=rows, column_centres=columns)
    return mask.view(len(rows), len(columns))


@settings(deadline=None)
@given(boxes_(), grids())
def test_a_patch_belongs_to_a_part_when_its_centre_lies_in_the_box(box, grid):
    x0, y0, x1, y1 = box
    inside = torch.tensor(
        [[x0 <= x < x1 and y0 <= y < y1 for x in grid[1].tolist()] for y in grid[0].tolist()]
    )
    mask = masks_of(box, grid)
    if inside.any():
        assert torch.equal(mask, inside)
    else:
        distance = ((grid[0] - (y0 + y1) / 2) ** 2)[:, None] + ((grid[1] - (x0 + x1) / 2) ** 2)
        assert mask.sum() == 1
        assert distance[mask].item() == pytest.approx(distance.min().item(), abs=1e-12)


@settings(deadline=None)
@given(boxes_(), grids())
def test_a_found_box_has_a_patch_and_a_part_not_found_has_none(box, grid):
    assert masks_of(box, grid).any()
    assert not masks_of(box, grid, found=False).any()


@settings(deadline=None, max_examples=300)
@given(boxes_(), grids())
def test_flipping_the_box_flips_the_mask(box, grid):
    x0, y0, x1, y1 = box
    columns = grid[1]
    # If a centre lies on an edge, or two are equally near, no half-open rule is symmetric.
    on_edge = min((columns - x).abs().min().item() for x in (x0, x1)) < 1e-6
    near = (columns - (x0 + x1) / 2).abs().sort().values
    if on_edge or (len(near) > 1 and near[1] - near[0] < 1e-6):
        return
    rows, width = len(grid[0]), len(columns)
    flipped = masks_of((1 - x1, y0, 1 - x0, y1), grid).flatten()
    assert torch.equal(flipped, flip_part_masks(masks_of(box, grid).flatten(), grid=(rows, width)))


def test_the_grid_is_even_if_the_stride_divides_and_centred_otherwise():
    assert patch_centres(128, patch=16, stride=16).tolist() == [(i + 0.5) / 8 for i in range(8)]
    overlapping = patch_centres(128, patch=16, stride=12)
    assert len(overlapping) == 10 and len(patch_centres(256, patch=16, stride=12)) == 21
    torch.testing.assert_close(overlapping + overlapping.flip(0), torch.ones(10).double())
    assert overlapping[0].item() * 128 == 2 + 8


def test_parts_and_images_are_masked_each_by_its_own_box():
    boxes = torch.tensor([[[0, 0, 1, 0.5], [0, 0.5, 1, 1]], [[0.5, 0, 1, 1], [0, 0, 0.5, 1]]])
    found = torch.tensor([[True, False], [True, True]])
    centres = patch_centres(32, patch=16, stride=16)
    masks = part_masks(boxes, found, row_centres=centres, column_centres=centres)
    t, f = True, False
    assert masks.tolist() == [[[t, t, f, f], [f, f, f, f]], [[f, t, f, t], [t, f, t, f]]]
