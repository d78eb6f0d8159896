"""What went wrong between this machine and the hub, and what to do about it.

A hub that is unavailable says nothing about a model, so a cached copy may stand in. A refusal is an
answer: nothing stands in for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus

from muva.errors import MuvaError, closest
from muva.hub.address import HubAddress

LOG_IN = "set HF_TOKEN to a token of an account with access, or run `hf auth login`"


def unavailable_reason(error: BaseException) -> str | None:
    """Why the hub gave no answer, as a clause; None if it gave one."""
    from httpx2 import HTTPError, TimeoutException  # which huggingface_hub does not wrap
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            busy = status >= 500 or status in (
                HTTPStatus.REQUEST_TIMEOUT,
                HTTPStatus.TOO_MANY_REQUESTS,
            )
            return f"the hub responds with status {status}" if busy else None
        if isinstance(cause, TimeoutException):
            return "the hub does not respond in time"
        if isinstance(cause, json.JSONDecodeError):
            return "HF_ENDPOINT responds with something other than a hub's JSON"
        if isinstance(cause, HTTPError):
            return f"the hub cannot be reached ({first_line(cause)})"
    return None


def refusal(error: BaseException, address: HubAddress, *, writing: bool = False) -> MuvaError:
    """The error for what the hub, or the disk of the cache, has refused."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    uri, page = address.uri, f"{constants.ENDPOINT}/{address.repository}"
    cause = next((one for one in _causes(error) if isinstance(one, HfHubHTTPError)), None)
    if cause is None:
        return MuvaError(
            f"{uri}: the transfer failed: {first_line(error).rstrip('.')}. Nothing incomplete was "
            "kept: try again. If a disk is full, HF_HUB_CACHE names another folder for the cache"
        )
    status = cause.response.status_code
    if isinstance(cause, GatedRepoError):
        return MuvaError(
            f"{uri}: this repository is gated, and access has not been granted (status {status}). "
            f"Accept its terms at {page}, then {LOG_IN}"
        )
    if isinstance(cause, RevisionNotFoundError):
        known = closest(address.revision, _revisions(address))
        return MuvaError(
            f"{uri}: the repository has no revision {address.revision}; {known}. Expected a "
            "branch, a tag or a whole commit hash"
        )
    if isinstance(cause, RepositoryNotFoundError):
        access = "the token gives no access to it" if get_token() else "there is no token"
        return MuvaError(
            f"{uri}: the hub knows no such repository (status {status}), or it is private and "
            f"{access}. Is the name correct? For a private repository, {LOG_IN}"
        )
    if status == HTTPStatus.UNAUTHORIZED:
        remedy = (
            f"Create a new one at {constants.ENDPOINT}/settings/tokens, and set HF_TOKEN to it"
            if get_token()
            else f"Please {LOG_IN}"
        )
        return MuvaError(
            f"{uri}: the hub rejects the token: it is missing, wrong or expired. {remedy}"
        )
    if status == HTTPStatus.FORBIDDEN:
        needed = "write access" if writing else "access"
        return MuvaError(
            f"{uri}: the token has no permission for this (status 403). Expected one with {needed} "
            f"to {address.repository}: {LOG_IN}"
        )
    return MuvaError(f"{uri}: the hub responds with status {status}: {first_line(cause)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if there is none."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, beginning with the error."""
    while error is not None:
        yield error
        error = error.__cause__


def _revisions(address: HubAddress) -> list[str]:
    """The branches and tags of a repository; none if the hub does not say."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(address.repository)
    except (HTTPError, OSError, ValueError, KeyError):
        return []
    return [ref.name for ref in (*refs.branches, *refs.tags)]
