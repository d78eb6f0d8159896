"""Grounding by a served model at its server's speed: `python -m benchmarks.grounding_http`.

A stub server in a process of its own has 256 slots, each of which works on a request for about half
a second (log-normal). One actor of `muva ground` with as many requests in flight labels images,
while 5 % of the answers fail. Measured in the steady phase: how many of the slots are busy (by the
server), and the CPU time of the actor's and the driver's process. In the end every image must
have its own answers once, or the reason why the server refused it.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baseline import Row, Table, benchmark_parser, exit_code, measurement, write_results
from benchmarks.chat_stub import answer_to, server_stats, stub_server
from benchmarks.grounding_speed import crowd, shots
from muva.config import PHRASES, GroundingConfig
from muva.data.artifacts import Artifact
from muva.data.images import decode_rgb
from muva.data.shards import Dataset
from muva.grounding.expert import QUESTION, Expert
from muva.grounding.experts import ChosenExpert, choose_expert
from muva.grounding.labels import read_shard_labels
from muva.synthetic.sensor import encode_jpeg
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.expert_pool import Actors, GroundingJob, ground_shards

MIN_BUSY, MAX_CORES_PER_200 = 0.95, 0.5
"""Goals: share of the slots that are busy; cores of a process for each 200 answers per second."""
FAILING, REFUSED_WIDTH = 0.05, 40
WIDTHS, HEIGHTS = range(REFUSED_WIDTH, REFUSED_WIDTH + 64), range(96, 196)
"""Every image has a size of its own, by which the stub knows it; the narrowest are refused."""
SHARD_IMAGES, EVERY_S = 1024, 0.25
STEADY = (0.15, 0.85)
"""The steady phase, as shares of all answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed(ChosenExpert):
    """The expert `http`, whose process leaves its number in a file."""

    pid_file: str

    def load(self) -> Expert:
        """See `ChosenExpert`."""
        Path(self.pid_file).write_text(str(os.getpid()))
        return super().load()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What server and processes had done by a moment."""

    at_s: float
    busy_s: float
    answered: int
    actor_s: float
    driver_s: float


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("grounding_http", __doc__, check="exit 1 below a goal")
    parser.add_argument("--images", type=int, default=len(WIDTHS) * len(HEIGHTS))
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--requests-in-flight", type=int, help="[as many as slots]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="grounding-http-"))
    try:
        figures = measured(
            folder,
            images=arguments.images,
            slots=arguments.slots,
            requests_in_flight=arguments.requests_in_flight or arguments.slots,
            seed=arguments.seed,
        )
    finally:
        shutil.rmtree(folder)
    print("| what | figure | goal |\n|---|---:|---:|")
    for row in rows_of(figures):
        print(f"| {row['what']} | {row['figure']['value']:{row['format']}} | {row['goal']} |")
    print(f"\nfailed answers: {figures['faults']}")
    for line in figures["wrong"][:10]:
        print(line)
    write_results(arguments, figures, baseline_tables)
    return exit_code(arguments, missed_goals(figures))


def measured(
    folder: Path, *, images: int, slots: int, requests_in_flight: int, seed: int
) -> dict[str, Any]:
    """Ground images of different sizes by one actor, and compare the labels with what they are."""
    encoded = different_images(images, seed=seed)
    people = crowd(folder, "people", images, encoded=encoded, shard_images=SHARD_IMAGES)
    labels = Artifact(people.artifact.store, "labels", people.name, "1" * 16)
    job = GroundingJob(
        dataset=people, labels=labels, shards=range(len(people.shards)), max_quarantined=images
    )
    server = stub_server(slots=slots, share=FAILING, refused_width=REFUSED_WIDTH, seed=seed)
    with server as address, ray_cluster():
        os.environ["MUVA_EXPERT_URL"] = f"{address}/v1"
        chosen = choose_expert(
            GroundingConfig(expert="http", checkpoint="stub", requests_in_flight=requests_in_flight)
        )
        expert = Observed(**vars(chosen), pid_file=f"{folder / 'pid'}")
        with sampled(address, folder / "pid") as samples:
            [progress] = ground_shards([job], expert, PHRASES, actors=Actors(count=1))
        stats = server_stats(address)
    steady = steady_phase(samples, answers=stats["answered"], slots=slots)
    return {
        **steady,
        "images": progress.images,
        "quarantined": progress.failed,
        "seconds": progress.elapsed_s,
        "faults": stats["faults"],
        "failed_share": sum(stats["faults"].values())
        / (stats["answered"] + sum(stats["faults"].values())),
        "wrong": wrong_labels(people, labels),
    }


def different_images(count: int, *, seed: int) -> list[bytes]:
    """JPEGs of people, each of a size of its own, in random order."""
    sizes = [(width, height) for width in WIDTHS for height in HEIGHTS]
    random.Random(seed).shuffle(sizes)
    pictures = [decode_rgb(shot) for shot in shots(height=128, width=64)]
    return [
        encode_jpeg(np.asarray(pictures[number % len(pictures)].resize(size)), quality=90)
        for number, size in enumerate(sizes[:count])
    ]


@contextmanager
def sampled(address: str, pid_file: Path):
    """Samples of the server and of both processes, taken in a thread while the block runs."""
    samples: list[Sample] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            if not pid_file.exists():
                continue
            try:
                actor_s = cpu_s(int(pid_file.read_text()))
            except (FileNotFoundError, ProcessLookupError):
                return
            stats = server_stats(address)
            samples.append(
                Sample(
                    at_s=stats["at_s"],
                    busy_s=stats["busy_s"],
                    answered=stats["answered"],
                    actor_s=actor_s,
                    driver_s=cpu_s(os.getpid()),
                )
            )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def cpu_s(pid: int) -> float:
    """CPU time of a process with all of its threads, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def steady_phase(samples: Sequence[Sample], *, answers: int, slots: int) -> dict[str, float]:
    """Rates between the first and the last sample of the steady phase."""
    low, high = (share * answers for share in STEADY)
    within = [sample for sample in samples if low <= sample.answered <= high]
    first, last = within[0], within[-1]
    seconds = last.at_s - first.at_s
    per_s = (last.answered - first.answered) / seconds
    return {
        "steady_s": seconds,
        "answers_per_s": per_s,
        "busy": (last.busy_s - first.busy_s) / seconds / slots,
        "actor_cores": (last.actor_s - first.actor_s) / seconds,
        "driver_cores": (last.driver_s - first.driver_s) / seconds,
        "actor_cores_per_200": (last.actor_s - first.actor_s) / seconds / per_s * 200,
        "driver_cores_per_200": (last.driver_s - first.driver_s) / seconds / per_s * 200,
    }


def wrong_labels(people: Dataset, labels: Artifact) -> list[str]:
    """Images whose rows are not exactly one answer of the stub per part, or a reason per part."""
    wrong = []
    for shard in range(len(people.shards)):
        found = read_shard_labels(labels, shard).to_pylist()
        counts = Counter((row["image_id"], row["part"]) for row in found)
        by_key = {(row["image_id"], row["part"]): row for row in found}
        for image in people.read_shard(shard, ["image_id", "image"]).to_pylist():
            size = decode_rgb(image["image"]).size
            for part, phrase in PHRASES.items():
                key = image["image_id"], part
                row = by_key.pop(key, None)
                if row is None or counts[key] != 1:
                    wrong.append(f"{key}: {counts[key]} rows")
                elif size[0] == REFUSED_WIDTH:
                    if not (row["error"] or "").startswith("refused by the endpoint: 400"):
                        wrong.append(f"{key}: refused, recorded as {row['error']}")
                elif row["error"] or row["answer"] != answer_to(
                    size, QUESTION.format(phrase=phrase)
                ):
                    wrong.append(f"{key}: {row['error'] or row['answer']}")
        wrong += [f"{key}: an image that is not in the shard" for key in by_key]
    return wrong


def rows_of(figures: Mapping[str, Any]) -> list[Row]:
    """What was measured, with the goals."""

    def row(what: str, value: float, form: str, goal: str = "") -> Row:
        return {"what": what, "figure": measurement(value), "format": form, "goal": goal}

    per_200 = "of a core per 200 answers per second"
    return [
        row("slots that are busy", figures["busy"], ".3f", f"{MIN_BUSY}"),
        row("answers per second", figures["answers_per_s"], ".0f"),
        row(
            f"the actor's process, {per_200}",
            figures["actor_cores_per_200"],
            ".2f",
            f"under {MAX_CORES_PER_200}",
        ),
        row(
            f"the driver's process, {per_200}",
            figures["driver_cores_per_200"],
            ".2f",
            f"under {MAX_CORES_PER_200}",
        ),
        row("share of the answers that failed", figures["failed_share"], ".3f"),
        row("images", figures["images"], ",.0f"),
        row("refused images, quarantined", figures["quarantined"], ",.0f"),
        row("images lost, doubled or with another's answer", len(figures["wrong"]), ".0f", "0"),
    ]


def missed_goals(figures: Mapping[str, Any]) -> list[str]:
    """The goals that these figures miss."""
    missed = []
    if figures["busy"] < MIN_BUSY:
        missed.append(f"{figures['busy']:.3f} of the slots were busy, goal {MIN_BUSY}")
    for process in ("actor", "driver"):
        cores = figures[f"{process}_cores_per_200"]
        if cores >= MAX_CORES_PER_200:
            missed.append(f"the {process} took {cores:.2f} cores, goal {MAX_CORES_PER_200}")
    if figures["wrong"]:
        missed.append(f"{len(figures['wrong'])} wrong rows, for example {figures['wrong'][0]}")
    return missed


def baseline_tables(figures: Mapping[str, Any]) -> dict[str, Table]:
    """`steady`: how busy the server's slots are, and what that takes."""
    return {"steady": Table(rows=rows_of(figures))}


if __name__ == "__main__":
    sys.exit(main())
