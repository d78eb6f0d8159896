"""The description in a model bundle, which is read without importing torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muva.data import formats
from muva.errors import MuvaError

WEIGHTS, DESCRIPTION = "model.safetensors", "bundle.json"
SHIPPED_MODELS = {"synthetic": Path(__file__).parent / "synthetic"}
"""The folders of the models that come with muva, by name."""
HUB = "hub"
"""Key in a bundle's metadata: the repository and the commit on the hub that it was loaded from."""
CALIBRATION = "calibration"
"""Key in a bundle's metadata: what the model's cosines mean, see `muva.retrieval.calibration`."""
TRAINING_IDENTITIES = "training_identities"
"""Key in the metadata of a compact bundle: how many identities the model was trained on."""


def trained_people(description: Mapping[str, Any]) -> int:
    """How many people a model was trained on, as its description says; 0: it does not say."""
    return description["metadata"].get(TRAINING_IDENTITIES, description["identities"])


def parse_description(stored: bytes, *, where: str) -> Mapping[str, Any]:
    """Parse the bytes of `bundle.json`; `where` names the bundle in errors.

    Raises:
        MuvaError: the description is damaged or in an unsupported format.
    """
    try:
        description = json.loads(stored)
        version = description["format_version"]
        description["sha256"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise MuvaError(f"model bundle {where}: {DESCRIPTION} is damaged ({error!r})") from error
    if version != formats.BUNDLE:
        raise MuvaError(
            f"model bundle {where} has format version {version}, but this program reads version "
            f"{formats.BUNDLE}: use the release of muva that wrote it, or train the model again"
        )
    return description
