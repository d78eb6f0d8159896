"""Fault injection for training: `python -m benchmarks.training_faults --rounds 20`.

On a small cluster of three nodes, both stages are trained repeatedly. In each round, at a moment
after an epoch, both drawn from a fixed seed, a process of the stage, a node or the driver is killed
with SIGKILL. A killed driver is restarted, a lost node is replaced. The stage must end with the
result of an undisturbed training: bit for bit with one worker, up to rounding with two. Finally, a
training is started by two workers, killed after an epoch, continued by one, killed and finished by
two, in both stages: its losses must be those of two undisturbed workers, up to rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors

from benchmarks.baseline import Table, exit_code, write_results
from benchmarks.fault_injection import (
    Driver,
    TooLateError,
    round_arguments,
    temporary_folder,
    wrong_rounds,
)
from benchmarks.small_clip import write_small_clip
from muva.config import load_recipe
from muva.data.artifacts import Artifact, list_artifacts
from muva.data.store import Store
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.quirks import nodes_lost_after
from workflows.runtime.workers import Workers
from workflows.session import Session, open_session
from workflows.steps.encoder import encoder_step, train_encoder
from workflows.steps.ground import ground
from workflows.steps.import_data import datasets_of
from workflows.steps.prompts import CONTEXTS, learn_prompts, prompts_step
from workflows.steps.training_inputs import TrainingInputs

KINDS = ("process", "node", "driver")
STAGES = {"prompts": "stage 1 of", "models": "stage 2 of"}
"""Kind of artifact -> the start of the line that a driver prints when the stage begins."""
HEALTH_CHECKS = 4
"""So many missed heartbeats in a row, half a second apart, and a node counts as lost."""
TITLES = {"prompts": ("learn_share", "compute_centroids"), "models": ("TrainWorker", "run_alone")}
"""Kind of artifact -> part of the titles of the processes that compute it."""
WORKERS = (1, 2)
LATEST, AFTER_S = 0.8, 0.5
"""Moments of faults: up to this fraction of the epochs, and so many seconds after one."""
CLOSE = 1e-4
"""Tolerance with two workers: relative for losses, absolute for weights, which change by 1e-2."""

RECIPE = """
name: faults
seed: 0
sources: [syn-harbour, syn-airport]
synthetic: {{train_people: 8, test_people: 5, height: 64, width: 32}}
model: {{clip: {clip}, image_height: 64, image_width: 32, stride: 8}}
stage1: {{epochs: 100, batch_size: 32, lr: 1.0e-3, precision: fp32}}
stage2: {{epochs: 5, batch_size: 16, lr: 1.0e-4, warmup_epochs: 0, precision: fp32}}
"""


@dataclasses.dataclass(frozen=True)
class Round:
    """A training with a fault, and its outcome."""

    disturbed: str
    stage: str
    workers: int
    after: int
    """The epoch after which the fault occurred; 0 while the stage was starting."""
    epochs: int
    """Number of epochs of the stage."""
    seconds: float
    apart: float
    """Largest difference of a weight from the undisturbed training."""
    right: bool


def main() -> int:
    """Run the rounds and print them; with --check, exit with 1 if one has a wrong result."""
    arguments = round_arguments(
        "training_faults", __doc__, check="exit 1 where weights differ", driver_words=4
    )
    if arguments.drive:
        return drive(*arguments.drive)
    with temporary_folder("training-faults-") as folder:
        figures = drills(folder, arguments.rounds, arguments.seed)
    rounds, elastic = figures["rounds"], figures["elastic"]
    wrong = wrong_rounds(rounds)
    print(f"\n{len(rounds) - len(wrong)} of {len(rounds)} rounds ended with the right weights")
    for stage, apart in elastic.items():
        print(f"{stage}: 2, then 1, then 2 workers: losses {apart:.1e} from two undisturbed ones")
    write_results(arguments, figures, baseline_tables)
    too_far = [
        f"{stage}: losses {apart:.1e} apart, limit {CLOSE:g}"
        for stage, apart in elastic.items()
        if not apart <= CLOSE
    ]
    return exit_code(arguments, [*wrong, *too_far])


def drive(home: str, stage: str, name: str, workers: str) -> int:
    """Train one stage as `muva train` does, in a process that can be killed."""
    session, config = _session(Path(home)), load_recipe(Path(home) / "faults.yaml")
    sources = [_named(session.store, "datasets", source) for source in config.sources]
    labels = [_named(session.store, "labels", source) for source in config.sources]
    inputs = TrainingInputs.of(config, sources=sources, labels=labels)
    processes = Workers(count=int(workers), cpus_each=1)
    with ray_cluster():
        # Rounds of stage 2 use the prompts of the undisturbed training.
        of = name if stage == "prompts" else _undisturbed(1)
        step = prompts_step(session, inputs, name=of)
        prompts = learn_prompts(session, step, inputs, processes).artifact
        if stage == "models":
            step = encoder_step(session, inputs, prompts, name=name)
            train_encoder(session, step, inputs, prompts, processes)
    return 0


def baseline_tables(figures: dict[str, Any]) -> dict[str, Table]:
    """`rounds`: how many of each kind and stage there were with 1 and 2 workers, and their time."""
    rows = []
    for kind, (number, stage) in itertools.product(KINDS, enumerate(STAGES, start=1)):
        alike = [r for r in figures["rounds"] if (r["disturbed"], r["stage"]) == (kind, stage)]
        if not alike:
            continue
        seconds = [one["seconds"] for one in alike]
        rows.append(
            {
                "killed": "driver, started again" if kind == "driver" else kind,
                "stage": number,
                "rounds": [sum(r["workers"] == workers for r in alike) for workers in WORKERS],
                "seconds": {"least": min(seconds), "most": max(seconds)},
                "largest_difference": max(one["apart"] for one in alike),
                "goal": "weights of the undisturbed training",
            }
        )
    return {"rounds": Table(rows=rows)}


def drills(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Run the rounds, then the training with changing numbers of workers."""
    from ray.cluster_utils import Cluster

    store, rng = _prepare(folder), np.random.default_rng(seed)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, **nodes_lost_after(HEALTH_CHECKS)}
    )

    def start(stage: str, name: str, workers: int) -> Driver:
        words = (str(folder), stage, name, str(workers))
        return Driver("training_faults", str(cluster.address), *words)

    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        for stage, workers in itertools.product(STAGES, WORKERS):
            start(stage, _undisturbed(workers), workers).finish()
        print(
            "| round | killed | stage | workers | after epoch | seconds | weights apart | right |"
        )
        print("|---:|---|---:|---:|---:|---:|---:|---|")
        cases = itertools.cycle(itertools.product(WORKERS, STAGES, KINDS))
        results = []
        for number, (workers, stage, kind) in zip(range(rounds), cases, strict=False):
            one = _round(f"round-{number}", kind, stage, workers, start, cluster, nodes, store, rng)
            results.append(dataclasses.asdict(one))
            print(
                f"| {number} | {kind} | {list(STAGES).index(stage) + 1} | {workers} | "
                f"{one.after} of {one.epochs} | {one.seconds} | {one.apart:.1e} | "
                f"{'yes' if one.right else 'NO'} |",
                flush=True,
            )
        elastic = {stage: _elastic(start, store, stage) for stage in STAGES}
    finally:
        cluster.shutdown()
    return {"rounds": results, "elastic": elastic}


def _round(
    name: str,
    kind: str,
    stage: str,
    workers: int,
    start: Callable[..., Driver],
    cluster: Any,
    nodes: list[Any],
    store: Store,
    rng: np.random.Generator,
) -> Round:
    """Run a stage and kill a process, node or driver; repeat if it ended too early."""
    undisturbed = _named(store, stage, _undisturbed(workers))
    epochs = len(_losses(undisturbed))
    after = int(rng.uniform(0, LATEST) * epochs)
    began_at = time.monotonic()
    driver = start(stage, name, workers)
    try:
        driver.wait_for(lambda: _has_begun(stage, driver))
        driver.wait_for(lambda: _epochs(store, stage, name) >= after)
        time.sleep(float(rng.uniform(0, AFTER_S)))
        driver.wait_for(lambda: kind != "process" or _kill_process(stage, nodes, rng))
    except TooLateError:
        again = f"another-{name}"
        return _round(again, kind, stage, workers, start, cluster, nodes, store, rng)
    if kind == "node":
        lost = nodes.pop(int(rng.integers(len(nodes))))
        cluster.remove_node(lost, allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))
    elif kind == "driver":
        driver.kill()
        driver = start(stage, name, workers)
    driver.finish()
    apart = _apart(undisturbed, _named(store, stage, name))
    return Round(
        disturbed=kind,
        stage=stage,
        workers=workers,
        after=after,
        epochs=epochs,
        seconds=round(time.monotonic() - began_at, 1),
        apart=apart,
        right=apart <= (CLOSE if workers > 1 else 0.0),
    )


def _has_begun(stage: str, driver: Driver) -> bool:
    """Whether the driver has reported that the stage begins."""
    return any(
        line.startswith(STAGES[stage]) and line.rstrip().endswith("…") for line in driver.lines()
    )


def _elastic(start: Callable[..., Driver], store: Store, stage: str) -> float:
    """Train with two workers, then one, then two, killed in between; the difference of losses."""
    name = f"elastic-{stage}"
    for workers in (2, 1):
        driver = start(stage, name, workers)
        before = _epochs(store, stage, name)
        driver.wait_for(lambda b=before: _epochs(store, stage, name) > b)
        driver.kill()
    start(stage, name, 2).finish()
    found, expected = (_losses(_named(store, stage, of)) for of in (name, _undisturbed(2)))
    assert len(found) == len(expected)
    return float(np.abs(np.divide(found, expected) - 1).max())


def _losses(made: Artifact) -> list[float]:
    """The loss of each epoch."""
    return [epoch["loss"] for epoch in (made.manifest() or {})["summary"]["history"]]


def _epochs(store: Store, stage: str, name: str) -> int:
    """The epoch of a stage's latest checkpoint."""
    states = [
        int(key.split("/")[-2])
        for key in store.list(f"{stage}/{name}-")
        if "/states/" in key and key.endswith("state.json")
    ]
    return max(states, default=0)


def _kill_process(stage: str, nodes: Sequence[Any], rng: np.random.Generator) -> bool:
    """Kill one of the stage's processes, if there is one."""
    pids = sorted(_processes(stage, nodes))
    with contextlib.suppress(ProcessLookupError, ValueError):
        os.kill(int(rng.choice(pids)), signal.SIGKILL)
        return True
    return False


def _processes(stage: str, nodes: Sequence[Any]) -> Iterator[int]:
    """The processes of the stage on these nodes."""
    raylets = {info.process.pid for node in nodes for info in node.all_processes.get("raylet", [])}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            title = (folder / "cmdline").read_text(errors="replace")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and any(part in title for part in TITLES[stage]):
                yield int(folder.name)


def _apart(expected: Artifact, found: Artifact) -> float:
    key = CONTEXTS if expected.kind == "prompts" else "bundle/model.safetensors"
    weights, others = (load_tensors(one.store.read(one.key(key))) for one in (expected, found))
    assert weights.keys() == others.keys()
    differences = [
        float((value.double() - others[name].double()).abs().max())
        for name, value in weights.items()
        if value.numel()
    ]
    return float(np.max(differences))


def _prepare(folder: Path) -> Store:
    """Prepare the recipe, its CLIP, data sets and pseudo-labels."""
    write_small_clip(folder / "clip")
    (folder / "faults.yaml").write_text(RECIPE.format(clip=folder / "clip"))
    session, config = _session(folder), load_recipe(folder / "faults.yaml")
    assert config.grounding is not None
    with ray_cluster():
        imported = datasets_of(session, config.sources, config.synthetic)
        ground(session, [done.artifact for done in imported.values()], config.grounding)
    return session.store


def _session(home: Path) -> Session:
    return dataclasses.replace(open_session(home=home), tracking_uri=None)


def _named(store: Store, kind: str, name: str) -> Artifact:
    return next(one for one in list_artifacts(store, kind) if one.name == name)


def _undisturbed(workers: int) -> str:
    return f"undisturbed-{workers}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
