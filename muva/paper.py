"""The evaluation protocols of the field by name, and the results published for them.

Li, Gong, Zhang, "Multi-Grained Vision-Language Alignment for Domain Generalised Person
Re-Identification", IET Computer Vision 20(1), 2026, tables 1 to 3, with the methods it compares.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from muva.errors import SettingsError, closest

FOUR = ("market1501", "dukemtmc", "msmt17", "cuhk03np-detected")
"""The paper trains on some of these data sets and evaluates on the others."""
CLASSICAL_SOURCES = ("market1501", "dukemtmc", "cuhk02", "cuhk03-detected", "cuhksysu")
CLASSICAL_TARGETS = ("prid2011", "grid", "viper", "ilids")

PROTOCOLS = {
    "single-source": "train on one data set, evaluate on each of the others",
    "leave-one-out": "train on all data sets but one, evaluate on that one",
    "classical": "train on all images of five data sets, evaluate on four, with ten splits each",
    "same-domain": "train on a data set's training people, evaluate on its test people",
}

_PUBLISHED = Path(__file__).with_name("published.json")
_TABLES = {
    "single-source": "single_source",
    "leave-one-out": "multi_source",
    "same-domain": "same_domain",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training and the targets that it is evaluated on."""

    protocol: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def settings(self) -> dict[str, object]:
        """The dotted settings that turn an experiment into this row."""
        settings: dict[str, object] = {"sources": list(self.sources), "targets": list(self.targets)}
        if self.protocol == "classical":
            settings["train_on"] = "all"
        if self.protocol == "same-domain":
            settings["same_domain"] = True
        return settings


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published result, as fractions; None for a metric that was not published."""

    sources: tuple[str, ...]
    target: str
    method: str
    mean_ap: float | None
    rank1: float | None


def rows(
    protocol: str,
    *,
    source: str | None = None,
    target: str | None = None,
    without: Collection[str] = (),
    domains: Sequence[str] = FOUR,
) -> list[Row]:
    """The rows of a protocol: with this source, with this target, and without some data sets.

    `domains` replace the paper's four data sets.

    Raises:
        SettingsError: the protocol is unknown, or no row is left.
    """
    if protocol not in PROTOCOLS:
        raise SettingsError(f"protocol {protocol!r} is unknown; {closest(protocol, PROTOCOLS)}")
    kept = [name for name in domains if name not in without]
    if protocol == "classical":
        made = [(tuple(n for n in CLASSICAL_SOURCES if n not in without), CLASSICAL_TARGETS)]
    elif protocol == "same-domain":
        made = [((name,), (name,)) for name in kept]
    elif protocol == "leave-one-out":
        made = [(tuple(n for n in kept if n != name), (name,)) for name in kept]
    else:
        made = [((name,), tuple(n for n in kept if n != name)) for name in kept]
    fitting = [
        Row(
            protocol=protocol,
            sources=sources,
            targets=tuple(name for name in targets if target in (None, name)),
        )
        for sources, targets in made
        if source in (None, *sources)
    ]
    fitting = [row for row in fitting if row.sources and row.targets]
    if not fitting:
        every = sorted({name for sources, targets in made for name in (*sources, *targets)})
        wanted = ", ".join(
            f"{what} {name}" for what, name in (("source", source), ("target", target)) if name
        )
        raise SettingsError(
            f"protocol {protocol}: no row {f'has {wanted}' if wanted else 'is left'}; its data "
            f"sets are "
            f"{', '.join(every) or 'none'}"
        )
    return fitting


@functools.cache
def short_names() -> dict[str, str]:
    """Data set -> its abbreviation in the paper's tables, for example MA for market1501."""
    tables = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    return {name: short for short, name in tables["datasets"].items()}


@functools.cache
def published() -> tuple[Published, ...]:
    """All results in the paper's tables."""
    tables = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    names: dict[str, str] = tables["datasets"]
    found = []
    for key in _TABLES.values():
        entries = tables[key]["rows"] if isinstance(tables[key], dict) else tables[key]
        for entry in entries:
            for method, values in entry.items():
                if method in ("train", "test"):
                    continue
                mean_ap, rank1 = values.get("mAP"), values.get("R1")
                found.append(
                    Published(
                        sources=tuple(sorted(names[short] for short in entry["train"])),
                        target=names[entry["test"]],
                        method=method,
                        mean_ap=None if mean_ap is None else mean_ap / 100,
                        rank1=None if rank1 is None else rank1 / 100,
                    )
                )
    return tuple(found)


def published_for(sources: Collection[str], target: str) -> list[Published]:
    """The published results of trainings on exactly these sources, on this target."""
    wanted = tuple(sorted(sources))
    return [found for found in published() if (found.sources, found.target) == (wanted, target)]
