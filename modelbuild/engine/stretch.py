"""One part of a tensor, worked through tile by tile: the steps of its program, in buffers that a worker keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from modelbuild.engine.block import Running
from modelbuild.engine.direct import ALIGNED
from modelbuild.engine.jobs import Progress
from modelbuild.engine.program import Program, Read, Run
from modelbuild.plan.node import ITEMSIZE, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.cache.nouns import Located

LEAST_TILE = 4 * 1024
"""Elements of the smallest tile; stretches of a pass are multiples of it, or of its unit."""

RAW = {"BF16": np.uint16, "F16": np.uint16, "F32": np.float32}
NO_CHECKS: Mapping[int, Running] = MappingProxyType({})


class Files(Protocol):
    """Where stored tensors are read from."""

    def read(self, node: Node, located: Located | None, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` with the bytes of a stored tensor from `offset` on."""

    def expect(self, node: Node, located: Located | None, offset: int, nbytes: int) -> None:
        """Says that these bytes will be read soon."""

    def clone(self, located: Located, descriptor: int, offset: int) -> bool:
        """Shares a cached tensor's bytes with another file, where the file system can; whether it could."""


class Arena:
    """A worker's buffers, kept for life: `slots` of four bytes an element, and float32 scratch."""

    def __init__(self, tile: int, slots: int, scratch: int) -> None:
        self.tile = tile
        self.slots = [_aligned(tile * 4) for _ in range(slots)]
        self.scratch = np.empty(max(1, tile * scratch), np.float32)


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    """Memory from which can be written past the page cache."""
    raw = np.empty(nbytes + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + nbytes]


class Stretch:
    """Works through one part of a tensor in order, keeping checksums of what it reads from the cache and makes."""

    def __init__(self, files: Files, progress: Progress, begin: int, arena: Arena, kernels: Any) -> None:
        program = progress.job.program
        self._files = files
        self._program = program
        self._arena = arena
        self._kernels = kernels
        self.bytes_read = 0
        self.nonfinite = 0
        self.spent: dict[str, float] = {}
        dtype = program.node.dtype
        self._out = Running(progress.blocks, begin * ITEMSIZE[dtype], program.node.nbytes)
        self._count_nonfinite = _nonfinite_counter(dtype)
        self._reads = {}
        for index, blocks in progress.reads.items():
            node = program.steps[index].node
            self._reads[index] = Running(blocks, begin * ITEMSIZE[node.dtype], node.nbytes)

    def tile(self, begin: int, end: int) -> memoryview:
        """The bytes of elements [begin, end), in a slot that the next call overwrites."""
        views = self.fill(self._program.steps, begin, end, self._reads)
        made = bytes_of(self._arena.slots[self._program.result][: (end - begin) * ITEMSIZE[self._program.node.dtype]])
        self._out.update(made)
        if self._count_nonfinite is not None:
            self.nonfinite += self._count_nonfinite(views[self._program.result])
        return made

    def fill(
        self, steps: Sequence[Read | Run], begin: int, end: int, checks: Mapping[int, Running] = NO_CHECKS
    ) -> dict[int, NDArray[Any]]:
        """What the slots hold once `steps` have made elements [begin, end); reads with `checks` go through them."""
        views: dict[int, NDArray[Any]] = {}
        for step in steps:
            size = ITEMSIZE[step.node.dtype]
            raw = self._arena.slots[step.slot][: (end - begin) * size]
            if isinstance(step, Read):
                data = bytes_of(raw)
                self._files.read(step.node, step.located, data, begin * size)
                self.bytes_read += len(data)
                if step.index in checks:
                    checks[step.index].update(data)
                views[step.slot] = raw.view(RAW.get(step.node.dtype, np.uint8))
                continue
            out = raw.view(RAW[step.node.dtype])
            self._compute(step, begin, end, views, out)
            views[step.slot] = out
        return views

    def _compute(self, step: Run, begin: int, end: int, views: dict[int, NDArray[Any]], out: NDArray[Any]) -> None:
        inputs = [views[slot] for slot in step.inputs]
        started = time.perf_counter()
        self._kernels[step.index](begin, end, inputs, out, self._arena.scratch)
        key = step.node.key
        self.spent[key] = self.spent.get(key, 0.0) + time.perf_counter() - started


def _nonfinite_counter(dtype: str) -> Callable[[NDArray[Any]], int] | None:
    if dtype not in RAW:
        return None
    from modelbuild.kernels.convert import nonfinite

    return lambda raw: nonfinite(raw, dtype)


def bytes_of(raw: NDArray[np.uint8]) -> memoryview:
    """The bytes of an array, without copying."""
    return raw.data


def width_of(program: Program, arena: Arena) -> int:
    """Elements of a stretch: as many as fit a tile.

    Elements of 8 bytes, which are only ever copied, go by half tiles: slots hold 4 bytes an element.
    """
    return arena.tile // 2 if ITEMSIZE[program.node.dtype] > 4 else arena.tile


def pass_width(unit: int, arena: Arena) -> int:
    """Elements of a stretch of a pass: whole units, or whole multiples of LEAST_TILE."""
    return arena.tile - arena.tile % (unit if unit > 1 else min(LEAST_TILE, arena.tile))
