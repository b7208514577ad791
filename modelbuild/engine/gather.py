"""The inputs of which single rows are read: of sources and of the cache where they stand, of others in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from modelbuild.checksum import BLOCK, combine
from modelbuild.engine.jobs import Damaged
from modelbuild.plan.node import ITEMSIZE, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.cache.nouns import Located
    from modelbuild.engine.program import Run
    from modelbuild.engine.stretch import Files
    from modelbuild.kernels.rows import Rows


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor at rest; `count` is told the bytes that are read."""

    files: Files
    node: Node
    located: Located | None
    count: Callable[[int], None]

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fills `out` with raw elements from `start` on."""
        self.files.read(self.node, self.located, out.view(np.uint8).data, start * ITEMSIZE[self.node.dtype])
        self.count(out.nbytes)


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor whole in memory, as raw elements."""

    raw: NDArray[Any]

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fills `out` with raw elements from `start` on."""
        out[:] = self.raw[start : start + len(out)]


def gather(files: Files, whole: Callable[[Node], NDArray[Any]], count: Callable[[int], None], run: Run) -> list[Rows]:
    """The inputs of a step, in order, as rows of them are read; `whole` makes those that nothing has stored.

    What lies in the cache is checked first, since rows come in no order that checksums know. Raises Damaged.
    """
    found: list[Rows] = []
    for node in run.node.inputs:
        located = (run.gathered or {}).get(node.key)
        if located is not None:
            check(files, node, located)
            count(node.nbytes)
        if located is None and node.operation != "source":
            found.append(Held(whole(node).reshape(-1)))
        else:
            found.append(Stored(files, node, located, count))
    return found


def check(files: Files, node: Node, located: Located) -> None:
    """Raises Damaged where the bytes of a cached tensor are not those that its checksum was made of."""
    blocks = []
    buffer = np.empty(min(node.nbytes, BLOCK), np.uint8)
    for start in range(0, max(node.nbytes, 1), BLOCK):
        data = buffer[: min(BLOCK, node.nbytes - start)].data
        files.read(node, located, data, start)
        blocks.append(xxhash.xxh3_128_digest(data))
    if combine(blocks) != located.checksum:
        raise Damaged([node.key])
