"""Artifacts: what steps leave in a store, named by what they were made from.

An artifact is a folder of keys, `<kind>/<name>-<fingerprint>/...`. It is complete when its
`manifest.json` exists, which is written last and by the first writer only; nothing else decides
what is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from muva.data.store import MissingKeyError, Store, open_store
from muva.errors import MuvaError, SettingsError, closest

KINDS = ("datasets", "labels", "prompts", "models", "features", "metrics", "runs")
MANIFEST = "manifest.json"
MEANT = "meant"
"""Key within an artifact: when its name was last made to mean it, ISO 8601."""

_MANIFEST_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ADDRESS = re.compile(r"(?P<kind>[a-z]+)/(?P<name>.+)-(?P<fingerprint>[0-9a-f]{16})")
_RECORDED_LIBRARIES = ("muva", "numpy", "torch", "open_clip_torch", "pillow", "pyarrow")


class DamagedManifestError(MuvaError):
    """What says that an artifact is complete cannot be read."""


def check_name(name: str) -> str:
    """The name, if an artifact may have it; else SettingsError."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"name {name!r}: expected letters, digits and . _ + -, no sign at the start"
        )
    return name


def fingerprint(value: Any) -> str:
    """16 hex characters of the SHA-256 of the value as canonical JSON; sections are allowed."""
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
    """A place for a step's result, whether the result is there or not."""

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
        """Where it is in its store."""
        return f"{self.kind}/{self.name}-{self.fingerprint}"

    @property
    def uri(self) -> str:
        """Store and address; `open_artifact` takes it."""
        return f"{self.store.uri}/{self.address}"

    def key(self, *parts: str) -> str:
        """The store's key of a part of the artifact."""
        return "/".join([self.address, *parts])

    def delete_part(self, part: str) -> None:
        """Remove all under a part of it."""
        for key in list(self.store.list(self.key(part) + "/")):
            self.store.delete(key)

    def manifest(self, *, format_version: int | None = None) -> dict[str, Any] | None:
        """What `commit` wrote, None while unfinished.

        Raises DamagedManifestError, and MuvaError for a format other than `format_version`.
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
                "(`muva store gc`) and make it again"
            ) from error
        expected = (_MANIFEST_FORMAT, found[1] if format_version is None else format_version)
        if found != expected:
            raise MuvaError(
                f"{self.uri}: its format is {found[0]}.{found[1]}, this version of muva knows "
                f"{expected[0]}.{expected[1]}. Use the version that wrote it, or delete the "
                "artifact and make it again"
            )
        return manifest

    def commit(
        self,
        *,
        format_version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        summary: Mapping[str, Any],
        seconds: float | None = None,
    ) -> bool:
        """Declare the artifact complete; call this when everything else is written.

        `inputs` maps roles to addresses. False when another writer was first: both made the same,
        the other's manifest stands.
        """
        manifest = {
            "manifest_format": _MANIFEST_FORMAT,
            "format_version": format_version,
            "address": self.address,
            "config": config,
            "inputs": inputs,
            "summary": summary,
            "created": _now(),
            "seconds": seconds,
            "libraries": _library_versions(),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False, default=_plain) + "\n"
        return self.store.create(self.key(MANIFEST), text.encode())

    def be_meant(self) -> None:
        """Let its name mean this artifact, also where another of that name was made later.

        Or where a clock that was set back, or another machine's, says so.
        """
        meant = find_artifact(self.store, self.kind, self.name)
        if meant != self:
            self.store.write(self.key(MEANT), _later_than(meant.meant_since()).encode())

    def meant_since(self) -> str:
        """When it was made or last made to be meant, ISO 8601; empty for a damaged one."""
        try:
            manifest = self.manifest()
        except DamagedManifestError:
            return ""
        try:
            return self.store.read(self.key(MEANT)).decode()
        except MissingKeyError:
            return manifest["created"] if manifest else ""

    def size_bytes(self) -> int:
        """Bytes of everything it holds."""
        return sum(self.store.size(key) for key in self.store.list(self.address + "/"))

    def delete(self) -> None:
        """Remove it, the manifest first, so that a half-deleted artifact is an unfinished one."""
        self.store.delete(self.key(MANIFEST))
        for key in list(self.store.list(self.address + "/")):
            self.store.delete(key)


def list_artifacts(
    store: Store, kind: str | None = None, *, unfinished: bool = False
) -> list[Artifact]:
    """The complete artifacts by address; with `unfinished` those without a manifest too."""
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
    """The complete artifact of a kind that is meant by a name, `name-fingerprint`, or an address.

    A name alone means the one that was made, or asked to be made, last. Raises MuvaError with the
    closest names when there is none.
    """
    wanted = reference.removeprefix(f"{kind}/")
    known = list_artifacts(store, kind)
    for artifact in known:
        if f"{artifact.name}-{artifact.fingerprint}" == wanted:
            return artifact
    named = [artifact for artifact in known if artifact.name == wanted]
    if len(named) == 1:
        return named[0]
    if named:
        return max(named, key=Artifact.meant_since)
    names = sorted({artifact.name for artifact in known})
    there = closest(wanted, names) if names else f"there are no {kind} yet"
    raise MuvaError(f"no {kind} {reference!r} in the store {store.uri}; {there}")


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


def unused_artifacts(store: Store, *, keep: Collection[str]) -> list[Artifact]:
    """All artifacts that no address in `keep` is or was made from, and all that are of no use.

    Of no use are unfinished ones and those with a damaged manifest.
    """
    everything = {a.address: a for a in list_artifacts(store, unfinished=True)}
    reached: set[str] = set()
    waiting = list(keep)
    while waiting:
        artifact = everything.get(waiting.pop())
        if artifact is None or artifact.address in reached:
            continue
        try:
            manifest = artifact.manifest()
        except DamagedManifestError:
            continue
        if manifest is not None:
            reached.add(artifact.address)
            waiting += manifest["inputs"].values()
    return [artifact for address, artifact in everything.items() if address not in reached]


def artifact_at(store: Store, address: str) -> Artifact:
    """The artifact of an address, `<kind>/<name>-<fingerprint>`, complete or not."""
    match = _ADDRESS.fullmatch(address)
    assert match is not None, address
    return Artifact(store, match["kind"], match["name"], match["fingerprint"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _later_than(time: str) -> str:
    """Now, or a moment after a time (ISO 8601) that this clock has yet to reach."""
    now = _now()
    if now > time:
        return now
    moment_after = datetime.fromisoformat(time) + timedelta(microseconds=1)
    return moment_after.isoformat(timespec="microseconds")


def _plain(value: Any) -> Any:
    from pydantic import BaseModel  # listing artifacts meets no sections

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no place in a fingerprint or manifest")


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED_LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            versions[name] = "unknown"
    return versions
