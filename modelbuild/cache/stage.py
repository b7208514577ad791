"""The stage: an artifact while it is written, in place, by many threads and perhaps by several processes.

Whoever writes a tensor writes the same bytes at the same place, so two processes in one stage do no harm; the first to
publish wins, and the other finds the artifact there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping, Sequence, Set
from typing import Protocol

from modelbuild.cache import disk
from modelbuild.cache.check import file_checksum, holds, in_parallel, stamp
from modelbuild.cache.disk import Durability
from modelbuild.cache.folders import MANIFEST, Folders, is_file_name
from modelbuild.cache.journal import Entry, Journal, read_journal
from modelbuild.cache.manifest import dump_manifest
from modelbuild.cache.nouns import Layout, Manifest, StoredFile, StoredTensor
from modelbuild.cache.twins import Twin, is_same, link
from modelbuild.errors import BuildFailed

_NO_STAGE = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP})
"""What opening a file gives where a folder, a link or a pipe stands, and making a folder where a file does."""


class Home(Protocol):
    """What a stage asks of the store it belongs to."""

    folders: Folders
    durability: Durability
    notes: list[str]

    def manifest(self, key: str) -> Manifest | None:
        """The manifest of a published artifact whose files can be trusted; None on a miss."""

    def twins(self, layout: Layout, keys: Mapping[str, str]) -> dict[str, Twin]:
        """For files of the layout the same file of a published artifact that can be trusted."""

    def published(self, manifest: Manifest) -> None:
        """Enter an artifact that was just published in the index."""


class Stage:
    """An artifact being written. `fds` are its open files by name, for `os.pwrite` and ranged copies.

    `finished` are the tensors whose bytes are there and sound, with their checksums: an interrupted build's, and those
    in files that another artifact has too, which are `linked`.
    `published` is the artifact's manifest if it exists already; then there are no files here and nothing is to be done.
    Where everything is to be computed `anew`, nothing is finished or published.
    """

    def __init__(
        self, store: Home, key: str, name: str, layout: Layout, keys: Mapping[str, str], *, anew: bool = False
    ) -> None:
        check_layout(layout, keys)
        self.key, self.name, self.layout = key, name, layout
        self.published = None if anew else store.manifest(key)
        self.finished: Mapping[str, str] = {}
        self.linked: Set[str] = frozenset()
        self._twins: dict[str, Twin] = {}
        self.fds: dict[str, int] = {}
        self._store, self._keys = store, keys
        self._durability = store.durability
        self._folder = store.folders.stage(key)
        self._files = os.path.join(self._folder, "files")
        self._journal: Journal | None = None
        if self.published is None:
            try:
                self._open(anew)
            except BaseException:
                self.close()
                raise

    def _open(self, anew: bool) -> None:
        try:
            self._prepare(anew)
        except FileNotFoundError:  # published, and so moved, by a process that no lock kept out
            self.close()
            self.published = None if anew else self._store.manifest(self.key)
            if self.published is None:
                self._prepare(anew)
        except OSError as error:
            if error.errno not in _NO_STAGE:
                raise
            self.close()
            disk.discard(self._folder, self._store.folders.trash)
            self._store.notes.append(f"what lay in the stage of `{self.name}` was no build's; it is removed")
            self._prepare(anew)

    def _prepare(self, anew: bool) -> None:
        """Open the files, find out what is finished, make room, and write what no tensor covers."""
        os.makedirs(self._files, exist_ok=True)
        self._twins = {} if anew else self._link()
        for name in self._own():
            self.fds[name] = _open_for_writing(os.path.join(self._files, name))
        journal = os.path.join(self._folder, "journal")
        shared = {tensor.name: tensor.checksum for twin in self._twins.values() for tensor in twin.tensors}
        self.linked = shared.keys()
        self.finished = {} if anew else self._survivors(journal) | shared
        self._make_room()
        for file, offset, data in fillings(self.layout):
            if file not in self._twins:
                write_at(self.fds[file], data, offset)
        self._journal = Journal(journal, self.fds, self._durability)

    def _link(self) -> dict[str, Twin]:
        """Take the files that another artifact has too; which those are."""
        found = self._store.twins(self.layout, self._keys)
        taken = {name: twin for name, twin in found.items() if link(twin, self.path(name), self._folder)}
        for name in taken:
            self.fds[name] = os.open(os.path.join(self._files, name), os.O_RDONLY | os.O_NOFOLLOW)
        return taken

    def _own(self) -> list[str]:
        """The names of the files that are written here."""
        return [name for name in self.layout.sizes if name not in self._twins]

    def _make_room(self) -> None:
        """Give every file its size and its room on the disk. Raises BuildFailed when there is not enough."""
        needed = 0
        for name in self._own():
            facts = os.fstat(self.fds[name])
            needed += max(0, self.layout.sizes[name] - facts.st_blocks * 512)
        if needed > disk.free_bytes(self._folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name in self._own():
            size = self.layout.sizes[name]
            if os.fstat(self.fds[name]).st_size != size:
                os.ftruncate(self.fds[name], size)
            disk.preallocate(self.fds[name], size)

    def _survivors(self, journal: str) -> dict[str, str]:
        """Tensors that the journal says are finished, of this layout and these keys, whose bytes are sound."""
        entries, unreadable = read_journal(journal)
        empty = {name for name, fd in self.fds.items() if os.fstat(fd).st_size == 0}
        fitting = [e for e in entries.values() if self._keys.get(e.name) == e.key and self._places(e)]
        expected = [entry for entry in fitting if entry.file not in empty and entry.file not in self._twins]
        fits = in_parallel(lambda e: holds(self.fds[e.file], e.offset, e.nbytes, e.checksum), expected)
        damaged = unreadable + fits.count(False)
        if damaged:
            self._store.notes.append(
                f"damaged in the stage of an interrupted build of `{self.name}`: "
                f"{damaged} of {len(entries) + unreadable} finished tensors are made anew"
            )
        return {entry.name: entry.checksum for entry, fit in zip(expected, fits, strict=True) if fit}

    def _places(self, entry: Entry) -> bool:
        return self.layout.places.get(entry.name) == (entry.file, entry.offset, entry.nbytes)

    def record(self, name: str, key: str, checksum: str) -> None:
        """Say, from any thread, that a tensor is complete; the journal will say so once its bytes are safe.

        Raises OSError if bytes recorded earlier could not be brought to the disk.
        """
        assert self._journal is not None
        self._journal.record(Entry(name, key, *self.layout.places[name], checksum))

    def publish(
        self, tensors: Sequence[StoredTensor], *, complete: bool = True, sha256: Mapping[str, str] | None = None
    ) -> Manifest:
        """Make the artifact visible in one step, whole and read-only, and give its manifest.

        Where another process has published it meanwhile, its manifest is given and this stage removed. Raises
        BuildFailed when the stage was removed under this build, ValueError when `tensors` are not those of the layout.
        """
        if {t.name: (t.file, t.offset, t.nbytes) for t in tensors} != dict(self.layout.places):
            raise ValueError("the tensors to publish are not those of the layout")
        assert self._journal is not None
        self._journal.flush()
        digests = {name: twin.sha256 for name, twin in self._twins.items()} | dict(sha256 or {})
        files = tuple(self._seal(name, tensors, digests.get(name)) for name in self.layout.sizes)
        manifest = Manifest(self.key, self.name, complete, files, tuple(tensors))
        found = self._move(manifest)
        self._sweep()
        return found

    def _seal(self, name: str, tensors: Sequence[StoredTensor], sha256: str | None) -> StoredFile:
        fd = self.fds[name]
        if self._durability != "none":
            disk.sync(fd)
        facts = os.fstat(fd)
        if facts.st_mode & 0o222:
            os.fchmod(fd, 0o444)
        inside = [tensor for tensor in tensors if tensor.file == name]
        if (twin := self._twins.get(name)) is not None:
            self._check_twin(name, twin, inside)
        digest = file_checksum(fd, facts.st_size, inside)
        return StoredFile(name, facts.st_size, facts.st_mtime_ns, digest, sha256)

    def _check_twin(self, name: str, twin: Twin, tensors: Sequence[StoredTensor]) -> None:
        """Read a linked file that was changed since, or whose artifact is gone. Raises BuildFailed for damage."""
        fd = self.fds[name]
        if stamp(self.path(name)) == twin.stamp and is_same(self.path(name), twin.path):
            return
        header = self.layout.headers.get(name, b"")
        sound = os.fstat(fd).st_size == self.layout.sizes[name] and os.pread(fd, len(header), 0) == header
        if not sound or not all(in_parallel(lambda t: holds(fd, t.offset, t.nbytes, t.checksum), tensors)):
            raise BuildFailed(
                f"a file of the cache was damaged while `{self.name}` was built",
                facts=(f"{twin.path} is not what it was when it was linked",),
                hint="build again: what is finished is kept, and the file is made anew",
            )

    def _move(self, manifest: Manifest) -> Manifest:
        """Rename the folder of files to the artifact, unless it is there; a damaged one is out of the way by then."""
        target = self._store.folders.artifact(self.key)
        for _ in range(3):
            if (found := self._store.manifest(self.key)) is not None:
                return found
            try:
                self._check_files()
                disk.replace(
                    os.path.join(self._files, MANIFEST), dump_manifest(manifest), self._durability, self._folder
                )
                os.rename(self._files, target)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            if self._durability != "none":
                disk.sync_folder(self._store.folders.artifacts)
            self._store.published(manifest)
            return manifest
        raise BuildFailed(
            f"the stage of `{self.name}` was removed while it was built",
            facts=(f"{self._folder} is gone",),
            hint="build again; nothing was published",
        )

    def _check_files(self) -> None:
        """Raise FileNotFoundError unless the stage's files are still the open ones, in their full size."""
        for name, fd in self.fds.items():
            there, ours = os.stat(os.path.join(self._files, name)), os.fstat(fd)
            if not os.path.samestat(there, ours) or ours.st_size != self.layout.sizes[name]:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _sweep(self) -> None:
        """Remove what is left of this stage, but nothing that another process has begun there."""
        if os.path.lexists(self._store.folders.artifact(self.key)):
            disk.discard(self._files, self._store.folders.trash)
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._folder, "journal"))
            with contextlib.suppress(OSError):
                os.rmdir(self._folder)

    def path(self, name: str) -> str:
        """Where the staged file `name` lies as long as nothing is published."""
        return os.path.join(self._files, name)

    def abandon(self) -> None:
        """Remove the stage with all that is in it; what was wanted of it is elsewhere."""
        disk.discard(self._folder, self._store.folders.trash)

    def close(self) -> None:
        """Write the rest of the journal as far as that works, and close the files; the stage stays."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


def check_layout(layout: Layout, keys: Mapping[str, str]) -> None:
    """Raise ValueError for a layout that no artifact can have: paths as file names, tensors outside their file."""
    for name in layout.sizes:
        if not is_file_name(name):
            raise ValueError(f"{name!r} is not a file name")
    for tensor, (file, offset, nbytes) in layout.places.items():
        if offset < len(layout.headers.get(file, b"")) or nbytes < 0 or offset + nbytes > layout.sizes[file]:
            raise ValueError(f"tensor {tensor!r} lies outside its file")
        if tensor not in keys:
            raise ValueError(f"tensor {tensor!r} has no key")


def fillings(layout: Layout) -> list[tuple[str, int, bytes]]:
    """What no tensor covers, as (file, offset, bytes): the headers, and zeros between and after the tensors."""
    spans = sorted(place for place in layout.places.values() if place[2])
    found = []
    for file, size in layout.sizes.items():
        header = layout.headers.get(file, b"")
        position = len(header)
        found += [(file, 0, header)]
        for offset, nbytes in [*((o, n) for name, o, n in spans if name == file), (size, 0)]:
            found += [(file, position, bytes(offset - position))] if offset > position else []
            position = offset + nbytes
    return found


def _open_for_writing(path: str) -> int:
    """Open or create a staged file, never cutting it; one that a killed publication left read-only is made writable.

    A file that has other names is another artifact's too, and makes way.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        facts = os.lstat(path)
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
            os.unlink(path)
    try:
        fd = os.open(path, flags, 0o644)
    except PermissionError:
        os.chmod(path, 0o644)
        fd = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, "not a plain file", path)
    return fd


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
