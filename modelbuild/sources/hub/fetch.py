"""Brings files from the Hub to this machine: into the client's own cache, several at a time, each checked once.

A file counts as being here only once its SHA-256 was found to be what the Hub lists or the lock pins. That is then
remembered by the file's stamp, so that it is never hashed again.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelbuild import __version__
from modelbuild.errors import BuildFailed, SourceChanged, VerificationFailed
from modelbuild.sources.content import SourceFile, Stamp
from modelbuild.sources.hashing import Progress, digests
from modelbuild.sources.headers import look_into
from modelbuild.sources.hub.cache import cached, discard, note_ref, pointer, settle
from modelbuild.sources.hub.errors import offline, told_as_ours
from modelbuild.sources.hub.files import Hub, HubFile
from modelbuild.sources.hub.requests import TRIES, read_range, source_of
from modelbuild.sources.strictjson import show
from modelbuild.units import show_bytes

TOGETHER = 8
"""Files that are downloaded at a time."""

SMALL_LIMIT = 50_000_000
"""Bytes of a file whose SHA-256 the Hub does not list; it takes no larger ones than 10 MB itself."""

SHOWN = 5
"""How many of many missing files are named."""

LOUD = 10_000_000
"""Bytes from which a download that nobody follows is told."""

PATIENCE = 2.0
"""Seconds that downloads have to end in once something went wrong."""


@dataclass(frozen=True, slots=True)
class Distant:
    """A file of a source that lies on the Hub, and comes here when it is read; see content.Remote."""

    hub: Hub
    file: HubFile

    def local(self) -> SourceFile:
        """The file on this machine, brought and checked where that was not done yet."""
        return bring(self.hub, [self.file])[0]

    def here(self) -> bool:
        """Whether the file lies in the client's cache, checked or not."""
        return cached(self.hub, self.file) is not None

    def read(self, start: int, count: int) -> bytes:
        """A few bytes: of the file in the client's cache, or else of the one on the Hub."""
        path = cached(self.hub, self.file)
        if path is None and self.hub.offline:
            raise offline([self.file], 1)
        if path is None:
            return read_range(self.file, start, start + count)
        with open(path, "rb") as stored:
            stored.seek(start)
            return stored.read(count)


def distant(hub: Hub, file: HubFile) -> SourceFile:
    """A file of a source, identified by what the Hub or the lock says of it, wherever it lies."""
    assert file.sha256 is not None
    stamp = Stamp(0, 0, file.size, 0, 0)
    return SourceFile(file.path, pointer(hub.cache, file), file.size, file.sha256, stamp, Distant(hub, file))


def bring(hub: Hub, files: Sequence[HubFile], progress: Progress | None = None) -> list[SourceFile]:
    """The files on this machine, in order: downloaded where they are not, and checked where they never were.

    `progress` is told the bytes that are downloaded. Raises SourceNotFound (gone, no access, no network, or offline),
    VerificationFailed for a file that is not what it should be, which is then out of use.
    """
    with hub.lock:
        new = [file for file in dict.fromkeys(files) if file not in hub.checked]
        if missing := [file for file in new if cached(hub, file) is None]:
            total = sum(file.size for file in missing)
            if progress is None and total >= LOUD and not hub.offline:
                hub.say(downloading(len(missing), total))
            _download(hub, missing, progress or (lambda nbytes: None))
        for file, found in zip(new, _identified(hub, new), strict=True):
            hub.checked[file] = found
        return [hub.checked[file] for file in files]


def bring_all(files: Sequence[SourceFile], progress: Progress | None = None) -> list[SourceFile]:
    """Files of sources as they lie on this machine, in order: those on the Hub are brought; see `bring`.

    Where a branch or tag was looked up, what it was is noted as the client does it, for work without the network.
    """
    far = [file.remote for file in files if isinstance(file.remote, Distant)]
    for hub in dict.fromkeys(remote.hub for remote in far):
        bring(hub, [remote.file for remote in far if remote.hub is hub], progress)
        for at in dict.fromkeys(remote.file.at for remote in far if remote.hub is hub):
            note_ref(hub, at)
    return [file if file.remote is None else file.remote.local() for file in files]


def downloading(count: int, nbytes: int) -> str:
    """What a download is announced with."""
    return f"downloading {count} file{'s' * (count > 1)} from the Hub, {show_bytes(nbytes)}"


def to_download(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Those of the files that lie on the Hub and not in its client's cache."""
    return [file for file in files if isinstance(file.remote, Distant) and not file.remote.here()]


# --- downloading ------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """Ends a download that nobody waits for any more."""


def _download(hub: Hub, files: Sequence[HubFile], progress: Progress) -> None:
    """Downloads the files; the first that fails ends all."""
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    if hub.offline:
        raise offline(list(files[:SHOWN]), len(files))
    for file in files:
        if file.sha256 is None and file.size > SMALL_LIMIT:
            facts = [f"it has {file.size} bytes"]
            where = file.at.name.where
            raise BuildFailed(f"the Hub lists no SHA-256 of {show(file.shown)}", where=where, facts=facts)
    stop, lock = threading.Event(), threading.Lock()

    def told(nbytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            progress(nbytes)

    pool = ThreadPoolExecutor(min(TOGETHER, len(files)), thread_name_prefix="download")
    # The largest first, so that no long download is left alone at the end.
    order = sorted(files, key=lambda file: (-file.size, file.path))
    futures = [pool.submit(_fetch, hub, file, told) for file in order]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception() is not None]
        for future in failed:
            future.result()
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait(futures, timeout=PATIENCE)


def _fetch(hub: Hub, file: HubFile, progress: Progress) -> None:
    """Downloads one file. A connection that breaks is taken up again where it broke, by the client or from anew."""
    with told_as_ours(file):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import httpx

        came = 0

        def told(nbytes: int) -> None:
            nonlocal came
            came += nbytes
            progress(nbytes)

        for attempt in range(TRIES):
            try:
                hf_hub_download(
                    file.at.name.repo,
                    file.path,
                    revision=file.at.commit,
                    cache_dir=hub.cache,
                    library_name="modelbuild",
                    library_version=__version__,
                    tqdm_class=_meter(told),
                )
                break
            except httpx.NetworkError:
                if attempt == TRIES - 1:
                    raise
                told(-came)
                time.sleep(0.5 * (attempt + 1))
    path = cached(hub, file)
    if path is None:
        raise BuildFailed(f"{show(file.shown)} was downloaded and is not there", facts=[f"`{hub.cache}`"])
    settle(path)


def _meter(progress: Progress) -> Any:
    """A progress bar for the client that draws nothing and tells how many bytes came."""
    from tqdm.auto import tqdm

    class Meter(tqdm):  # type: ignore[misc]
        """Told by the client of bytes in the file (`update`) and over the network (`update_transfer`)."""

        def __init__(self, *args: Any, **words: Any) -> None:
            known = {key: words[key] for key in ("total", "initial") if key in words}
            super().__init__(disable=True, **known)

        def update(self, n: float | None = 1) -> None:
            """So many bytes more are in the file; fewer where the client begins anew."""
            progress(int(n or 0))

        def update_transfer(self, n: float) -> None:
            """So many bytes more came; they are in the file soon."""

    return Meter


# --- checking ---------------------------------------------------------------------------------------------------------


def _identified(hub: Hub, files: Sequence[HubFile]) -> list[SourceFile]:
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
        raise _refused(hub, file, path, "", facts)


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


def _refused(hub: Hub, file: HubFile, path: str, digest: str, facts: Iterable[str]) -> VerificationFailed:
    """The error for a file that is not what it should be, once that file is out of use."""
    discard(hub, file, path, digest)
    return VerificationFailed(
        f"{show(file.shown)} is not the file that {source_of(file)}",
        where=file.at.name.where,
        facts=list(facts),
        hint="it is not used; the next build downloads it again",
    )
