"""Pictures that a verb writes where it is told to."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from muva.errors import MuvaError


def write_sheet(sheet: Path, picture: Image.Image) -> None:
    """Write a picture in the form that the file's name ends in; MuvaError where that cannot be."""
    try:
        picture.save(sheet)
    except (OSError, ValueError) as error:
        raise MuvaError(
            f"The sheet {sheet} cannot be written ({error}): expected a name that ends in .png or "
            ".jpg, in a folder that is there"
        ) from error
