"""The code that goes along with a job to a cluster of other machines.

The packages are copied from where they are imported from, so that a checkout and an installed
package ship the same, and nothing else can slip in: no data, no store, no repository, no
environment.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from muva.errors import MuvaError

PACKAGES = ("muva", "workflows", "tracking")
RECIPES = {".yaml", ".yml"}


def code_folder() -> Path:
    """The folder that the packages are imported from: a checkout, or site-packages."""
    return _package("workflows").parent


def ship(argv: Sequence[str], *, into: Path) -> Path:
    """Copies the packages, and the recipe files that the command names, into a folder.

    Raises:
        MuvaError: a recipe file is not below the folder in which the command was typed.
    """
    for name in PACKAGES:
        shutil.copytree(
            _package(name), into / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for recipe in _recipes(argv):
        if recipe.is_absolute() or ".." in recipe.parts:
            raise MuvaError(
                f"Recipe {recipe}: a cluster cannot see this file, and it is not below the folder "
                "in which you typed the command. Copy it here and give the path from here."
            )
        target = into / recipe
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recipe, target)
    return into


def _recipes(argv: Sequence[str]) -> list[Path]:
    """The arguments that are recipe files here: `FILE`, or the end of `--option=FILE`."""
    files = [Path(argument.rpartition("=")[2]) for argument in argv]
    return [file for file in files if file.suffix in RECIPES and file.is_file()]


def _package(name: str) -> Path:
    """A package's folder, also for `tracking` and others that an editable install maps."""
    (folder,) = importlib.import_module(name).__path__
    return Path(folder)
