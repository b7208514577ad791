"""Memory that a thread works in, kept for its life: fresh memory is paid for page by page."""

from __future__ import annotations

import threading

import numpy as np

from modelbuild.kernels.fma import Array

_OWN = threading.local()


def workspace(size: int) -> Array:
    """This thread's buffer of at least `size` float32, with no known content; the next call may give it again."""
    buffer: Array | None = getattr(_OWN, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _OWN.buffer = np.empty(size, np.float32)
    return buffer
