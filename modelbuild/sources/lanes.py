"""How a thread takes SHA-256 of several messages: one after the other, or side by side where that is faster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

WORTH = 256 * 2**20
"""Bytes that threads must have beside the largest file of each before the code for several at a time is loaded."""


class Lanes(Protocol):
    """SHA-256 of up to `most` messages at a time, in pieces that are multiples of `grain` bytes but for the last."""

    most: int
    grain: int

    def begin(self) -> Any:
        """The state of a message of which nothing is hashed yet."""

    def update(self, states: Sequence[Any], pieces: Sequence[memoryview]) -> None:
        """Takes the next piece of each message; all are equally long, and can be written to."""

    def finish(self, state: Any, rest: bytes, length: int) -> str:
        """The digest of a message of `length` bytes, of which `rest`, less than `grain`, is not hashed yet."""


class OneByOne:
    """SHA-256 by hashlib."""

    most = 1
    grain = 1

    def begin(self) -> Any:
        """The state of a message of which nothing is hashed yet."""
        return hashlib.sha256()

    def update(self, states: Sequence[Any], pieces: Sequence[memoryview]) -> None:
        """Takes the next piece of each message."""
        for state, piece in zip(states, pieces, strict=True):
            state.update(piece)

    def finish(self, state: Any, rest: bytes, length: int) -> str:
        """The digest of a message of which all is hashed."""
        digest: str = state.hexdigest()
        return digest


def fitting(sizes: Sequence[int], threads: int) -> Lanes:
    """What is fastest for messages of these sizes: side by side where threads have much more than one each."""
    if sum(sorted(sizes)[:-threads]) >= WORTH:
        from modelbuild.kernels.sha256 import lanes

        return lanes() or OneByOne()
    return OneByOne()
