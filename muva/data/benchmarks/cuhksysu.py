"""CUHK-SYSU (Xiao et al., "Joint Detection and Identification Feature Learning for Person Search",
CVPR 2017): whole frames with annotated people, all of which are used for training here.

In the archive, `annotation/Person.mat` is an array with one struct per person: `idname`, like
p11422, and `scene`, an array of structs with a frame of `Image/SSM` (`imname`) and a box in it
(`idlocate`: left, top, width, height). Others distribute the cropped people as `cropped_images`
(torchreid: `p11422_s16929_1.jpg`) or `cropped_image` (MetaBIN: `p11422_n01_s16929_hard0.png`);
such a folder is read if the frames are missing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.listing import (
    contents,
    existing_folder,
    image_files,
    match_file_name,
    suggest_folder,
)
from muva.data.benchmarks.matlab import matlab_variable, structs
from muva.data.records import LazyImage, Record
from muva.errors import MuvaError

CUHKSYSU = Benchmark(
    title="CUHK-SYSU",
    layout="cuhksysu",
    paper="Xiao et al., Joint Detection and Identification Feature Learning for Person Search, "
    "CVPR 2017",
    source="https://github.com/ShuangLI59/person_search",
    licence="academic use only",
    status="available from its authors on request, with a university email address",
    rules="cameras are unknown; all images of all people are used for training",
    lists="none needed",
    counts={"train": Counts(images=34574, identities=11934, cameras=0)},
    counts_from="torchreid's reader and NEU-Gou's awesome-reid-dataset",
)

_FRAMES, _PEOPLE = "Image/SSM", "annotation/Person.mat"
_CROPS = ("cropped_images", "cropped_image")
_PERSON = re.compile(r"p(?P<pid>\d+)")
_FILE_NAME = re.compile(r"p(?P<pid>\d+)_(?:n\d+_)?s\d+_")


def read_cuhksysu(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of the original archive, cropped on demand, or of a tree of cropped images.

    Image ids of the archive look like `Image/SSM/s16929.jpg#p11422_1`: the frame, the person, and
    the index among the person's scenes. Raises MuvaError if neither layout is found.
    """
    existing_folder(root, title=CUHKSYSU.title)
    if (root / _FRAMES).is_dir() and (root / _PEOPLE).is_file():
        return _crops_of_frames(root, domain)
    for folder in _CROPS:
        if (root / folder).is_dir():
            return _cropped_files(root, folder, domain)
    guesses = [
        suggest_folder(root, _FRAMES, _PEOPLE),
        *(suggest_folder(root, folder) for folder in _CROPS),
    ]
    raise MuvaError(
        f"{CUHKSYSU.title} at {root}: expected {_FRAMES} and {_PEOPLE}, or {_CROPS[0]}; found "
        f"{contents(root)}. {max(guesses, key=lambda text: text.startswith('Is it'))}"
    )


def _cropped_files(root: Path, folder: str, domain: str) -> Iterator[Record]:
    for file in image_files(root / folder):
        name = match_file_name(
            file, _FILE_NAME, example="p11422_s16929_1.jpg", root=root, title=CUHKSYSU.title
        )
        yield _record(domain, file.relative_to(root).as_posix(), int(name["pid"]), file)


def _crops_of_frames(root: Path, domain: str) -> Iterator[Record]:
    where = f"{CUHKSYSU.title} at {root / _PEOPLE}"
    people = matlab_variable(root / _PEOPLE, "Person", title=CUHKSYSU.title)
    for person, scenes in structs(people, "idname", "scene", where=where):
        name = _PERSON.fullmatch("".join(person))
        if name is None:
            raise MuvaError(f"{where}: expected people named like p11422, found {person}")
        seen = structs(scenes, "imname", "idlocate", where=where)
        for number, (frame, box) in enumerate(seen, start=1):
            if box.size != 4:
                raise MuvaError(f"{where}: expected boxes of 4 numbers, found {box} for {name[0]}")
            file = root / _FRAMES / "".join(frame)
            left, top, width, height = (int(corner) for corner in box.ravel())
            image_id = f"{file.relative_to(root).as_posix()}#{name[0]}_{number}"
            # MATLAB indices start from 1 and ranges include their end. MetaBIN's
            # make_cropped_image.m crops I(y:y+h, x:x+w), which would fail for boxes from 0.
            corners = (left - 1, top - 1, left + width, top + height)
            source = LazyImage(file=file, encoded=partial(_png, file, corners))
            yield _record(domain, image_id, int(name["pid"]), source)


def _png(frame: Path, corners: tuple[int, int, int, int]) -> bytes:
    """The region x0, y0, x1, y1 of a frame (pixels, x1 and y1 exclusive) as PNG."""
    from PIL import Image

    with Image.open(frame) as image:
        x0, y0, x1, y1 = corners
        inside = (max(x0, 0), max(y0, 0), min(x1, image.width), min(y1, image.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise OSError(f"the box {corners} lies outside the frame of size {image.size}")
        encoded = io.BytesIO()
        image.convert("RGB").crop(inside).save(encoded, format="PNG")
    return encoded.getvalue()


def _record(domain: str, image_id: str, pid: int, source: Path | LazyImage) -> Record:
    return Record(
        domain=domain, image_id=image_id, split="train", pid=pid, camid=None, source=source
    )
