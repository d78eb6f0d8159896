"""Synthetic people: camera networks rendered from a seed, with exact labels.

An image is made in these steps: `identity` (who) and `site` (where) -> `figure` (`gait`, `body`,
`clothes`, `hair`, `bags`) -> `cutout` (`camera`, `raster`, `surface`, `light`) -> `crowd` ->
`sensor`. `render` combines them, `people` makes data sets, and `domain` defines the camera
networks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from muva.synthetic.domain import BENCHMARK, DOMAINS, PRETRAINING, RENDERER_VERSION, VARIED, Domain

if TYPE_CHECKING:
    from muva.synthetic.people import synthetic_records, test_records
    from muva.synthetic.rendering import SyntheticImage, render

__all__ = [
    "BENCHMARK",
    "DOMAINS",
    "PRETRAINING",
    "RENDERER_VERSION",
    "VARIED",
    "Domain",
    "SyntheticImage",
    "render",
    "synthetic_records",
    "test_records",
]

_ON_FIRST_USE = {
    "SyntheticImage": "rendering",
    "render": "rendering",
    "synthetic_records": "people",
    "test_records": "people",
}
"""Name -> the module of this package that has it; none may be called like a module."""


def __getattr__(name: str) -> object:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
