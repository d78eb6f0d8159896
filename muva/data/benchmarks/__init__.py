"""Readers: one file a layout, each turning a tree of images into records.

A reader is `read(root, *, domain, **its own options)` and yields `Record`s; it opens listings, not
images, and raises MuvaError for a tree that is not its own. To add one, add a file and a line here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from muva.data.benchmarks.folder import read_folder
from muva.data.benchmarks.manifest import read_manifest
from muva.data.benchmarks.market1501 import read_market1501
from muva.data.records import Record
from muva.errors import SettingsError

Reader = Callable[..., Iterator[Record]]

READERS: dict[str, Reader] = {
    "market1501": read_market1501,
    "folder": read_folder,
    "manifest": read_manifest,
}


def read_tree(
    layout: str, root: Path, *, domain: str, options: Mapping[str, Any] | None = None
) -> list[Record]:
    """All records of a tree in a layout, with the layout's own options (None: its default)."""
    if layout not in READERS:
        close = difflib.get_close_matches(layout, READERS, n=1) or list(READERS)
        raise SettingsError(f"layout {layout!r} is unknown; closest: {', '.join(close)}")
    reader = READERS[layout]
    given = {name: value for name, value in (options or {}).items() if value is not None}
    known = set(inspect.signature(reader).parameters) - {"root", "domain"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise SettingsError(
            f"layout {layout} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return list(reader(root, domain=domain, **given))


def listing_of(records: Iterable[Record]) -> list[tuple[Any, ...]]:
    """What is known of each image, with its file's size and time of change, by id.

    An unchanged listing means an unchanged data set, without reading an image. Where there is no
    file its size is -1.
    """
    listing = []
    for record in records:
        size, changed = -1, 0
        if isinstance(record.source, bytes):
            size = len(record.source)
        elif record.source.is_file():
            found = record.source.stat()
            size, changed = found.st_size, found.st_mtime_ns
        boxes = None if record.boxes is None else sorted(record.boxes.items())
        said = (record.split, record.pid, record.camid, record.caption, boxes)
        listing.append((record.image_id, size, changed, *said))
    return sorted(listing, key=lambda entry: entry[0])
