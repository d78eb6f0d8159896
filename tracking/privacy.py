"""Whether pictures of people go to MLflow: as they are, blurred, or not at all.

`MUVA_PEOPLE` says so for a command and the jobs that it submits. What has been written stays.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

from PIL import Image

from muva.errors import SettingsError

VARIABLE = "MUVA_PEOPLE"
People = Literal["shown", "blurred", "hidden"]
_MOSAIC = (6, 12)
"""Width and height that are left of a blurred person: clothes' colours, no face and no writing."""


def people() -> People:
    """What the environment asks for. Raises SettingsError for a word that means nothing."""
    asked = os.environ.get(VARIABLE) or "shown"
    for known in get_args(People):
        if asked == known:
            return known
    raise SettingsError(f"{VARIABLE}={asked}: expected one of {', '.join(get_args(People))}")


def fit_to_show(image: Image.Image) -> Image.Image:
    """A person's image as it may be shown, of the same size."""
    if people() == "shown":
        return image
    small = image.resize(_MOSAIC, Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)
