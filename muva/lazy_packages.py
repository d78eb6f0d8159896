"""Packages whose code runs only when something in it is asked for.

open_clip's `__init__` imports its whole collection of models, and with them timm, transformers and
torchvision, which imports torch._dynamo: 2.5 s of CPU time in every process of a cluster, which
needs the classes of CLIP alone. Here, submodules that work by themselves are imported without the
package's `__init__`, and the classes of timm's and Hugging Face's towers when a tower is built. Any
other submodule or name runs the `__init__` first, so that nothing else changes.
open_clip 3.3, torchvision 0.29.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

PACKAGES = {
    "open_clip": (
        *("constants", "hf_configs", "hf_model", "model", "modified_resnet", "pos_embed"),
        *("timm_model", "tokenizer", "transformer", "utils"),
    ),
    "torchvision": ("ops", "utils"),
    "torchvision.ops": ("misc",),
}
"""Package -> its submodules that need nothing of its `__init__`."""
NAMES = {
    "open_clip": {
        **dict.fromkeys(("OPENAI_DATASET_MEAN", "OPENAI_DATASET_STD"), "constants"),
        **dict.fromkeys(("CLIP", "CLIPTextCfg", "CLIPVisionCfg"), "model"),
        **dict.fromkeys(("get_model_preprocess_cfg", "set_model_preprocess_cfg"), "model"),
        **dict.fromkeys(("decode", "tokenize"), "tokenizer"),
    }
}
"""Package -> the names in its `__init__` that come from these submodules."""
CLASSES = {"open_clip.hf_model": "HFTextEncoder", "open_clip.timm_model": "TimmModel"}
"""Module -> the class that open_clip.model imports from it, and only calls."""

_lock = RLock()


def import_lazily() -> None:
    """Let these packages run late from now on, unless they have been imported before."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _LateModule(ModuleType):
    """A module that has not run yet."""

    def __getattr__(self, name: str) -> Any:
        # Python itself asks every module for names such as __warningregistry__.
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in (names := NAMES.get(self.__name__, {})):
            return getattr(importlib.import_module(f"{self.__name__}.{names[name]}"), name)
        importing = vars(sys.modules.get("open_clip.model", self))
        if CLASSES.get(self.__name__) == name and name not in importing:
            return _late_class(self, name)
        _run(self)
        return getattr(self, name)


def _late_class(module: ModuleType, name: str) -> Callable[..., Any]:
    def construct(*args: Any, **named: Any) -> Any:
        _run(module)
        return getattr(module, name)(*args, **named)

    return construct


def _run(module: ModuleType) -> None:
    with _lock:
        if type(module) is _LateModule:
            module.__class__ = ModuleType  # pyright: ignore[reportAttributeAccessIssue]
            loader = module.__loader__
            assert isinstance(loader, _Loader)
            loader.loader.exec_module(module)


class _Loader(Loader):
    """Makes a module without running it."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""
        module.__class__ = _LateModule


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a package or module that runs late; None for everything else."""
        parent, _, name = fullname.rpartition(".")
        if parent in PACKAGES and name not in PACKAGES[parent]:
            _run(sys.modules[parent])
        if fullname not in PACKAGES and fullname not in CLASSES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec
