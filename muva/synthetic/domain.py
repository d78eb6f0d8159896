"""The named camera networks: what people wear, the light, the scene, and the cameras.

Two of them are only for pre-training; four form the benchmark; two look like real cameras.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from muva.errors import MuvaError
from muva.synthetic.palette import RGB

RENDERER_VERSION = 1
"""Incremented whenever an image changes, so that data sets of different versions are distinct."""

Range = tuple[float, float]
"""Minimum and maximum; each camera or image draws its own value in between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wardrobe:
    """What people wear; a garment that is listed twice is twice as frequent."""

    tops: tuple[str, ...]
    bottoms: tuple[str, ...]
    top_colours: tuple[str, ...]
    bottom_colours: tuple[str, ...]
    bags: dict[str, float]
    """Share of people with each kind of bag; the others carry none."""
    caps: float = 0.15
    """Share of people with a cap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lighting:
    """The light as RGB; with 1, a white surface is just white."""

    ambient: RGB
    sun: RGB
    """The sun, or the lamps."""
    sun_elevation_deg: Range


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Camera heights and distances of the people, in metres."""

    height_m: Range
    distance_m: Range


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What is behind the people (`ground.py`, `backdrop.py`)."""

    ground: str
    backdrop: str
    backdrop_distance_m: Range


@dataclass(frozen=True, kw_only=True, slots=True)
class Imaging:
    """Properties of camera and codec. Pixels refer to a crop 256 pixels high."""

    gain: RGB
    saturation: float
    gamma: float
    native_height_px: Range
    """Height of the crop in the camera's image; if below 256, the crop is upscaled."""
    blur_px: Range
    """Standard deviation of the lens blur."""
    noise: Range
    """Standard deviation of the noise, in levels of 0..255."""
    jpeg_quality: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One camera network."""

    name: str
    summary: str
    wardrobe: Wardrobe
    light: Lighting
    view: View
    scene: Scene
    sensor: Imaging
    occluded: float
    """Share of images in which something occludes the person."""
    cameras: int = 4
    open_world: bool = False
    """Whether it is a network of `world`, with its fabrics, places and optics."""
    typical: bool = False
    """Whether those optics are of typical cameras only, not of any."""


_MALL = Domain(
    name="syn-mall",
    summary="a shopping mall: warm lamps, tiles, shop fronts, sharp cameras",
    wardrobe=Wardrobe(
        tops=("t-shirt", "shirt", "hoodie", "sweater", "blazer"),
        bottoms=("jeans", "trousers", "skirt", "leggings", "dress"),
        top_colours=(
            *("black", "white", "grey", "navy", "red"),
            *("pink", "beige", "teal", "purple", "light blue"),
        ),
        bottom_colours=("denim", "black", "dark grey", "beige", "white", "navy"),
        bags={"backpack": 0.3, "handbag": 0.3},
    ),
    light=Lighting(ambient=(0.74, 0.72, 0.68), sun=(0.45, 0.43, 0.39), sun_elevation_deg=(65, 88)),
    view=View(height_m=(2.8, 3.4), distance_m=(4, 8)),
    scene=Scene(ground="tiles", backdrop="shops", backdrop_distance_m=(9, 13)),
    sensor=Imaging(
        gain=(1.04, 1.0, 0.90),
        saturation=0.95,
        gamma=1.0,
        native_height_px=(200, 256),
        blur_px=(0, 0.6),
        noise=(2, 5),
        jpeg_quality=(60, 85),
    ),
    occluded=0.15,
)

_CAMPUS = Domain(
    name="syn-campus",
    summary="a campus in summer: sun on lawns, light clothes, many backpacks, low cameras",
    wardrobe=Wardrobe(
        tops=("t-shirt", "t-shirt", "tank top", "shirt"),
        bottoms=("shorts", "shorts", "jeans", "skirt", "dress", "leggings"),
        top_colours=(
            *("white", "yellow", "orange", "light blue", "red", "green"),
            *("pink", "teal", "grey", "blue", "black"),
        ),
        bottom_colours=("denim", "khaki", "beige", "white", "black", "light blue", "navy"),
        bags={"backpack": 0.6, "handbag": 0.1},
    ),
    light=Lighting(ambient=(0.50, 0.55, 0.64), sun=(0.85, 0.80, 0.68), sun_elevation_deg=(30, 60)),
    view=View(height_m=(1.6, 2.6), distance_m=(4, 10)),
    scene=Scene(ground="grass", backdrop="trees", backdrop_distance_m=(14, 22)),
    sensor=Imaging(
        gain=(1.0, 1.02, 0.97),
        saturation=0.98,
        gamma=0.95,
        native_height_px=(180, 256),
        blur_px=(0, 0.7),
        noise=(1, 4),
        jpeg_quality=(55, 85),
    ),
    occluded=0.2,
)

_BOULEVARD = Domain(
    name="syn-boulevard",
    summary="a street in winter: grey sky, dark coats, high and distant cameras, soft pictures",
    wardrobe=Wardrobe(
        tops=("coat", "coat", "puffer jacket", "hoodie", "jacket"),
        bottoms=("trousers", "jeans", "leggings", "jeans"),
        top_colours=(
            *("black", "black", "dark grey", "navy", "olive"),
            *("brown", "dark red", "beige", "grey", "purple"),
        ),
        bottom_colours=("black", "dark grey", "denim", "navy", "brown"),
        bags={"backpack": 0.3, "handbag": 0.25},
    ),
    light=Lighting(ambient=(0.86, 0.90, 0.98), sun=(0.20, 0.20, 0.21), sun_elevation_deg=(40, 80)),
    view=View(height_m=(3.5, 5.5), distance_m=(6, 12)),
    scene=Scene(ground="asphalt", backdrop="street", backdrop_distance_m=(12, 18)),
    sensor=Imaging(
        gain=(0.94, 1.0, 1.08),
        saturation=0.75,
        gamma=1.05,
        native_height_px=(96, 160),
        blur_px=(0.3, 1.2),
        noise=(3, 7),
        jpeg_quality=(35, 65),
    ),
    occluded=0.3,
)

_STATION = Domain(
    name="syn-station",
    summary="a railway station at night: few yellow lamps, noise, blur, small crops",
    wardrobe=Wardrobe(
        tops=("jacket", "hoodie", "shirt", "coat", "blazer", "t-shirt"),
        bottoms=("jeans", "trousers", "skirt", "jeans"),
        top_colours=(
            *("black", "grey", "navy", "white", "red"),
            *("green", "brown", "blue", "khaki"),
        ),
        bottom_colours=("black", "denim", "navy", "khaki", "dark grey"),
        bags={"backpack": 0.3, "handbag": 0.3},
    ),
    light=Lighting(ambient=(0.42, 0.40, 0.36), sun=(0.75, 0.62, 0.42), sun_elevation_deg=(45, 85)),
    view=View(height_m=(3.0, 5.0), distance_m=(5, 10)),
    scene=Scene(ground="concrete", backdrop="station", backdrop_distance_m=(8, 14)),
    sensor=Imaging(
        gain=(1.10, 0.98, 0.78),
        saturation=0.85,
        gamma=0.85,
        native_height_px=(84, 150),
        blur_px=(0.3, 1.2),
        noise=(6, 13),
        jpeg_quality=(35, 70),
    ),
    occluded=0.25,
)

_HARBOUR = Domain(
    name="syn-harbour",
    summary="a harbour front on an autumn evening: low orange sun, long shadows, rainproofs",
    wardrobe=Wardrobe(
        tops=("jacket", "jacket", "sweater", "hoodie", "shirt", "puffer jacket"),
        bottoms=("jeans", "trousers", "trousers", "shorts", "leggings"),
        top_colours=(
            *("yellow", "navy", "white", "red", "teal"),
            *("olive", "orange", "blue", "grey", "dark red"),
        ),
        bottom_colours=("navy", "khaki", "denim", "dark grey", "white", "olive"),
        bags={"backpack": 0.35, "handbag": 0.15},
        caps=0.3,
    ),
    light=Lighting(ambient=(0.54, 0.56, 0.66), sun=(1.05, 0.78, 0.50), sun_elevation_deg=(12, 28)),
    view=View(height_m=(2.2, 4.0), distance_m=(5, 11)),
    scene=Scene(ground="planks", backdrop="harbour", backdrop_distance_m=(14, 24)),
    sensor=Imaging(
        gain=(1.05, 0.99, 0.93),
        saturation=1.08,
        gamma=1.02,
        native_height_px=(120, 200),
        blur_px=(0.2, 0.9),
        noise=(3, 7),
        jpeg_quality=(30, 60),
    ),
    occluded=0.25,
)

_AIRPORT = Domain(
    name="syn-airport",
    summary="a departure hall: cold flat light, business dress, suitcases, steep washed-out views",
    wardrobe=Wardrobe(
        tops=("blazer", "shirt", "sweater", "coat", "t-shirt", "blazer"),
        bottoms=("trousers", "trousers", "jeans", "skirt", "dress"),
        top_colours=(
            *("black", "navy", "white", "light blue", "beige"),
            *("dark grey", "pink", "brown", "green"),
        ),
        bottom_colours=("black", "navy", "dark grey", "beige", "denim"),
        bags={"suitcase": 0.35, "backpack": 0.2, "handbag": 0.2},
        caps=0.08,
    ),
    light=Lighting(ambient=(0.80, 0.88, 0.90), sun=(0.34, 0.37, 0.38), sun_elevation_deg=(50, 85)),
    view=View(height_m=(4.2, 6.0), distance_m=(4, 8)),
    scene=Scene(ground="terrazzo", backdrop="glass", backdrop_distance_m=(9, 14)),
    sensor=Imaging(
        gain=(0.98, 1.06, 1.04),
        saturation=0.62,
        gamma=0.80,
        native_height_px=(110, 180),
        blur_px=(0.2, 0.9),
        noise=(1, 3),
        jpeg_quality=(18, 40),
    ),
    occluded=0.3,
)

ANY_SENSOR = Imaging(
    gain=(1, 1, 1),
    saturation=1,
    gamma=1,
    native_height_px=(256, 256),
    blur_px=(0, 0),
    noise=(0, 0),
    jpeg_quality=(90, 95),
)
"""Networks of the open world have `optics` instead."""

_PLAZA = Domain(
    name="syn-plaza",
    summary="a square between buildings: daylight, parked bicycles, people of all seasons",
    wardrobe=Wardrobe(
        tops=("t-shirt", "t-shirt", "shirt", "hoodie", "jacket", "sweater"),
        bottoms=("jeans", "jeans", "trousers", "shorts", "skirt", "dress", "leggings"),
        top_colours=(
            *("black", "black", "white", "white", "grey", "navy", "dark grey"),
            *("red", "light blue", "pink", "green", "purple", "yellow"),
        ),
        bottom_colours=("black", "dark grey", "navy", "denim", "beige", "khaki", "white"),
        bags={"backpack": 0.3, "handbag": 0.15, "shoulder bag": 0.15},
        caps=0.12,
    ),
    light=Lighting(ambient=(0.78, 0.80, 0.82), sun=(0.42, 0.41, 0.38), sun_elevation_deg=(30, 75)),
    view=View(height_m=(2.2, 4.2), distance_m=(4, 10)),
    scene=Scene(ground="", backdrop="outdoors", backdrop_distance_m=(10, 22)),
    sensor=ANY_SENSOR,
    occluded=0.2,
    open_world=True,
    typical=True,
)

_CONCOURSE = Domain(
    name="syn-concourse",
    summary="a concourse: lamps, shelves and shop windows, coats and handbags",
    wardrobe=Wardrobe(
        tops=("coat", "jacket", "puffer jacket", "sweater", "shirt", "blazer"),
        bottoms=("jeans", "trousers", "trousers", "leggings", "skirt", "dress"),
        top_colours=(
            *("black", "black", "dark grey", "navy", "brown", "beige", "grey"),
            *("dark red", "olive", "white", "teal", "blue", "orange"),
        ),
        bottom_colours=("black", "black", "dark grey", "denim", "navy", "brown"),
        bags={"handbag": 0.3, "backpack": 0.2, "shoulder bag": 0.1, "suitcase": 0.03},
        caps=0.15,
    ),
    light=Lighting(ambient=(0.80, 0.78, 0.74), sun=(0.50, 0.48, 0.45), sun_elevation_deg=(60, 88)),
    view=View(height_m=(2.0, 3.2), distance_m=(4, 9)),
    scene=Scene(ground="", backdrop="indoors", backdrop_distance_m=(8, 14)),
    sensor=ANY_SENSOR,
    occluded=0.25,
    open_world=True,
    typical=True,
)

PRETRAINING: tuple[str, ...] = (_MALL.name, _CAMPUS.name)
"""The tiny grounding expert has seen variants of these (`VARIED`). No benchmark trains on them."""

BENCHMARK: tuple[str, ...] = (_BOULEVARD.name, _STATION.name, _HARBOUR.name, _AIRPORT.name)

REAL_LOOK: tuple[str, ...] = (_PLAZA.name, _CONCOURSE.name)
"""Domains whose pictures are like those of real cameras, for tests only; nothing is trained on
them. They are made as networks of the open world are, from names of their own."""

DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (_MALL, _CAMPUS, _BOULEVARD, _STATION, _HARBOUR, _AIRPORT, _PLAZA, _CONCOURSE)
}


def _varied(domain: Domain) -> Domain:
    """The same clothes and scene, under many cameras anywhere, with hardly any degradation."""
    return replace(
        domain,
        name=f"{domain.name}-varied",
        summary=f"{domain.summary.split(':')[0]}, under cameras at any height and in any sun",
        wardrobe=replace(domain.wardrobe, caps=0.3),
        light=replace(domain.light, sun_elevation_deg=(12, 88)),
        view=View(height_m=(1.4, 6.0), distance_m=(4, 12)),
        sensor=Imaging(
            gain=(1.0, 1.0, 1.0),
            saturation=1.0,
            gamma=1.0,
            native_height_px=(256, 256),
            blur_px=(0, 0),
            noise=(0, 1),
            jpeg_quality=(90, 96),
        ),
        occluded=0.35,
        cameras=24,
    )


VARIED: dict[str, Domain] = {
    domain.name: domain for domain in (_varied(DOMAINS[name]) for name in PRETRAINING)
}
"""Variants of the pre-training domains for models that must recognise people from any viewpoint.
They are not data sets."""

_BY_NAME = DOMAINS | VARIED


def find_domain(name: str) -> Domain:
    """The domain of this name; MuvaError if there is none."""
    if name.startswith("syn-world"):
        from muva.synthetic.world import is_world, network

        if is_world(name):
            return network(name)
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(DOMAINS)
        raise MuvaError(f"synthetic domain {name!r} is unknown; expected one of {known}") from None
