"""Writes tiles to their places, past the page cache where the system allows it.

What a build writes is synced before it is published, so the disk has to be waited for in any case. Writing past the
page cache costs no fresh memory and no copy, and leaves the cache to the sources, which the next build reads again.
"""

from __future__ import annotations

import errno
import os

from modelbuild.engine.direct import ALIGNED, Direct, able, fitting


class Writer:
    """Writes for many threads to descriptors that others own; see `close`.

    Without `direct`, or where the system refuses, everything goes through the page cache.
    """

    def __init__(self, direct: bool) -> None:
        self.direct = direct and able()
        self._direct = Direct(os.O_WRONLY)

    def write(self, descriptor: int, data: memoryview, offset: int) -> None:
        """Writes all of `data`, which starts at a multiple of ALIGNED in memory, at `offset` of the file."""
        if self.direct and (whole := fitting(len(data), offset)):
            twin = self._direct.twin(descriptor)
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
                self._direct.refuse(descriptor)
                break
        return done

    def close(self) -> None:
        """Closes what was opened here; the descriptors written to are their owner's."""
        self._direct.close()


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, however many calls it takes."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written
