"""One image of one person: combines person, place, passers-by and sensor.

Everything random in an image is drawn from its own key (domain, pid, camid, index), so the image is
the same in any order and in any process. The size of the image only affects its level of detail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muva.config import PARTS
from muva.data.records import Box
from muva.errors import MuvaError
from muva.synthetic.arrays import Floats, Levels
from muva.synthetic.caption import caption
from muva.synthetic.crowd import occluder, passer_by_behind, people_behind
from muva.synthetic.cutout import cut_out, over
from muva.synthetic.domain import find_domain
from muva.synthetic.figure import draw_walk
from muva.synthetic.identity import identity
from muva.synthetic.props import pushed
from muva.synthetic.seeds import generator
from muva.synthetic.site import site
from muva.synthetic.surface import NO_PART, PART_VALUES

TRACKS = 2
"""How often a person passes each camera: even images show one pass, odd images another."""

_MIN_SIZE_PX = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticImage:
    """An image with all of its labels."""

    image: Levels
    """(H, W, 3) RGB."""
    part_map: Levels
    """(H, W) of the visible parts: 0 none, 1 head, 2 upper body, 3 legs; bags are not a part."""
    boxes: dict[str, Box | None]
    """Part -> smallest box around it in the part map; None if it is out of sight."""
    caption: str
    pid: int
    camid: int
    track: int
    """0 or 1; images of one track show the same walk."""


def render(
    domain: str, *, pid: int, camid: int, index: int, height: int, width: int
) -> SyntheticImage:
    """Image `index` (from 0) of person `pid` (from 1) under camera `camid` (from 1)."""
    _check(domain, pid=pid, camid=camid, index=index, height=height, width=width)
    person, place = identity(domain, pid), site(domain, camid)
    track = index % TRACKS
    walk = draw_walk(person, generator("walk", domain, pid, camid, track))

    rng = generator("moment", domain, pid, camid, index)
    open_world = find_domain(domain).open_world
    cutout = cut_out(person, walk, place, rng, height=height, width=width, loosely=open_world)
    light = place.background(cutout.window, cutout.shadow, height=height, width=width)
    part_map = cutout.part_map

    rng = generator("surroundings", domain, pid, camid, index)
    if open_world:
        for layer in people_behind(domain, camid, cutout.window, rng, height=height, width=width):
            light = over(light, layer)
    else:
        behind = passer_by_behind(domain, camid, rng, height=height, width=width)
        if behind is not None:
            light = over(light, behind)
    light = over(light, cutout.layer)
    if rng.random() < find_domain(domain).occluded:
        in_front = occluder(domain, camid, rng, height=height, width=width)
        light, part_map = over(light, in_front), _hidden(part_map, in_front)

    if walk.pushes:
        thing = pushed(place.light, generator("pushed", domain, pid), height=height, width=width)
        light, part_map = over(light, thing), _hidden(part_map, thing)

    rng = generator("sensor", domain, pid, camid, index)
    return SyntheticImage(
        image=place.expose(light, rng),
        part_map=part_map,
        boxes=part_boxes(part_map),
        caption=caption(person),
        pid=pid,
        camid=camid,
        track=track,
    )


def part_boxes(part_map: Levels) -> dict[str, Box | None]:
    """The smallest box around each part, as fractions; None if the part has no pixels."""
    height, width = part_map.shape
    boxes: dict[str, Box | None] = {}
    for part in PARTS:
        is_part = part_map == PART_VALUES[part]
        rows, columns = np.flatnonzero(is_part.any(axis=1)), np.flatnonzero(is_part.any(axis=0))
        if len(rows) == 0:
            boxes[part] = None
        else:
            boxes[part] = (
                float(columns[0] / width),
                float(rows[0] / height),
                float((columns[-1] + 1) / width),
                float((rows[-1] + 1) / height),
            )
    return boxes


def _hidden(part_map: Levels, in_front: Floats) -> Levels:
    """The part map (H, W) without what a layer (H, W, 4) covers."""
    return np.where(in_front[..., 3] > 0.5, NO_PART, part_map).astype(np.uint8)


def _check(domain: str, *, pid: int, camid: int, index: int, height: int, width: int) -> None:
    find_domain(domain)
    if pid < 1 or camid < 1 or index < 0:
        raise MuvaError(
            f"synthetic image of {domain}: expected pid and camid from 1 and index from 0, "
            f"found pid {pid}, camid {camid}, index {index}"
        )
    if min(height, width) < _MIN_SIZE_PX:
        raise MuvaError(
            f"synthetic image of {domain}: expected a height and width of at least "
            f"{_MIN_SIZE_PX} pixels, found {height} x {width}"
        )
