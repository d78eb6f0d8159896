"""Fault injection for grounding: `python -m benchmarks.grounding_faults --rounds 20`.

A small cluster of three nodes labels a data set repeatedly. In each round, at a moment drawn from a
fixed seed, an actor, a node or the driver is killed, or S3 fails, delays and drops requests
throughout. Afterwards the labels must equal those of a plain loop, row for row, and no shard may
have been computed more than once, plus once for each kill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baseline import Table, exit_code, write_results
from benchmarks.disturbed_server import Disturber, disturbed_server
from benchmarks.fault_injection import (
    Driver,
    round_arguments,
    s3_environment,
    s3_server,
    temporary_folder,
    wrong_rounds,
)
from benchmarks.grounding_speed import crowd
from muva.config import PHRASES, GroundingConfig
from muva.data import formats
from muva.data.artifacts import Artifact, open_artifact
from muva.data.shards import Dataset, open_dataset
from muva.grounding.expert import Expert, Grounding, GroundingImage
from muva.grounding.experts import ChosenExpert, choose_expert
from muva.grounding.ground import ground_shard
from muva.grounding.labels import labelled_shards, read_shard_labels, summarise_labels
from muva.synthetic.sensor import encode_jpeg
from workflows.runtime.expert_pool import Actors, GroundingJob, ground_shards

KINDS = ("actor", "node", "driver", "s3")
IMAGES, SHARD_IMAGES, BATCH_S = 480, 12, 0.15
S3_SHARE = 0.15
"""Fraction of requests that get a fault in a round of `s3`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noting(ChosenExpert):
    """A slow expert whose answers depend on the image, and which logs all images."""

    notes: str

    def load(self) -> Expert:
        """See `ChosenExpert`."""
        return _Noter(Path(self.notes))


class _Noter:
    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        with self._notes.open("a") as notes:
            notes.writelines(f"{os.getpid()} {image.image_id}\n" for image in images)
        time.sleep(BATCH_S)
        return [[_answer(image, part) for part in phrases] for image in images]


def _answer(image: GroundingImage, part: str) -> Grounding:
    digest = hashlib.sha256(image.image_id.encode() + image.encoded + part.encode()).digest()
    x0, y0, wide, high = (byte / 1024 for byte in digest[:4])
    if digest[4] < 16:
        return Grounding(box=None, answer="nothing")
    return Grounding(box=(x0, y0, x0 + 0.1 + wide, y0 + 0.1 + high), answer=digest.hex()[:8])


def main() -> int:
    """Run the rounds and print them; with --check, exit with 1 if one has a wrong result."""
    arguments = round_arguments(
        "grounding_faults", __doc__, check="exit 1 where labels differ", driver_words=3
    )
    if arguments.drive:
        return drive(*arguments.drive)
    with temporary_folder("grounding-faults-") as folder:
        rounds = drills(folder, arguments.rounds, arguments.seed)
    wrong = wrong_rounds(rounds)
    print(f"\n{len(rounds) - len(wrong)} of {len(rounds)} rounds ended with the right labels")
    write_results(arguments, rounds, baseline_tables)
    return exit_code(arguments, wrong)


def baseline_tables(rounds: list[dict[str, Any]]) -> dict[str, Table]:
    """`rounds`: how the rounds of each kind of disturbance ended."""
    rows = []
    for kind in dict.fromkeys(one["disturbed"] for one in rounds):
        alike = [one for one in rounds if one["disturbed"] == kind]
        seconds = [one["seconds"] for one in alike]
        rows.append(
            {
                "disturbed": kind,
                "rounds": len(alike),
                "right": sum(one["right"] for one in alike),
                "seconds": {"least": min(seconds), "most": max(seconds)},
                "computed_twice": sum(one["computed_twice"] for one in alike),
                "goal": "the labels of a plain loop",
            }
        )
    return {"rounds": Table(rows=rows)}


def drive(dataset_uri: str, labels_uri: str, notes: str) -> int:
    """Run what `muva ground` runs with this expert, in a process that can be killed."""
    from workflows.runtime.cluster import ray_cluster

    dataset, labels = open_dataset(open_artifact(dataset_uri)), open_artifact(labels_uri)
    missing = set(range(len(dataset.shards))) - labelled_shards(labels)
    job = GroundingJob(dataset=dataset, labels=labels, shards=missing, max_quarantined=0)
    with ray_cluster():
        ground_shards([job], _expert(notes), PHRASES, actors=Actors())
    summary = summarise_labels(labels, dataset, parts=list(PHRASES))
    labels.commit(format_version=formats.LABELS, config={}, inputs={}, summary=summary)
    return 0


def drills(folder: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Run the rounds, cycling through the kinds of faults."""
    from ray.cluster_utils import Cluster

    rng = np.random.default_rng(seed)
    images = [
        encode_jpeg(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8), quality=80) for _ in range(50)
    ]
    disturber = Disturber(seed=seed, share=0.0)
    print("| round | disturbed | after shards | seconds | shards computed twice | right |")
    print("|---:|---|---:|---:|---:|---|")
    results = []
    with _s3(disturber) as bucket:
        local, remote = (
            crowd(store, "people", IMAGES, encoded=images, shard_images=SHARD_IMAGES)
            for store in (folder / "store", bucket)
        )
        chosen = _expert(os.devnull).name
        expected = [
            ground_shard(local, shard, expert=_Noter(Path(os.devnull)), name=chosen)[0]
            for shard in range(len(local.shards))
        ]
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})

        def start(dataset: Dataset, labels: Artifact, notes: Path) -> Driver:
            words = (dataset.artifact.uri, labels.uri, str(notes))
            return Driver("grounding_faults", str(cluster.address), *words)

        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        try:
            for number in range(rounds):
                kind = KINDS[number % len(KINDS)]
                dataset = remote if kind == "s3" else local
                labels = Artifact(dataset.artifact.store, "labels", "people", f"{number:016x}")
                notes = folder / f"notes-{number}"
                notes.touch()
                disturber.share = S3_SHARE if kind == "s3" else 0.0
                started_at = time.monotonic()
                driver = start(dataset, labels, notes)
                after = int(rng.integers(1, len(dataset.shards) - 2))
                if kind != "s3":
                    driver.wait_for(
                        lambda n=notes, d=dataset, a=after: sum(map(bool, _begun(n, d))) >= a
                    )
                    _disturb(kind, driver, cluster, nodes, notes, rng)
                if kind == "driver":
                    driver = start(dataset, labels, notes)
                driver.finish()
                disturber.share = 0.0
                seconds = time.monotonic() - started_at
                begun = _begun(notes, dataset)
                equal = all(
                    read_shard_labels(labels, shard).to_pylist() == table.to_pylist()
                    for shard, table in enumerate(expected)
                )
                kills = int(kind != "s3")
                right = equal and labels.manifest() is not None and max(begun) <= 1 + kills
                results.append(
                    {
                        "disturbed": kind,
                        "after_shards": after if kills else None,
                        "seconds": round(seconds, 1),
                        "computed_twice": sum(begun) - len(begun),
                        "right": right,
                    }
                )
                print(
                    f"| {number} | {kind} | {after if kills else 'all through'} | {seconds:.1f} | "
                    f"{sum(begun) - len(begun)} | {'yes' if right else 'NO'} |",
                    flush=True,
                )
                if kind == "node":
                    nodes[:] = [node for node in nodes if node in cluster.list_all_nodes()]
                    nodes.append(cluster.add_node(num_cpus=1))
        finally:
            cluster.shutdown()
    if rounds >= len(KINDS):
        injected = ", ".join(f"{count} {what}" for what, count in disturber.disturbed.items())
        print(f"\nFaults injected into S3 requests: {injected}")
    return results


def _disturb(
    kind: str,
    driver: Driver,
    cluster: Any,
    nodes: list[Any],
    notes: Path,
    rng: np.random.Generator,
) -> None:
    """Kill an actor, a node or the driver."""
    time.sleep(float(rng.uniform(0, 2 * BATCH_S)))
    if kind == "actor":
        pids = [line.split()[0] for line in notes.read_text().splitlines()[-2 * SHARD_IMAGES :]]
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pids[int(rng.integers(len(pids)))]), signal.SIGKILL)
    elif kind == "node":
        cluster.remove_node(nodes[int(rng.integers(len(nodes)))], allow_graceful=False)
    else:
        driver.kill()


def _begun(notes: Path, dataset: Dataset) -> list[int]:
    """How often the first image of each shard was processed."""
    looked_at = Counter(line.split()[1] for line in notes.read_text().splitlines())
    firsts = np.cumsum([0, *(shard.rows for shard in dataset.shards[:-1])])
    return [looked_at[f"train/{first:06d}.jpg"] for first in firsts]


def _expert(notes: str) -> Noting:
    chosen = choose_expert(GroundingConfig(expert="annotated"))
    return Noting(**{**vars(chosen), "notes": notes})


@contextlib.contextmanager
def _s3(disturber: Disturber) -> Iterator[str]:
    """A bucket on an S3 server behind a proxy that injects faults."""
    from boto3.session import Session

    with s3_server() as direct, disturbed_server(direct, disturber) as address:
        os.environ |= s3_environment(address)
        Session().client("s3").create_bucket(Bucket="people")
        yield "s3://people/store"


if __name__ == "__main__":
    sys.exit(main())
