"""Cost of very many images: `python -m benchmarks.scale --images 100000000 --identities 10000`.

Two tables. The first has hours and price of each phase on one device, from the recipe's epochs and
from rates that are measured here or come from the JSON of `benchmarks.large`, run on the intended
device. The second has what a single process must do or keep in memory regardless of the number of
machines, measured with `--sample` images and scaled proportionally: the limits of the design.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.baseline import Table, benchmark_parser, measurement, write_results
from benchmarks.memory import peak_memory_mb
from benchmarks.paper import GROUNDING, Rates, Share, measured_rates, phase_work, read_rates
from benchmarks.phases import PHASE_TITLES
from muva.config import ExperimentConfig, load_recipe
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.protocols import pool
from muva.data.records import Record
from muva.data.shards import SHARD_IMAGES, open_dataset, write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.training.sampler import epoch_draws

CAMERAS = 20


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Work that a single process does for so many images."""

    what: str
    images: int
    seconds: float
    peak_mb: float
    """Additional memory of the process, in 10^6 bytes."""

    def at(self, images: int) -> Alone:
        """Scaled proportionally to another number of images."""
        times = images / self.images
        return Alone(
            what=self.what,
            images=images,
            seconds=self.seconds * times,
            peak_mb=self.peak_mb * times,
        )


def main() -> int:
    """Print both tables."""
    parser = benchmark_parser("scale", __doc__)
    parser.add_argument("--images", type=int, default=100_000_000, help="[%(default)s]")
    parser.add_argument("--identities", type=int, default=10_000, help="[%(default)s]")
    parser.add_argument("--recipe", default="base", help="[%(default)s]")
    parser.add_argument("--rates", type=Path, help="JSON of benchmarks.large [measured here]")
    parser.add_argument("--grounding-rate", type=float, help="images per second of the expert")
    parser.add_argument("--price", type=float, help="of the device for an hour, in any currency")
    parser.add_argument(
        "--sample", type=int, default=100_000, help="images, see above [%(default)s]"
    )
    arguments = parser.parse_args()
    config = load_recipe(arguments.recipe)
    try:
        rates = read_rates(arguments.rates) if arguments.rates else measured_rates(arguments.recipe)
        alone = measured_alone(config, images=arguments.sample, identities=arguments.identities)
    except MuvaError as mistake:
        print(f"Error: {mistake}", file=sys.stderr)
        return 1
    shares = shares_of(
        config, rates, images=arguments.images, grounding_rate=arguments.grounding_rate
    )
    print(costs(shares, rates, price=arguments.price))
    print()
    print(limits(alone, images=arguments.images))
    report = {
        "device": rates.device,
        "precision": rates.precision,
        "phases": {share.phase: asdict(share) | {"hours": share.hours} for share in shares},
        "alone": [asdict(one) for one in alone],
    }
    tables = partial(baseline_tables, images=arguments.images, price=arguments.price)
    write_results(arguments, report, tables)
    return 0


def baseline_tables(
    report: Mapping[str, Any], *, images: int, price: float | None
) -> dict[str, Table]:
    """`costs`: hours and prices by phase; `alone`: what one process does by itself."""
    costs_ = []
    for phase, of in report["phases"].items():
        if of["per_s"] is None:
            continue
        row = {
            "phase": PHASE_TITLES.get(phase, phase),
            "work": of["work"],
            "unit": "identities" if phase == "prompts" else "images",
            "rate": measurement(of["per_s"]),
            "hours": of["hours"],
        }
        costs_.append(row | ({} if price is None else {"price": of["hours"] * price}))
    alone = []
    for one in report["alone"]:
        all_of_them = Alone(**one).at(images)
        alone.append(
            {
                "what": one["what"],
                "images": one["images"],
                "seconds": measurement(one["seconds"]),
                "memory_mb": one["peak_mb"],
                "hours": all_of_them.seconds / 3600,
                "memory_gb": all_of_them.peak_mb / 1000,
            }
        )
    return {"costs": Table(rows=costs_), "alone": Table(rows=alone)}


def shares_of(
    config: ExperimentConfig, rates: Rates, *, images: int, grounding_rate: float | None
) -> list[Share]:
    """Every phase of training on so many images and embedding each of them once."""
    work = phase_work(config, grounded=images, learned=images, embedded=images)
    per_s = {GROUNDING: grounding_rate, **rates.per_s}
    return [Share(phase=phase, work=count, per_s=per_s[phase]) for phase, count in work.items()]


def measured_alone(config: ExperimentConfig, *, images: int, identities: int) -> list[Alone]:
    """The parts of the work that cannot be distributed, measured with the library's functions.

    Images are one grey pixel each, so that what is measured is all that is done besides images.
    """
    with tempfile.TemporaryDirectory(prefix="muva-scale-") as folder:
        artifact = Artifact(open_store(folder), "datasets", "many", "0" * 16)
        each = max(1, images // identities)
        pixel = _pixel()

        def imported() -> None:
            records = (
                Record(
                    domain="many",
                    image_id=f"person-{number // each:07d}/camera-{number % CAMERAS}/{number}.jpg",
                    split="train",
                    pid=number // each,
                    camid=number % CAMERAS,
                    source=pixel,
                )
                for number in range(images)
            )
            summary = write_shards(records, artifact=artifact)
            artifact.commit(
                format_version=formats.SHARDS, config={}, inputs={}, summary=asdict(summary)
            )

        def pooled() -> None:
            opened.append(pool([open_dataset(artifact)]))

        def drawn() -> None:
            epoch_draws(opened[0].labels, config.stage2, seed=0, epoch=1)

        opened: list[Any] = []
        return [
            _alone("import: records, checks, shards", imported, images=images),
            _alone("training: who is on which row, each worker", pooled, images=images),
            _alone("training: an epoch's batches, each worker", drawn, images=images),
        ]


def _alone(what: str, work: Callable[[], None], *, images: int) -> Alone:
    with peak_memory_mb() as peak:
        before = peak[0]
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    return Alone(what=what, images=images, seconds=seconds, peak_mb=peak[0] - before)


def _pixel() -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.full((1, 1, 3), 128, np.uint8)).save(written, "PNG")
    return written.getvalue()


def costs(shares: list[Share], rates: Rates, *, price: float | None) -> str:
    """Hours and prices by phase."""
    lines = [f"One {rates.device}, {rates.precision}:", ""]
    lines += ["| phase | work | per second | hours | price |", "|---|---:|---:|---:|---:|"]
    for share in shares:
        hours = share.hours
        lines.append(
            f"| {share.phase} | {share.work or 0:,} | {_number(share.per_s, 1)} "
            f"| {_number(hours)} | {_number(hours and price and hours * price)} |"
        )
    return "\n".join(lines)


def limits(alone: list[Alone], *, images: int) -> str:
    """Time and memory of one process for all images, extrapolated from the sample."""
    sample = alone[0].images
    lines = [
        f"| one process, whatever the number of machines | {sample:,} images, s | MB "
        f"| {images:,} images, hours | GB |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in alone:
        all_of_them = one.at(images)
        lines.append(
            f"| {one.what} | {one.seconds:.1f} | {one.peak_mb:.0f} "
            f"| {all_of_them.seconds / 3600:.1f} | {all_of_them.peak_mb / 1000:.0f} |"
        )
    lines.append(f"\nShards: {-(-images // SHARD_IMAGES):,} of {SHARD_IMAGES} images or fewer.")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 0) -> str:
    return "?" if not value else f"{value:,.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
