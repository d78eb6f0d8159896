"""What readers share: finding images in a tree, and numbering people and cameras by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from muva.errors import MuvaError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def image_files(folder: Path) -> Iterator[Path]:
    """All image files below a folder, by suffix, in order; hidden ones are passed by."""
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        _check_encoding(file)
        if file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file():
            yield file


def _check_encoding(file: Path) -> None:
    """Names become image ids, which are text."""
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        raise MuvaError(
            f"{str(file)!a}: expected file names in UTF-8, found bytes that are none. Rename "
            "it, for example with `convmv`"
        ) from error


def existing_folder(root: Path, *, what: str) -> Path:
    """The folder, if it is one; `what` names the data set in the error."""
    if root.is_dir():
        return root
    found = "a file" if root.exists() else "nothing"
    raise MuvaError(f"{what} at {root}: expected a folder, found {found}. Is the path right?")


def contents(folder: Path, most: int = 6) -> str:
    """The first names in a folder, for errors."""
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def numbered(names: Iterable[str], *, first: int) -> Mapping[str, int]:
    """Numbers for names: their own where all are whole numbers, else from `first` in order."""
    distinct = sorted(set(names))
    if all(_is_whole(name) for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(distinct, start=first)}


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii()
