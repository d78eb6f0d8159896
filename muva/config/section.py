"""What a section of settings is, and the kinds of numbers that sections share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: immutable, with defaults, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide a result, as plain data: what fingerprints are made of."""
        return self.model_dump(mode="json")
