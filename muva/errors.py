"""The errors for problems that users can fix themselves.

The message says what is wrong, where, what was expected and how to fix it; the command line prints
it without a traceback. Any other exception is a bug in the program and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MuvaError(Exception):
    """Something outside the program is wrong: an input, a setting, a file or a machine."""


class SettingsError(MuvaError):
    """A setting is unknown, has the wrong type, or conflicts with another one."""


def closest(word: str, known: Iterable[str], *, most: int = 8) -> str:
    """For error messages: `closest: a, b`, the known words most similar to this one, if any."""
    known = list(known)
    if not known:
        return "there are none yet"
    near = difflib.get_close_matches(word, known, n=3) or known[:most]
    return f"closest: {', '.join(near)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """For error messages: `; did you mean a?`, or nothing if no known word is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
