"""A checkpoint of another program, read and named as ours: the first half of an import."""

from __future__ import annotations

import importlib
from pathlib import Path

from muva.model.foreign import FORMS
from muva.model.foreign.fit import Fit, Given, fit
from muva.model.foreign.form import Form, recognised, translate
from muva.model.foreign.plain_clip import read_beside, weights_file
from muva.model.state_dicts import read_state_dict


def fit_checkpoint(path: Path, given: Given, *, form: str | None = None) -> Fit:
    """A checkpoint's entries under our names, with the settings of the model that it is.

    `path` is a file or a folder with one; `form` a name of `FORMS`, told by the entries' names
    unless given. Raises MuvaError for a file that is not whole or of no form, SettingsError for
    settings that it contradicts.
    """
    file = weights_file(path)
    weights = read_state_dict(file)
    forms = {name: _form(place) for name, place in FORMS.items()}
    known, where = forms.values(), str(file)
    chosen = recognised(weights, known, where=where) if form is None else forms[form]
    return fit(translate(weights, chosen, forms=known, where=where), given, read_beside(file))


def _form(place: str) -> Form:
    module, _, constant = place.partition(":")
    return getattr(importlib.import_module(f"muva.model.foreign.{module}"), constant)
