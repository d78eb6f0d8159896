"""Synthetic people: camera networks rendered from a seed, with exact labels.

An image is made in these steps: `identity` (who) and `site` (where) -> `figure` (`gait`, `body`,
`clothes`, `hair`, `bags`) -> `cutout` (`camera`, `raster`, `surface`, `light`) -> `crowd` ->
`sensor`. `render` combines them, `people` makes data sets, and `domain` defines the camera
networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muva.lazy_names import names_on_first_use
from muva.synthetic.domain import (
    BENCHMARK,
    DOMAINS,
    PRETRAINING,
    REAL_LOOK,
    RENDERER_VERSION,
    VARIED,
    Domain,
)

if TYPE_CHECKING:
    from muva.synthetic.people import image_count, networks_in, synthetic_records, test_records
    from muva.synthetic.rendering import SyntheticImage, render

__all__ = [
    "BENCHMARK",
    "DOMAINS",
    "PRETRAINING",
    "REAL_LOOK",
    "RENDERER_VERSION",
    "VARIED",
    "Domain",
    "SyntheticImage",
    "image_count",
    "is_synthetic",
    "networks_in",
    "render",
    "renderer_version",
    "synthetic_records",
    "test_records",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "SyntheticImage": "rendering",
        "image_count": "people",
        "networks_in": "people",
        "render": "rendering",
        "synthetic_records": "people",
        "test_records": "people",
    },
)


def is_synthetic(name: str) -> bool:
    """Whether a data set of this name is rendered: a domain, or networks of the open world."""
    return name in DOMAINS or bool(_networks_of(name))


def renderer_version(name: str) -> int:
    """The version of the images of a synthetic data set, which is part of its address."""
    if not _networks_of(name):
        return RENDERER_VERSION
    from muva.synthetic.world import WORLD_VERSION

    return WORLD_VERSION


def _networks_of(name: str) -> tuple[str, ...]:
    if not name.startswith("syn-world-"):
        return ()  # without the imports of the open world
    from muva.synthetic.world import networks_of

    return networks_of(name)
