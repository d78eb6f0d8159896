"""Synthetic people: camera networks rendered from a seed, with exact labels.

An image is made in these steps: `identity` (who) and `site` (where) -> `figure` (`gait`, `body`,
`clothes`, `hair`, `bags`) -> `cutout` (`camera`, `raster`, `surface`, `light`) -> `crowd` ->
`sensor`. `render` combines them, `people` makes data sets, and `domain` defines the camera
networks.
"""

from __future__ import annotations

from muva.synthetic.domain import BENCHMARK, DOMAINS, PRETRAINING, VARIED, Domain
from muva.synthetic.people import synthetic_records, test_records
from muva.synthetic.render import RENDERER_VERSION, SyntheticImage, render

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
