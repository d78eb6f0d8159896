"""The settings of a service, and its limits: plain data, which Ray Serve's YAML files can hold."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MEGABYTE = 1_000_000


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Section):
    """What a request may hold. Whatever exceeds it is refused before anything is decoded."""

    request_mb: float = Field(default=64, gt=0, description="Megabytes of a whole request.")
    image_mb: float = Field(default=16, gt=0, description="Megabytes of an image file.")
    pixels: int = Field(default=25_000_000, ge=1, description="Pixels of an image.")
    images: int = Field(default=64, ge=1, description="Images of a request.")
    top: int = Field(default=1000, ge=1, description="Matches of a search.")

    @property
    def request_bytes(self) -> int:
        """The bytes of a whole request."""
        return int(self.request_mb * MEGABYTE)

    @property
    def image_bytes(self) -> int:
        """The bytes of an image file."""
        return int(self.image_mb * MEGABYTE)


class Scaling(_Section):
    """The replicas of the model, and how each of them computes."""

    min_replicas: int = Field(default=1, ge=1, description="Replicas without load.")
    max_replicas: int = Field(default=1, ge=1, description="Replicas under load.")
    cpus: float = Field(default=1, gt=0, description="CPU cores of each replica.")
    gpus: float = Field(default=0, ge=0, description="GPUs of each replica; a fraction shares one.")
    batch_size: int = Field(
        default=32, ge=1, description="The most images that are computed together."
    )
    batch_wait_ms: float = Field(
        default=5, ge=0, description="How long a batch waits for more images."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _ordered(self) -> Scaling:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas}: expected at least min_replicas, "
                f"{self.min_replicas}"
            )
        return self


class Access(_Section):
    """Who may call the service. Only hashes: Ray's dashboard shows an application's arguments."""

    token_sha256: str
    session_sha256: str
    """Of the value of the page's cookie; see `workflows.serving.token`."""
    hosts: tuple[str, ...] | None = None
    """The names that requests may be addressed to, without ports; None: any."""


class ServeSettings(_Section):
    """A service: one model, and the gallery that it searches."""

    model: str
    """Address of the model."""
    gallery: str | None = None
    """Address of the gallery; None: images can be embedded and compared only."""
    access: Access
    limits: Limits = Limits()
    scaling: Scaling = Scaling()
