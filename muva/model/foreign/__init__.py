"""Checkpoints of other programs as models of ours: one form a file, and `adopt` for all of them.

A form says what its names mean here; `FORMS` lists them by the name that people give. The way of a
file: `fit_checkpoint` reads it, names its entries as ours and finds the settings; `adopt` builds.

Reading a checkpoint needs torch and open_clip, which take seconds to import; listing the forms,
which a help text does, needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muva.model.foreign.checkpoint import fit_checkpoint

__all__ = ["AUTO", "FORMS", "fit_checkpoint"]

AUTO = "auto"
"""Instead of the name of a form: whichever the names of the entries show."""

FORMS = {
    "muva": "release:RELEASE",
    "clip-reid": "clip_reid:CLIP_REID",
    "clip": "plain_clip:PLAIN_CLIP",
}
"""Name -> where the form is, as MODULE:CONSTANT within this package."""


def __getattr__(name: str) -> object:
    if name == "fit_checkpoint":
        from muva.model.foreign.checkpoint import fit_checkpoint

        return fit_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
