"""Plug-ins of Pillow for formats that it does not open itself; they are used if they are installed.

This module is light: reading a listing needs the names of the plug-ins, but not Pillow.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

PLUG_INS = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
}
"""Ending -> the package that makes Pillow open such files."""
_MODULES = {"pillow-heif": "pillow_heif", "pillow-jxl-plugin": "pillow_jxl"}


@functools.cache
def missing_plug_in(suffix: str) -> str | None:
    """The package that files with this ending need and that is not installed; None otherwise."""
    package = PLUG_INS.get(suffix)
    if package is None or importlib.util.find_spec(_MODULES[package]) is not None:
        return None
    return package


def register_plug_ins() -> None:
    """Let Pillow open the formats of all plug-ins that are installed."""
    for suffix, package in PLUG_INS.items():
        if missing_plug_in(suffix) is None:
            module = importlib.import_module(_MODULES[package])
            if package == "pillow-heif":  # the other one registers itself
                module.register_heif_opener()
