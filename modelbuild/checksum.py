"""XXH3 over blocks: the checksum that guards bytes at rest, computable by many threads in any order.

The checksum of a stretch of bytes is the XXH3-128 of its blocks' XXH3-128 digests, a block being 16 MiB; what fits one
block has its block's digest. Empty bytes are one empty block.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

BLOCK = 16 * 2**20
"""Bytes of a block."""


def combine(blocks: Sequence[bytes]) -> str:
    """The checksum, in hexadecimal, of the bytes whose blocks have these XXH3-128 digests, in order."""
    if len(blocks) == 1:
        return blocks[0].hex()
    return xxhash.xxh3_128_hexdigest(b"".join(blocks))


def checksum(data: bytes | memoryview) -> str:
    """The checksum, in hexadecimal, of bytes in memory."""
    starts = range(0, max(len(data), 1), BLOCK)
    return combine([xxhash.xxh3_128_digest(data[start : start + BLOCK]) for start in starts])
