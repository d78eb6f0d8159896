"""Data sets written out in the layouts of public ones, image by image."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from muva.data.records import Record

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def write_market1501(records: Iterable[Record], root: Path) -> Path:
    for number, record in enumerate(records):
        name = f"{record.pid:04d}_c{record.camid}s1_{number:06d}_00.jpg"
        _write(root / FOLDERS[record.split] / name, record.read())
    return root


def write_cuhk03np(records: Iterable[Record], root: Path) -> Path:
    for number, record in enumerate(records):
        name = f"{record.pid:04d}_c{record.camid}_{number}.png"
        _write(root / "detected" / FOLDERS[record.split] / name, _encoded(record, "PNG"))
    return root


def write_msmt17(records: Iterable[Record], root: Path) -> Path:
    lists: dict[str, list[str]] = {name: [] for name in ("train", "val", "query", "gallery")}
    seen: Counter[int] = Counter()
    for record in records:
        number = seen[record.pid]
        seen[record.pid] += 1
        name = f"{record.pid:04d}_{number:03d}_{record.camid:02d}_0303morning_0015_0.jpg"
        folder = "train" if record.split == "train" else "test"
        listed = "val" if record.split == "train" and number == 0 else record.split
        _write(root / folder / f"{record.pid:04d}" / name, record.read())
        lists[listed].append(f"{record.pid:04d}/{name} {record.pid}")
    for name, lines in lists.items():
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_cuhk02(records: Iterable[Record], root: Path) -> Path:
    """People by turns in the five pairs; the first two cameras are a pair's first one."""
    for number, record in enumerate(records):
        assert record.camid is not None
        folder = root / f"P{1 + record.pid % 5}" / f"cam{1 if record.camid < 3 else 2}"
        _write(folder / f"{record.pid:03d}_{number}.png", _encoded(record, "PNG"))
    return root


def write_viper(records: Iterable[Record], root: Path) -> Path:
    """The first image of each person in each of two cameras."""
    seen: set[tuple[int, int]] = set()
    for record in records:
        if record.camid in (1, 2) and (record.pid, record.camid) not in seen:
            seen.add((record.pid, record.camid))
            folder = "cam_a" if record.camid == 1 else "cam_b"
            _write(root / folder / f"{record.pid:03d}_45.bmp", _encoded(record, "BMP"))
    return root


def _encoded(record: Record, form: str) -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(record.read())).save(content, form)
    return content.getvalue()


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
