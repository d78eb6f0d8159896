"""MUVA: domain-generalised person re-identification with multi-grained prompts.

`muva.load(uri).embed(images)` returns features for comparing people across cameras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muva.models import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    if name == "load":  # imported on first use, because importing torch takes seconds
        from muva.models import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
