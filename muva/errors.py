"""The error for mistakes that a person can mend.

The message says what is wrong, where, what was expected and the remedy; the command line prints it
without a traceback. Every other exception is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MuvaError(Exception):
    """Something outside the program is wrong: an input, a setting, a file, a machine."""


class SettingsError(MuvaError):
    """A setting is unknown, of the wrong type, or impossible beside another one."""


def closest(word: str, known: Iterable[str], *, most: int = 8) -> str:
    """For errors: `closest: a, b`, the known words that may be meant, or else the first."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3) or known[:most]
    return f"closest: {', '.join(near)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """For errors: `; did you mean a?`, or nothing where no known word is close."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
