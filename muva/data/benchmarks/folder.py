"""Any folder of person images, without writing a reader.

Either there is one folder per person, or a regular expression extracts the person from file names.
Top-level folders named `train`, `query` and `gallery`, if there are any, define the splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from muva.data.benchmarks.accounting import account_for, skipped_text
from muva.data.benchmarks.listing import (
    check_entries,
    contents,
    existing_folder,
    image_files,
    numbered_cameras,
    numbered_people,
    some,
)
from muva.data.records import SPLITS, Record, Split, first_per_camera
from muva.errors import MuvaError, SettingsError

WholeSplit = Literal["train", "test"]
"""How to use images that have no split: all for training, or all for testing."""
_CAMERA = re.compile(r"(cam|camera|kamera)[-_ ]?(\d{1,4}|[a-z])|c\d{1,2}", re.IGNORECASE)
"""Names of folders that are cameras rather than people."""
_SPLIT_NAMES = frozenset(
    {
        *("train", "training", "query", "probe", "gallery"),
        *("test", "testing", "val", "valid", "validation"),
    }
)
"""Names of folders that are splits rather than people, in lower case."""


def read_folder(
    root: Path,
    *,
    domain: str,
    pid_regex: str | None = None,
    camid_regex: str | None = None,
    split: WholeSplit | None = None,
) -> Iterator[Record]:
    """Records of a folder.

    The regular expressions are searched for in file names, or in paths below the folder if they
    contain a slash; their single group is the person or the camera. Integers are kept as they are
    (-1 is junk); other names are numbered in sorted order. Without `pid_regex`, the folder of an
    image is its person; without `camid_regex`, cameras are unknown, as they are where its group
    matches nothing. If there are no split folders, `split` decides: "train" uses everything for
    training; "test" (the default) makes the first image of each person and camera a query and all
    others gallery. Raises MuvaError or SettingsError if images and options contradict each other.
    """
    existing_folder(root, title="the image folder")
    files = list(image_files(root))
    if not files:
        account = account_for(root, ())
        found = [contents(root), skipped_text(account.skipped)]
        found += [f"{entry['image_id']}: {entry['reason']}" for entry in account.unreadable[:3]]
        raise MuvaError(
            f"the image folder {root}: expected images, found {'; '.join(filter(None, found))}"
        )
    names = [file.relative_to(root) for file in files]
    split_folders = _split_folders(root, names)
    pid_names = (
        _folders_of_people(root, names, depth=1 if split_folders else 0)
        if pid_regex is None
        else _people(names, pid_regex)
    )
    pid_of = numbered_people(pid_names)
    pids = [pid_of[name] for name in pid_names]
    camids = (
        [None] * len(files)
        if camid_regex is None
        else numbered_cameras(_matches(names, camid_regex, "camid_regex"))
    )
    if split_folders and split is not None:
        raise SettingsError(
            f"the image folder {root} has the folders {', '.join(sorted(set(split_folders)))} for "
            f"its splits; expected no option split in addition, found {split!r}"
        )
    splits = split_folders or whole_split(split, pids, camids)
    for index, file in enumerate(files):
        yield Record(
            domain=domain,
            image_id=names[index].as_posix(),
            split=splits[index],
            pid=pids[index],
            camid=camids[index],
            source=file,
        )


def whole_split(
    split: WholeSplit | None, pids: Sequence[int], camids: Sequence[int | None]
) -> list[Split]:
    """The split of each image of a data set without splits; None means "test".

    For testing, the first image of each person and camera is a query and the others are gallery. A
    person with a single image in each camera would have queries that match nothing, so the last of
    these images is gallery. If the camera of any image is unknown, all are, as in an evaluation.
    Raises MuvaError if that leaves no gallery.
    """
    if split is not None and split not in get_args(WholeSplit):
        raise SettingsError(f"split {split!r}: expected one of {', '.join(get_args(WholeSplit))}")
    if split == "train":
        return ["train"] * len(pids)
    if None in camids:
        camids = [None] * len(camids)
    splits: list[Split] = [
        "query" if first else "gallery" for first in first_per_camera(pids, camids)
    ]
    images: dict[int, list[int]] = {}
    for index, pid in enumerate(pids):
        images.setdefault(pid, []).append(index)
    for indices in images.values():
        if len(indices) > 1 and all(splits[index] == "query" for index in indices):
            splits[indices[-1]] = "gallery"
    if pids and "gallery" not in splits:
        raise MuvaError(
            f"{len(pids)} images of {len(images)} people cannot be divided into queries and "
            "gallery: expected several images of some people, found one of each. If pids are "
            "wrong, correct --pid-regex or the column pid; to use all images for training, add "
            "--split train"
        )
    return splits


def _split_folders(root: Path, names: list[Path]) -> list[Split] | None:
    """The split of each image by its top-level folder; None if there are no split folders."""
    split_of_folder: dict[str, Split] = {
        split: split for split in SPLITS if (root / split).is_dir()
    }
    check_entries(
        root,
        [split for split in SPLITS if split in split_of_folder or (root / split).is_symlink()],
        title="the image folder",
    )
    if not split_of_folder:
        return None
    outside = [name for name in names if name.parts[0] not in split_of_folder]
    if outside:  # they would be ignored silently
        raise MuvaError(
            f"the image folder {root}: expected all images within {', '.join(split_of_folder)}, "
            f"found {len(outside)} outside, for example {outside[0]}"
        )
    return [split_of_folder[name.parts[0]] for name in names]


def _folders_of_people(root: Path, names: list[Path], *, depth: int) -> list[str]:
    """The person's folder of each image, `depth` levels below the root."""
    unassigned = [name for name in names if len(name.parts) < depth + 2]
    if unassigned:
        raise MuvaError(
            f"the image folder {root}: expected one folder per person, found the image "
            f"{unassigned[0]} in none. Put each person's images in a folder, or extract the person "
            "from file names, "
            r"for example with --pid-regex '^(\d+)_'"
        )
    _check_levels(root, names, depth=depth)
    return [name.parts[depth].strip() for name in names]


def _check_levels(root: Path, names: list[Path], *, depth: int) -> None:
    """Raise MuvaError if the folders that would be people are splits or cameras, or hold people."""
    outer = sorted({name.parts[depth] for name in names})
    if depth == 0 and all(name.lower() in _SPLIT_NAMES for name in outer):
        raise MuvaError(
            f"the image folder {root}: expected one folder per person, or the folders "
            f"{', '.join(SPLITS)}, found {some(outer)}. Give them these names, or import one of "
            f"them, for example with --from {root / outer[0]}"
        )
    inner: dict[str, set[str]] = {}  # folder within the folders that would be people -> these
    for name in names:
        if len(name.parts) > depth + 2:
            inner.setdefault(name.parts[depth + 1], set()).add(name.parts[depth])
    within = sorted(inner)
    all_deeper = all(len(name.parts) > depth + 2 for name in names)
    if within and all(map(_CAMERA.fullmatch, within)):
        return  # the cameras are inside the people's folders
    # A folder c1 with images in it may be a person; one with folders in it is a camera.
    named = all(map(_CAMERA.fullmatch, outer)) and (all_deeper or "am" in outer[0].lower())
    recur = sum(len(holders) > 1 for holders in inner.values()) * 2 >= len(within)
    if not named and (
        not all_deeper or len(outer) >= len(within) or (len(outer) > 1 and not recur)
    ):
        return
    above = "[^/]+/" * depth
    person = f"--pid-regex '^{above}[^/]+/([^/]+)/'"
    camera = f"--camid-regex '^{above}([^/]+)/'"
    if not all_deeper:
        found = f"folders named like cameras, {some(outer)}, with images in them"
        remedy = f"{camera}, and --pid-regex for the person in the file name"
    elif named or len(outer) > 1:
        found = f"{some(outer)}, which hold the folders {some(within)}"
        remedy = f"{person} {camera} if those are cameras, and these are people"
    else:
        found = f"the single folder {outer[0]}, which holds the folders {some(within)}"
        remedy = f"{person} if these are people"
    raise MuvaError(
        f"the image folder {root}: expected one folder per person, found {found}. Add {remedy}. If "
        f"{outer[0]} is a person, add --pid-regex '^{above}([^/]+)/'"
    )


def _people(names: list[Path], expression: str) -> list[str]:
    """The person's name in each file name or path."""
    found = _matches(names, expression, "pid_regex")
    without = [name.as_posix() for name, person in zip(names, found, strict=True) if not person]
    if without:
        raise MuvaError(
            f"pid_regex {expression!r} matches nothing with its group in {len(without)} of "
            f"{len(names)} files, for example in {without[0]}"
        )
    return [person for person in found if person]


def _matches(names: list[Path], expression: str, option: str) -> list[str | None]:
    """The text that the expression's group matches in each file name, or path if it has a slash."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise SettingsError(
            f"{option} {expression!r} is not a regular expression: {error}"
        ) from error
    if pattern.groups != 1:
        raise SettingsError(
            f"{option} {expression!r}: expected one group in parentheses, found {pattern.groups}"
        )
    whole_paths = "/" in expression
    texts = [name.as_posix() if whole_paths else name.name for name in names]
    found = [pattern.search(text) for text in texts]
    without = [text for text, match in zip(texts, found, strict=True) if match is None]
    if without:
        optional = (
            ". If some cameras are unknown, let the expression match without its group, as in "
            r"'(?:_c(\d))?\.'"
        )
        raise MuvaError(
            f"{option} {expression!r} matches nothing in {len(without)} of {len(names)} "
            f"{'paths' if whole_paths else 'file names'}, for example in {without[0]}"
            f"{optional if option == 'camid_regex' else ''}"
        )
    return [match[1] and match[1].strip() for match in found if match is not None]
