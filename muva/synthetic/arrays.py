"""Type aliases for arrays by content.

The type stubs of OpenCV and NumPy lose the dtype in arithmetic, so these aliases document it for
readers; docstrings give the shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
"""Floating point; float32 for large arrays."""

Levels = NDArray[Any]
"""uint8: pixel levels, or values of a part map."""

Indices = NDArray[np.int32]
Flags = NDArray[np.bool_]
