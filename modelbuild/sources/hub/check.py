"""Whether files in the Hub client's cache are what they should be: found out once, then remembered by their stamps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace

from modelbuild.errors import SourceChanged, VerificationFailed
from modelbuild.sources.content import SourceFile
from modelbuild.sources.hashing import digests
from modelbuild.sources.headers import look_into
from modelbuild.sources.hub.cache import cached, discard
from modelbuild.sources.hub.errors import another_file, offline
from modelbuild.sources.hub.files import Hub, HubFile
from modelbuild.sources.strictjson import show


def identified(hub: Hub, files: Sequence[HubFile]) -> list[SourceFile]:
    """The files, all in the client's cache, hashed where their stamps are not known, and what they should be."""
    places = [_place(hub, file) for file in files]
    for file, path in zip(files, places, strict=True):
        _check_size(hub, file, path)
    named = [(file.shown, path) for file, path in zip(files, places, strict=True)]
    try:
        found = digests(named, hub.memory, hub.threads)
    except SourceChanged:
        # Another process that waited for the same download makes it older just now, too.
        found = digests(named, hub.memory, hub.threads)
    for file, local in zip(files, found, strict=True):
        _check_digest(hub, file, local)
        _check_header(hub, file, local)
    return [replace(local, name=file.path) for file, local in zip(files, found, strict=True)]


def _place(hub: Hub, file: HubFile) -> str:
    path = cached(hub, file)
    if path is None:
        raise offline([file], 1)
    return path


def _check_size(hub: Hub, file: HubFile, path: str) -> None:
    size = os.stat(path).st_size
    if size != file.size:
        facts = [f"expected {file.size} bytes", f"it has   {size}"]
        (found,) = digests([(file.shown, path)], hub.memory, hub.threads)
        raise _refused(hub, file, path, found.sha256, facts)


def _check_digest(hub: Hub, file: HubFile, local: SourceFile) -> None:
    if file.sha256 is not None:
        if local.sha256 != file.sha256:
            facts = [f"expected SHA-256 {file.sha256}", f"it is            {local.sha256}"]
            raise _refused(hub, file, local.path, local.sha256, facts)
        return
    if file.oid is None:
        return
    with open(local.path, "rb") as stored:
        data = stored.read()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if oid != file.oid:
        facts = [f"expected the git blob {file.oid}", f"it is                 {oid}"]
        raise _refused(hub, file, local.path, oid, facts)


def _check_header(hub: Hub, file: HubFile, local: SourceFile) -> None:
    """A plan made from a header that was read by range holds only for a file that has this very header."""
    told = hub.announced.get(local.sha256)
    if told is None:
        return
    if look_into(local, hub.memory, file.shown) != told:
        hub.memory.forget_announced(local)
        raise VerificationFailed(
            f"{show(file.shown)} is not the file it was announced as",
            where=file.at.name.where,
            facts=["its header is not the one that the Hub gave before the download"],
            hint="build again: the plan is then made from the file itself",
        )
    del hub.announced[local.sha256]


def _refused(hub: Hub, file: HubFile, path: str, digest: str, facts: Sequence[str]) -> VerificationFailed:
    """The error for a file that is not what it should be, once that file is out of use."""
    return another_file(file, facts, removed=discard(hub, file, path, digest))
