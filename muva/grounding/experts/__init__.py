"""Grounding experts, one file each. To add one, add a file and an entry here.

An entry holds what is known about an expert before it is loaded. The driver uses only the entry;
the actors load the weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muva.config import GroundingConfig
from muva.config.parts import PHRASES
from muva.errors import MuvaError, closest
from muva.grounding.expert import Expert
from muva.grounding.experts.http import REQUESTS_IN_FLIGHT, Endpoint
from muva.grounding.experts.pretrained import Weights, parameters_in, pin

BYTES_PER_PARAMETER = {"fp32": 4, "bf16": 2, "fp16": 2}
"""For each precision."""


@dataclass(frozen=True, kw_only=True)
class ExpertInfo:
    """Properties of an expert that are known before it is loaded."""

    adapter: str
    """MODULE:CLASS within this package."""
    checkpoint: str = ""
    """Default weights: a folder or a hub's ORG/NAME; empty if the expert has no weights."""
    parameters: str = ""
    licence: str = ""
    """Licence of the weights, and what it permits."""
    memory_gb: float = 0.0
    """Size of the weights in the default precision; 0 if there are none on this machine."""
    precision: str = "fp32"
    """Default precision."""
    batch_images: int = 32
    """Default batch size; reduced if it does not fit into memory."""
    gives_scores: bool = False
    shards_at_once: int = 1
    """Shards that an actor works on at the same time, if the expert is a `StreamingExpert`: while
    the last answers of one are outstanding, the images of the next are sent."""
    version: int = 1
    """Version of the adapter: incremented when the same weights give different boxes."""


EXPERTS: dict[str, ExpertInfo] = {
    "annotated": ExpertInfo(
        adapter="annotated:AnnotatedExpert",
        licence="same as the data set",
    ),
    "tiny": ExpertInfo(
        adapter="florence2:Florence2Expert",
        checkpoint="shipped:tiny",
        parameters="2.1 M",
        licence="same as muva; for synthetic people only",
        memory_gb=0.01,
    ),
    "florence-2": ExpertInfo(
        adapter="florence2:Florence2Expert",
        checkpoint="florence-community/Florence-2-base",
        parameters="0.23 B (large: 0.77 B)",
        licence="MIT: any use",
        memory_gb=0.9,
    ),
    "kosmos-2": ExpertInfo(
        adapter="kosmos2:Kosmos2Expert",
        checkpoint="microsoft/kosmos-2-patch14-224",
        parameters="1.7 B",
        licence="MIT: any use",
        memory_gb=3.4,
        precision="bf16",
        batch_images=8,
    ),
    "grounding-dino": ExpertInfo(
        adapter="grounding_dino:GroundingDinoExpert",
        checkpoint="IDEA-Research/grounding-dino-tiny",
        parameters="0.17 B (base: 0.23 B)",
        licence="Apache-2.0: any use",
        memory_gb=0.7,
        gives_scores=True,
    ),
    "owlv2": ExpertInfo(
        adapter="owlv2:Owlv2Expert",
        checkpoint="google/owlv2-base-patch16-ensemble",
        parameters="0.15 B",
        licence="Apache-2.0: any use",
        memory_gb=0.6,
        gives_scores=True,
    ),
    "qwen2.5-vl": ExpertInfo(
        adapter="qwen_vl:Qwen25VLExpert",
        checkpoint="Qwen/Qwen2.5-VL-7B-Instruct",
        parameters="8.3 B (also 3 B)",
        licence="7B Apache-2.0: any use; 3B: research only",
        memory_gb=17.0,
        precision="bf16",
        batch_images=8,
    ),
    "qwen3-vl": ExpertInfo(
        adapter="qwen_vl:Qwen3VLExpert",
        checkpoint="Qwen/Qwen3-VL-4B-Instruct",
        parameters="4.4 B (2 B to 235 B)",
        licence="Apache-2.0: any use",
        memory_gb=9.0,
        precision="bf16",
        batch_images=8,
    ),
    "http": ExpertInfo(
        adapter="http:HttpExpert",
        parameters="depends on the served model",
        licence="depends on the served model",
        shards_at_once=3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ChosenExpert:
    """An expert with pinned weights: a small object with everything that its answers depend on."""

    name: str
    weights: Weights | None
    precision: str
    coordinates: str
    endpoint: Endpoint | None = None
    """Where a served model is reached, from the driver's environment; not part of any address."""
    requests_in_flight: int = REQUESTS_IN_FLIGHT
    requests_per_second: float | None = None

    @property
    def info(self) -> ExpertInfo:
        """Its entry in EXPERTS."""
        return EXPERTS[self.name]

    @property
    def revision(self) -> str:
        """Revision of the weights; empty if there is none."""
        return self.weights.revision if self.weights else ""

    def weight_bytes(self) -> int | None:
        """Memory of the weights in this precision; None if unknown before loading.

        It is computed from the files of a folder. For a hub model, it is known only if the model is
        the default checkpoint of the entry.
        """
        if self.weights is None or self.name == "http":
            return 0
        if self.weights.folder is not None:
            return parameters_in(self.weights.folder) * BYTES_PER_PARAMETER[self.precision]
        if self.weights.location == self.info.checkpoint:
            own = self.info.memory_gb * 1e9
            return round(
                own * BYTES_PER_PARAMETER[self.precision] / BYTES_PER_PARAMETER[self.info.precision]
            )
        return None

    def load(self) -> Expert:
        """Load the expert. Raises MuvaError if its weights differ from what was pinned."""
        module, _, name = self.info.adapter.partition(":")
        adapter = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        if self.name == "http":
            assert self.weights is not None
            return adapter(
                self.weights.location,
                self.endpoint,
                coordinates=self.coordinates,
                requests_in_flight=self.requests_in_flight,
                requests_per_second=self.requests_per_second,
            )
        if self.weights is None:
            return adapter()
        self.weights.verify()
        return adapter(self.weights, precision=self.precision)


def choose_expert(config: GroundingConfig) -> ChosenExpert:
    """The configured expert with pinned weights; nothing is loaded.

    Raises MuvaError, with the closest name, for an unknown expert, and for weights that do not
    exist.
    """
    if config.expert not in EXPERTS:
        suggestion = closest(config.expert, sorted(EXPERTS), most=len(EXPERTS))
        raise MuvaError(f"expert {config.expert!r} is unknown; {suggestion}")
    info = EXPERTS[config.expert]
    checkpoint = config.checkpoint or info.checkpoint
    weights = None
    if config.expert == "http":
        if not checkpoint:
            raise MuvaError(
                "expert http: grounding.checkpoint is empty; expected the name of the served model"
            )
        weights = Weights(location=checkpoint, revision=config.revision)
    elif checkpoint:
        weights = pin(checkpoint, config.revision)
    elif config.checkpoint or config.revision:
        raise MuvaError(
            f"expert {config.expert} has no weights; expected no checkpoint and no revision"
        )
    return ChosenExpert(
        name=config.expert,
        weights=weights,
        precision=info.precision if config.precision == "default" else config.precision,
        coordinates=config.coordinates if config.expert == "http" else "",
        endpoint=Endpoint.from_environment() if config.expert == "http" else None,
        requests_in_flight=config.requests_in_flight,
        requests_per_second=config.requests_per_second,
    )


def label_config(expert: ChosenExpert, phrases: Mapping[str, str] = PHRASES) -> dict[str, Any]:
    """The settings that decide the pseudo-labels of a data set; their address is a hash of them."""
    config: dict[str, Any] = {
        "expert": expert.name,
        "revision": expert.revision,
        "version": expert.info.version,
        "phrases": dict(phrases),
    }
    if expert.weights is not None:
        config["precision"] = expert.precision
    if expert.coordinates:
        config |= {"model": expert.weights and expert.weights.location}
        config |= {"coordinates": expert.coordinates}
    return config
