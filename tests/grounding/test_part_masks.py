"""Boxes to patches: the rule compared with a loop, and its properties on any grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muva.data.training_images import flip_part_masks
from muva.grounding.part_masks import BoxMasks, part_masks, patch_centres


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


def naive_mask(box, grid):
    """The rule by a loop; no patch where nothing of the box is in the image."""
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) for edge in box)
    rows, columns = (side.tolist() for side in grid)
    mask = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    if x0 >= x1 or y0 >= y1:
        return mask
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            mask[i, j] = x0 <= x < x1 and y0 <= y < y1
    if not mask.any():
        i = min(range(len(rows)), key=lambda i: abs(rows[i] - (y0 + y1) / 2))
        j = min(range(len(columns)), key=lambda j: abs(columns[j] - (x0 + x1) / 2))
        mask[i, j] = True
    return mask


shift = st.floats(-1, 1, width=32)


@settings(deadline=None, max_examples=300)
@given(boxes_(), grids(), shift, shift)
def test_the_mask_of_a_moved_image_is_that_of_the_moved_box_cut_at_the_frame(box, grid, dx, dy):
    boxes = torch.tensor([(0, 0, 1, 1), box], dtype=torch.float64).unsqueeze(1)
    moved = BoxMasks(
        boxes=boxes,
        found=torch.tensor([[True], [True]]),
        row_centres=grid[0],
        column_centres=grid[1],
    )
    mask = moved(torch.tensor([1]), torch.tensor([[dx, dy]], dtype=torch.float64))
    x0, y0, x1, y1 = box
    expected = naive_mask((x0 + dx, y0 + dy, x1 + dx, y1 + dy), grid)
    assert torch.equal(mask.view(expected.shape), expected)


def test_an_image_that_stays_keeps_its_masks_and_a_part_that_leaves_it_is_not_found():
    grid = patch_centres(64, patch=16, stride=16), patch_centres(32, patch=16, stride=16)
    boxes = torch.tensor([[(0.1, 0.0, 0.9, 0.25), (0.0, 0.5, 1.0, 1.0)]])
    found = torch.tensor([[True, True]])
    centres = {"row_centres": grid[0], "column_centres": grid[1]}
    moved = BoxMasks(boxes=boxes, found=found, **centres)
    stays, leaves = moved(torch.tensor([0, 0]), torch.tensor([[0.0, 0.0], [0.0, -0.25]]))
    assert torch.equal(stays, part_masks(boxes, found, **centres)[0])
    assert not leaves[0].any(), "the head ends where the frame begins"
    assert leaves[1].view(4, 2).any(dim=1).tolist() == [False, True, True, False]
    not_found = BoxMasks(boxes=boxes, found=~found, **centres)
    assert not not_found(torch.tensor([0]), torch.zeros(1, 2)).any()
