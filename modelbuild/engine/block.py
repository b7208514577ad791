"""Checksums of tiles as they pass: the digest of each whole block, whoever reads or makes it."""

from __future__ import annotations

import threading

import xxhash

from modelbuild.checksum import BLOCK, combine

__all__ = ["BLOCK", "Blocks", "Running"]


class Blocks:
    """The block digests of one tensor, gathered from many threads."""

    def __init__(self, nbytes: int) -> None:
        self._digests: list[bytes | None] = [None] * max(1, -(-nbytes // BLOCK))
        self._lock = threading.Lock()
        if nbytes == 0:
            self._digests[0] = xxhash.xxh3_128_digest(b"")

    def set(self, index: int, digest: bytes) -> None:
        """Records the digest of a block."""
        with self._lock:
            self._digests[index] = digest

    def checksum(self) -> str:
        """The checksum of the whole tensor; every block must have been recorded."""
        found = [digest for digest in self._digests if digest is not None]
        assert len(found) == len(self._digests)
        return combine(found)


class Running:
    """The digest of a stretch that one thread works through in order, starting at a block's start."""

    def __init__(self, blocks: Blocks, offset: int, nbytes: int) -> None:
        self._blocks = blocks
        self._offset = offset
        self._nbytes = nbytes
        self._state = xxhash.xxh3_128()

    def update(self, data: memoryview) -> None:
        """Takes the next bytes; they must not cross the end of a block."""
        self._state.update(data)
        self._offset += len(data)
        if self._offset % BLOCK == 0 or self._offset == self._nbytes:
            self._blocks.set((self._offset - 1) // BLOCK, self._state.digest())
            self._state.reset()
