"""The command-line options of both pre-training programs."""

from __future__ import annotations

import argparse
from pathlib import Path


def pretraining_options(doc: str | None, *, people: int, steps: int) -> argparse.Namespace:
    """Options of this process; the first line of `doc` is the description, the rest defaults."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=people, help="over both domains")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()
