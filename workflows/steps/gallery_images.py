"""Adding images to a gallery that grows: from a folder, a data set or a file of features."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from muva.data.artifacts import Artifact
from muva.data.benchmarks.listing import some
from muva.data.benchmarks.manifest import listed_table
from muva.errors import MuvaError, SettingsError
from muva.retrieval.gallery import Gallery
from muva.retrieval.gallery_rows import (
    GalleryRow,
    Value,
    check_column_name,
    check_image_id,
    utc_time,
)
from muva.retrieval.gallery_table import GalleryTable
from workflows.session import Session
from workflows.steps.embed_folder import (
    Chunk,
    embed_dataset,
    embedded_chunks,
    files_in,
    model_for_files,
)

COMMITTED_IMAGES = 4096
"""How many images are added together: what an interruption costs."""
_UNDERSTOOD, _LEFT_OUT = ("pid", "camid", "time", "place"), ("split", "folder", "dataset")
_EMPTY = frozenset({"", "nan", "NaN", "NA", "null", "None"})


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is known of images beside the images."""

    camid: int | None = None
    place: str | None = None
    time: datetime | None = None
    listed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By image id, the columns of a list; they come before what is said of all images."""

    def of(self, row: GalleryRow) -> GalleryRow:
        """The row with what is known."""
        known = {
            name: getattr(self, name)
            for name in ("camid", "place", "time")
            if getattr(self, name) is not None
        }
        return replace(row, **{**known, **self.listed.get(row.image_id, {})})


@dataclass(frozen=True, kw_only=True)
class Added:
    """What became of images that were added to a gallery."""

    images: int
    present: int = 0
    """Images that the gallery had already, which were not embedded again."""
    quarantined: list[dict[str, str]] = field(default_factory=list)
    """Images that cannot be read or have no possible id: `image_id`, `reason`."""


def add_folder(
    gallery: GalleryTable,
    folder: Path,
    model: Artifact,
    details: Details,
    *,
    root: Path | None = None,
    on_progress: Callable[[int, int], None],
) -> Added:
    """Embed the images below a folder that the gallery lacks, and add them.

    They are added while the others are being embedded, so that an interrupted call has to be
    repeated only for what is missing.

    root: the folder that ids are relative to; by default the folder itself.

    Raises:
        MuvaError: the gallery has images of the same ids from another folder.
    """
    root = (root or folder).absolute()
    files, account = files_in(folder.absolute())
    ids = [_relative(file, root) for file in files]
    _check_listed(details, ids, folder)
    present = gallery.ids(pc.field("folder") == pc.scalar(str(root)))
    _check_not_from_elsewhere(gallery, set(ids) - present)
    missing = [file for file, one in zip(files, ids, strict=True) if one not in present]
    quarantined = list(account.unreadable)
    added = 0
    if missing:
        chunks = embedded_chunks(missing, root, model_for_files(model), on_progress=on_progress)
        for ids, features in _together(chunks, quarantined):
            rows = [details.of(GalleryRow(image_id=one, folder=str(root))) for one in ids]
            gallery.add(features, rows)
            added += len(ids)
    return Added(images=added, present=len(files) - len(missing), quarantined=quarantined)


def add_dataset(
    session: Session, gallery: GalleryTable, dataset: Artifact, model: Artifact, details: Details
) -> Added:
    """Embed the query and gallery images of a data set, and add them."""
    return add_features(
        gallery, embed_dataset(session, dataset, model, train=False).gallery, details
    )


def add_features(gallery: GalleryTable, features: Gallery, details: Details) -> Added:
    """Add the images of a features file.

    Raises:
        MuvaError: another model computed them.
    """
    if features.source.weights != gallery.source.weights:
        raise MuvaError(
            f"expected features by the gallery's model {gallery.source.model}, found those of "
            f"{features.source.model}. Features of two models cannot be compared: embed the images "
            "with the gallery's model"
        )
    folder, dataset = features.source.folder, features.source.dataset
    ids = [str(one) for one in features.ids]
    _check_listed(details, ids, "the features")
    present = gallery.ids(_from(folder, dataset))
    _check_not_from_elsewhere(gallery, set(ids) - present)
    missing = [index for index, image_id in enumerate(ids) if image_id not in present]
    rows = [
        details.of(GalleryRow(**features.describe(index), folder=folder, dataset=dataset))
        for index in missing
    ]
    if rows:
        gallery.add(features.features[missing], rows)
    return Added(images=len(rows), present=len(ids) - len(rows))


def listed_details(file: Path) -> dict[str, dict[str, Any]]:
    """What a list says of images, by their ids, from CSV or Parquet.

    The column `path` or `image_id` has the ids, `pid`, `camid`, `time` (ISO 8601) and `place` are
    understood, and other columns are kept as they are.

    Raises:
        MuvaError: there are no ids, an id repeats, or a pid, camid or time is none.
    """
    table = listed_table(file)
    name = next((one for one in ("image_id", "path") if one in table.column_names), None)
    if name is None:
        raise MuvaError(
            f"the list {file}: expected a column image_id or path, found "
            f"{', '.join(table.column_names) or 'none'}"
        )
    for column in table.column_names:
        if column not in (name, *_UNDERSTOOD, *_LEFT_OUT):
            try:
                check_column_name(column)
            except MuvaError as error:
                raise MuvaError(f"the list {file}: {error}") from error
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(table.to_pylist(), start=1):
        image_id = Path(str(row.pop(name))).as_posix()
        if image_id in found:
            raise MuvaError(f"the list {file}: expected each image once, found {image_id} twice")
        try:
            found[image_id] = _details_of(row)
        except MuvaError as error:
            raise MuvaError(f"the list {file}: row {number}: {error}") from error
    return found


def _details_of(row: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    columns: dict[str, Value] = {}
    for name, value in row.items():
        if value is None or str(value).strip() in _EMPTY:
            continue
        if name in ("pid", "camid"):
            known[name] = _integer(name, value)
        elif name == "time":
            known[name] = _time(value)
        elif name == "place":
            known[name] = str(value)
        elif name not in _LEFT_OUT:
            columns[name] = value if isinstance(value, bool | int | float) else str(value)
    return {**known, "columns": columns} if columns else known


def _integer(name: str, value: object) -> int:
    text = str(value).strip()
    if re.fullmatch(r"-?\d{1,18}(\.0*)?", text) is None:
        raise MuvaError(
            f"expected an integer as {name}, found {value!r}. A gallery grows, so names cannot be "
            "numbered: give people numbers, and keep names in another column"
        )
    return int(text.partition(".")[0])


def _time(value: object) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return utc_time(str(value))


def _relative(file: Path, root: Path) -> str:
    try:
        return file.relative_to(root).as_posix()
    except ValueError as error:
        raise SettingsError(f"--root {root}: expected a folder above {file}") from error


def _check_listed(details: Details, ids: Sequence[str], where: object) -> None:
    unknown = details.listed.keys() - set(ids)
    if details.listed and len(unknown) == len(details.listed):
        raise MuvaError(
            f"none of the {len(unknown)} images of the list is in {where}: expected ids such as "
            f"{ids[0]}, found {min(unknown)}"
        )


def _from(folder: str | None, dataset: str | None) -> pc.Expression:
    """The condition on images that are from a folder, a data set, or neither."""
    where = {"folder": folder, "dataset": dataset}
    one, other = (
        pc.field(name).is_null() if value is None else pc.field(name) == pc.scalar(value)
        for name, value in where.items()
    )
    return one & other


def _check_not_from_elsewhere(gallery: GalleryTable, ids: Collection[str]) -> None:
    taken = sorted(gallery.ids().intersection(ids))
    if taken:
        raise MuvaError(
            f"gallery {gallery.name} has {len(taken)} images of the same ids from elsewhere "
            f"({some(taken)}), which these would replace. For folders, name one above both with "
            "--root, so that their ids differ; otherwise make a gallery of their own for these"
        )


def _together(
    chunks: Iterator[Chunk], quarantined: list[dict[str, str]]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids and features of up to `COMMITTED_IMAGES` images; `quarantined` gets what cannot be."""
    ids: list[str] = []
    features: list[np.ndarray] = []
    for chunk in chunks:
        quarantined += chunk.quarantined
        for image_id, feature in zip(chunk.ids, chunk.features, strict=True):
            try:
                check_image_id(image_id)
            except MuvaError as error:
                quarantined.append({"image_id": ascii(image_id), "reason": str(error)})
                continue
            ids.append(image_id)
            features.append(feature)
        if len(ids) >= COMMITTED_IMAGES:
            yield ids, np.stack(features)
            ids, features = [], []
    if ids:
        yield ids, np.stack(features)
