"""Surfaces: colour and body part of every point, from its position on the template."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muva.config import PARTS
from muva.synthetic.arrays import Flags, Floats, Indices, Levels
from muva.synthetic.body import Landmarks
from muva.synthetic.clothes import TOPS
from muva.synthetic.fabric import Fabric, look_up
from muva.synthetic.identity import Colour, Identity
from muva.synthetic.mesh import Material

NO_PART = 0
"""Value of the part map for background, bags and occluders."""

PART_VALUES: dict[str, int] = {part: value for value, part in enumerate(PARTS, start=1)}
"""Part -> value in the part map."""

_HEAD, _UPPER_BODY, _LEGS = (PART_VALUES[part] for part in ("head", "upper_body", "legs"))

# The part of skin depends on its position.
_PART_OF_MATERIAL: dict[Material, int] = {
    Material.SKIN: NO_PART,
    Material.TOP: _UPPER_BODY,
    Material.TROUSERS: _LEGS,
    Material.SHOE: _LEGS,
    Material.HAIR: _HEAD,
    Material.BAG: NO_PART,
    Material.SKIRT: _LEGS,
    Material.CAP: _HEAD,
    Material.UMBRELLA: NO_PART,
}
_PART_TABLE = np.array([_PART_OF_MATERIAL[material] for material in Material], np.uint8)

_EYE_COLOUR = (40, 30, 28)
_STRAP_X_M, _STRAP_HALF_WIDTH_M = 0.105, 0.02


@dataclass(frozen=True, kw_only=True)
class Points:
    """P points on the surface of a figure."""

    material: Indices
    normal: Floats
    """(P, 3) in the world, of about unit length."""
    canonical: Floats
    """(P, 3) on the template."""
    sleeve: Floats
    arm: Floats


def surface_parts(points: Points, marks: Landmarks) -> Levels:
    """(P,) values of the part map."""
    parts = _PART_TABLE[points.material]
    skin = points.material == Material.SKIN
    height = points.canonical[skin, 2]
    parts[skin] = np.where(
        points.arm[skin] > 0.5,
        _UPPER_BODY,
        np.where(
            height > marks.neck + 0.01,
            _HEAD,
            np.where(height < marks.hip + 0.03, _LEGS, _UPPER_BODY),
        ),
    )
    return parts


def surface_colours(points: Points, person: Identity, marks: Landmarks) -> Floats:
    """(P, 3) RGB albedo, 0 to 255."""
    shades = person.colours.shades
    colours = np.zeros((len(points.material), 3), np.float32)
    painters = {
        Material.SKIN: _skin,
        Material.TOP: _top,
        Material.TROUSERS: _trousers,
        Material.SHOE: _shoes,
        Material.HAIR: _hair,
        Material.BAG: _bag,
        Material.SKIRT: _skirt,
    }
    for material, paint in painters.items():
        chosen = points.material == material
        if chosen.any():
            colours[chosen] = paint(_select(points, chosen), person, marks)
    colours[points.material == Material.CAP] = shades["cap"]
    colours[points.material == Material.UMBRELLA] = shades["accent"]
    return colours


def _select(points: Points, chosen: Flags) -> Points:
    return Points(
        material=points.material[chosen],
        normal=points.normal[chosen],
        canonical=points.canonical[chosen],
        sleeve=points.sleeve[chosen],
        arm=points.arm[chosen],
    )


def _plain(points: Points, colour: Colour) -> Floats:
    return np.tile(np.asarray(colour, np.float32), (len(points.material), 1))


def _skin(points: Points, person: Identity, marks: Landmarks) -> Floats:
    """Skin with painted eyes, brows and mouth."""
    shades = person.colours.shades
    colours = _plain(points, shades["skin"])
    x, y, z = points.canonical.T
    face = (y < marks.face_y + 0.075) & (z > marks.neck)
    off_centre, below_crown = np.abs(x), marks.crown - z
    eyes = (np.abs(off_centre - 0.032) < 0.014) & (np.abs(below_crown - 0.108) < 0.006)
    brows = (np.abs(off_centre - 0.034) < 0.02) & (np.abs(below_crown - 0.088) < 0.005)
    mouth = (off_centre < 0.024) & (np.abs(below_crown - 0.185) < 0.007)
    colours[face & eyes] = _EYE_COLOUR
    colours[face & brows] = shades["hair"] * 0.8
    colours[face & mouth] = shades["skin"] * (0.8, 0.55, 0.55)
    if person.beard:
        bearded = face & (below_crown > 0.165) & (z > marks.neck + 0.03) & ~mouth
        colours[bearded] = shades["hair"]
    return colours


def _top(points: Points, person: Identity, marks: Landmarks) -> Floats:
    shades = person.colours.shades
    colours = _patterned(points, person, marks)
    x, y, z = points.canonical.T
    on_trunk = points.arm < 0.5
    if person.fabric is not None:
        if TOPS[person.top].opens and person.fabric.opening_m:
            wedge = person.fabric.opening_m * (0.6 + np.clip((z - marks.hip) / 0.5, 0, 1))
            opening = on_trunk & (y < -0.02) & (np.abs(x) < wedge)
            below_neck = marks.neck + 0.02 - z[opening]
            colours[opening] = look_up(person.fabric.inner, x[opening], below_neck)
    elif TOPS[person.top].opens:
        shows_inside = person.details.open_front or person.top == "blazer"
        half_width = np.full(len(x), 0.012)
        if shows_inside:  # a wedge, widest at the neck
            half_width += 0.10 * np.clip((z - marks.hip + 0.1) / 0.5, 0, 1)
        opening = on_trunk & (y < -0.02) & (np.abs(x) < 0.6 * half_width)
        colours[opening] = shades["inner"] if shows_inside else shades["top"] * 0.55
    if person.bag == "backpack":
        near_strap = np.abs(np.abs(x) - _STRAP_X_M) < _STRAP_HALF_WIDTH_M
        straps = on_trunk & (y < 0.03) & near_strap & (z > marks.hip + 0.22)
        colours[straps] = shades["bag"] * 0.9
    elif person.bag == "shoulder bag":
        diagonal = person.bag_side * x + 0.42 * (z - marks.neck) + 0.12
        colours[on_trunk & (np.abs(diagonal) < 0.022)] = shades["bag"] * 0.8
    return colours


def _patterned(points: Points, person: Identity, marks: Landmarks) -> Floats:
    """The pattern of a top or a dress; on the sleeves, it follows the arm."""
    if person.fabric is not None:
        return _fabric(points, person.fabric, marks)
    details = person.details
    colours = _plain(points, person.colours.shades["top"])
    accent = person.colours.shades["accent"].astype(np.float32)
    x, y, z = points.canonical.T
    on_arm = points.arm > 0.5
    down = np.where(on_arm, 0.55 * points.sleeve, -z) * details.stripes_per_m
    across = np.where(on_arm, 2 * y, x) * details.stripes_per_m
    match person.pattern:
        case "horizontal stripes":
            colours[down % 1 < details.stripe_duty] = accent
        case "vertical stripes":
            colours[across % 1 < details.stripe_duty] = accent
        case "checks":
            threads = (down % 1 < 0.5).astype(np.float32) + (across % 1 < 0.5)
            share = 0.5 * threads[:, None]
            colours = colours * (1 - share) + accent * share
        case "two-tone":
            colours[on_arm | (z > (marks.neck + marks.hip) / 2 + 0.05)] = accent
        case "logo":
            shift_x, shift_z = details.logo_shift_m
            from_centre = ((x - shift_x) / 0.085) ** 2 + (
                (z - (marks.neck - 0.17 + shift_z)) / 0.055
            ) ** 2
            colours[~on_arm & (y < 0) & (from_centre < 1)] = accent
    return colours


def _fabric(points: Points, fabric: Fabric, marks: Landmarks) -> Floats:
    x, y, z = points.canonical.T
    below_neck = marks.neck + 0.02 - z
    in_front = (y < 0)[:, None]
    trunk = np.where(
        in_front, look_up(fabric.front, x, below_neck), look_up(fabric.back, -x, below_neck)
    )
    sleeves = look_up(fabric.sleeves, 2 * y, 0.55 * points.sleeve)
    return np.where((points.arm > 0.5)[:, None], sleeves, trunk)


def _lower(points: Points, person: Identity, marks: Landmarks) -> Floats:
    if person.fabric is None:
        return _plain(points, person.colours.shades["bottom"])
    x, _, z = points.canonical.T
    return look_up(person.fabric.lower, x, marks.hip + 0.14 - z)


def _trousers(points: Points, person: Identity, marks: Landmarks) -> Floats:
    colours = _lower(points, person, marks)
    if person.bottom == "jeans":  # faded on the thighs
        _, y, z = points.canonical.T
        fading = 0.18 * np.exp(-(((z - marks.knee - 0.2) / 0.13) ** 2)) * (y < 0)
        colours *= (1 + fading)[:, None]
    return colours


def _skirt(points: Points, person: Identity, marks: Landmarks) -> Floats:
    if person.in_one_piece:
        return _patterned(points, person, marks)
    return _lower(points, person, marks)


def _shoes(points: Points, person: Identity, marks: Landmarks) -> Floats:
    shade = person.colours.shades["shoes"]
    colours = _plain(points, shade)
    if person.boots_m:
        return colours
    sole = points.canonical[:, 2] < marks.sole + 0.022
    colours[sole] = shade * 0.5 + 60 if shade.mean() < 150 else shade * 0.8
    return colours


def _hair(points: Points, person: Identity, marks: Landmarks) -> Floats:
    x, y, z = points.canonical.T
    strands = 1 + 0.07 * np.sin(330 * x + 90 * y + 3 * np.sin(40 * z))
    return _plain(points, person.colours.shades["hair"]) * strands[:, None]


def _bag(points: Points, person: Identity, marks: Landmarks) -> Floats:
    shade = person.colours.shades["bag"]
    colours = _plain(points, shade)
    seam = np.abs(points.canonical[:, 2] + 0.2) < 0.06
    colours[seam] = shade * 0.6
    return colours
