"""Readers: bytes of source files into buffers, with the promise that they are still the bytes that were identified."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from modelbuild.errors import BuildFailed
from modelbuild.sources.content import SourceFile
from modelbuild.sources.stamps import changed, difference, open_regular, same, unreadable
from modelbuild.sources.strictjson import show

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Reader(Protocol):
    """Gives bytes of source files, wherever they lie. All calls may come from many threads at once."""

    def read_into(self, buffer: Buffer, file: SourceFile, offset: int) -> None:
        """Fills the whole writable `buffer` with the bytes of `file` from `offset` on.

        Raises SourceChanged where the file is not the one that was identified or ends early, BuildFailed where it
        cannot be read.
        """

    def expect(self, file: SourceFile, offset: int, nbytes: int) -> None:
        """Says that these bytes will be read soon; a hint."""

    def check(self) -> None:
        """Raises SourceChanged if a file that was read is no longer the one that was identified."""

    def close(self) -> None:
        """Lets go of all files; the reader can be used again."""


class LocalReader:
    """Reads files of this machine, each opened once. A context manager that closes them at its end.

    A file on the Hub is brought here first, where that was not done before.
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, SourceFile]] = {}
        self._lock = threading.Lock()

    def read_into(self, buffer: Buffer, file: SourceFile, offset: int) -> None:
        """Fills the whole writable `buffer` with the bytes of `file` from `offset` on; see Reader."""
        descriptor = self._descriptor(file)
        target = memoryview(buffer).cast("B")
        done, wanted = 0, len(target)
        try:
            while done < wanted:
                count = os.preadv(descriptor, [target[done:]], offset + done)
                if not count:
                    raise changed(file.path, f"it ends after {offset + done} of {file.size} bytes")
                done += count
        except OSError as error:
            span = f"bytes {offset + done} to {offset + wanted}"
            told = os.strerror(error.errno) if error.errno else str(error)
            raise BuildFailed(f"{show(file.path)} could not be read", facts=[span, told]) from error

    def expect(self, file: SourceFile, offset: int, nbytes: int) -> None:
        """Asks the system to have these bytes at hand soon; a hint, and free where they are."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor(file), offset, nbytes, os.POSIX_FADV_WILLNEED)

    def check(self) -> None:
        """Raises SourceChanged if a file that was opened was edited, truncated or replaced since it was identified."""
        with self._lock:
            opened = [file for _, file in self._open.values()]
        for file in opened:
            try:
                status = os.stat(file.path, follow_symlinks=False)
            except FileNotFoundError:
                raise changed(file.path, "it was deleted or renamed") from None
            except OSError as error:
                raise unreadable(file.path, error) from error
            if not same(file.stamp, status):
                raise changed(file.path, difference(file.stamp, status))

    def close(self) -> None:
        """Lets go of all files; the reader can be used again."""
        with self._lock:
            while self._open:
                _, (descriptor, _) = self._open.popitem()
                os.close(descriptor)

    def __enter__(self) -> LocalReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _descriptor(self, file: SourceFile) -> int:
        found = self._open.get(file.path)
        if found is None:
            with self._lock:
                found = self._open.get(file.path)
                if found is None:
                    local = file if file.remote is None else file.remote.local()
                    found = self._open[file.path] = (_open_checked(local), local)
        descriptor, opened = found
        if opened.stamp != file.stamp and file.remote is None:
            raise changed(file.path, "it was identified twice, as different files")
        return descriptor


def _open_checked(file: SourceFile) -> int:
    try:
        descriptor = open_regular(file.path, file.path)
    except BuildFailed as error:
        if not _out_of_descriptors(error.__cause__):
            raise
        _allow_more_files()
        descriptor = open_regular(file.path, file.path)
    status = os.fstat(descriptor)
    if not same(file.stamp, status):
        os.close(descriptor)
        raise changed(file.path, difference(file.stamp, status))
    return descriptor


def _out_of_descriptors(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EMFILE


def _allow_more_files() -> None:
    """Models have hundreds of shards; the soft limit is often 1024 or, on macOS, 256, and ours to raise."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
