"""Names of a package that are imported on first use, because their modules import slowly."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def names_on_first_use(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """A package's `__getattr__` (PEP 562), from each name to the module of the package that has it.

    No name may be that of a module.
    """

    def get(name: str) -> object:
        if name in modules:
            return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
