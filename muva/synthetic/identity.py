"""Identities: the appearance of a person, determined by (domain, pid) alone.

Some people are *doubles*: they wear exactly the colours of the previous person, on another body and
in another cut. Colour alone cannot distinguish a double from the original.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats
from muva.synthetic.body import Phenotype, shipped_bodies
from muva.synthetic.domain import Domain, Wardrobe, find_domain
from muva.synthetic.fabric import Fabric, draw_fabric
from muva.synthetic.palette import CLOTH, HAIR, RGB, SKIN
from muva.synthetic.seeds import generator

Colour = Floats
"""(3,) RGB albedo, 0 to 255."""

DOUBLE_SHARE = 0.35
"""Share of the pairs (1, 2), (3, 4), ... in which the second person is a double of the first."""

_CHANGED_ATTRIBUTES = 2
"""How many of garment, pattern, bag, hair and cap differ in a double, besides the body."""

_WOMENS_BOTTOMS = ("skirt", "dress", "leggings")
_PLAIN_TOPS = ("coat", "blazer")
_PATTERNS = ("solid",) * 3 + (
    "horizontal stripes",
    "checks",
    "logo",
    "two-tone",
    "vertical stripes",
)
_PLAIN_PATTERNS = ("solid", "solid", "checks")
_BAG_COLOURS = ("black", "brown", "navy", "red", "grey", "teal", "olive")
_SHOE_COLOURS = ("black", "white", "brown", "grey", "red")
_CAP_COLOURS = ("black", "navy", "red", "beige")
_MENS_HATS = ("cap", "cap", "cap", "beanie", "beanie", "brimmed hat", "hood")
_WOMENS_HATS = ("cap", "beanie", "brimmed hat", "hood", "headscarf", "headscarf")
_INNER_COLOURS = ("white", "grey", "black", "light blue")
_WOMENS_HAIR = ("long", "long", "ponytail", "bun", "short")
_MENS_HAIR = ("short",) * 7 + ("bald",) * 2 + ("long",)
_HAIR_SHARES = {"black": 0.33, "dark brown": 0.29, "brown": 0.2, "blond": 0.13, "red": 0.06}
_DARK_SKIN_HAIR_SHARES = {"black": 0.33, "dark brown": 0.29, "brown": 0.06}
_DARK_SKIN = 3
"""Skin tones from this index on use the second table of hair colours."""


@dataclass(frozen=True, kw_only=True)
class Colours:
    """The colours of a person: their names, for captions, and their exact shades."""

    names: dict[str, str]
    """For `top`, `accent`, `bottom`, `bag`, `shoes` and `hair`."""
    shades: dict[str, Colour]
    """For the same, and for `skin`, `cap` and `inner` (what an open jacket shows)."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """Details that distinguish two people in the same clothes on close inspection."""

    stripes_per_m: float
    stripe_duty: float
    """Share of a stripe's period in the accent colour."""
    hem_shift_m: float
    skirt_length: float
    """0 (short) to 1 (long); also for coats."""
    flare_m: float
    open_front: bool
    logo_shift_m: tuple[float, float]
    fold_phases: Floats
    """(8,) radians: positions of the folds."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A person: body, clothes, hair and bag."""

    body: int
    """Row in the table of bodies."""
    top: str
    bottom: str
    pattern: str
    bag: str
    """`none` or a kind of bag."""
    bag_side: int
    """1 left, -1 right."""
    hair_style: str
    cap: bool
    colours: Colours
    details: Details
    fabric: Fabric | None = None
    """In the open world, instead of `pattern`. The following are of the open world too."""
    headwear: str = ""
    """`` for none, or a kind of hat, which `cap` then means."""
    beard: bool = False
    boots_m: float = 0.0
    """Height of the shoes above the ankle."""

    @property
    def female(self) -> bool:
        """Whether the body is a female shape."""
        return shipped_bodies().is_female(self.body)

    @property
    def phenotype(self) -> Phenotype:
        """Stature, age and weight of the body."""
        return shipped_bodies().phenotypes[self.body]

    @property
    def in_one_piece(self) -> bool:
        """Whether the person wears a dress."""
        return self.bottom == "dress"

    @property
    def in_skirts(self) -> bool:
        """Whether the person wears a skirt or a dress."""
        return self.bottom in ("skirt", "dress")

    @property
    def carrying_side(self) -> int:
        """Side of the hand that carries a bag, 0 for none."""
        return self.bag_side if self.bag in ("handbag", "suitcase") else 0


def identity(domain: str, pid: int) -> Identity:
    """Person `pid` (from 1) of a domain."""
    cached = _in_open_world if find_domain(domain).open_world else _in_domain
    return cached(domain, pid)


@lru_cache(maxsize=128)  # a fabric takes 0.7 MB
def _in_open_world(domain: str, pid: int) -> Identity:
    settings = find_domain(domain)
    person = _in_domain(domain, pid)
    person = _of_the_world(person, settings, generator("world's person", domain, pid))
    model = double_of(domain, pid)
    if model is not None and person.pattern == identity(domain, model).pattern:
        fabric = identity(domain, model).fabric  # the same fabric, and other cuts
        return replace(person, fabric=fabric)
    return _in_fabric(person, settings, generator("fabric", domain, pid))


@lru_cache(maxsize=4096)
def _in_domain(domain: str, pid: int) -> Identity:
    settings = find_domain(domain)
    model = double_of(domain, pid)
    if model is None:
        return _draw(settings, generator("identity", domain, pid))
    return _double(_in_domain(domain, model), settings, generator("identity", domain, pid))


def double_of(domain: str, pid: int) -> int | None:
    """The pid whose colours person `pid` wears; None for most people."""
    if pid % 2 or generator("double", domain, pid).random() >= DOUBLE_SHARE:
        return None
    return pid - 1


@lru_cache(maxsize=64)
def stranger(domain: str, camid: int, number: int) -> Identity:
    """A passer-by, who has no pid."""
    settings, rng = find_domain(domain), generator("stranger", domain, camid, number)
    person = _draw(settings, rng)
    if not settings.open_world:
        return person
    return _in_fabric(_of_the_world(person, settings, rng), settings, rng)


def _of_the_world(person: Identity, domain: Domain, rng: Generator) -> Identity:
    """The same person with hats, hair, beards and shoes that only the open world has."""
    style = person.hair_style
    hats = _WOMENS_HATS if person.female else _MENS_HATS
    if person.female and style in ("long", "short") and rng.random() < 0.4:
        style = "bob"
    if person.colours.names["hair"] in ("black", "dark brown") and rng.random() < 0.05:
        style = "afro"
    hat = CLOTH[_choose(rng, domain.wardrobe.top_colours)]
    colours = replace(person.colours, shades=person.colours.shades | {"cap": _shade(rng, hat)})
    grown = not person.female and person.phenotype.age_years >= 20
    return replace(
        person,
        hair_style=style,
        colours=colours,
        headwear=_choose(rng, hats) if person.cap else "",
        beard=grown and bool(rng.random() < 0.2),
        boots_m=rng.uniform(0.05, 0.28) if rng.random() < 0.12 else 0.0,
    )


def _in_fabric(person: Identity, domain: Domain, rng: Generator) -> Identity:
    shades = person.colours.shades
    others = rng.choice(domain.wardrobe.top_colours, int(rng.integers(1, 4)))
    accents = [
        (person.colours.names["accent"], shades["accent"]),
        *((str(name), _shade(rng, CLOTH[str(name)])) for name in others),
    ]
    fabric = draw_fabric(shades["top"], accents, shades["bottom"], rng)
    return replace(person, fabric=fabric)


def _draw(domain: Domain, rng: Generator) -> Identity:
    wardrobe, bodies = domain.wardrobe, shipped_bodies()
    body = int(rng.integers(len(bodies.rest)))
    female, age = bodies.is_female(body), bodies.phenotypes[body].age_years
    top = _choose(rng, wardrobe.tops)
    bottom = _choose(rng, _bottoms(wardrobe, female))
    if bottom == "dress":
        top = "t-shirt" if "t-shirt" in wardrobe.tops else "sweater"
    pattern = _choose(rng, _patterns(top))
    return Identity(
        body=body,
        top=top,
        bottom=bottom,
        pattern=pattern,
        bag=_choose_weighted(rng, {"none": 1 - sum(wardrobe.bags.values()), **wardrobe.bags}),
        bag_side=int(rng.choice([-1, 1])),
        hair_style=_choose(rng, _hair_styles(female, age)),
        cap=bool(rng.random() < wardrobe.caps),
        colours=_draw_colours(wardrobe, rng, bottom, pattern, age),
        details=_draw_details(rng),
    )


def _double(model: Identity, domain: Domain, rng: Generator) -> Identity:
    """The colours of `model` on another body of the same sex, in another cut."""
    wardrobe, bodies = domain.wardrobe, shipped_bodies()
    sex = model.body % 2
    body = 2 * int(rng.integers(len(bodies.rest) // 2)) + sex
    age = bodies.phenotypes[body].age_years
    patterns = tuple(pattern for pattern in _patterns(model.top) if pattern != model.pattern)
    cuts: dict[str, str | bool] = {
        "bag": _choose_other(rng, ("none", *wardrobe.bags), model.bag),
        "hair_style": _choose_other(rng, _hair_styles(model.female, age), model.hair_style),
        "pattern": _choose(rng, patterns),
        "cap": not model.cap,
    }
    if not model.in_one_piece:
        cuts["top"] = _choose_other(rng, wardrobe.tops, model.top)
        same_cloth = [
            bottom
            for bottom in _bottoms(wardrobe, model.female)
            if bottom != "dress" and (bottom != "jeans" or model.colours.names["bottom"] == "denim")
        ]
        cuts["bottom"] = _choose_other(rng, tuple(same_cloth), model.bottom)
    possible = [name for name, cut in cuts.items() if cut != getattr(model, name)]
    changed = {
        possible[index]: cuts[possible[index]]
        for index in rng.permutation(len(possible))[:_CHANGED_ATTRIBUTES]
    }
    return replace(
        model, body=body, bag_side=int(rng.choice([-1, 1])), details=_draw_details(rng), **changed
    )


def _draw_colours(
    wardrobe: Wardrobe, rng: Generator, bottom: str, pattern: str, age: float
) -> Colours:
    tone = int(rng.integers(len(SKIN)))
    skin = np.array(SKIN[tone]) * rng.uniform(0.92, 1.05)
    top, top_shade = _cloth_unlike_skin(rng, wardrobe.top_colours, skin)
    others = tuple(colour for colour in wardrobe.top_colours if colour != top)
    # Large areas in the accent colour must not look like bare skin; stripes and logos may.
    if pattern == "two-tone":
        accent, accent_shade = _cloth_unlike_skin(rng, others, skin)
    else:
        accent = _choose(rng, others)
        accent_shade = _shade(rng, CLOTH[accent])
    lower = "denim" if bottom == "jeans" else _choose(rng, wardrobe.bottom_colours)
    lower_shade = _shade(rng, CLOTH[lower])
    if bottom == "dress":
        lower, lower_shade = top, top_shade
    bag, shoes = _choose(rng, _BAG_COLOURS), _choose(rng, _SHOE_COLOURS)
    hair = _choose_weighted(rng, _hair_shares(age, tone))
    return Colours(
        names={
            "top": top,
            "accent": accent,
            "bottom": lower,
            "bag": bag,
            "shoes": shoes,
            "hair": hair,
        },
        shades={
            "top": top_shade,
            "accent": accent_shade,
            "bottom": lower_shade,
            "bag": _shade(rng, CLOTH[bag]),
            "shoes": _shade(rng, CLOTH[shoes]),
            "hair": np.array(HAIR[hair], float),
            "skin": skin,
            "cap": _shade(rng, CLOTH[_choose(rng, _CAP_COLOURS)]),
            "inner": _shade(rng, CLOTH[_choose(rng, _INNER_COLOURS)]),
        },
    )


def _draw_details(rng: Generator) -> Details:
    return Details(
        stripes_per_m=rng.uniform(16, 34),
        stripe_duty=rng.uniform(0.3, 0.6),
        hem_shift_m=rng.uniform(-0.02, 0.04),
        skirt_length=rng.uniform(0.25, 1.0),
        flare_m=rng.uniform(0.01, 0.07),
        open_front=bool(rng.random() < 0.4),
        logo_shift_m=(rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)),
        fold_phases=rng.uniform(0, 2 * np.pi, 8),
    )


def _bottoms(wardrobe: Wardrobe, female: bool) -> tuple[str, ...]:
    return tuple(bottom for bottom in wardrobe.bottoms if female or bottom not in _WOMENS_BOTTOMS)


def _patterns(top: str) -> tuple[str, ...]:
    return _PLAIN_PATTERNS if top in _PLAIN_TOPS else _PATTERNS


def _hair_styles(female: bool, age: float) -> tuple[str, ...]:
    if female:
        return _WOMENS_HAIR
    return _MENS_HAIR if age >= 25 else tuple(style for style in _MENS_HAIR if style != "bald")


def _hair_shares(age: float, tone: int) -> dict[str, float]:
    """Natural colours by skin tone; the share of grey increases with age."""
    grey = 0.0 if age < 40 else 0.25 if age < 58 else 0.8
    natural = _HAIR_SHARES if tone < _DARK_SKIN else _DARK_SKIN_HAIR_SHARES
    total = sum(natural.values())
    return {name: share / total * (1 - grey) for name, share in natural.items()} | {"grey": grey}


def _cloth_unlike_skin(
    rng: Generator, colours: tuple[str, ...], skin: Colour
) -> tuple[str, Colour]:
    """A colour that cannot be mistaken for bare skin; if all can, the last one drawn."""
    name, shade = "", skin
    for _ in range(20):
        name = _choose(rng, colours)
        shade = _shade(rng, CLOTH[name])
        if not _alike(shade, skin):
            break
    return name, shade


def _alike(first: Colour, second: Colour) -> bool:
    """Whether two colours have nearly the same hue and a similar brightness."""
    hue_apart = np.abs(first / (first.sum() + 1) - second / (second.sum() + 1)).max()
    return bool(hue_apart < 0.055 and abs(first.mean() - second.mean()) < 55)


def _shade(rng: Generator, colour: RGB) -> Colour:
    """A random shade of a colour: no two black garments are the same."""
    return np.clip(np.array(colour) * rng.uniform(0.82, 1.15) + rng.normal(0, 6, 3), 8, 245)


def _choose(rng: Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _choose_other(rng: Generator, options: tuple[str, ...], present: str) -> str:
    """One of `options` other than `present`; `present` if there is no other."""
    others = tuple(option for option in options if option != present)
    return _choose(rng, others) if others else present


def _choose_weighted(rng: Generator, shares: dict[str, float]) -> str:
    weights = np.array(list(shares.values()))
    return list(shares)[int(rng.choice(len(weights), p=weights / weights.sum()))]
