"""Whether pictures of people are logged to MLflow unchanged, blurred, or not at all.

`MUVA_PEOPLE` sets it for a command and the jobs that it submits. Pictures already logged stay.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

from PIL import Image

from muva.errors import SettingsError

VARIABLE = "MUVA_PEOPLE"
People = Literal["shown", "blurred", "hidden"]
_MOSAIC = (6, 12)
"""Width and height of a blurred person: clothing colours stay visible, faces and text do not."""


def people() -> People:
    """The value of `MUVA_PEOPLE`.

    Raises:
        SettingsError: the value is unknown.
    """
    asked = os.environ.get(VARIABLE) or "shown"
    for known in get_args(People):
        if asked == known:
            return known
    raise SettingsError(f"{VARIABLE}={asked}: expected one of {', '.join(get_args(People))}")


def fit_to_show(image: Image.Image) -> Image.Image:
    """A person's image as `MUVA_PEOPLE` allows it to be shown, at the same size."""
    if people() == "shown":
        return image
    small = image.resize(_MOSAIC, Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)
