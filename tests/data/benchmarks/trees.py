"""Miniature trees in the layouts of data sets, and the annotations that readers find in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from muva.data.records import Record


def tree(root: Path, files: Mapping[str, Iterable[str]]) -> Path:
    """Creates small grey images with these names in these folders; returns the root."""
    for folder, names in files.items():
        for name in names:
            file = root / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 4, 3), 127, np.uint8)).save(file)
    return root


def image_labels(records: Iterable[Record]) -> set[tuple[str, str, int, int | None]]:
    """Image id, split, pid and camid of each record."""
    return {(r.image_id, r.split, r.pid, r.camid) for r in records}
