"""From boxes to part masks: which patches of the image encoder's grid belong to which part.

Boxes are stored and masks are derived from them, so that one label set serves every grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def part_masks(
    boxes: Float[Tensor, "M R 4"],
    found: Bool[Tensor, "M R"],
    *,
    row_centres: Float[Tensor, " rows"],
    column_centres: Float[Tensor, " columns"],
) -> Bool[Tensor, "M R L"]:
    """True for each patch that belongs to a part; L = rows x columns, row-major.

    A patch belongs to a part if its centre lies in the box: x0 <= x < x1, and likewise for y. If a
    box contains no centre, the patch nearest to the centre of the box is used; a part that was not
    found has no patches. Boxes (x0, y0, x1, y1) and centres (see `patch_centres`) are fractions of
    the image.
    """
    x0, y0, x1, y1 = boxes.double().unsqueeze(-1).unbind(dim=2)
    rows, columns = row_centres.double(), column_centres.double()
    in_rows = (rows >= y0) & (rows < y1)
    in_columns = (columns >= x0) & (columns < x1)
    masks = in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)
    nearest = (
        _one_hot((rows - (y0 + y1) / 2).abs()).unsqueeze(-1)
        & _one_hot((columns - (x0 + x1) / 2).abs()).unsqueeze(-2)
    )  # fmt: skip
    empty = ~masks.flatten(2).any(dim=2)
    masks = torch.where(empty[..., None, None], nearest, masks)
    return masks.flatten(2) & found.unsqueeze(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxMasks:
    """Derives the part masks of images whose content has moved within its frame, from M boxes."""

    boxes: Float[Tensor, "M R 4"]
    found: Bool[Tensor, "M R"]
    row_centres: Float[Tensor, " rows"]
    column_centres: Float[Tensor, " columns"]

    def __call__(
        self, indices: Int[Tensor, " B"], shift: Float[Tensor, "B 2"]
    ) -> Bool[Tensor, "B R L"]:
        """The masks of these images after moving to the right and down by fractions of the image.

        A box is cut where it leaves the image. A part whose box leaves it completely counts as not
        found.
        """
        moved = self.boxes[indices].double() + shift.double().repeat(1, 2).unsqueeze(1)
        cut = moved.clamp(0, 1)
        visible = (cut[..., :2] < cut[..., 2:]).all(dim=-1)
        return part_masks(
            cut,
            self.found[indices] & visible,
            row_centres=self.row_centres,
            column_centres=self.column_centres,
        )


def patch_centres(size: int, *, patch: int, stride: int) -> Float[Tensor, " patches"]:
    """Centres of the patches along an image side of `size` pixels, as fractions of that side.

    If the stride leaves some pixels over, the grid is centred. The patches of the mirrored image
    then have mirrored centres, and masks can be flipped by reversing columns.
    """
    count = (size - patch) // stride + 1
    left_over = size - patch - (count - 1) * stride
    pixels = left_over / 2 + patch / 2 + stride * torch.arange(count, dtype=torch.float64)
    return pixels / size


def _one_hot(distances: Float[Tensor, "M R patches"]) -> Bool[Tensor, "M R patches"]:
    """True at the smallest distance along the last axis; the first one if there are ties."""
    places = torch.arange(distances.shape[-1], device=distances.device)
    return places == distances.argmin(dim=-1, keepdim=True)
