"""Annotations in MATLAB's files (up to version 7): structs and cells, however they are nested."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.errors import MuvaError

if TYPE_CHECKING:
    import numpy as np

# SciPy reports damage by any of these, depending on where it is.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, NotImplementedError, zlib.error)


def matlab_variable(file: Path, name: str, *, what: str) -> np.ndarray:
    """One variable of a file; `what` names the data set in errors."""
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        variables = loadmat(file, variable_names=[name])
        found = ", ".join(variable for variable, *_ in whosmat(file))
    except (MatReadError, *_DAMAGE) as error:
        raise MuvaError(
            f"{what} at {file}: expected a MATLAB file, found one that cannot be read: {error}. "
            "Was the copy interrupted?"
        ) from error
    if name not in variables:
        raise MuvaError(f"{what} at {file}: expected the variable {name}, found {found or 'none'}")
    return variables[name]


def structs(value: Any, *fields: str, where: str) -> list[tuple[np.ndarray, ...]]:
    """These fields of each struct in a struct array, or in a cell array of structs.

    `where` names the data set and its file in errors.
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
