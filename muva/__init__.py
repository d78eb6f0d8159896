"""MUVA: domain-generalised person re-identification with multi-grained prompts.

`muva.load(uri).embed(images)` returns features for comparing people across cameras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muva.lazy_names import names_on_first_use
from muva.lazy_packages import import_lazily
from muva.proxies import exempt_loopback

if TYPE_CHECKING:
    from muva.models import load

__all__ = ["load"]

exempt_loopback()
import_lazily()

__getattr__ = names_on_first_use(__name__, {"load": "models"})
