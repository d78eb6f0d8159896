"""The code that a job uploads to a cluster of other machines.

The packages are copied from the folders that they are imported from, so that a checkout and an
installed package upload the same files, and nothing else: no data, store, repository or
environment.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from muva.errors import MuvaError

PACKAGES = ("muva", "workflows", "tracking")
RECIPES = {".yaml", ".yml"}
LOCK = "requirements.lock"
_CACHE = "__pycache__"
_IGNORED = (_CACHE, ".*")


def code_folder() -> Path:
    """The folder that the packages are imported from: a checkout, or site-packages."""
    return _package("workflows").parent


def ship(argv: Sequence[str], *, into: Path) -> Path:
    """Copies the packages, the lock file, and the recipe files that the command names to a folder.

    Raises:
        MuvaError: a recipe file is not below the current folder.
    """
    for name in PACKAGES:
        shutil.copytree(_package(name), into / name, ignore=shutil.ignore_patterns(*_IGNORED))
    if (lock := code_folder() / LOCK).is_file():
        shutil.copyfile(lock, into / LOCK)
    for recipe in _recipes(argv):
        if recipe.is_absolute() or ".." in recipe.parts:
            raise MuvaError(
                f"Recipe {recipe}: the cluster cannot read this file, because it is not below the "
                "current folder. Copy it here and give its relative path."
            )
        target = into / recipe
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recipe, target)
    return into


def code_fingerprint(argv: Sequence[str]) -> str:
    """A hash of the packages and of the recipe files that the command names, 16 hex characters."""
    digest = hashlib.sha256()
    for name, file in _files(argv):
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _files(argv: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        folder = _package(package)
        for file in sorted(folder.rglob("*")):
            parts = file.relative_to(folder).parts
            if file.is_file() and not any(part[0] == "." or part == _CACHE for part in parts):
                yield "/".join([package, *parts]), file
    yield from ((str(recipe), recipe) for recipe in _recipes(argv))


def _recipes(argv: Sequence[str]) -> list[Path]:
    """The arguments that are existing recipe files: `FILE`, or the end of `--option=FILE`."""
    files = [Path(argument.rpartition("=")[2]) for argument in argv]
    return [file for file in files if file.suffix in RECIPES and file.is_file()]


def _package(name: str) -> Path:
    """A package's folder; also works for packages that an editable install maps."""
    (folder,) = importlib.import_module(name).__path__
    return Path(folder)
