"""What each artifact of a store was made from: the graph of manifests, and the roles of inputs.

One graph answers who was trained on a data set, what may be deleted, and which settings made a
model. It is read once, from the manifests and, for artifacts that were never finished, from the
notes with which their steps started.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from muva.data.artifacts import Artifact, DamagedManifestError, artifact_at, list_artifacts
from muva.data.store import Store


class Role(StrEnum):
    """What an input artifact is to the step that uses it; the value is its name on disk."""

    DATASET = "dataset"
    """The data set that is grounded, embedded or evaluated on."""
    SOURCE = "source"
    """A data set that is trained on."""
    HELD_OUT = "held out"
    """A source domain that is not trained on, and validated on as a whole."""
    LABELS = "labels"
    """Pseudo-labels: of a source, or those that rules refine."""
    PROMPTS = "prompts"
    INIT = "init"
    """The model whose weights a training starts from."""
    TRAINING = "training"
    """The training of which a model is an earlier epoch."""
    MODEL = "model"
    FEATURES = "features"
    STUDY = "study"


Inputs: TypeAlias = Mapping[Role, Sequence[Artifact]]
"""The input artifacts of a step by their roles, in order."""

_SEVERAL = (Role.SOURCE, Role.LABELS)
"""Roles whose inputs are numbered on disk wherever a step may have several."""


def inputs_on_disk(inputs: Inputs) -> dict[str, str]:
    """Role, numbered where there may be several -> address, as manifests hold them."""
    stored = {}
    for role, artifacts in inputs.items():
        numbered = role in _SEVERAL or len(artifacts) > 1
        for number, artifact in enumerate(artifacts):
            stored[f"{role} {number}" if numbered else f"{role}"] = artifact.address
    return stored


def inputs_in(manifest: Mapping[str, Any]) -> dict[Role, tuple[str, ...]]:
    """The addresses of an artifact's inputs by role, in order; undoes `inputs_on_disk`."""
    found: dict[Role, tuple[str, ...]] = {}
    for stored, address in manifest["inputs"].items():
        role = Role(stored.rstrip("0123456789").rstrip())
        found[role] = (*found.get(role, ()), address)
    return found


@dataclass(frozen=True)
class Node:
    """An artifact and how it was made."""

    artifact: Artifact
    manifest: Mapping[str, Any] | None
    """None while it is unfinished, and when it is damaged."""
    started: Mapping[str, Any] | None
    """The note with which its step started; None for artifacts that have none."""

    @property
    def complete(self) -> bool:
        """Whether it has a manifest that can be read."""
        return self.manifest is not None

    @property
    def inputs(self) -> dict[Role, tuple[str, ...]]:
        """Role -> addresses, also of an unfinished artifact whose step left a note."""
        made_by = self.manifest or self.started
        return inputs_in(made_by) if made_by else {}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its step recorded beside the settings, such as the method that was evaluated."""
        return (self.manifest or self.started or {}).get("facts", {})


class Lineage:
    """The artifacts of a store as a graph."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = {node.artifact.address: node for node in nodes}

    @classmethod
    def of(cls, store: Store) -> Lineage:
        """The graph of all artifacts, unfinished and damaged ones included."""
        return cls(map(_node, list_artifacts(store, unfinished=True)))

    def __contains__(self, address: str) -> bool:
        """Whether there is a complete artifact at this address."""
        return address in self._nodes and self._nodes[address].complete

    def __getitem__(self, address: str) -> Node:
        """The node at an address; KeyError, which says so, where there is no complete artifact."""
        if address not in self:
            raise KeyError(f"{address}, which it was made from, is not in the store any more")
        return self._nodes[address]

    def nodes(self, kind: str | None = None) -> list[Node]:
        """All nodes, or those of a kind, by address."""
        return [node for node in self._nodes.values() if kind in (None, node.artifact.kind)]

    def complete(self, kind: str | None = None) -> list[Node]:
        """As `nodes`, without the unfinished and the damaged."""
        return [node for node in self.nodes(kind) if node.complete]

    def inputs(self, address: str, role: Role) -> tuple[str, ...]:
        """The addresses in one role; none where the artifact has no such input, or is gone."""
        node = self._nodes.get(address)
        return node.inputs.get(role, ()) if node else ()

    def made_from(self, addresses: Collection[str]) -> set[str]:
        """Everything that was made from these artifacts, directly or not, finished or not."""
        reached, grown = set(addresses), True
        while grown:
            more = {
                address
                for address, node in self._nodes.items()
                if address not in reached
                and any(reached.intersection(given) for given in node.inputs.values())
            }
            reached |= more
            grown = bool(more)
        return reached - set(addresses)

    def needed_by(self, addresses: Collection[str]) -> set[str]:
        """These artifacts, as far as they are complete, and everything they were made from."""
        reached: set[str] = set()
        waiting = list(addresses)
        while waiting:
            address = waiting.pop()
            if address not in reached and address in self:
                reached.add(address)
                for given in self[address].inputs.values():
                    waiting += given
        return reached

    def unused(self, *, keep: Collection[str]) -> list[Artifact]:
        """What no artifact in `keep` is or was made from, and what is unfinished or damaged."""
        needed = self.needed_by(keep)
        return [node.artifact for address, node in self._nodes.items() if address not in needed]

    def datasets_of(self, address: str) -> list[str]:
        """The addresses of the data sets that an artifact was made from, by address."""
        reached: set[str] = set()
        waiting, found = [address], set()
        while waiting:
            one = waiting.pop()
            if one in reached:
                continue
            reached.add(one)
            node = self._nodes.get(one)
            if node is not None and node.artifact.kind == "datasets":
                found.add(one)
            for given in node.inputs.values() if node else ():
                waiting += given
        return sorted(found)


def node_at(store: Store, address: str) -> Node:
    """A single node, for those who need no graph; complete or not."""
    return _node(artifact_at(store, address))


def _node(artifact: Artifact) -> Node:
    try:
        manifest = artifact.manifest()
    except DamagedManifestError:
        manifest = None
    started = artifact.started() if manifest is None else None
    return Node(artifact=artifact, manifest=manifest, started=started)
