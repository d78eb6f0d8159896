"""Imports checkpoints of other programs: one module per form, and `adopt` for all of them.

A form maps the names in a program's checkpoints to ours; `FORMS` has them by name. `fit_checkpoint`
reads a file, renames its entries and infers the settings; `adopt` builds the model.
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
    forms, where = FORMS.values(), str(file)
    chosen = detect_form(weights, forms, where=where) if form is None else FORMS[form]
    return fit(
        translate(weights, chosen, forms=forms, where=where), options, read_sidecar_config(file)
    )
