"""Synthetic people: camera networks rendered from a seed, with exact labels.

An image is made in these steps: `identity` (who) and `site` (where) -> `figure` (`gait`, `body`,
`clothes`, `hair`, `bags`) -> `cutout` (`camera`, `raster`, `surface`, `light`) -> `crowd` ->
`sensor`. `render` combines them, `people` makes data sets, and `domain` defines the camera
networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muva.lazy_names import names_on_first_use
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

__getattr__ = names_on_first_use(
    __name__,
    {
        "SyntheticImage": "rendering",
        "render": "rendering",
        "synthetic_records": "people",
        "test_records": "people",
    },
)
