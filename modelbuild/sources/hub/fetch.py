"""Brings files from the Hub to this machine: into the client's own cache, several at a time, each checked once.

A file counts as being here only once its SHA-256 was found to be what the Hub lists or the lock pins. That is then
remembered by the file's stamp, so that it is never hashed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelbuild.sources.content import SourceFile, Stamp
from modelbuild.sources.hashing import Progress
from modelbuild.sources.hub.cache import cached, note_ref, pointer
from modelbuild.sources.hub.check import identified
from modelbuild.sources.hub.download import download
from modelbuild.sources.hub.errors import offline
from modelbuild.sources.hub.files import Hub, HubFile
from modelbuild.sources.hub.requests import read_range
from modelbuild.units import show_bytes

LOUD = 10_000_000
"""Bytes from which a download that nobody follows is told."""


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
            download(hub, missing, progress or (lambda nbytes: None))
        for file, found in zip(new, identified(hub, new), strict=True):
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
