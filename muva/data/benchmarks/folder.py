"""A folder of images of people, without writing a reader.

Either one folder per person, or images whose names tell the person by a regular expression. The
folders `train`, `query` and `gallery` at the top, if there are any, are the splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from muva.data.benchmarks.listing import contents, existing_folder, image_files, numbered
from muva.data.records import SPLITS, Record, Split, first_per_camera
from muva.errors import MuvaError, SettingsError

WholeSplit = Literal["train", "test"]
"""What images without a split are: all for training, or all for testing."""


def read_folder(
    root: Path,
    *,
    domain: str,
    pid_regex: str | None = None,
    camid_regex: str | None = None,
    split: WholeSplit | None = None,
) -> Iterator[Record]:
    """Records of a folder.

    The expressions are searched in file names; their one group is the person, or the camera. Names
    that are whole numbers keep them (-1 is junk); others are numbered in order. Without `pid_regex`
    the folder of an image is its person; without `camid_regex` cameras are unknown. Where there
    are no split folders, `split` decides: "train" trains on everything, "test" (the default) makes
    the first image of each person and camera a query and the others gallery.
    """
    existing_folder(root, title="the image folder")
    files = list(image_files(root))
    if not files:
        raise MuvaError(f"the image folder {root}: expected images in it, found {contents(root)}")
    names = [file.relative_to(root) for file in files]
    split_folders = _split_folders(root, names)
    pid_names = (
        _folders_of_people(root, names, depth=1 if split_folders else 0)
        if pid_regex is None
        else _matches(files, pid_regex, "pid_regex")
    )
    cameras = None if camid_regex is None else _matches(files, camid_regex, "camid_regex")
    pid_of = numbered(pid_names, first=0)
    camid_of = numbered(cameras or [], first=1)
    pids = [pid_of[name] for name in pid_names]
    camids = [None] * len(files) if cameras is None else [camid_of[name] for name in cameras]
    if split_folders and split is not None:
        raise SettingsError(
            f"the image folder {root} has the folders {', '.join(sorted(set(split_folders)))} for "
            f"its splits: expected no split {split!r} beside them"
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
    split: WholeSplit | None, pids: list[int], camids: list[int] | list[None]
) -> list[Split]:
    """The split of each of some images that come without one; None is "test"."""
    if split is not None and split not in get_args(WholeSplit):
        raise SettingsError(f"split {split!r}: expected one of {', '.join(get_args(WholeSplit))}")
    if split == "train":
        return ["train"] * len(pids)
    return ["query" if first else "gallery" for first in first_per_camera(pids, camids)]


def _split_folders(root: Path, names: list[Path]) -> list[Split] | None:
    """Each image's split by its top folder; None without such folders."""
    split_of_folder: dict[str, Split] = {
        split: split for split in SPLITS if (root / split).is_dir()
    }
    if not split_of_folder:
        return None
    outside = [name for name in names if name.parts[0] not in split_of_folder]
    if outside:  # they would be lost without a word
        raise MuvaError(
            f"the image folder {root}: expected all images within {', '.join(split_of_folder)}, "
            f"found {len(outside)} outside, for example {outside[0]}"
        )
    return [split_of_folder[name.parts[0]] for name in names]


def _folders_of_people(root: Path, names: list[Path], *, depth: int) -> list[str]:
    """The folder of the person on each image, `depth` folders below the root."""
    unassigned = [name for name in names if len(name.parts) < depth + 2]
    if unassigned:
        raise MuvaError(
            f"the image folder {root}: expected one folder per person, found the image "
            f"{unassigned[0]} in none. Put each person's images in a folder, or tell the person "
            "from file names, "
            r"for example with --pid-regex '^(\d+)_'"
        )
    return [name.parts[depth] for name in names]


def _matches(files: list[Path], expression: str, option: str) -> list[str]:
    """The expression's group in each file name."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise SettingsError(f"{option} {expression!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise SettingsError(
            f"{option} {expression!r}: expected one group in parentheses, found {pattern.groups}"
        )
    found = [pattern.search(file.name) for file in files]
    without = [
        file.name for file, match in zip(files, found, strict=True) if not (match and match[1])
    ]
    if without:
        raise MuvaError(
            f"{option} {expression!r} finds nothing in {len(without)} of {len(files)} file names, "
            f"for example in {without[0]}"
        )
    return [match[1] for match in found if match]
