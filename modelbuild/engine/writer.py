"""Writes tiles to their places, past the page cache where the system allows it.

What a build writes is synced before it is published, so the disk has to be waited for in any case. Writing past the
page cache costs no fresh memory and no copy, and leaves the cache to the sources, which the next build reads again.
"""

from __future__ import annotations

import errno
import os
import threading

ALIGNED = 4096
"""What place, length and memory address must be multiples of: the block size of nearly every disk and file system."""

LEAST = 64 * 1024
"""Bytes of the smallest write that is worth a trip to the disk of its own."""


class Writer:
    """Writes for many threads to descriptors that others own; see `close`.

    Without `direct`, or where the system refuses, everything goes through the page cache.
    """

    def __init__(self, direct: bool) -> None:
        self.direct = direct and hasattr(os, "O_DIRECT") and os.path.isdir("/proc/self/fd")
        self._twins: dict[int, int | None] = {}
        self._opened: list[int] = []
        self._lock = threading.Lock()

    def write(self, descriptor: int, data: memoryview, offset: int) -> None:
        """Writes all of `data`, which starts at a multiple of ALIGNED in memory, at `offset` of the file."""
        whole = len(data) - len(data) % ALIGNED
        if self.direct and whole >= LEAST and offset % ALIGNED == 0:
            twin = self._twin(descriptor)
            done = self._past_cache(descriptor, twin, data[:whole], offset) if twin is not None else 0
            data, offset = data[done:], offset + done
        write_all(descriptor, data, offset)

    def _past_cache(self, descriptor: int, twin: int, data: memoryview, offset: int) -> int:
        """How many bytes were written; fewer than all where the system wants the rest otherwise."""
        done = 0
        while done < len(data) and done % ALIGNED == 0:
            try:
                done += os.pwrite(twin, data[done:], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                with self._lock:
                    self._twins[descriptor] = None
                break
        return done

    def _twin(self, descriptor: int) -> int | None:
        """The same file opened once more, for writes past the page cache; None where that is refused."""
        with self._lock:
            if descriptor not in self._twins:
                try:
                    found = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
                except OSError:
                    found = -1
                self._twins[descriptor] = found if found >= 0 else None
                if found >= 0:
                    self._opened.append(found)
            return self._twins[descriptor]

    def close(self) -> None:
        """Closes what was opened here; the descriptors written to are their owner's."""
        with self._lock:
            self._twins.clear()
            while self._opened:
                os.close(self._opened.pop())


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, however many calls it takes."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written
