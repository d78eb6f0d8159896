"""Addresses on the Hugging Face Hub: `hf://ORG/NAME`, with `@REVISION` as in its own file system.

Nothing here imports huggingface_hub, so that a mistyped address is reported at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from muva.errors import SettingsError

SCHEME = "hf://"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w.][\w./+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_BRANCH = "main"


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A repository of a model, at a branch, a tag or a commit."""

    repository: str
    """ORG/NAME."""
    revision: str = DEFAULT_BRANCH

    @property
    def uri(self) -> str:
        """`hf://ORG/NAME`, with the revision unless it is the default branch."""
        suffix = "" if self.revision == DEFAULT_BRANCH else f"@{self.revision}"
        return f"{SCHEME}{self.repository}{suffix}"

    @property
    def name(self) -> str:
        """ORG--NAME, as huggingface_hub names its folders: a name for a copy of the model."""
        return self.repository.replace("/", "--")

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a whole commit hash, whose files never change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> HubAddress:
        """The same repository at another revision."""
        return HubAddress(repository=self.repository, revision=revision)


def is_hub_uri(reference: object) -> bool:
    """Whether this names something on the hub."""
    return isinstance(reference, str) and reference.startswith(SCHEME)


def parse_hub_address(text: str, *, revision: str | None = None) -> HubAddress:
    """Parse `hf://ORG/NAME[@REVISION]` or `ORG/NAME`; a revision may also be given by itself.

    Raises:
        SettingsError: the text has another form, or names another revision than `revision`.
    """
    repository, at, named = text.removeprefix(SCHEME).partition("@")
    repository = repository.rstrip("/")
    if not _REPOSITORY.fullmatch(repository) or (at and not _REVISION.fullmatch(named)):
        raise SettingsError(
            f"{text}: expected the address of a model on the hub, {SCHEME}ORG/NAME or "
            f"{SCHEME}ORG/NAME@REVISION"
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise SettingsError(f"revision {revision!r}: expected a branch, a tag or a commit hash")
    if at and revision not in (None, named):
        raise SettingsError(
            f"{text} names the revision {named}, and the setting revision is {revision}: expected "
            "one of them"
        )
    return HubAddress(repository=repository, revision=named or revision or DEFAULT_BRANCH)
