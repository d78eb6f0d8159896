"""Names for arrays by what they hold.

OpenCV and NumPy's type stubs do not keep element types through arithmetic, so these say it to
people; docstrings give the shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
"""Floating point; float32 where there are many."""

Levels = NDArray[Any]
"""uint8: levels of pixels, or values of a part map."""

Indices = NDArray[np.int32]
Flags = NDArray[np.bool_]
