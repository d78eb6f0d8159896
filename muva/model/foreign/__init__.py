"""Checkpoints of other programs: one module per form, and `fit_checkpoint` for all of them.

A form maps the names in a program's checkpoints to ours; `FORMS` has them by name. `fit_checkpoint`
reads a file, renames its entries and infers the settings; `adopt` builds the model.

Reading a checkpoint imports torch and open_clip, which takes seconds; a help text names the forms
and needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muva.lazy_names import names_on_first_use

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

__getattr__ = names_on_first_use(__name__, {"fit_checkpoint": "checkpoint"})
