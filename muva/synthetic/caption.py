"""Captions: the attributes of an identity in one sentence, identical for all cameras."""

from __future__ import annotations

from muva.synthetic.clothes import BOTTOM_EASE_M, TOPS
from muva.synthetic.domain import DOMAINS
from muva.synthetic.identity import Identity
from muva.synthetic.palette import CLOTH, HAIR

_MEAN_STATURE_M = {True: 1.63, False: 1.75}  # by `female`
_STATURE_STEP_M = 0.06
_SLIM, _STOUT = 0.38, 0.66
_BOOTS_M = 0.1
"""Shoes that reach this far above the ankle are boots."""


def caption(person: Identity) -> str:
    """For example `a tall slim woman with long black hair, wearing a red coat, ..`."""
    sentence = f"{_article(_person(person))} with {_hair(person)}"
    if person.beard:
        sentence += ", a beard"
    if person.cap:
        sentence += f", {_article(person.headwear or 'cap')}"
    sentence += f", wearing {_article(_upper(person))}"
    if not person.in_one_piece:
        sentence += f", {person.colours.names['bottom']} {person.bottom}"
    shoes = "boots" if person.boots_m > _BOOTS_M else "shoes"
    sentence += f" and {person.colours.names['shoes']} {shoes}"
    if person.bag != "none":
        bag = f"{person.colours.names['bag']} {person.bag}"
        sentence += f", carrying {_article(bag)}"
    return sentence


def _person(person: Identity) -> str:
    body = person.phenotype
    taller_by = body.stature_m - _MEAN_STATURE_M[person.female]
    if abs(taller_by) < _STATURE_STEP_M:
        stature = "medium-height"
    else:
        stature = "tall" if taller_by > 0 else "short"
    build = "slim" if body.weight < _SLIM else "stout" if body.weight > _STOUT else "average-build"
    if body.age_years < 16:
        noun = "girl" if person.female else "boy"
    else:
        noun = "woman" if person.female else "man"
        if body.age_years > 65:
            noun = f"elderly {noun}"
    return f"{stature} {build} {noun}"


def _hair(person: Identity) -> str:
    style, colour = person.hair_style, person.colours.names["hair"]
    if style == "bald":
        return "a bald head"
    if style in ("bob", "afro"):
        return f"{_article(colour)} {style}"
    if style in ("bun", "ponytail"):
        return f"{colour} hair in a {style}"
    return f"{style} {colour} hair"


def _upper(person: Identity) -> str:
    names = person.colours.names
    garment = f"{names['top']} {'dress' if person.in_one_piece else person.top}"
    if person.fabric is not None:
        return f"{garment} with {person.fabric.words}" if person.fabric.words else garment
    accent = names["accent"]
    match person.pattern:
        case "solid":
            return garment
        case "logo":
            return f"{garment} with {_article(accent)} logo"
        case "two-tone":
            return f"{garment} and {accent} two-tone"
        case "checks":
            return f"{garment} with {accent} checks"
        case _:
            direction = person.pattern.split()[0]
            return f"{garment} with {direction} {accent} stripes"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def vocabulary_texts() -> list[str]:
    """Short texts that together contain every word that may occur in a caption of any domain."""
    bags = {name for domain in DOMAINS.values() for name in domain.wardrobe.bags}
    return [
        "a an tall medium-height short slim average-build stout elderly woman man girl boy person",
        "with long hair in a ponytail, a bun, a bob, an afro, a bald head, a beard, wearing and",
        "shoes, boots, carrying, a cap, a beanie, a brimmed hat, a hood, a headscarf",
        "horizontal vertical stripes, checks, logo, two-tone, bands, dots, patches, panels",
        "sleeves, a print",
        *sorted({*CLOTH, *HAIR, *TOPS, *BOTTOM_EASE_M} | bags),
    ]
