"""Lance beside FAISS, for galleries that grow: `python -m benchmarks.gallery_engines`.

The features and queries are those of `benchmarks.gallery`. FAISS keeps the codes of an index in
memory; the features are in a file, from which what it proposes is compared again, as Lance does
with its own files. Needs the package faiss-cpu, which is no dependency of muva. Each index is a
process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baseline import Row, Table, benchmark_parser, write_results
from benchmarks.gallery import KINDS, TOP, WARM_UP, WIDTH, Figures, expect, features_of, queries_of
from benchmarks.memory import peak_memory_mb

ENGINES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "lance IVF_RQ, 1 bit": ((8, 10), (244, 30)),
    "lance IVF_RQ, 2 bits": ((8, 10), (244, 30)),
    "lance IVF_RQ, 3 bits": ((8, 10), (244, 20)),
    "lance IVF_RQ, 4 bits": ((8, 10), (244, 10)),
    "lance IVF_SQ": ((8, 10), (244, 10)),
    "faiss IVF244,RaBitQ": ((8, 10), (244, 30)),
    "faiss IVF244,SQ4": ((8, 10), (244, 10)),
    "faiss IVF244,PQ128x4fs": ((8, 10), (244, 30)),
}
"""Index -> pairs of partitions that a search looks at, and candidates per image asked for."""
TRAINED = 65_536
_SAMPLE = 120


def main() -> int:
    """Measure and print."""
    parser = benchmark_parser("gallery_engines", __doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--folder", type=Path, help="for the features [a temporary one]")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, engine = arguments.one
        print(json.dumps(measured(kind, engine, arguments.images, arguments.folder)))
        return 0
    found: list[dict[str, Any]] = []
    for kind in arguments.kinds:
        folder = Path(tempfile.mkdtemp(prefix=f"engines-{kind}-", dir=arguments.folder))
        try:
            write_features(kind, arguments.images, folder)
            for engine in arguments.engines:
                command = [sys.executable, "-m", "benchmarks.gallery_engines", "--folder", folder]
                command += ["--images", f"{arguments.images}", "--one", kind, engine]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows = json.loads(done.stdout.splitlines()[-1])
                found += [{"kind": kind, "engine": engine, **row} for row in rows]
                for row in found[-len(rows) :]:
                    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        finally:
            shutil.rmtree(folder)
    write_results(arguments, found, baseline_tables)
    return 0


def baseline_tables(found: Sequence[Row]) -> dict[str, Table]:
    """`engines`: each index in each of its ways."""
    return {"engines": Table(rows=found)}


def write_features(kind: str, images: int, folder: Path) -> None:
    """The features and the expected answers as files."""
    features = np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype=np.float32, shape=(images, WIDTH)
    )
    first = 0
    for block in features_of(kind, images, seed=2):
        features[first : first + len(block)] = block
        first += len(block)
    features.flush()
    expect(kind, images, folder)


def measured(kind: str, engine: str, images: int, folder: Path) -> list[Figures]:
    """Build an index and search it, in each of its ways."""
    library, _, spec = engine.partition(" ")
    features = np.load(folder / "features.npy", mmap_mode="r")
    with peak_memory_mb() as peak:
        started_at = time.perf_counter()
        index = (Lance if library == "lance" else Faiss)(spec, features, folder)
        build_s = time.perf_counter() - started_at
        build_mb = peak[0]
    queries = queries_of(kind, images)[:_SAMPLE]
    expected = np.load(folder / "expected.npy")
    rows = []
    for probes, candidates in ENGINES[engine]:
        with peak_memory_mb() as peak:
            seconds, recalls = [], []
            for query, nearest in zip(queries, expected, strict=False):
                started_at = time.perf_counter()
                found = index.search(query, probes, candidates)
                seconds.append(time.perf_counter() - started_at)
                recalls.append(len(set(found) & set(nearest.tolist())) / TOP)
        p95 = float(1e3 * np.percentile(seconds[WARM_UP:], 95))
        rows.append(
            {
                "probes": probes,
                "candidates": candidates,
                "recall": float(np.mean(recalls)),
                "p95_ms": p95,
                "build_s": build_s,
                "build_mb": build_mb,
                "search_mb": peak[0],
            }
        )
    return rows


class Lance:
    """A table of Lance with an index."""

    def __init__(self, spec: str, features: np.ndarray, folder: Path):
        import lance
        import pyarrow as pa

        name, _, bits = spec.partition(", ")
        schema = pa.schema([("feature", pa.list_(pa.float32(), WIDTH)), ("row", pa.int64())])

        def batches() -> Any:
            for first in range(0, len(features), 16_384):
                block = np.ascontiguousarray(features[first : first + 16_384])
                column = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), WIDTH)
                rows = pa.array(np.arange(first, first + len(block)))
                yield pa.record_batch([column, rows], schema=schema)

        table = folder / f"{name}{bits}.lance"
        self._table = lance.write_dataset(batches(), table, schema=schema)
        options: Any = {"num_bits": int(bits.split()[0])} if bits else {}
        self._table.create_index(
            "feature", name, metric="dot", num_partitions=244, replace=True, **options
        )

    def search(self, query: np.ndarray, probes: int, candidates: int) -> list[int]:
        """The numbers of the nearest features."""
        nearest = {"column": "feature", "q": query, "k": TOP, "nprobes": probes}
        found = self._table.scanner(
            columns=["row", "_distance"], nearest={**nearest, "refine_factor": candidates}
        )
        return found.to_table()["row"].to_pylist()


class Faiss:
    """An index of FAISS, and the features in a file."""

    def __init__(self, spec: str, features: np.ndarray, folder: Path):
        faiss: Any = importlib.import_module("faiss")
        self._features = features
        self._index = faiss.index_factory(WIDTH, spec, faiss.METRIC_INNER_PRODUCT)
        self._index.train(np.ascontiguousarray(features[:TRAINED]))
        for first in range(0, len(features), 16_384):
            self._index.add(np.ascontiguousarray(features[first : first + 16_384]))
        self._ivf = faiss.extract_index_ivf(self._index)

    def search(self, query: np.ndarray, probes: int, candidates: int) -> list[int]:
        """The numbers of the nearest features."""
        self._ivf.nprobe = probes
        _, [proposed] = self._index.search(query[None], candidates * TOP)
        rows = np.sort(proposed[proposed >= 0])
        return rows[np.argsort(-(self._features[rows] @ query))[:TOP]].tolist()


if __name__ == "__main__":
    sys.exit(main())
