"""Checks of settings against a CLIP that need neither PyTorch nor open_clip to be imported."""

from __future__ import annotations

from pathlib import Path

from muva.config import SHIPPED_CLIPS, ModelConfig
from muva.errors import SettingsError


def check_clip(name: str) -> None:
    """Check a name for `load_clip` without loading anything.

    Raises:
        SettingsError: the name is unknown.
    """
    if name not in SHIPPED_CLIPS and not (name and Path(name).expanduser().exists()):
        from muva.model.clip import open_clip_name

        open_clip_name(name)


def patch_grid(image_size: tuple[int, int], *, patch: int, stride: int) -> tuple[int, int]:
    """Rows and columns of the patches, which may overlap, in an image of this (height, width)."""
    height, width = image_size
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def check_part_tokens(settings: ModelConfig, *, rows: int) -> None:
    """Check that the rows of the patch grid can be split into bands for the part tokens.

    Raises:
        SettingsError: `part_token_init` is `patch_avg`, and the rows do not divide by the parts.
    """
    parts = len(settings.parts)
    if parts and settings.part_token_init == "patch_avg" and rows % parts:
        raise SettingsError(
            f"model.part_token_init patch_avg splits the patch grid into {parts} equal bands, one "
            f"per part, but its {rows} rows do not divide by {parts}: choose random or cls, or "
            "another stride (at 256 x 128, stride 12 gives 21 rows)"
        )
