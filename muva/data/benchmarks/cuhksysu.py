"""CUHK-SYSU (Xiao et al., "Joint Detection and Identification Feature Learning for Person Search",
CVPR 2017): whole frames in which people are marked, all of them for training here.

In the archive, `annotation/Person.mat` is an array of structs, one a person: `idname`, like p11422,
and `scene`, an array of structs with a frame of `Image/SSM` (`imname`) and a box in it
(`idlocate`: left, top, width, height). Others have cut the people out into `cropped_images`
(torchreid: `p11422_s16929_1.jpg`) or `cropped_image` (MetaBIN: `p11422_n01_s16929_hard0.png`);
such a folder is read where the frames are not there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from muva.data.benchmarks.benchmark import Benchmark, Counts
from muva.data.benchmarks.listing import contents, existing_folder, guess, image_files, name_of
from muva.data.benchmarks.matlab import matlab_variable, structs
from muva.data.records import Excerpt, Record
from muva.errors import MuvaError

CUHKSYSU = Benchmark(
    title="CUHK-SYSU",
    layout="cuhksysu",
    paper="Xiao et al., Joint Detection and Identification Feature Learning for Person Search, "
    "CVPR 2017",
    source="https://github.com/ShuangLI59/person_search",
    licence="academic use only",
    status="given by its authors on request, from a university's address",
    rules="cameras unknown; all images of all people are for training",
    lists="none are needed",
    counts={"train": Counts(images=34574, identities=11934, cameras=0)},
    counts_from="torchreid's reader and NEU-Gou's awesome-reid-dataset",
)

_FRAMES, _PEOPLE = "Image/SSM", "annotation/Person.mat"
_CROPS = ("cropped_images", "cropped_image")
_PERSON = re.compile(r"p(?P<pid>\d+)")
_FILE_NAME = re.compile(r"p(?P<pid>\d+)_(?:n\d+_)?s\d+_")


def read_cuhksysu(root: Path, *, domain: str) -> Iterator[Record]:
    """Records of the archive, whose people are cut out when they are wanted, or of a cropped tree.

    Image ids of the archive are `Image/SSM/s16929.jpg#p11422_1`: the frame, the person, and which
    of the person's scenes it is.
    """
    existing_folder(root, what=CUHKSYSU.title)
    if (root / _FRAMES).is_dir() and (root / _PEOPLE).is_file():
        return _cut_out(root, domain)
    for folder in _CROPS:
        if (root / folder).is_dir():
            return _cropped(root, folder, domain)
    guesses = [guess(root, _FRAMES, _PEOPLE), *(guess(root, folder) for folder in _CROPS)]
    raise MuvaError(
        f"{CUHKSYSU.title} at {root}: expected {_FRAMES} and {_PEOPLE}, or {_CROPS[0]}; found "
        f"{contents(root)}. {max(guesses, key=lambda text: text.startswith('Is it'))}"
    )


def _cropped(root: Path, folder: str, domain: str) -> Iterator[Record]:
    for file in image_files(root / folder):
        name = name_of(file, _FILE_NAME, like="p11422_s16929_1.jpg", root=root, what=CUHKSYSU.title)
        yield _record(domain, file.relative_to(root).as_posix(), int(name["pid"]), file)


def _cut_out(root: Path, domain: str) -> Iterator[Record]:
    where = f"{CUHKSYSU.title} at {root / _PEOPLE}"
    people = matlab_variable(root / _PEOPLE, "Person", what=CUHKSYSU.title)
    for person, scenes in structs(people, "idname", "scene", where=where):
        name = _PERSON.fullmatch("".join(person))
        if name is None:
            raise MuvaError(f"{where}: expected people named like p11422, found {person}")
        seen = structs(scenes, "imname", "idlocate", where=where)
        for number, (frame, box) in enumerate(seen, start=1):
            if box.size != 4:
                raise MuvaError(f"{where}: expected boxes of 4 numbers, found {box} at {name[0]}")
            file = root / _FRAMES / "".join(frame)
            left, top, width, height = (int(corner) for corner in box.ravel())
            image_id = f"{file.relative_to(root).as_posix()}#{name[0]}_{number}"
            # MATLAB counts from 1 and includes the end: MetaBIN's make_cropped_image.m cuts out
            # I(y:y+h, x:x+w), which MATLAB would refuse if boxes were counted from 0.
            corners = (left - 1, top - 1, left + width, top + height)
            source = Excerpt(file=file, encoded=partial(_png, file, corners))
            yield _record(domain, image_id, int(name["pid"]), source)


def _png(frame: Path, corners: tuple[int, int, int, int]) -> bytes:
    """What is within x0, y0, x1, y1 (pixels, the latter exclusive) of a frame."""
    from PIL import Image

    with Image.open(frame) as image:
        x0, y0, x1, y1 = corners
        inside = (max(x0, 0), max(y0, 0), min(x1, image.width), min(y1, image.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise OSError(f"the box {corners} is outside of the frame, {image.size}")
        encoded = io.BytesIO()
        image.convert("RGB").crop(inside).save(encoded, format="PNG")
    return encoded.getvalue()


def _record(domain: str, image_id: str, pid: int, source: Path | Excerpt) -> Record:
    return Record(
        domain=domain, image_id=image_id, split="train", pid=pid, camid=None, source=source
    )
