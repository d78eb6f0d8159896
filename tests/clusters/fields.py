"""Compares YAML with the field names and types that its reader knows, as the JSON files here list.

A kind is the name of a simple type or of a listed one, `[kind]` for a list, `{"*": kind}` for a map
with any keys, `{"or": [kinds]}`; `any` is not looked into.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
_SIMPLE: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "quantity": (str, int),
    "scalar": (str, int, float, bool),
}


def documents(file: str) -> list[Any]:
    return list(yaml.safe_load_all((CLUSTERS / file).read_text()))


def misfits(value: Any, kind: str, listing: str) -> list[str]:
    """What in the value is not of the kind: place, and what is wrong there."""
    known = json.loads((Path(__file__).parent / listing).read_text())
    return list(_misfits(value, kind, known, kind))


def _misfits(value: Any, kind: Any, known: dict[str, Any], place: str) -> Iterator[str]:
    if kind == "any":
        return
    if isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{place}: expected a list, found {value!r}"
            return
        for index, item in enumerate(value):
            yield from _misfits(item, kind[0], known, f"{place}[{index}]")
    elif isinstance(kind, dict) and "or" in kind:
        found = [list(_misfits(value, each, known, place)) for each in kind["or"]]
        if all(found):
            yield from min(found, key=len)
    elif not isinstance(kind, dict) and kind in _SIMPLE:
        if not isinstance(value, _SIMPLE[kind]) or (kind != "scalar" and _wrong(value, kind)):
            yield f"{place}: expected {kind}, found {value!r}"
    elif not isinstance(value, dict):
        yield f"{place}: expected a mapping, found {value!r}"
    elif isinstance(kind, dict):
        for key, item in value.items():
            yield from _misfits(item, kind["*"], known, f"{place}.{key}")
    else:
        fields = known["types"][kind]
        for missing in set(known["required"].get(kind, [])) - value.keys():
            yield f"{place}: {missing} is missing"
        for key, item in value.items():
            if key in fields:
                yield from _misfits(item, fields[key], known, f"{place}.{key}")
            elif not key.startswith("x-"):
                yield f"{place}: there is no field {key}"


def _wrong(value: Any, kind: str) -> bool:
    """In Python a truth is an integer too; in YAML it is none."""
    return isinstance(value, bool) != (kind == "boolean")
