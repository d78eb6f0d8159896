"""The calibration of a model that a command uses, and what it says about cosines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muva.data.artifacts import open_artifact
from muva.errors import MuvaError, SettingsError
from muva.model.bundle_description import CALIBRATION
from muva.models import model_description
from muva.retrieval.calibration import Calibration

DEFAULT_FAR = 1e-3
"""The false-accept rate whose threshold decides where none is asked for."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether pairs of images show the same person."""

    calibration: Calibration
    far: float
    threshold: float

    @classmethod
    def at(cls, calibration: Calibration, far: float | None, *, model: str) -> Decision:
        """The decision at a false-accept rate, or at `DEFAULT_FAR` or the next higher known one.

        Raises:
            SettingsError: the calibration has no threshold for this rate.
        """
        known = sorted(calibration.thresholds)
        if far is None:
            far = next((rate for rate in known if rate >= DEFAULT_FAR), None)
        if far not in calibration.thresholds:
            asked = "" if far is None else f"--far {far:g}: "
            raise SettingsError(
                f"{asked}{model} has thresholds for "
                f"{', '.join(f'{rate:g}' for rate in known) or 'no false-accept rate'}. For lower "
                "rates, calibrate it with more people: muva calibrate"
            )
        return cls(calibration=calibration, far=far, threshold=calibration.thresholds[far])

    def probability(self, cosine: float) -> float:
        """The probability that they do, if before it is as likely as not."""
        return float(self.calibration.probability(np.array([cosine]))[0])

    def same(self, cosine: float) -> bool:
        """Whether the pair is accepted."""
        return cosine > self.threshold


def calibration_of(address: str) -> Calibration | None:
    """The calibration in a model artifact; None if it has none, or is not there any more."""
    try:
        stored = model_description(open_artifact(address))["metadata"].get(CALIBRATION)
    except MuvaError:
        return None
    return None if stored is None else Calibration.from_json(stored)
