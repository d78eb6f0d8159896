"""Grounding experts, one file each. To add one, add a file and a line in the dict here."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from muva.errors import MuvaError
from muva.grounding.expert import Expert
from muva.grounding.experts.annotated import AnnotatedExpert

EXPERTS: dict[str, Callable[[], Expert]] = {
    "annotated": AnnotatedExpert,
}


def make_expert(name: str) -> Expert:
    """The expert of that name, loaded; MuvaError with the closest name for an unknown one."""
    if name not in EXPERTS:
        close = difflib.get_close_matches(name, EXPERTS, n=1) or sorted(EXPERTS)
        raise MuvaError(f"expert {name!r} is unknown; closest: {', '.join(close)}")
    return EXPERTS[name]()
