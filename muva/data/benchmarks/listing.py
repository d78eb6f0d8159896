"""What readers share: finding images in a tree, numbering names, and saying what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from muva.errors import MuvaError, SettingsError

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


def existing_folder(root: Path, *, title: str) -> Path:
    """The folder, if it is one; `title` names the data set in the error."""
    if root.is_dir():
        return root
    found = "a file" if root.exists() else "nothing"
    raise MuvaError(f"{title} at {root}: expected a folder, found {found}. Is the path right?")


def check_entries(root: Path, parts: Sequence[str], *, title: str) -> None:
    """MuvaError unless a tree has these folders and files; `title` names the data set in it."""
    existing_folder(root, title=title)
    missing = [part for part in parts if not (root / part).exists()]
    if missing:
        raise MuvaError(
            f"{title} at {root}: expected {', '.join(parts)}; {missing[0]} is missing, found "
            f"{contents(root)}. {suggest_folder(root, *parts)}"
        )


def match_file_name(
    file: Path, pattern: re.Pattern[str], *, example: str, root: Path, title: str
) -> re.Match[str]:
    """What a file's name says; MuvaError with a right one, `example`, where it says nothing."""
    match = pattern.match(file.name)
    if match is None:
        raise MuvaError(
            f"{title} at {root}: expected file names like {example}, found "
            f"{file.relative_to(root).as_posix()}. Are these {title}'s files?"
        )
    return match


def contents(folder: Path, most: int = 6) -> str:
    """The first names in a folder, for errors."""
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggest_folder(root: Path, *holds: str) -> str:
    """A question for errors: is it a folder in or around this one, that holds what it should?"""
    folders = [*sorted(entry for entry in root.iterdir() if entry.is_dir()), *root.parents[:2]]
    for folder in folders:
        if all((folder / name).exists() for name in holds):
            return f"Is it {folder}?"
    return "Is this the archive's inner folder, completely unpacked?"


def checked_option(name: str, value: str, choices: Iterable[str]) -> str:
    """The value of a reader's option; SettingsError where it is none of the choices."""
    if value not in choices:
        raise SettingsError(f"{name} {value!r}: expected one of {', '.join(choices)}")
    return value


def numbered(names: Iterable[str], *, first: int) -> Mapping[str, int]:
    """Numbers for names: their own where all are whole numbers, else from `first` in order."""
    distinct = sorted(set(names))
    if all(_is_whole(name) for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(distinct, start=first)}


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii()
