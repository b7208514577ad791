"""What the Hub, its client and the network say when something goes wrong, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelbuild.errors import ModelbuildError, SourceNotFound, VerificationFailed, of_system
from modelbuild.sources.hub.files import HubFile, Snapshot
from modelbuild.sources.hub.names import DEFAULT_REVISION, HubName
from modelbuild.sources.strictjson import show

HOME = "https://huggingface.co/"
LOGIN = "`hf auth login`, or HF_TOKEN"
BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Answers of a server that may be well again in a minute."""


@contextmanager
def told_as_ours(about: HubName | HubFile) -> Iterator[None]:
    """Whatever goes wrong inside, about a repository or a file of one, becomes an error of ours with a place."""
    try:
        yield
    except ModelbuildError:
        raise
    except Exception as error:
        name = about if isinstance(about, HubName) else about.at.name
        found = _translated(error, about)
        raise type(found)([_placed(fault, name) for fault in found.faults]) from error


def offline(files: list[HubFile], missing: int) -> SourceNotFound:
    """The error for files that would have to be downloaded and may not; `missing` is how many there are."""
    more = [f"and {missing - len(files)} more"] if missing > len(files) else []
    facts = [f"{show(file.shown)}, {file.size} bytes" for file in files]
    hint = "without `--offline` and HF_HUB_OFFLINE it is downloaded"
    where = files[0].at.name.where
    return SourceNotFound(f"{show(files[0].shown)} is not on this machine", where=where, facts=facts + more, hint=hint)


def _placed(fault: Any, name: HubName) -> Any:
    from dataclasses import replace

    return replace(fault, where=fault.where or name.where)


def _translated(error: Exception, about: HubName | HubFile) -> ModelbuildError:
    from huggingface_hub import errors as theirs
    from huggingface_hub.utils import httpx

    cause = error.__cause__
    if isinstance(error, theirs.LocalEntryNotFoundError) and isinstance(cause, Exception):
        return _translated(cause, about)
    if isinstance(error, theirs.OfflineModeIsEnabled):
        return offline([about], 1) if isinstance(about, HubFile) else _no_network(about, "it is switched off")
    if isinstance(error, theirs.HfHubHTTPError):
        return _answered(error, about)
    if isinstance(error, httpx.HTTPError):
        return _no_network(about, f"{type(error).__name__}: {error}")
    if isinstance(error, theirs.HFValidationError):
        facts = [str(error).split("\n")[0]]
        return SourceNotFound(f"{show(_shown(about))} cannot be on the Hub", facts=facts)
    if isinstance(error, OSError) and error.errno is not None:
        return of_system(error)
    if isinstance(error, OSError) and str(error).startswith("Consistency check failed"):
        facts = ["another number of bytes came than was announced"]
        return VerificationFailed(f"{show(_shown(about))} did not come whole", facts=facts, hint="build again")
    return SourceNotFound(
        f"{show(_shown(about))} could not be fetched", facts=[show(f"{type(error).__name__}: {error}")]
    )


def _answered(error: Any, about: HubName | HubFile) -> ModelbuildError:
    """What the Hub refuses. A missing repository and one that nobody may see are the same to it."""
    from huggingface_hub import errors as theirs

    name = about if isinstance(about, HubName) else about.at.name
    status = error.response.status_code
    facts = [f"the Hub answers {status}" + (f": {show(error.server_message)}" if error.server_message else "")]
    if isinstance(error, theirs.GatedRepoError):
        hint = f"accept its terms at {HOME}{name.repo}, then log in with `hf auth login`"
        return SourceNotFound(f"{show(name.shown)} is gated", facts=facts, hint=hint)
    if isinstance(error, theirs.RevisionNotFoundError):
        return _no_revision(about, facts)
    if isinstance(error, theirs.RemoteEntryNotFoundError):
        return _no_file(about, facts)
    if isinstance(error, theirs.RepositoryNotFoundError):
        hint = f"look for it at {HOME}{name.repo}; a private one takes {LOGIN}"
        return SourceNotFound(f"{show(name.shown)} is not on the Hub, or is private", facts=facts, hint=hint)
    if status == 401:
        hint = f"a token that holds is given by {LOGIN}"
        return SourceNotFound(f"the Hub does not take the token for {show(name.shown)}", facts=facts, hint=hint)
    if status in BUSY:
        return SourceNotFound(
            "the Hub is busy or broken", facts=[*facts, f"asked for {show(_shown(about))}"], hint="try again"
        )
    return SourceNotFound(
        f"the Hub refuses {show(_shown(about))}", facts=facts, hint=f"who is asking is told by {LOGIN}"
    )


def _no_revision(about: HubName | HubFile, facts: list[str]) -> SourceNotFound:
    if isinstance(about, HubFile):
        return _gone(about.at, facts)
    revision = about.revision or DEFAULT_REVISION
    hint = "a revision is a branch, a tag or a commit"
    return SourceNotFound(f"{show(about.shown)} has no revision {show(revision)}", facts=facts, hint=hint)


def _no_file(about: HubName | HubFile, facts: list[str]) -> SourceNotFound:
    if isinstance(about, HubFile) and about.at.pinned:
        return _gone(about.at, [show(about.shown), *facts])
    return SourceNotFound(f"{show(_shown(about))} is not on the Hub", facts=facts)


def _gone(at: Snapshot, facts: list[str]) -> SourceNotFound:
    """A commit that is no longer there: its branch was rewritten, or its file deleted from the history."""
    told = "which the lock pins, is" if at.pinned else "which it had just now, is"
    hint = f"`modelbuild lock --update {at.name.artifact}` takes what is there today" if at.pinned else "build again"
    return SourceNotFound(f"commit {at.commit[:12]} of {show(at.name.shown)}, {told} gone", facts=facts, hint=hint)


def _no_network(about: HubName | HubFile, fact: str) -> SourceNotFound:
    from huggingface_hub import constants

    facts = [show(constants.ENDPOINT), show(fact)]
    hint = "`--offline` builds from what was downloaded before"
    return SourceNotFound(f"the Hub cannot be reached for {show(_shown(about))}", facts=facts, hint=hint)


def _shown(about: HubName | HubFile) -> str:
    return about.shown
