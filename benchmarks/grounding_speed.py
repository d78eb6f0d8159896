"""What the fan-out around an expert costs: `python -m benchmarks.grounding_speed`.

A bare loop over decoded batches, the same process as the only actor, then a second one beside it;
the driver's memory from 1,000 to 50,000 images with an expert that only sleeps; how fast finished
shards are recognised. `--check` exits 1 when a figure misses its goal.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.baseline import (
    Row,
    Table,
    benchmark_parser,
    exit_code,
    measurement,
    median_of,
    write_results,
)
from benchmarks.memory import peak_memory_mb
from muva.config import PHRASES, GroundingConfig
from muva.data.artifacts import Artifact
from muva.data.records import Record, Split
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.data.store import open_store
from muva.grounding.expert import Expert, Grounding, GroundingImage
from muva.grounding.experts import ChosenExpert, choose_expert
from muva.grounding.labels import (
    finished_parts,
    label_key,
    label_table,
    summarise_labels,
    write_label_part,
)
from muva.synthetic import BENCHMARK, render
from muva.synthetic.sensor import encode_jpeg
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.expert_pool import Actors, Spent, ground_shards

MOST_OVERHEAD, LEAST_SPEED_UP = 0.05, 1.8
MOST_GROWTH_MB, MOST_RECOGNITION_S = 100.0, 5.0
"""Goals: share of the bare loop's time, two actors over one, driver's memory, 10,000 shards."""

THREADS_EACH, WAIT_S = 1, 0.05
FEW, MANY, MANY_SHARDS = 1000, 50_000, 10_000
SHOTS, SHARD_IMAGES = 100, 160
SLEEP_S = 0.002


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsed(ChosenExpert):
    """An expert of two processes: the first one times its bare loop and works, the second waits.

    Two processes of one program differ in speed by a tenth here, and so does one from minute to
    minute: more than what is looked for. So all three rates are of the same process, one after the
    other at once.
    """

    dataset: Artifact
    folder: Path
    """What the processes and the driver tell each other: `first`, `rate`, `second` as files."""

    def load(self) -> Expert:
        """See `ChosenExpert`."""
        expert = super().load()
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            while not (self.folder / "second").exists():
                time.sleep(WAIT_S)
            return expert
        rate = bare_rate(self.dataset, expert, self.info.batch_images)
        (self.folder / "rate").write_text(str(rate))
        return expert


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sleeping(ChosenExpert):
    """An expert that takes its time and looks at nothing."""

    def load(self) -> Expert:
        """See `ChosenExpert`."""
        return _Sleeper()


class _Sleeper:
    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        time.sleep(SLEEP_S)
        return [[Grounding(box=(0.1, 0.1, 0.9, 0.9))] * len(phrases) for _ in images]


def main() -> int:
    """Measure, print, and compare with the goals when asked."""
    parser = benchmark_parser("grounding_speed", __doc__, check="exit 1 below a goal")
    parser.add_argument("--expert", default="tiny")
    parser.add_argument("--checkpoint", default="", help="its weights [the shipped ones]")
    parser.add_argument("--images", type=int, default=4800)
    parser.add_argument("--repeats", type=int, default=7, help="of each timing; the median counts")
    arguments = parser.parse_args()
    config = GroundingConfig(expert=arguments.expert, checkpoint=arguments.checkpoint)
    folder = Path(tempfile.mkdtemp(prefix="grounding-speed-"))
    try:
        with ray_cluster():
            figures = measured(folder, choose_expert(config), arguments.images, arguments.repeats)
    finally:
        shutil.rmtree(folder)
    print("| what | figure | goal |\n|---|---|---|")
    missed = []
    for name, value, goal, reached in judged(figures):
        print(f"| {name} | {value} | {goal} |")
        if not reached:
            missed.append(f"{name}: {value}, goal {goal}")
    write_results(arguments, figures, baseline_tables)
    return exit_code(arguments, missed)


def measured(folder: Path, expert: ChosenExpert, images: int, repeats: int) -> dict[str, float]:
    """All figures."""
    people = crowd(
        folder, "crowd", images, encoded=shots(height=128, width=64), shard_images=SHARD_IMAGES
    )
    runs = [actor_rates(people, expert, folder / f"run-{number}") for number in range(repeats)]
    rates = {name: [run[name] for run in runs] for name in runs[0]}
    overheads = [bare / one - 1 for bare, one in zip(rates["bare"], rates["one"], strict=True)]
    ratios = [two / one for two, one in zip(rates["two"], rates["one"], strict=True)]
    few, many = driver_memory_mb(folder)
    recognised_s, summarised_s = recognition_s(folder)
    return {
        **{f"{name}_images_per_s": median_of(values) for name, values in rates.items()},
        "overhead": median_of(overheads),
        "two_over_one": median_of(ratios),
        "two_over_one_least": min(ratios),
        "two_over_one_most": max(ratios),
        "driver_mb_few": few,
        "driver_mb_many": many,
        "recognition_s": recognised_s,
        "summary_s": summarised_s,
    }


def judged(figures: Mapping[str, float]) -> list[tuple[str, str, str, bool]]:
    """Name, figure, goal, and whether it is reached."""
    growth = figures["driver_mb_many"] - figures["driver_mb_few"]
    return [
        ("bare loop, images/s", f"{figures['bare_images_per_s']:.1f}", "", True),
        ("one actor, images/s", f"{figures['one_images_per_s']:.1f}", "", True),
        (
            "around the expert, of the bare loop",
            f"{figures['overhead']:.1%}",
            f"under {MOST_OVERHEAD:.0%}",
            figures["overhead"] < MOST_OVERHEAD,
        ),
        (
            "two actors over one",
            f"{figures['two_over_one']:.2f} ({figures['two_over_one_least']:.2f} to "
            f"{figures['two_over_one_most']:.2f})",
            f"{LEAST_SPEED_UP}",
            figures["two_over_one"] >= LEAST_SPEED_UP,
        ),
        (
            f"driver's memory, {FEW} to {MANY} images, MB",
            f"{growth:+.0f}",
            f"within {MOST_GROWTH_MB:.0f}",
            growth <= MOST_GROWTH_MB,
        ),
        (
            f"{MANY_SHARDS} finished shards recognised, s",
            f"{figures['recognition_s']:.2f}",
            f"under {MOST_RECOGNITION_S:.0f}",
            figures["recognition_s"] < MOST_RECOGNITION_S,
        ),
        (f"their summary, s, {MANY_SHARDS} files read", f"{figures['summary_s']:.1f}", "", True),
    ]


def baseline_tables(figures: Mapping[str, float]) -> dict[str, Table]:
    """`fan-out`: rates, what is lost around the expert, memory and time of the driver."""

    def row(what: str, value: float, form: str, unit: str = "", goal: str | None = None) -> Row:
        said: Row = {"what": what, "figure": measurement(value), "format": form, "unit": unit}
        return said if goal is None else said | {"goal": goal}

    growth = figures["driver_mb_many"] - figures["driver_mb_few"]
    two = row("two actors over one (least to most)", figures["two_over_one"], ".2f")
    two["least_to_most"] = [figures[f"two_over_one_{key}"] for key in ("least", "most")]
    return {
        "fan-out": Table(
            rows=[
                row(
                    "bare loop over decoded batches, images/s", figures["bare_images_per_s"], ".0f"
                ),
                row("one actor, images/s", figures["one_images_per_s"], ".0f"),
                row(
                    "everything around the expert, of the bare loop",
                    figures["overhead"],
                    "1pct",
                    " %",
                    f"under {100 * MOST_OVERHEAD:.0f} %",
                ),
                two | {"goal": f"{LEAST_SPEED_UP}"},
                row(
                    f"driver's memory, {FEW:,} to {MANY:,} images",
                    growth,
                    "+.0f",
                    " MB",
                    f"within {MOST_GROWTH_MB:.0f} MB",
                ),
                row(
                    f"{MANY_SHARDS:,} finished shards recognised",
                    figures["recognition_s"],
                    ".2f",
                    " s",
                    f"under {MOST_RECOGNITION_S:.0f} s",
                ),
                row("their labels summed up", figures["summary_s"], ".1f", " s"),
            ],
            statistic="medians of the rates and ratios",
        )
    }


def crowd(
    store: Path | str,
    name: str,
    images: int,
    *,
    encoded: Sequence[bytes],
    shard_images: int,
    splits: Sequence[Split] = ("train",),
) -> Dataset:
    """A data set of so many images, these ones again and again."""
    records = (
        Record(
            domain=name,
            image_id=f"{splits[number % len(splits)]}/{number:06d}.jpg",
            split=splits[number % len(splits)],
            pid=number // 4 + 1,
            camid=1,
            source=encoded[number % len(encoded)],
        )
        for number in range(images)
    )
    size = sum(map(len, encoded)) / len(encoded)
    artifact = Artifact(open_store(store), "datasets", name, "0" * 16)
    summary = write_shards(records, artifact=artifact, shard_bytes=round(size * shard_images))
    artifact.commit(format_version=1, config={}, inputs={}, summary=dataclasses.asdict(summary))
    return open_dataset(artifact)


def bare_rate(dataset: Artifact, expert: Expert, batch_images: int) -> float:
    """Images per second of the expert alone, on a third of the batches, decoded before."""
    people = open_dataset(dataset)
    batches: list[list[GroundingImage]] = []
    for shard in range(len(people.shards) // 3):
        encoded = people.read_shard(shard, ["image_id", "image"]).to_pylist()
        images = [
            GroundingImage(image_id=row["image_id"], encoded=row["image"], annotated=None)
            for row in encoded
        ]
        for image in images:
            _ = image.image
        batches += [
            images[start : start + batch_images] for start in range(0, len(images), batch_images)
        ]
    expert.ground(batches[0], PHRASES)
    started_at = time.perf_counter()
    for batch in batches[1:]:
        expert.ground(batch, PHRASES)
    return sum(map(len, batches[1:])) / (time.perf_counter() - started_at)


def actor_rates(dataset: Dataset, expert: ChosenExpert, folder: Path) -> dict[str, float]:
    """Images per second of a bare loop, of one actor and of two, each while all are busy.

    One actor does a third of the shards; then a second one, which has been ready, joins it.
    """
    folder.mkdir()
    labels = Artifact(dataset.artifact.store, "labels", dataset.name, "1" * 16)
    alone = len(dataset.shards) // 3 * SHARD_IMAGES
    seen: dict[int, float] = {}

    def tell(_: int, spent: Spent) -> None:
        seen.setdefault(spent.images, time.perf_counter())
        if spent.images >= alone:
            (folder / "second").touch()

    ground_shards(
        dataset,
        labels,
        Rehearsed(**vars(expert), dataset=dataset.artifact, folder=folder),
        PHRASES,
        shards=range(len(dataset.shards)),
        actors=Actors(count=2, cpus_each=THREADS_EACH),
        most_aside=0,
        tell=tell,
    )
    labels.delete()
    last = dataset.summary.images - SHARD_IMAGES  # from then on one of two may find none left
    return {
        "bare": float((folder / "rate").read_text()),
        "one": _rate(seen, first=SHARD_IMAGES, last=alone),
        "two": _rate(seen, first=alone + 2 * SHARD_IMAGES, last=last),
    }


def _rate(seen: Mapping[int, float], *, first: int, last: int) -> float:
    """Images per second between two counts of done images, or the nearest counts within."""
    counts = [count for count in seen if first <= count <= last]
    return (max(counts) - min(counts)) / (seen[max(counts)] - seen[min(counts)])


def driver_memory_mb(folder: Path) -> tuple[float, float]:
    """The driver's highest memory with few and with many images."""
    rng = np.random.default_rng(0)
    tiny = [
        encode_jpeg(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8), quality=50) for _ in range(10)
    ]
    expert = Sleeping(**vars(choose_expert(GroundingConfig(expert="annotated"))))
    peaks = []
    for images in (FEW, MANY):
        dataset = crowd(folder, f"people-{images}", images, encoded=tiny, shard_images=100)
        labels = Artifact(dataset.artifact.store, "labels", dataset.name, "1" * 16)
        with peak_memory_mb() as peak:
            ground_shards(
                dataset,
                labels,
                expert,
                PHRASES,
                shards=range(len(dataset.shards)),
                actors=Actors(),
                most_aside=0,
            )
            summarise_labels(labels, dataset, parts=list(PHRASES))
        peaks.append(peak[0])
    return peaks[0], peaks[1]


def recognition_s(folder: Path) -> tuple[float, float]:
    """Seconds that it takes to see which of many shards are done, and to sum them up."""
    image = encode_jpeg(np.zeros((8, 4, 3), np.uint8), quality=50)
    few = crowd(folder, "finished", 4, encoded=[image], shard_images=4)
    summary = dataclasses.replace(
        few.summary, shards=few.shards * MANY_SHARDS, images=4 * MANY_SHARDS
    )
    dataset = dataclasses.replace(few, summary=summary)
    labels = Artifact(few.artifact.store, "labels", few.name, "1" * 16)
    rows = [
        {
            "image_id": f"train/{number:06d}.jpg",
            "part": part,
            "found": True,
            "box": [0.1, 0.1, 0.9, 0.9],
            "answer": "",
            "expert": "sleeping",
        }
        for number in range(4)
        for part in PHRASES
    ]
    write_label_part(labels, 0, label_table(rows))
    first = labels.store.path(labels.key(label_key(0)))
    for shard in range(1, MANY_SHARDS):
        shutil.copyfile(first, first.with_name(label_key(shard)))
    started_at = time.perf_counter()
    assert len(finished_parts(labels)) == MANY_SHARDS
    recognised_s = time.perf_counter() - started_at
    started_at = time.perf_counter()
    summarise_labels(labels, dataset, parts=list(PHRASES))
    return recognised_s, time.perf_counter() - started_at


def shots(*, height: int, width: int) -> list[bytes]:
    """Pictures of people, as JPEGs."""
    rendered = (
        render(
            BENCHMARK[n % len(BENCHMARK)], pid=1 + n, camid=1, index=0, height=height, width=width
        )
        for n in range(SHOTS)
    )
    return [encode_jpeg(shot.image, quality=90) for shot in rendered]


if __name__ == "__main__":
    sys.exit(main())
