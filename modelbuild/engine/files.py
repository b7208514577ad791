"""Where tiles are read from: the sources' reader, and the cache's files.

Files of the cache were written past the page cache, and are read past it where they are not in it: the memory stays
with the sources.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
from typing import TYPE_CHECKING

from modelbuild.engine.direct import Direct, able, fitting
from modelbuild.engine.jobs import Damaged

if TYPE_CHECKING:
    from modelbuild.cache.nouns import Located
    from modelbuild.plan.node import Node
    from modelbuild.sources.reader import Reader


CLONED = 4096
"""Bytes of a block, the least that file systems share between files."""

FICLONERANGE = 0x4020940D

_NOT_AT_HAND = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What a read from the page cache alone ends in where it does not have the bytes, or the system does not know such."""


class StoredFiles:
    """Reads stored tensors: source nodes through the sources' reader, located ones from files of the cache."""

    def __init__(self, sources: Reader) -> None:
        self._sources = sources
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()
        self._clones = sys.platform == "linux"
        self._able = able() and hasattr(os, "RWF_NOWAIT")
        self._direct = Direct(os.O_RDONLY)

    def read(self, node: Node, located: Located | None, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` with the bytes of a stored tensor from `offset` on; Damaged if the cache has fewer."""
        if located is None:
            assert node.source is not None
            self._sources.read_into(buffer, node.source.file, node.source.offset + offset)
            return
        descriptor = self._descriptor(located)
        position = located.offset + offset
        while buffer:
            count = self._some(descriptor, buffer, position)
            if count == 0:
                raise Damaged([node.key])
            buffer = buffer[count:]
            position += count

    def _some(self, descriptor: int, buffer: memoryview, position: int) -> int:
        """Reads the first bytes of `buffer`, from the page cache or where it has none past it; 0 at the file's end."""
        whole = fitting(len(buffer), position) if self._able else 0
        twin = self._direct.twin(descriptor) if whole else None
        if twin is None:
            return os.preadv(descriptor, [buffer], position)
        try:
            # Linux 5.9 and 5.10 say 0, as at the end of a file, where there is nothing at hand.
            if count := os.preadv(descriptor, [buffer], position, os.RWF_NOWAIT):
                return count
        except OSError as error:
            if error.errno not in _NOT_AT_HAND:
                raise
        try:
            return os.preadv(twin, [buffer[:whole]], position)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct.refuse(descriptor)
            return os.preadv(descriptor, [buffer], position)

    def expect(self, node: Node, located: Located | None, offset: int, nbytes: int) -> None:
        """Asks the system to have these bytes at hand; a hint that may be ignored."""
        if located is None:
            assert node.source is not None
            self._sources.expect(node.source.file, node.source.offset + offset, nbytes)
        elif hasattr(os, "posix_fadvise") and not self._able:
            descriptor = self._descriptor(located)
            os.posix_fadvise(descriptor, located.offset + offset, nbytes, os.POSIX_FADV_WILLNEED)

    def clone(self, located: Located, descriptor: int, offset: int) -> bool:
        """Makes the bytes at `offset` of the descriptor's file those of a cached tensor, without copying them.

        Whether that worked: it takes a file system with reflinks, and whole blocks at whole blocks' places.
        """
        if not self._clones or any(n % CLONED for n in (located.offset, offset, located.nbytes)) or not located.nbytes:
            return False
        span = struct.pack("qQQQ", self._descriptor(located), located.offset, located.nbytes, offset)
        try:
            fcntl.ioctl(descriptor, FICLONERANGE, span)
        except OSError:
            self._clones = False
            return False
        return True

    def _descriptor(self, located: Located) -> int:
        with self._lock:
            if located.path not in self._open:
                try:
                    self._open[located.path] = os.open(located.path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    raise Damaged([located.key]) from None
            return self._open[located.path]

    def close(self) -> None:
        """Closes the cache's files; the sources' reader is its owner's to close."""
        self._direct.close()
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
