"""A checkpoint of another program, read and renamed: the first half of an import."""

from __future__ import annotations

import importlib
from pathlib import Path

from muva.model.foreign import FORMS
from muva.model.foreign.fit import Fit, ImportOptions, fit
from muva.model.foreign.form import Form, detect_form, translate
from muva.model.foreign.plain_clip import read_sidecar_config, weights_file
from muva.model.state_dicts import read_state_dict


def fit_checkpoint(path: Path, options: ImportOptions, *, form: str | None = None) -> Fit:
    """Read a checkpoint: its entries under our names, and the settings of its model.

    Args:
        path: a file, or a folder with one.
        form: a name in `FORMS`; None: detected from the names of the entries.

    Raises:
        MuvaError: the file is incomplete or of no known form.
        SettingsError: the file contradicts the given settings.
    """
    file = weights_file(path)
    weights = read_state_dict(file)
    forms = {name: _form(reference) for name, reference in FORMS.items()}
    known, where = forms.values(), str(file)
    chosen = detect_form(weights, known, where=where) if form is None else forms[form]
    return fit(
        translate(weights, chosen, forms=known, where=where), options, read_sidecar_config(file)
    )


def _form(reference: str) -> Form:
    module, _, constant = reference.partition(":")
    return getattr(importlib.import_module(f"muva.model.foreign.{module}"), constant)
