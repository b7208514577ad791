"""Memory of a thread's own: to work in, kept for its life, since fresh memory is paid for page by page; to count in."""

from __future__ import annotations

import threading

import numpy as np

from modelbuild.kernels.convert import address
from modelbuild.kernels.fma import Array

_OWN = threading.local()


def workspace(size: int, purpose: str = "loop") -> Array:
    """This thread's buffer of at least `size` float32 for a purpose; the next call for it may give the same again."""
    buffer: Array | None = getattr(_OWN, purpose, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.float32)
        setattr(_OWN, purpose, buffer)
    return buffer


class Tables:
    """A table of whole numbers for each thread that counts, and their sum."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape
        self._own: dict[int, Array] = {}

    def own(self) -> int:
        """Where this thread's table lies, int64."""
        thread = threading.get_ident()
        if thread not in self._own:
            self._own[thread] = np.zeros(self._shape, np.int64)
        return address(self._own[thread])

    def total(self) -> Array:
        """All threads' counts together; their tables are given up."""
        # Most often there is one thread, whose table will do: fresh memory is paid for page by page.
        total = self._own.popitem()[1] if self._own else np.zeros(self._shape, np.int64)
        while self._own:
            total += self._own.popitem()[1]
        return total
