"""The Hub client's cache, looked at without the client: `models--ORG--NAME/{refs,blobs,snapshots}`.

The client documents this layout. A snapshot's files are links to blobs, which are named by the SHA-256 of large files
and by git's SHA-1 of others; where the file system has no links they are the files themselves.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from modelbuild.errors import SourceNotFound
from modelbuild.sources.hub.files import Entry, Hub, HubFile, Listing, Snapshot, listing
from modelbuild.sources.hub.names import COMMIT, DEFAULT_REVISION, SHA256, HubName, is_safe
from modelbuild.sources.strictjson import show

FILES_LIMIT = 100_000
"""Files that a repository may have."""

AGE_NS = 3_000_000_000
"""How much older than it is a downloaded file is made: older than what is too young to be remembered."""


def folder_of(cache: str, repo: str) -> str:
    """The folder of a repository in the client's cache."""
    return os.path.join(cache, "models--" + repo.replace("/", "--"))


def pointer(cache: str, file: HubFile) -> str:
    """Where the client puts a file, whether it is there or not."""
    return os.path.join(folder_of(cache, file.at.name.repo), "snapshots", file.at.commit, *file.path.split("/"))


def cached(hub: Hub, file: HubFile) -> str | None:
    """Where a file lies in the client's cache, absolute and without links; None where it does not.

    Raises UsageError for a link out of the cache, unless `--allow-path` lets it be read.
    """
    path = pointer(hub.cache, file)
    return hub.inside.resolve(path, file.shown) if os.path.isfile(path) else None


def cached_listing(hub: Hub, name: HubName) -> Listing:
    """What the client's cache has of a repository at the commit that the revision was when it was last asked for.

    Raises SourceNotFound where the cache does not know the revision, or has none of its files.
    """
    home = folder_of(hub.cache, name.repo)
    revision = name.revision or DEFAULT_REVISION
    commit = revision if COMMIT.fullmatch(revision) else _ref(home, revision)
    root = os.path.join(home, "snapshots", commit or "none")
    if commit is None or not os.path.isdir(root):
        facts = [f"the Hub client's cache has no revision {show(revision)} of it"]
        hint = "once without `--offline` and HF_HUB_OFFLINE, `modelbuild build` or `hf download` brings it here"
        raise SourceNotFound(f"{show(name.shown)} is not on this machine", facts=facts, hint=hint)
    entries: dict[str, Entry] = {}
    for folder, _, names in os.walk(root):
        for path in (os.path.join(folder, found) for found in names):
            within = os.path.relpath(path, root).replace(os.sep, "/")
            if is_safe(within) and os.path.isfile(path) and len(entries) < FILES_LIMIT:
                entries[within] = _entry(path)
    return listing(Snapshot(name, commit), dict(sorted(entries.items())))


def _entry(path: str) -> Entry:
    """What is known of a cached file without reading it: the name of its blob is its digest."""
    blob = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""
    size = os.stat(path).st_size
    return Entry(size, blob if SHA256.fullmatch(blob) else None, blob if COMMIT.fullmatch(blob) else None)


def _ref(home: str, revision: str) -> str | None:
    if not is_safe(revision):
        return None
    with suppress(OSError), open(os.path.join(home, "refs", *revision.split("/")), "rb") as file:
        text = file.read(100).decode("ascii", "replace").strip()
        return text if COMMIT.fullmatch(text) else None
    return None


def note_ref(hub: Hub, at: Snapshot) -> None:
    """Notes the commit that a branch or tag was, as the client does, so that it is known without the network."""
    revision = at.name.revision or DEFAULT_REVISION
    if at.pinned or hub.offline or COMMIT.fullmatch(revision) or not is_safe(revision):
        return
    place = Path(folder_of(hub.cache, at.name.repo), "refs", *revision.split("/"))
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists() or place.read_text(encoding="ascii", errors="replace") != at.commit:
            place.write_text(at.commit, encoding="ascii")


def settle(path: str) -> None:
    """Makes a file that was just downloaded a little older, so that its digest can be remembered at once.

    Whatever is written to it from now on gives it another mtime. It is the client's own file: where that is not ours
    to change, it is hashed once more by a later build.
    """
    with suppress(OSError):
        found = os.stat(path)
        if abs(time.time_ns() - found.st_mtime_ns) < AGE_NS:
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - AGE_NS))


def discard(hub: Hub, file: HubFile, path: str, digest: str) -> None:
    """Takes a file that is not what it should be out of the client's cache, so that it is downloaded again.

    A blob that is what its own name says stays: then it was the Hub, or the lock, that told something else.
    """
    link = pointer(hub.cache, file)
    blob = os.path.join(os.path.dirname(link), os.readlink(link)) if os.path.islink(link) else link
    if os.path.basename(blob) == digest:
        return
    root = os.path.realpath(hub.cache) + os.sep
    for place in dict.fromkeys((link, os.path.normpath(blob), path)):
        if os.path.realpath(os.path.dirname(place) + os.sep).startswith(root[:-1]):
            with suppress(OSError):
                os.unlink(place)
