"""Memory that a thread works in, kept for its life: fresh memory is paid for page by page."""

from __future__ import annotations

import threading

import numpy as np

from modelbuild.kernels.fma import Array

_OWN = threading.local()


def workspace(size: int, purpose: str = "loop") -> Array:
    """This thread's buffer of at least `size` float32 for a purpose; the next call for it may give the same again."""
    buffer: Array | None = getattr(_OWN, purpose, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.float32)
        setattr(_OWN, purpose, buffer)
    return buffer
