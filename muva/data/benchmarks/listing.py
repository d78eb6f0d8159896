"""Functions that readers share: finding images, matching file names, and error messages."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from muva.data.plug_ins import PLUG_INS, missing_plug_in
from muva.data.records import JUNK_PID
from muva.errors import MuvaError, SettingsError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs"),
        *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".tga", ".pcx", ".qoi", ".sgi", ".ras"),
    }
)
"""Endings of the formats for pictures that Pillow opens without a plug-in."""
_INTEGER = re.compile(r"(-?[0-9]+)(?:\.0*|,0)?")
HIDDEN, SYSTEM = "hidden file", "system file"
LOOP, SPECIAL = "link to a folder that contains it", "neither a file nor a folder"
_SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp"),  # NAS
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "system volume information", "lost+found"),
        *("__pycache__", "cvs"),  # editors and version control; most of their folders are hidden
    }
)
"""Files and folders that operating systems and other programs create beside the images of users,
in lower case. Some hold copies of these images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file below a folder, or something there that cannot be opened."""

    file: Path
    skipped: str | None = None
    """Why it is skipped; None for an image."""
    unreadable: str | None = None
    """Why it cannot be opened, for folders and links; None for everything else."""


def image_files(folder: Path) -> Iterator[Path]:
    """All image files below a folder (by suffix), sorted.

    Links are followed. Hidden files and folders are skipped, and so are those of operating systems.
    """
    files = (entry.file for entry in entries(folder) if not (entry.skipped or entry.unreadable))
    for file in sorted(files):
        _check_encoding(file)
        yield file


def entries(folder: Path) -> Iterator[Entry]:
    """Every file below a folder, with the reason if it is skipped; folders that cannot be opened.

    Links to files and folders are followed, except for links to a folder that contains them.
    """
    pending: list[tuple[str, tuple[str, ...], str | None]] = [(str(folder), (), None)]
    while pending:
        place, links, skipped = pending.pop()
        try:
            with os.scandir(place) as found:
                within = list(found)
        except OSError as error:
            if skipped is None:
                yield Entry(
                    file=Path(place), unreadable=f"the folder cannot be opened: {_why(error)}"
                )
            continue
        for entry in within:
            reason = skipped or _not_users(entry.name)
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
                if not is_folder and not is_file and entry.is_symlink():
                    entry.stat()  # raises the reason
            except OSError as error:
                if reason is None:
                    yield Entry(file=Path(entry.path), unreadable=_of_link(entry, error))
                else:
                    yield Entry(file=Path(entry.path), skipped=reason)
                continue
            if is_folder and entry.is_symlink():
                target, here = os.path.realpath(entry.path), os.path.realpath(place)
                if reason is not None:
                    yield Entry(file=Path(entry.path), skipped=reason)
                elif any(_contains(target, one) for one in (here, *links)):
                    yield Entry(file=Path(entry.path), skipped=LOOP)
                else:
                    pending.append((entry.path, (here, *links), None))
            elif is_folder:
                pending.append((entry.path, links, reason))
            else:
                reason = reason or (_not_image(entry.name) if is_file else SPECIAL)
                yield Entry(file=Path(entry.path), skipped=reason)


def _not_users(name: str) -> str | None:
    """Why a file or folder is none of the user's, by its name; None if it is."""
    if name.lower() in _SYSTEM_NAMES:
        return SYSTEM
    return HIDDEN if name.startswith(".") else None


def _not_image(name: str) -> str | None:
    """Why a file is not read as an image, by its ending; None if it is."""
    suffix = Path(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in PLUG_INS:
        plug_in = missing_plug_in(suffix)
        return None if plug_in is None else f"ending {suffix}, which needs {plug_in}"
    return f"ending {printable(suffix)}" if suffix else "no ending"


def _of_link(entry: os.DirEntry[str], error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and entry.is_symlink():
        return (
            f"the link leads to {printable(str(Path(entry.path).readlink()))}, which does not exist"
        )
    return f"cannot be opened: {_why(error)}"


def _contains(folder: str, other: str) -> bool:
    """Whether a folder is another one or contains it; both are absolute and without links."""
    return other == folder or other.startswith(folder.rstrip(os.sep) + os.sep)


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def printable(name: str) -> str:
    """A file name as valid text, for messages and JSON."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_encoding(file: Path) -> None:
    """File names become image ids and must therefore be valid text."""
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() != "utf-8":
            raise MuvaError(
                f"{str(file)!a}: file names are read as {sys.getfilesystemencoding()}, which this "
                "one is not. Set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
            ) from error
        raise MuvaError(
            f"{str(file)!a}: expected a file name in UTF-8, found other bytes. Rename the "
            "file, for example with `convmv`"
        ) from error


def existing_folder(root: Path, *, title: str) -> Path:
    """Return the folder if it exists; raise MuvaError otherwise. `title` names the data set."""
    try:
        if root.is_dir():
            os.scandir(root).close()
            return root
        found = "a file" if root.exists() else "nothing"
    except OSError as error:
        raise MuvaError(
            f"{title} at {root}: expected a folder that can be read, found one that cannot "
            f"({_why(error)}). Check its permissions"
        ) from error
    raise MuvaError(f"{title} at {root}: expected a folder, found {found}. Is the path right?")


def exists(path: Path) -> bool:
    """Whether a path leads to something that can be reached; never raises PermissionError."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def check_entries(root: Path, parts: Sequence[str], *, title: str) -> None:
    """Raise MuvaError unless the tree of the data set `title` has these folders and files."""
    existing_folder(root, title=title)
    missing = [part for part in parts if not exists(root / part)]
    if missing:
        is_link = (root / missing[0]).is_symlink()
        raise MuvaError(
            f"{title} at {root}: expected {', '.join(parts)}; {missing[0]} is "
            f"{'a link that leads nowhere' if is_link else 'missing'}, found {contents(root)}. "
            f"{suggest_folder(root, *parts)}"
        )
    for part in parts:
        if (root / part).is_dir():
            existing_folder(root / part, title=title)


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
    return some(names, most) or "nothing"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names and the number of others, for messages."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def suggest_folder(root: Path, *holds: str) -> str:
    """A question for error messages: the closest folder that has the expected entries, if any."""
    folders = [*sorted(root.iterdir()), *root.parents[:2]]
    for folder in folders:
        if all(exists(folder / name) for name in holds):
            return f"Is it {folder}?"
    return "Is this the inner folder of the archive, completely unpacked?"


def checked_option(name: str, value: str, choices: Iterable[str]) -> str:
    """Return the value of a reader's option; SettingsError if it is not one of the choices."""
    if value not in choices:
        raise SettingsError(f"{name} {value!r}: expected one of {', '.join(choices)}")
    return value


def numbered_people(names: Iterable[str]) -> Mapping[str, int]:
    """The pid of each name: as `numbered` from 0, but -1 is junk, whatever the others are."""
    distinct = set(names)
    junk = {name for name in distinct if _integer(name) == JUNK_PID}
    return {**numbered(distinct - junk, first=0), **dict.fromkeys(junk, JUNK_PID)}


def numbered_cameras(names: Sequence[str | None]) -> list[int | None]:
    """The camid of each image: as `numbered` from 1; None where the name is None or empty."""
    camid_of = numbered(filter(None, names), first=1)
    return [camid_of[name] if name else None for name in names]


def numbered(names: Iterable[str], *, first: int) -> Mapping[str, int]:
    """Numbers for names: their values if all are integers, else from `first` in sorted order.

    Integers may be written as floats, like 7.0 (or 7,0, with a decimal comma), as pandas does where
    a column has empty cells.
    """
    distinct = sorted(set(names))
    values = {name: value for name in distinct if (value := _integer(name)) is not None}
    if len(values) == len(distinct):
        return values
    return {name: number for number, name in enumerate(distinct, start=first)}


def _integer(name: str) -> int | None:
    found = _INTEGER.fullmatch(name)
    return None if found is None else int(found[1])
