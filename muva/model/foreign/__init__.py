"""Checkpoints of other programs as models of ours: one form a file, and `adopt` for all of them.

A form says what its names mean here; `FORMS` lists them by the name that people give. The way of a
file: `fit_checkpoint` reads it, names its entries as ours and finds the settings; `adopt` builds.
"""

from pathlib import Path

from muva.model.foreign.clip_reid import CLIP_REID
from muva.model.foreign.fit import Fit, ImportOptions, fit
from muva.model.foreign.form import Form, detect_form, translate
from muva.model.foreign.plain_clip import PLAIN_CLIP, read_sidecar_config, weights_file
from muva.model.foreign.release import RELEASE
from muva.model.state_dicts import read_state_dict

FORMS: dict[str, Form] = {form.name: form for form in (RELEASE, CLIP_REID, PLAIN_CLIP)}


def fit_checkpoint(path: Path, options: ImportOptions, *, form: str | None = None) -> Fit:
    """A checkpoint's entries under our names, with the settings of the model that it is.

    `path` is a file or a folder with one; `form` a name of `FORMS`, told by the entries' names
    unless given. Raises MuvaError for a file that is not whole or of no form, SettingsError for
    settings that it contradicts.
    """
    file = weights_file(path)
    weights = read_state_dict(file)
    forms, where = FORMS.values(), str(file)
    chosen = detect_form(weights, forms, where=where) if form is None else FORMS[form]
    return fit(
        translate(weights, chosen, forms=forms, where=where), options, read_sidecar_config(file)
    )
