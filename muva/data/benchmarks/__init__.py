"""Readers of data set layouts, one per file. Each turns a tree of images into records.

A reader is a function `read(root, *, domain, **options)` that yields `Record`s. It opens listings
but no images, and raises MuvaError if the tree has another layout. To add a reader, add a file and
an entry in `READERS`; a public data set also gets an entry in `BENCHMARKS`.
"""

from __future__ import annotations

import inspect
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from muva.data.benchmarks.benchmark import Benchmark
from muva.data.benchmarks.cuhk02 import CUHK02, read_cuhk02
from muva.data.benchmarks.cuhk03 import CUHK03_DETECTED, CUHK03_LABELLED, read_cuhk03
from muva.data.benchmarks.cuhk03np import CUHK03NP_DETECTED, CUHK03NP_LABELLED, read_cuhk03np
from muva.data.benchmarks.cuhksysu import CUHKSYSU, read_cuhksysu
from muva.data.benchmarks.dukemtmc import DUKEMTMC, read_dukemtmc
from muva.data.benchmarks.folder import read_folder
from muva.data.benchmarks.grid import GRID, read_grid
from muva.data.benchmarks.ilids import ILIDS, read_ilids
from muva.data.benchmarks.manifest import read_manifest
from muva.data.benchmarks.market1501 import MARKET1501, read_market1501
from muva.data.benchmarks.msmt17 import MSMT17, MSMT17_V2, read_msmt17
from muva.data.benchmarks.prid2011 import PRID2011, read_prid2011
from muva.data.benchmarks.viper import VIPER, read_viper
from muva.data.records import LazyImage, Record
from muva.errors import SettingsError, closest

Reader = Callable[..., Iterator[Record]]

READERS: dict[str, Reader] = {
    "market1501": read_market1501,
    "dukemtmc": read_dukemtmc,
    "msmt17": read_msmt17,
    "cuhk03": read_cuhk03,
    "cuhk03np": read_cuhk03np,
    "cuhk02": read_cuhk02,
    "cuhksysu": read_cuhksysu,
    "viper": read_viper,
    "prid2011": read_prid2011,
    "grid": read_grid,
    "ilids": read_ilids,
    "folder": read_folder,
    "manifest": read_manifest,
}

BENCHMARKS: dict[str, Benchmark] = {
    "market1501": MARKET1501,
    "cuhk02": CUHK02,
    "cuhksysu": CUHKSYSU,
    "viper": VIPER,
    "prid2011": PRID2011,
    "grid": GRID,
    "ilids": ILIDS,
    "dukemtmc": DUKEMTMC,
    "msmt17": MSMT17,
    "msmt17-v2": MSMT17_V2,
    "cuhk03-detected": CUHK03_DETECTED,
    "cuhk03-labelled": CUHK03_LABELLED,
    "cuhk03np-detected": CUHK03NP_DETECTED,
    "cuhk03np-labelled": CUHK03NP_LABELLED,
}
"""Public data sets by the name that each has in muva."""


def read_tree(
    layout: str, root: Path, *, domain: str, options: Mapping[str, Any] | None = None
) -> list[Record]:
    """All records of a tree with a certain layout; options that are None keep their defaults.

    Raises SettingsError for an unknown layout or option.
    """
    if layout not in READERS:
        suggestion = closest(layout, READERS, most=len(READERS))
        raise SettingsError(f"layout {layout!r} is unknown; {suggestion}")
    reader = READERS[layout]
    chosen = {name: value for name, value in (options or {}).items() if value is not None}
    known = set(inspect.signature(reader).parameters) - {"root", "domain"}
    unknown = sorted(set(chosen) - known)
    if unknown:
        raise SettingsError(
            f"layout {layout} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return list(reader(root, domain=domain, **chosen))


def file_listing(records: Iterable[Record]) -> list[tuple[Any, ...]]:
    """The annotations of each image with its file's size and modification time, sorted by image id.

    If the listing is unchanged, the data set is unchanged; no image has to be read. The size is -1
    if the file does not exist or cannot be reached.
    """
    listing = []
    for record in records:
        size, changed = -1, 0
        file = record.source.file if isinstance(record.source, LazyImage) else record.source
        if isinstance(file, bytes):
            size = len(file)
        else:
            with suppress(OSError):  # storing the image will name the reason
                found = file.stat()
                if stat.S_ISREG(found.st_mode):
                    size, changed = found.st_size, found.st_mtime_ns
        boxes = None if record.boxes is None else sorted(record.boxes.items())
        labels = (record.split, record.pid, record.camid, record.caption, boxes)
        listing.append((record.image_id, size, changed, *labels))
    return sorted(listing, key=lambda entry: entry[0])
