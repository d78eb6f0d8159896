"""MUVA: domain-generalised person re-identification with multi-grained prompts.

`muva.load(uri).embed(images)` gives features that compare people across cameras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muva.models import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    if name == "load":  # imported on first use: it brings torch, which takes seconds
        from muva.models import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
