"""What became of each file below a folder: read as an image, skipped for a reason, or unreadable.

Nobody notices a person who is missing from a data set. Every import and every embedding of a folder
therefore counts the files that it did not take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from muva.data.benchmarks.listing import HIDDEN, SYSTEM, entries, printable, some
from muva.data.plug_ins import PLUG_INS
from muva.data.records import LazyImage, Record

MAX_SKIPPED_WITHOUT_WARNING = 5
"""More skipped files than this are a warning."""
OUTSIDE = "image outside the layout"
_EXPECTED = frozenset({HIDDEN, SYSTEM})
"""Reasons that need no warning."""
_MOST_REASONS = 10


@dataclass(frozen=True, kw_only=True)
class Account:
    """The files below a folder that were not taken."""

    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of files."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first of its files."""
    unreadable: list[dict[str, str]] = field(default_factory=list)
    """Folders and links that cannot be opened: `image_id`, which is their path, and `reason`."""
    folders_lost: list[str] = field(default_factory=list)
    """Folders with files in them, all of which were skipped."""


def account_for(root: Path, taken: Iterable[Path]) -> Account:
    """Account for all files below a folder, of which these were taken; empty if it is a file."""
    if not root.is_dir():
        return Account()
    files = {str(file) for file in taken}
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    unreadable, folders_taken, folders_skipped = [], set(), set()
    for entry in entries(root):
        name = printable(entry.file.relative_to(root).as_posix())
        if entry.unreadable is not None:
            unreadable.append({"image_id": name, "reason": entry.unreadable})
            continue
        if str(entry.file) in files:
            folders_taken.add(entry.file.parent)
            continue
        reason = entry.skipped or OUTSIDE
        reasons[reason] += 1
        examples[reason] = min(name, examples.get(reason, name))
        if reason not in _EXPECTED:
            folders_skipped.add(entry.file.parent)
    folders_taken.update(*(folder.parents for folder in folders_taken))
    lost = (folder.relative_to(root) for folder in folders_skipped - folders_taken)
    return Account(
        skipped=_most_frequent(reasons),
        examples=examples,
        unreadable=sorted(unreadable, key=lambda entry: entry["image_id"]),
        folders_lost=sorted(printable(folder.as_posix()) for folder in lost),
    )


def sources(records: Iterable[Record]) -> set[Path]:
    """The files that records are read from."""
    files = (r.source.file if isinstance(r.source, LazyImage) else r.source for r in records)
    return {file for file in files if isinstance(file, Path)}


def skipped_text(skipped: Mapping[str, int]) -> str:
    """The number of skipped files and their reasons: `12 files skipped (no ending 9, …)`."""
    total = sum(skipped.values())
    reasons = ", ".join(f"{reason} {number}" for reason, number in skipped.items())
    return f"{total} {'file' if total == 1 else 'files'} skipped ({reasons})" if total else ""


def many_skipped(skipped: Mapping[str, int]) -> bool:
    """Whether the skipped files deserve a warning: a handful, or pictures that a plug-in opens."""
    unexpected = {reason: number for reason, number in skipped.items() if reason not in _EXPECTED}
    return sum(unexpected.values()) > MAX_SKIPPED_WITHOUT_WARNING or any(map(_plug_in, unexpected))


def warnings(account: Account) -> list[str]:
    """What to tell users about the files that were not taken, and how to have them taken."""
    lines = []
    if many_skipped(account.skipped):
        examples = ", ".join(
            f"{account.examples[reason]} ({reason})"
            for reason in account.skipped
            if reason not in _EXPECTED and reason in account.examples
        )
        lines.append(f"{skipped_text(account.skipped)}, for example {examples}.")
    if plug_ins := sorted({p for p in map(_plug_in, account.skipped) if p is not None}):
        lines.append(
            f"Pillow needs a plug-in for some of these files: `pip install {' '.join(plug_ins)}`, "
            "then repeat the command."
        )
    if account.folders_lost:
        lines.append(
            f"No file was taken from {some(account.folders_lost)}. Are these people? Convert "
            "their images, for example to PNG, or put them where the layout expects images."
        )
    if account.unreadable:
        names = [f"{entry['image_id']} ({entry['reason']})" for entry in account.unreadable]
        lines.append(f"Images may be missing, because these cannot be opened: {some(names)}.")
    return lines


def _plug_in(reason: str) -> str | None:
    """The plug-in that a reason for skipping names."""
    return next((p for p in PLUG_INS.values() if reason.endswith(f"which needs {p}")), None)


def _most_frequent(reasons: Counter[str]) -> dict[str, int]:
    """The reasons by decreasing frequency; rare ones are counted together."""
    ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    rare = [reason for reason in ordered if _plug_in(reason) is None][_MOST_REASONS:]
    others = sum(ordered.pop(reason) for reason in rare)
    return {**ordered, **({"other reasons": others} if others else {})}
