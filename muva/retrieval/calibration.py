"""What a cosine of two features means: a probability, and thresholds for false-accept rates.

`muva.retrieval.calibration_fit` learns it. This module needs neither PyTorch nor Numba.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from muva.errors import MuvaError, SettingsError

Method = Literal["logistic", "isotonic"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a cosine of two features of a model means."""

    method: Method
    cosines: tuple[float, ...]
    """Ascending. A logistic function has two of them."""
    log_odds: tuple[float, ...]
    """At these cosines, for equally many genuine pairs and impostors; linear between them. Beyond
    them, those of a logistic function go on and others stay."""
    thresholds: dict[float, float]
    """False-accept rate -> the cosine above which a pair is accepted."""
    accepted: dict[float, float]
    """False-accept rate -> the true-accept rate at that threshold, on the same people."""
    cross_entropy: dict[str, float]
    """Method -> cross-entropy in bits on people left out of the fit; 1 for a guess."""
    people: int
    datasets: tuple[str, ...]

    def probability(self, cosines: np.ndarray, *, prior: float = 0.5) -> np.ndarray:
        """The probability that pairs of images show the same person.

        `prior`: the probability before the images were seen. Raises SettingsError unless it is
        between 0 and 1.
        """
        if not 0 < prior < 1:
            raise SettingsError(f"prior {prior:g}: expected a probability between 0 and 1")
        places, values = np.asarray(self.cosines), np.asarray(self.log_odds)
        cosines = np.asarray(cosines, np.float64)
        log_odds = np.interp(cosines, places, values)
        if self.method == "logistic":
            slope = (values[-1] - values[0]) / (places[-1] - places[0])
            log_odds = values[0] + slope * (cosines - places[0])
        return 1 / (1 + np.exp(-(log_odds + np.log(prior / (1 - prior)))))

    def as_json(self) -> dict[str, Any]:
        """As plain data, for a bundle's metadata."""
        stored = dataclasses.asdict(self)
        for name in ("thresholds", "accepted"):
            stored[name] = {f"{rate:g}": value for rate, value in stored[name].items()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in stored.items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Calibration:
        """Undoes `as_json`. Raises MuvaError if a field is missing."""
        try:
            known = {field.name: stored[field.name] for field in dataclasses.fields(cls)}
            for name in ("thresholds", "accepted"):
                known[name] = {float(rate): float(value) for rate, value in known[name].items()}
            for name in ("cosines", "log_odds", "datasets"):
                known[name] = tuple(known[name])
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise MuvaError(
                f"the model's calibration cannot be read ({error!r}). Calibrate it again: "
                "`muva calibrate`"
            ) from error
