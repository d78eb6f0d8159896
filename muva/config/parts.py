"""The parts of a person: names, order, and the words by which experts and prompts know them.

The paper's three are the default. A recipe adds a part by naming it in `model.parts` and giving an
expert a phrase for it in `grounding.phrases`; labels that were imported may have any parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator

PHRASES: Mapping[str, str] = {
    "head": "the head of the person",
    "upper_body": "the upper body of the person",
    "legs": "the legs of the person",
}
"""Part -> phrase that an expert is asked for: the paper's parts from top to bottom, its wording."""

PARTS = tuple(PHRASES)
"""The paper's parts in their fixed order, which is that of a person from top to bottom."""

PERSON = "person"
"""The grain beside the parts, which no part is called."""


def check_part(name: str) -> str:
    """The name, if a part may have it; else ValueError."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == PERSON:
        raise ValueError(
            f"part {name!r}: expected small letters, digits and underscores, as upper_body, and "
            f"not {PERSON}"
        )
    return name


Part = Annotated[str, AfterValidator(check_part)]
"""A part's name."""


def in_order(parts: Sequence[str]) -> tuple[str, ...]:
    """The paper's parts in their fixed order, then the others in the order given.

    It is the order of part tokens, masks, contexts and prompts.
    """
    return (*(p for p in PARTS if p in parts), *(p for p in parts if p not in PARTS))


def words_of(part: str) -> str:
    """The part's name in words, as prompts have it: `upper body`."""
    return part.replace("_", " ")


def with_papers_phrases(phrases: Mapping[str, str], parts: Sequence[str]) -> dict[str, str]:
    """The phrases, and before them the paper's for those of `parts` that have none and are its."""
    missing = {part: PHRASES[part] for part in PARTS if part in parts and part not in phrases}
    return {**missing, **phrases}
