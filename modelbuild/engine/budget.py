"""The memory budget: whoever needs memory for a tensor waits until there is some, or until nobody else holds any."""

from __future__ import annotations

import threading


class Cancelled(Exception):
    """The run was stopped while somebody waited for memory."""


class Budget:
    """Bytes that may be held at once; a need greater than the whole budget runs alone."""

    def __init__(self, total: int, cancelled: threading.Event) -> None:
        self.total = total
        self.peak = 0
        self._cancelled = cancelled
        self._used = 0
        self._changed = threading.Condition()

    def take(self, nbytes: int) -> None:
        """Waits for `nbytes`; raises Cancelled if the run stops meanwhile."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._used == 0 or self._used + nbytes <= self.total, 0.1):
                if self._cancelled.is_set():
                    raise Cancelled
            self._used += nbytes
            self.peak = max(self.peak, self._used)

    def give(self, nbytes: int) -> None:
        """Gives `nbytes` back."""
        with self._changed:
            self._used -= nbytes
            self._changed.notify_all()
