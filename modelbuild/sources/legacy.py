"""Files as torch.save wrote them before 1.6: pickles, then each storage as its length and its bytes, nothing else.

torch reads such a file through the stand-in below. Its pickles and the lengths of its storages are the real ones; of
the storages themselves the stand-in notes where in the file they lie and which memory they were to be read into.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import TYPE_CHECKING

from modelbuild.sources.strictjson import Malformed

if TYPE_CHECKING:
    from typing_extensions import Buffer

READ_BELOW = 4096
"""Reads of fewer bytes than this are done; among them are the lengths of the storages."""


class LegacyFile:
    """A file that torch takes for an open one, behind a descriptor; the pickles may have `limit` bytes."""

    def __init__(self, descriptor: int, size: int, limit: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._limit = limit
        self._position = 0
        self._pickled = 0
        self._reads: list[tuple[int, int, int]] = []
        self.short = False
        """Whether the file ended inside its storages."""

    def read(self, count: int = -1) -> bytes:
        """Bytes of a pickle; Malformed where the file ends before or the pickles become too long."""
        left = self._size - self._position
        count = left if count < 0 else count
        self._pickled += count
        if count > left:
            raise Malformed(f"is cut short: it ends at byte {self._size}")
        self._check_limit()
        data = os.pread(self._descriptor, count, self._position)
        self._position += len(data)
        return data

    def readline(self) -> bytes:
        """A line of a pickle, a name of something it asks for."""
        text = os.pread(self._descriptor, READ_BELOW, self._position)
        line, end, _ = text.partition(b"\n")
        if not end:
            raise Malformed("is cut short, or asks for something with an endless name")
        self._position += len(line) + 1
        self._pickled += len(line) + 1
        self._check_limit()
        return line + end

    def _check_limit(self) -> None:
        if self._pickled > self._limit:
            raise Malformed(f"has pickles of more than {self._limit} bytes")

    def readinto(self, buffer: Buffer) -> int:
        """A length, or the bytes of a storage: where they lie is kept, and only a few of them are read.

        Gives 0 bytes where the file ends before: torch calls this from where an error of ours would be lost.
        """
        import ctypes

        view = memoryview(buffer).cast("B")
        count = len(view)
        if self._position + count > self._size:
            self.short = True
            return 0
        self._reads.append((ctypes.addressof(ctypes.c_char.from_buffer(view)), self._position, count))
        if count < READ_BELOW:
            data = os.pread(self._descriptor, count, self._position)
            view[: len(data)] = data
            count = len(data)
        self._position += count
        return count

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a position, counted from the start."""
        if whence != os.SEEK_SET or not 0 <= offset <= self._size:
            raise Malformed("is read by a torch that does so in another way")
        self._position = offset
        return offset

    def check_end(self) -> None:
        """Raises Malformed unless the last storage ends where the file does."""
        if self._position != self._size:
            raise Malformed(f"has {self._size - self._position} bytes behind its storages")
        self._reads = _joined(sorted(self._reads))

    def position(self, address: int, nbytes: int) -> int:
        """Where in the file the bytes lie that were meant for this memory; Malformed where they are not in it."""
        if not nbytes:
            return 0
        index = bisect_right(self._reads, (address, self._size, 0)) - 1
        if index >= 0:
            start, position, count = self._reads[index]
            if address + nbytes <= start + count:
                return position + address - start
        raise Malformed("holds a tensor that is not stored in it")


def _joined(reads: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Reads of the same storage, of which torch takes a gigabyte at a time, as one."""
    found: list[tuple[int, int, int]] = []
    for address, position, count in reads:
        if found:
            start, begin, length = found[-1]
            if (start + length, begin + length) == (address, position):
                found[-1] = (start, begin, length + count)
                continue
        found.append((address, position, count))
    return found
