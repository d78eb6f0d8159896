"""Adapts position embeddings to the image size, the stride and the part tokens (Sec. 3.2).

The rows of the patch grid are resized bilinearly, with neither antialiasing nor aligned corners;
open_clip's own function is bicubic and would give different values.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


def resize_position_embedding(
    embedding: Float[Tensor, " positions D"],
    *,
    from_grid: tuple[int, int],
    to_grid: tuple[int, int],
) -> Float[Tensor, " new_positions D"]:
    """Keep the class token's row and resize the grid's rows from one patch grid to another."""
    if from_grid == to_grid:
        return embedding
    class_row, grid_rows = embedding[:1], embedding[1:]
    image = grid_rows.T.reshape(1, -1, *from_grid)
    resized = interpolate(image.float(), size=to_grid, mode="bilinear", align_corners=False)
    return torch.cat([class_row, resized.flatten(2)[0].T.to(embedding.dtype)])


def add_part_positions(
    embedding: Float[Tensor, " positions D"], parts: int
) -> Float[Tensor, " tokens D"]:
    """Insert a copy of the class token's row for each part token, after that row."""
    class_row = embedding[:1]
    return torch.cat([class_row, class_row.expand(parts, -1), embedding[1:]])
