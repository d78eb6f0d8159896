"""The checks of `muva doctor`: each is ok, a note, or a failure that says how to fix it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from muva.config import SHIPPED_CLIPS, ExperimentConfig
from muva.data.artifacts import find_artifact
from muva.data.store import check_writable
from muva.errors import MuvaError
from muva.grounding.experts import BYTES_PER_PARAMETER, EXPERTS
from muva.synthetic import is_synthetic
from tracking.redaction import redact
from tracking.source import JOB_VARIABLE
from workflows.jobs.shipping import LOCK, code_folder
from workflows.runtime.node_checks import NEEDED, PLUG_INS, NodeReport
from workflows.session import Session

State = Literal["ok", "note", "fail"]

MIN_FREE_BYTES = 5 * 10**9
"""Free space needed in the temporary folder: up to 4 GiB of decoded images, and Ray's spilled
objects."""
MIN_PYTHON = (3, 11)
STAGE2_BYTES = {"ViT-B-16": (3.0e9, 0.1125e9)}
"""CLIP -> memory for weights, gradients and Adam's moments, and memory per image of a batch,
measured at 256 x 128 (docs/training-costs.md)."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    what: str
    where: str
    state: State
    said: str
    """What was found, or how to fix it."""


def version_checks(
    where: str, python: str, installed: Mapping[str, str | None], *, driver: str | None = None
) -> Iterator[Check]:
    """Compare Python with the driver's, and installed packages with the lock file."""
    release = tuple(map(int, python.split(".")[:2]))
    if release < MIN_PYTHON:
        yield fail("python", where, f"{python}: install {'.'.join(map(str, MIN_PYTHON))} or newer")
    elif driver is not None and python.split(".")[:2] != driver.split(".")[:2]:
        yield fail(
            "python",
            where,
            f"{python}, but the driver has {driver}: use the same version everywhere",
        )
    else:
        yield ok("python", where, python)
    if missing := [name for name in NEEDED if installed.get(name) is None]:
        yield fail(
            "packages",
            where,
            f"{', '.join(missing)} missing: install the packages of {LOCK} in the image or "
            "environment of every node",
        )
        return
    locked = _locked_versions()
    differences = [
        f"{name} {installed[name]} (locked: {locked[name.lower()]})"
        for name in NEEDED
        if name.lower() in locked and _release(installed[name]) != locked[name.lower()]
    ]
    shown = f"ray {installed['ray']}, torch {installed['torch']}"
    if differences:
        yield note("packages", where, f"{shown}; untested versions: {', '.join(differences)}")
    elif locked:
        yield ok("packages", where, f"{shown}; all versions are those of {LOCK}")
    else:
        yield ok("packages", where, f"{shown}; there is no {LOCK} to compare with")


def _release(version: str | None) -> str:
    """A version without its local label: 2.14.1 for 2.14.1+cpu."""
    return (version or "").partition("+")[0]


def _locked_versions() -> dict[str, str]:
    """Lower-case package -> version in the lock file; empty if there is no lock file."""
    try:
        lines = (code_folder() / LOCK).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.strip().partition("==") for line in lines if "==" in line)
    return {name.lower(): version for name, _, version in pairs}


def version_agreement(reports: dict[str, NodeReport]) -> Iterator[Check]:
    """Check that all nodes have the same versions, on which results and pickles depend.

    Plug-ins of Pillow are optional, but a data set in their formats is read on every node.
    """
    for name in NEEDED:
        versions = {report.packages.get(name) for report in reports.values()} - {None}
        if len(versions) > 1:
            shown = ", ".join(f"{node} {each.packages[name]}" for node, each in reports.items())
            yield fail(
                "packages", "nodes", f"{name} differs: {shown}. Install the same version everywhere"
            )
    for name in PLUG_INS:
        without = [node for node, each in reports.items() if each.plug_ins.get(name) is None]
        if 0 < len(without) < len(reports):
            yield fail(
                "packages",
                "nodes",
                f"{name} is missing on {', '.join(without)}, which cannot read the formats that "
                "the others read with it: install it everywhere",
            )


def machine_checks(where: str, report: NodeReport) -> Iterator[Check]:
    """Check a node's disk and memory, and that it can read the weights files."""
    folder, free = report.temporary_folder, report.free_bytes
    sizes = f"{folder} has {_gb(free)} free, {_gb(report.memory_bytes)} of memory"
    if free < MIN_FREE_BYTES:
        yield fail(
            "disk",
            where,
            f"{sizes}: free {_gb(MIN_FREE_BYTES)}, or set TMPDIR to a folder on another disk when "
            "you start Ray on this node",
        )
    else:
        yield ok("disk", where, sizes)
    if report.attention:
        yield ok("attention", where, report.attention)
    for file in report.missing_files:
        yield fail("weights", where, f"{file} is missing: copy it to the node, or share its folder")


def gpu_checks(nodes: Sequence[dict[str, Any]], reports: dict[str, NodeReport]) -> Iterator[Check]:
    """Check that the GPU driver, PyTorch and Ray count the same GPUs."""
    counted = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
    gpus = [gpu for report in reports.values() for gpu in report.gpus]
    if not gpus and not counted:
        yield note(
            "gpu",
            "nodes",
            "none: everything runs on CPUs. If an autoscaler can start nodes with GPUs, request "
            "them: muva submit --wait-for GPU=1",
        )
    for name, report in reports.items():
        if not report.gpus:
            continue
        kinds = ", ".join(f"{gpu.name} ({_gb(gpu.memory_bytes)})" for gpu in report.gpus)
        if report.torch_finds_gpus != len(report.gpus):
            yield fail(
                "gpu",
                name,
                f"{kinds}; PyTorch finds {report.torch_finds_gpus}: install PyTorch's CUDA build "
                "and a recent enough driver",
            )
        else:
            yield ok("gpu", name, kinds)
    if gpus and len(gpus) != counted:
        yield fail(
            "gpu",
            "nodes",
            f"Ray counts {counted} GPUs, the nodes have {len(gpus)}: start Ray with --num-gpus",
        )


def store_checks(session: Session, probe: str) -> Iterator[Check]:
    """Check the store from the driver: write the probe, which the nodes read later, only once."""
    uri = session.store.uri
    if _is_in_job_folder(uri):
        yield fail(
            "store",
            "driver",
            f"{uri} is in the job's copy of the code, which is deleted later: set --store or the "
            "cluster's store to s3://bucket/prefix or a shared folder",
        )
        return
    try:
        check_writable(session.store)
        session.store.write(probe, os.urandom(32))
        session.store.read(probe)
    except (MuvaError, OSError) as error:
        yield fail("store", "driver", redact(str(error)))
        return
    yield ok("store", "driver", f"{uri}: the first writer of a key wins")


def store_check(where: str, uri: str, report: NodeReport) -> Check:
    """Check that a node can use the store."""
    if not report.store_problem:
        return ok("store", where, f"{uri}: written, read and deleted")
    problem = redact(report.store_problem)
    if "there is no doctor/" in problem or "no such" in problem.lower():
        problem += ". All nodes must share a folder under the same path; otherwise use s3://"
    return fail("store", where, problem)


def tracking_checks(session: Session, *, nodes: int) -> Iterator[Check]:
    """Check that MLflow responds to the driver, and that all nodes can use it."""
    from tracking.capabilities import WITHOUT_LOGGED_MODELS
    from tracking.connection import check_reachable, sqlite_file

    uri = str(session.tracking_uri)
    shown = redact(uri)
    if sqlite_file(uri) is not None and _is_in_job_folder(uri.removeprefix("sqlite:///")):
        yield fail(
            "mlflow",
            "driver",
            f"{shown} is in the job's copy of the code, which is deleted later: set --tracking-uri "
            "or the cluster's tracking_uri to a server",
        )
        return
    if sqlite_file(uri) is not None and nodes > 1:
        yield fail(
            "mlflow",
            "driver",
            f"{shown} is a file on one machine, and the cluster has {nodes}: start `mlflow server` "
            "and give its address, --tracking-uri http://HOST:5000",
        )
        return
    try:
        recordable = check_reachable(uri)
    except MuvaError as error:
        yield fail("mlflow", "driver", str(error))
        return
    if recordable:
        yield ok("mlflow", "driver", f"{shown} responds")
    else:
        yield note("mlflow", "driver", f"{shown} responds, but {WITHOUT_LOGGED_MODELS}")


def recipe_checks(
    session: Session, config: ExperimentConfig, reports: dict[str, NodeReport], *, readable: bool
) -> Iterator[Check]:
    """Check a recipe's needs: its data sets, and memory for its expert and its model."""
    if readable:
        for name in dict.fromkeys((*config.sources, *config.targets)):
            yield _dataset_check(session, name)
    memory = [report.memory_bytes for report in reports.values()]
    on_gpu = [gpu.memory_bytes for report in reports.values() for gpu in report.gpus]
    largest = max(on_gpu or memory, default=0)
    if config.model.parts and config.grounding is not None:
        yield _expert_check(config, largest)
    yield _model_check(config, largest)


def _dataset_check(session: Session, name: str) -> Check:
    if is_synthetic(name):
        return ok("data", name, "synthetic: rendered when needed")
    try:
        artifact = find_artifact(session.store, "datasets", name)
    except MuvaError:
        return fail(
            "data",
            name,
            f"is not in {session.store.uri}: import it into this store with `muva data import "
            f"{name} --from FOLDER`",
        )
    return ok("data", name, artifact.address)


def _expert_check(config: ExperimentConfig, largest: int) -> Check:
    assert config.grounding is not None
    name = config.grounding.expert
    if name not in EXPERTS:
        return fail("expert", name, f"is unknown: expected one of {', '.join(EXPERTS)}")
    info = EXPERTS[name]
    if not info.memory_gb:
        return ok("expert", name, "has no weights")
    if config.grounding.checkpoint not in ("", info.checkpoint):
        return note("expert", name, f"the size of {config.grounding.checkpoint} is unknown")
    precision = config.grounding.precision
    scale = (
        1.0
        if precision == "default"
        else BYTES_PER_PARAMETER[precision] / BYTES_PER_PARAMETER[info.precision]
    )
    from workflows.runtime.expert_pool import ACTIVATION_FACTOR

    needed = round(ACTIVATION_FACTOR * info.memory_gb * 1e9 * scale)
    sizes = f"needs about {_gb(needed)} per actor; the largest node or GPU has {_gb(largest)}"
    return ok("expert", name, sizes) if needed <= largest else fail("expert", name, sizes)


def _model_check(config: ExperimentConfig, largest: int) -> Check:
    clip = config.model.clip.partition(":")[0]
    if clip in SHIPPED_CLIPS:
        return ok("model", clip, "fits everywhere")
    if clip not in STAGE2_BYTES:
        return note("model", clip, "the memory that its training needs was not measured")
    fixed, per_image = STAGE2_BYTES[clip]
    pixels = config.model.image_height * config.model.image_width / (256 * 128)
    batch = config.stage2.batch_size
    for_batch, for_one = (round(fixed + per_image * pixels * images) for images in (batch, 1))
    sizes = (
        f"needs about {_gb(for_batch)} for {batch} images at once; the largest node or GPU has "
        f"{_gb(largest)}"
    )
    if for_batch <= largest:
        return ok("model", clip, sizes)
    if for_one <= largest:
        return note("model", clip, f"{sizes}: use --micro-batch N or --workers N")
    return fail("model", clip, f"{sizes}, and one image needs {_gb(for_one)}: use larger machines")


def weights_files(config: ExperimentConfig) -> list[str]:
    """Files and folders of weights that the recipe names by absolute paths."""
    clip = config.model.clip
    names = [clip.partition(":")[2] or clip]
    if config.grounding is not None and config.model.parts:
        names.append(config.grounding.checkpoint)
    return [name for name in names if name.startswith("/")]


def _is_in_job_folder(path: str) -> bool:
    """Whether a path is in the copy of the code that Ray made for this job."""
    folder = Path.cwd()
    return (
        JOB_VARIABLE in os.environ
        and "working_dir_files" in folder.parts
        and Path(path).is_relative_to(folder)
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def ok(what: str, where: str, said: str) -> Check:
    """A check that passed."""
    return Check(what=what, where=where, state="ok", said=said)


def note(what: str, where: str, said: str) -> Check:
    """A check with a remark that needs no action."""
    return Check(what=what, where=where, state="note", said=said)


def fail(what: str, where: str, said: str) -> Check:
    """A check that failed; the message says how to fix it."""
    return Check(what=what, where=where, state="fail", said=said)
