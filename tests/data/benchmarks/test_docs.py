"""The page about data sets agrees with the readers."""

from pathlib import Path

from muva.data.benchmarks import BENCHMARKS, READERS
from muva.data.benchmarks.benchmark import Counts

PAGE = (Path(__file__).parents[3] / "docs" / "data-sets.md").read_text()


def cells(counts: Counts) -> str:
    cameras = "unknown" if counts.cameras == 0 else counts.cameras
    numbers = (counts.images, counts.identities, cameras)
    return " | ".join("?" if number is None else str(number) for number in numbers)


def test_every_public_data_set_is_in_the_table_with_its_counts():
    for name, benchmark in BENCHMARKS.items():
        rows = PAGE[PAGE.index(f"| `{name}` | {benchmark.title} |") :].splitlines()
        for (split, counts), row in zip(benchmark.counts.items(), rows, strict=False):
            assert row.endswith(f" | {split} | {cells(counts)} |")


def test_every_public_data_set_has_a_reader_and_is_described():
    for benchmark in BENCHMARKS.values():
        assert benchmark.layout in READERS
        for field in ("paper", "source", "licence", "status", "rules", "lists", "counts_from"):
            assert len(getattr(benchmark, field)) > 5, (benchmark.title, field)
