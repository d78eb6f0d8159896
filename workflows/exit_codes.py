"""Exit codes of the command line other than 0, 1 and 2."""

from __future__ import annotations

INTERRUPTED = 130
