"""Artifacts: the stored results of steps, addressed by a fingerprint of what they were made from.

An artifact is a folder of keys, `<kind>/<name>-<fingerprint>/...`. It is complete if and only if
its `manifest.json` exists. The manifest is written last, and only the first writer succeeds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from muva.data.store import MissingKeyError, Store, check_writable, open_store
from muva.errors import MuvaError, SettingsError, closest

KINDS = ("datasets", "labels", "prompts", "models", "features", "metrics", "studies", "trials")
MANIFEST = "manifest.json"
STARTED = "started.json"
"""Key within an artifact: what its step noted before it began to compute."""
LATEST = "meant"
"""Key within an artifact: when its name was last set to refer to it, in ISO 8601."""

_MANIFEST_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ADDRESS = re.compile(r"(?P<kind>[a-z]+)/(?P<name>.+)-(?P<fingerprint>[0-9a-f]{16})")
_RECORDED_LIBRARIES = ("muva", "numpy", "torch", "open_clip_torch", "pillow", "pyarrow")


class DamagedManifestError(MuvaError):
    """The manifest of an artifact cannot be read."""


def check_name(name: str) -> str:
    """Return the name if it is a valid artifact name; raise SettingsError otherwise."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"name {name!r}: expected letters, digits and . _ + -, starting with a letter or digit"
        )
    return name


def fingerprint(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a value's canonical JSON.

    Pydantic models, such as the sections of a config, may occur anywhere in the value.
    """
    text = json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=_plain,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """The address of a step's result in a store, whether or not the result exists yet."""

    store: Store
    kind: str
    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MuvaError(f"artifact kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        check_name(self.name)

    @property
    def address(self) -> str:
        """Its path within the store."""
        return f"{self.kind}/{self.name}-{self.fingerprint}"

    @property
    def uri(self) -> str:
        """The URI of the store followed by the address; `open_artifact` accepts it."""
        return f"{self.store.uri}/{self.address}"

    def key(self, *parts: str) -> str:
        """The store key of a file of the artifact."""
        return "/".join([self.address, *parts])

    def delete_part(self, part: str) -> None:
        """Delete all keys below a subfolder of the artifact."""
        for key in list(self.store.list(self.key(part) + "/")):
            self.store.delete(key)

    def manifest(self, *, format_version: int | None = None) -> dict[str, Any] | None:
        """The manifest that `commit` wrote, or None if the artifact is unfinished.

        Raises DamagedManifestError if it cannot be parsed, and MuvaError if its format version
        differs from `format_version`.
        """
        try:
            text = self.store.read(self.key(MANIFEST))
        except MissingKeyError:
            return None
        try:
            manifest = json.loads(text)
            found = (manifest["manifest_format"], manifest["format_version"])
            _ = manifest["config"], manifest["inputs"], manifest["summary"], manifest["created"]
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedManifestError(
                f"{self.uri}: its {MANIFEST} is damaged ({error}). Delete the artifact "
                "with `muva store gc` and run the same command again"
            ) from error
        expected = (_MANIFEST_FORMAT, found[1] if format_version is None else format_version)
        if found != expected:
            raise MuvaError(
                f"{self.uri}: expected format {expected[0]}.{expected[1]}, found "
                f"{found[0]}.{found[1]}, which this version of muva cannot read. Use the version "
                "that wrote it, or delete the artifact and run the same command again"
            )
        return manifest

    def commit(
        self,
        *,
        format_version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        summary: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> bool:
        """Mark the artifact as complete. Call this after everything else has been written.

        `inputs` maps roles to addresses; `facts` say in words what no setting says, and are part of
        no address. False when another writer was first: both made the same, the other's manifest
        stands.
        """
        manifest = {
            "manifest_format": _MANIFEST_FORMAT,
            "format_version": format_version,
            "address": self.address,
            "config": config,
            "inputs": inputs,
            "summary": summary,
            "facts": facts or {},
            "created": _now(),
            "seconds": seconds,
            "libraries": _library_versions(),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False, default=_plain) + "\n"
        return self.store.create(self.key(MANIFEST), text.encode())

    def start(
        self,
        *,
        format_version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what is about to be computed, so that unfinished artifacts have a lineage as well.

        The parameters are those of `commit`.

        Raises:
            MuvaError: the store cannot be used, see `check_writable`.
        """
        check_writable(self.store)
        note = {
            "format_version": format_version,
            "config": config,
            "inputs": inputs,
            "facts": facts or {},
        }
        text = json.dumps(note, indent=1, ensure_ascii=False, default=_plain) + "\n"
        self.store.create(self.key(STARTED), text.encode())

    def started(self) -> dict[str, Any] | None:
        """What `start` noted; None where there is no such note, or it is damaged."""
        try:
            note = json.loads(self.store.read(self.key(STARTED)))
            _ = note["config"], note["inputs"]
        except (MissingKeyError, ValueError, TypeError, KeyError):
            return None
        return note

    def set_latest(self) -> None:
        """Make this the artifact that its name refers to, even if a newer one has the same name.

        This also holds if the other timestamp lies in the future because of a clock that was wrong.
        """
        latest = find_artifact(self.store, self.kind, self.name)
        if latest != self:
            self.store.write(self.key(LATEST), _later_than(latest.latest_since()).encode())

    def latest_since(self) -> str:
        """When it was created or last made the latest (ISO 8601); empty for a damaged manifest."""
        try:
            manifest = self.manifest()
        except DamagedManifestError:
            return ""
        try:
            return self.store.read(self.key(LATEST)).decode()
        except MissingKeyError:
            return manifest["created"] if manifest else ""

    def size_bytes(self) -> int:
        """Total size of all its keys in bytes."""
        return sum(self.store.size(key) for key in self.store.list(self.address + "/"))

    def delete(self) -> None:
        """Delete it, manifest first, so that an interrupted deletion leaves it unfinished.

        The note of what it was made from is deleted last, so that its lineage is known until then.
        """
        with suppress(MuvaError):  # of another version, or damaged: then it leaves no note
            if manifest := self.manifest():
                noted = ("format_version", "config", "inputs")
                self.start(**{key: manifest[key] for key in noted}, facts=manifest.get("facts"))
        self.store.delete(self.key(MANIFEST))
        note = self.key(STARTED)
        for key in list(self.store.list(self.address + "/")):
            if key != note:
                self.store.delete(key)
        self.store.delete(note)


def list_artifacts(
    store: Store, kind: str | None = None, *, unfinished: bool = False
) -> list[Artifact]:
    """The complete artifacts, sorted by address; `unfinished` adds those without a manifest."""
    complete: dict[str, bool] = {}
    for key in store.list(f"{kind}/" if kind else ""):
        kind_of_key, _, rest = key.partition("/")
        folder, _, part = rest.partition("/")
        address = f"{kind_of_key}/{folder}"
        if kind_of_key in KINDS and part and _ADDRESS.fullmatch(address):
            complete[address] = complete.get(address, False) or part == MANIFEST
    return [
        artifact_at(store, address)
        for address in sorted(complete)
        if unfinished or complete[address]
    ]


def find_artifact(store: Store, kind: str, reference: str) -> Artifact:
    """The complete artifact of a kind for a name, a `name-fingerprint`, or an address.

    A bare name refers to the artifact that was created, or made the latest, most recently. Raises
    MuvaError with the closest names if there is none.
    """
    short_name = reference.removeprefix(f"{kind}/")
    artifacts = list_artifacts(store, kind)
    for artifact in artifacts:
        if f"{artifact.name}-{artifact.fingerprint}" == short_name:
            return artifact
    matching = [artifact for artifact in artifacts if artifact.name == short_name]
    if len(matching) == 1:
        return matching[0]
    if matching:
        return max(matching, key=Artifact.latest_since)
    names = sorted({artifact.name for artifact in artifacts})
    hint = closest(short_name, names) if names else f"there are no {kind} yet"
    raise MuvaError(f"no {kind} {reference!r} in the store {store.uri}; {hint}")


def open_artifact(uri: str) -> Artifact:
    """The artifact at `<store uri>/<kind>/<name>-<fingerprint>`, complete or not."""
    parts = uri.rstrip("/").rsplit("/", 2)
    address = "/".join(parts[-2:])
    if len(parts) < 3 or not _ADDRESS.fullmatch(address):
        raise MuvaError(
            f"{uri}: expected <store>/<kind>/<name>-<fingerprint>, for example "
            "store/models/market1501-0123456789abcdef"
        )
    return artifact_at(open_store(parts[0] or "/"), address)


def artifact_at(store: Store, address: str) -> Artifact:
    """The artifact at an address, `<kind>/<name>-<fingerprint>`, complete or not."""
    match = _ADDRESS.fullmatch(address)
    assert match is not None, address
    return Artifact(store, match["kind"], match["name"], match["fingerprint"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _later_than(time: str) -> str:
    """The current time, or one microsecond after `time` (ISO 8601) if that is not in the past."""
    now = _now()
    if now > time:
        return now
    moment_after = datetime.fromisoformat(time) + timedelta(microseconds=1)
    return moment_after.isoformat(timespec="microseconds")


def _plain(value: Any) -> Any:
    from muva.config import Section  # imports pydantic, which listing artifacts does not need

    if isinstance(value, Section):
        return value.result_settings()
    raise TypeError(f"{type(value).__name__} cannot be part of a fingerprint or manifest")


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED_LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # imported from a source tree without being installed
            versions[name] = "unknown"
    return versions
