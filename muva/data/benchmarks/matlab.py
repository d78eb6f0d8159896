"""Annotations in MATLAB files up to version 7: structs and cell arrays, however they are nested."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.errors import MuvaError

if TYPE_CHECKING:
    import numpy as np

# SciPy raises any of these for damaged files, depending on what is damaged.
_READ_ERRORS = (OSError, ValueError, LookupError, TypeError, NotImplementedError, zlib.error)


def matlab_variable(file: Path, name: str, *, title: str) -> np.ndarray:
    """One variable of a file; `title` names the data set in errors."""
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        variables = loadmat(file, variable_names=[name])
        found = ", ".join(variable for variable, *_ in whosmat(file))
    except (MatReadError, *_READ_ERRORS) as error:
        raise MuvaError(
            f"{title} at {file}: expected a MATLAB file, found one that cannot be read: {error}. "
            "Was the copy interrupted?"
        ) from error
    if name not in variables:
        raise MuvaError(f"{title} at {file}: expected the variable {name}, found {found or 'none'}")
    return variables[name]


def structs(value: Any, *fields: str, where: str) -> list[tuple[np.ndarray, ...]]:
    """The given fields of each struct in a struct array, or in a cell array of structs.

    `where` names the data set and the file in errors.
    """
    import numpy as np

    cells = np.asarray(value)
    arrays = [np.asarray(cell) for cell in cells.ravel()] if cells.dtype == object else [cells]
    for array in arrays:
        if not set(fields) <= set(array.dtype.names or ()):
            raise MuvaError(
                f"{where}: expected structs with the fields {', '.join(fields)}, found "
                f"{', '.join(array.dtype.names or ()) or f'{array.dtype} numbers'}"
            )
    return [tuple(struct[field] for field in fields) for a in arrays for struct in a.ravel()]
