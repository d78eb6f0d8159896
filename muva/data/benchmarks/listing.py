"""Functions that readers share: finding images, matching file names, and error messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from muva.errors import MuvaError, SettingsError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def image_files(folder: Path) -> Iterator[Path]:
    """All image files below a folder (by suffix), sorted; hidden files and folders are skipped."""
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        _check_encoding(file)
        if file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file():
            yield file


def _check_encoding(file: Path) -> None:
    """File names become image ids and must therefore be valid text."""
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        raise MuvaError(
            f"{str(file)!a}: expected a file name in UTF-8, found other bytes. Rename the "
            "file, for example with `convmv`"
        ) from error


def existing_folder(root: Path, *, title: str) -> Path:
    """Return the folder if it exists; raise MuvaError otherwise. `title` names the data set."""
    if root.is_dir():
        return root
    found = "a file" if root.exists() else "nothing"
    raise MuvaError(f"{title} at {root}: expected a folder, found {found}. Is the path right?")


def check_entries(root: Path, parts: Sequence[str], *, title: str) -> None:
    """Raise MuvaError unless the tree of the data set `title` has these folders and files."""
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
    """Match a file name against a pattern.

    Raises MuvaError with a valid name, `example`, if it does not match.
    """
    match = pattern.match(file.name)
    if match is None:
        raise MuvaError(
            f"{title} at {root}: expected file names like {example}, found "
            f"{file.relative_to(root).as_posix()}. Are these {title}'s files?"
        )
    return match


def contents(folder: Path, most: int = 6) -> str:
    """The first names in a folder, for error messages."""
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggest_folder(root: Path, *holds: str) -> str:
    """A question for error messages: the closest folder that has the expected entries, if any."""
    folders = [*sorted(entry for entry in root.iterdir() if entry.is_dir()), *root.parents[:2]]
    for folder in folders:
        if all((folder / name).exists() for name in holds):
            return f"Is it {folder}?"
    return "Is this the inner folder of the archive, completely unpacked?"


def checked_option(name: str, value: str, choices: Iterable[str]) -> str:
    """Return the value of a reader's option; SettingsError if it is not one of the choices."""
    if value not in choices:
        raise SettingsError(f"{name} {value!r}: expected one of {', '.join(choices)}")
    return value


def numbered(names: Iterable[str], *, first: int) -> Mapping[str, int]:
    """Numbers for names: their values if all are integers, else from `first` in sorted order."""
    distinct = sorted(set(names))
    if all(_is_whole(name) for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(distinct, start=first)}


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii()
