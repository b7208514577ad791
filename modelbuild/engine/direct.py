"""Files opened once more, for reading or writing past the page cache where the system allows it."""

from __future__ import annotations

import os
import threading

ALIGNED = 4096
"""What place, length and memory address must be multiples of: the block size of nearly every disk and file system."""

LEAST = 64 * 1024
"""Bytes of the smallest transfer that is worth a trip to the disk of its own."""


def able() -> bool:
    """Whether this system has such files."""
    return hasattr(os, "O_DIRECT") and os.path.isdir("/proc/self/fd")


def fitting(nbytes: int, offset: int) -> int:
    """How many of `nbytes` bytes at `offset` of a file, from the first on, can go past the page cache."""
    whole = nbytes - nbytes % ALIGNED
    return whole if whole >= LEAST and offset % ALIGNED == 0 else 0


class Direct:
    """For descriptors that others own, the same files opened with `flags` (os.O_RDONLY or os.O_WRONLY) and O_DIRECT."""

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._twins: dict[int, int | None] = {}
        self._opened: list[int] = []
        self._lock = threading.Lock()

    def twin(self, descriptor: int) -> int | None:
        """The file opened once more; None where that is refused."""
        with self._lock:
            if descriptor not in self._twins:
                flags = self._flags | os.O_CLOEXEC | os.O_DIRECT
                try:
                    found = os.open(f"/proc/self/fd/{descriptor}", flags)
                except OSError:
                    found = -1
                self._twins[descriptor] = found if found >= 0 else None
                if found >= 0:
                    self._opened.append(found)
            return self._twins[descriptor]

    def refuse(self, descriptor: int) -> None:
        """From now on there is no twin: the system wants transfers to be otherwise."""
        with self._lock:
            self._twins[descriptor] = None

    def close(self) -> None:
        """Closes what was opened here."""
        with self._lock:
            self._twins.clear()
            while self._opened:
                os.close(self._opened.pop())
