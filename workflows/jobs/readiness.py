"""What `muva doctor` makes of what it finds: each answer is ok, a note, or what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from muva.config import ExperimentConfig
from muva.data.artifacts import find_artifact
from muva.errors import MuvaError
from muva.grounding.experts import BYTES_PER_PARAMETER, EXPERTS
from muva.synthetic import DOMAINS
from tracking.redaction import redact
from tracking.source import JOB_VARIABLE
from workflows.jobs.shipping import LOCK, code_folder
from workflows.runtime.node_checks import NEEDED, NodeReport
from workflows.session import Session

State = Literal["ok", "note", "mend"]

ROOM_BYTES = 5 * 10**9
"""Of the temporary folder: 4 GiB of decoded images at most, and what Ray spills."""
OLDEST_PYTHON = (3, 11)
STAGE2_BYTES = {"ViT-B-16": (3.0e9, 0.1125e9)}
"""CLIP -> memory of weights, gradients and moments, and of each image of a batch, as measured at
256 x 128 (docs/training-costs.md)."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A question and its answer."""

    what: str
    where: str
    state: State
    said: str
    """What was found, or what to do."""


def version_checks(
    where: str, python: str, found: Mapping[str, str | None], *, driver: str | None = None
) -> Iterator[Check]:
    """Python and packages of a place, beside the lock and the driver's Python."""
    release = tuple(map(int, python.split(".")[:2]))
    if release < OLDEST_PYTHON:
        yield mend(
            "python", where, f"{python}: install {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        )
    elif driver is not None and python.split(".")[:2] != driver.split(".")[:2]:
        yield mend("python", where, f"{python}, and {driver} at the driver: use the same on all")
    else:
        yield ok("python", where, python)
    if missing := [name for name in NEEDED if found.get(name) is None]:
        yield mend(
            "packages",
            where,
            f"{', '.join(missing)} missing: install what {LOCK} names, in the image or environment "
            "of every node",
        )
        return
    locked = _locked()
    differ = [
        f"{name} {found[name]} (locked: {locked[name.lower()]})"
        for name in NEEDED
        if name.lower() in locked and _release(found[name]) != locked[name.lower()]
    ]
    shown = f"ray {found['ray']}, torch {found['torch']}"
    if differ:
        yield note("packages", where, f"{shown}; not what was tested: {', '.join(differ)}")
    elif locked:
        yield ok("packages", where, f"{shown}, and the others as {LOCK} has them")
    else:
        yield ok("packages", where, f"{shown}; no {LOCK} is there to compare with")


def _release(version: str | None) -> str:
    """Without the build's name: 2.14.1+cpu is 2.14.1."""
    return (version or "").partition("+")[0]


def _locked() -> dict[str, str]:
    """Package, in small letters -> its version in the lock; none where there is no lock."""
    try:
        lines = (code_folder() / LOCK).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.strip().partition("==") for line in lines if "==" in line)
    return {name.lower(): version for name, _, version in pairs}


def agreement(reports: dict[str, NodeReport]) -> Iterator[Check]:
    """Whether the nodes have the same versions: results and pickles depend on it."""
    for name in NEEDED:
        found = {report.packages.get(name) for report in reports.values()} - {None}
        if len(found) > 1:
            shown = ", ".join(f"{node} {each.packages[name]}" for node, each in reports.items())
            yield mend("packages", "nodes", f"{name} differs: {shown}. Install the same on all")


def machine_checks(where: str, report: NodeReport) -> Iterator[Check]:
    """A node's disk and memory, and the files of weights that it should see."""
    folder, free = report.temporary_folder, report.free_bytes
    said = f"{folder} has {_gb(free)} free, {_gb(report.memory_bytes)} of memory"
    if free < ROOM_BYTES:
        yield mend(
            "disk",
            where,
            f"{said}: make {_gb(ROOM_BYTES)} free, or name a folder of another disk with TMPDIR "
            "when Ray is started there",
        )
    else:
        yield ok("disk", where, said)
    for file in report.missing_files:
        yield mend("weights", where, f"{file} is not there: copy it, or share its folder")


def gpu_checks(nodes: Sequence[dict[str, Any]], reports: dict[str, NodeReport]) -> Iterator[Check]:
    """The nodes' GPUs as their driver, PyTorch and Ray count them."""
    counted = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
    there = [gpu for report in reports.values() for gpu in report.gpus]
    if not there and not counted:
        yield note(
            "gpu",
            "nodes",
            "none: everything runs on processors. Where an autoscaler would start nodes with GPUs, "
            "ask for them: muva submit --wait-for GPU=1",
        )
    for name, report in reports.items():
        if not report.gpus:
            continue
        kinds = ", ".join(f"{gpu.name} ({_gb(gpu.memory_bytes)})" for gpu in report.gpus)
        if report.torch_finds_gpus != len(report.gpus):
            yield mend(
                "gpu",
                name,
                f"{kinds}; PyTorch finds {report.torch_finds_gpus}: install its build for "
                "CUDA, and a driver that is new enough",
            )
        else:
            yield ok("gpu", name, kinds)
    if there and len(there) != counted:
        yield mend(
            "gpu",
            "nodes",
            f"Ray counts {counted} GPUs, the nodes have {len(there)}: start Ray with --num-gpus",
        )


def store_checks(session: Session, probe: str) -> Iterator[Check]:
    """From the driver: the probe, which stays for the nodes, and a commit that only one can win."""
    uri = session.store.uri
    if _is_jobs_own(uri):
        yield mend(
            "store",
            "driver",
            f"{uri} is the job's own copy of the code, which nobody keeps: name s3://bucket/prefix "
            "or a shared folder, with --store or in the cluster's settings",
        )
        return
    try:
        first = session.store.create(probe, os.urandom(32))
        second = session.store.create(probe, os.urandom(32))
        session.store.read(probe)
    except (MuvaError, OSError) as error:
        yield mend("store", "driver", redact(str(error)))
        return
    if not first or second:
        session.store.delete(probe)
        yield mend(
            "store",
            "driver",
            f"{uri} does not honour If-None-Match: two commands would overwrite each other's "
            "artifacts. Use a server that does, as Amazon S3",
        )
        return
    yield ok("store", "driver", f"{uri}: the first writer of a key wins")


def store_check(where: str, uri: str, report: NodeReport) -> Check:
    """Whether a node could use the store."""
    if not report.store_problem:
        return ok("store", where, f"{uri}: written, read and deleted")
    said = redact(report.store_problem)
    if "there is no doctor/" in said or "no such" in said.lower():
        said += ". A folder must be shared by all nodes under the same path; else use s3://"
    return mend("store", where, said)


def tracking_checks(session: Session, *, nodes: int) -> Iterator[Check]:
    """Whether MLflow answers the driver, and is of a kind for so many nodes."""
    from tracking.addresses import check_reachable, sqlite_file

    uri = str(session.tracking_uri)
    shown = redact(uri)
    if sqlite_file(uri) is not None and _is_jobs_own(uri.removeprefix("sqlite:///")):
        yield mend(
            "mlflow",
            "driver",
            f"{shown} is in the job's own copy of the code, which nobody keeps: name a server with "
            "--tracking-uri or in the cluster's settings",
        )
        return
    if sqlite_file(uri) is not None and nodes > 1:
        yield mend(
            "mlflow",
            "driver",
            f"{shown} is a file of one machine, and the cluster has {nodes}: start `mlflow server` "
            "and name it with --tracking-uri http://HOST:5000",
        )
        return
    try:
        check_reachable(uri)
    except MuvaError as error:
        yield mend("mlflow", "driver", str(error))
    else:
        yield ok("mlflow", "driver", f"{shown} answers")


def recipe_checks(
    session: Session, config: ExperimentConfig, reports: dict[str, NodeReport], *, readable: bool
) -> Iterator[Check]:
    """What a recipe needs: its data sets, and memory for its expert and its model."""
    if readable:
        for name in dict.fromkeys((*config.sources, *config.targets)):
            yield _dataset_check(session, name)
    memory = [report.memory_bytes for report in reports.values()]
    on_gpu = [gpu.memory_bytes for report in reports.values() for gpu in report.gpus]
    most = max(on_gpu or memory, default=0)
    if config.model.parts and config.grounding is not None:
        yield _expert_check(config, most)
    yield _model_check(config, most)


def _dataset_check(session: Session, name: str) -> Check:
    if name in DOMAINS:
        return ok("data", name, "synthetic: rendered when it is needed")
    try:
        artifact = find_artifact(session.store, "datasets", name)
    except MuvaError:
        return mend(
            "data",
            name,
            f"is not in {session.store.uri}: `muva data import {name} --from FOLDER` with this "
            "store",
        )
    return ok("data", name, artifact.address)


def _expert_check(config: ExperimentConfig, most: int) -> Check:
    assert config.grounding is not None
    name = config.grounding.expert
    if name not in EXPERTS:
        return mend("expert", name, f"is unknown: expected one of {', '.join(EXPERTS)}")
    info = EXPERTS[name]
    if not info.memory_gb:
        return ok("expert", name, "has no weights here")
    if config.grounding.checkpoint not in ("", info.checkpoint):
        return note("expert", name, f"how large {config.grounding.checkpoint} is, is not known")
    asked = config.grounding.precision
    scale = (
        1.0
        if asked == "default"
        else BYTES_PER_PARAMETER[asked] / BYTES_PER_PARAMETER[info.precision]
    )
    from workflows.runtime.expert_pool import ACTIVATION_FACTOR

    needed = round(ACTIVATION_FACTOR * info.memory_gb * 1e9 * scale)
    said = f"needs about {_gb(needed)} for each actor; the largest node or GPU has {_gb(most)}"
    return ok("expert", name, said) if needed <= most else mend("expert", name, said)


def _model_check(config: ExperimentConfig, most: int) -> Check:
    clip = config.model.clip.partition(":")[0]
    if clip == "tiny":
        return ok("model", clip, "fits everywhere")
    if clip not in STAGE2_BYTES:
        return note("model", clip, "what its training needs was not measured")
    fixed, per_image = STAGE2_BYTES[clip]
    pixels = config.model.image_height * config.model.image_width / (256 * 128)
    batch = config.stage2.batch_size
    whole, least = (round(fixed + per_image * pixels * images) for images in (batch, 1))
    said = f"about {_gb(whole)} for {batch} images at once; the largest node or GPU has {_gb(most)}"
    if whole <= most:
        return ok("model", clip, said)
    if least <= most:
        return note("model", clip, f"{said}: --micro-batch N or --workers N takes less")
    return mend("model", clip, f"{said}, and one image needs {_gb(least)}: use larger machines")


def weights_files(config: ExperimentConfig) -> list[str]:
    """Files and folders of weights that the recipe names by their full path."""
    clip = config.model.clip
    named = [clip.partition(":")[2] or clip]
    if config.grounding is not None and config.model.parts:
        named.append(config.grounding.checkpoint)
    return [name for name in named if name.startswith("/")]


def _is_jobs_own(place: str) -> bool:
    """Whether a path is in the copy of the code that Ray made for this job."""
    here = Path.cwd()
    return (
        JOB_VARIABLE in os.environ
        and "working_dir_files" in here.parts
        and Path(place).is_relative_to(here)
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def ok(what: str, where: str, said: str) -> Check:
    """A check that passed."""
    return Check(what=what, where=where, state="ok", said=said)


def note(what: str, where: str, said: str) -> Check:
    """A check that nobody need act on."""
    return Check(what=what, where=where, state="note", said=said)


def mend(what: str, where: str, said: str) -> Check:
    """A check that says what to do."""
    return Check(what=what, where=where, state="mend", said=said)
