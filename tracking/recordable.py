"""Converts settings and tags for MLflow: flat names, strings of limited length, no secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracking.redaction import MASK, names_secret, redact

_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000


def recordable_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow accepts them."""
    return {
        key: MASK if names_secret(key) else _cut(redact(str(value)), _LONGEST_TAG)
        for key, value in tags.items()
    }


def recordable_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as MLflow accepts them: `{"stage2": {"lr": 1e-5}}` gives `{"stage2.lr": "1e-05"}`."""
    flat = _flat(recordable_settings(dict(params)))
    return {key: _cut(redact(value), _LONGEST_PARAM) for key, value in flat.items()}


def recordable_settings(value: Any) -> Any:
    """Settings (mappings, pydantic models) as plain dicts, lists, strings and numbers."""

    def simpler(inner: Any) -> Any:
        return inner.model_dump(mode="json") if hasattr(inner, "model_dump") else str(inner)

    return _without_secrets(json.loads(json.dumps(value, default=simpler)))


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: MASK if inner and names_secret(key) else _without_secrets(inner)
            for key, inner in value.items()
        }
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
