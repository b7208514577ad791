"""Rows of several tensors as one tensor: the arithmetic that methods/_rows.py defines, at the speed of reading."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Protocol

import numpy as np

from modelbuild.kernels.convert import narrow, widen
from modelbuild.kernels.fma import Array

if TYPE_CHECKING:
    from modelbuild.plan.node import Node
    from modelbuild.plan.rows import Run

RAW = {"BF16": np.uint16, "F16": np.uint16, "F32": np.float32}

BLOCK = 64 * 1024
"""Elements that are added up at a time, in whole rows."""


class Rows(Protocol):
    """An input of which stretches are read."""

    def read(self, start: int, out: Array) -> None:
        """Fills `out` with raw elements of the flat tensor from `start` on."""


class Gather:
    """The kernel of one tensor: see `Kernel` in methods/base.py. Its inputs are not streamed but read where needed."""

    def __init__(self, node: Node, inputs: Sequence[Rows]) -> None:
        assert node.rows is not None
        self._inputs = inputs
        self._dtypes = [used.dtype for used in node.inputs]
        self._dtype = node.dtype
        self._width = prod(node.shape[1:])
        self._runs = node.rows.runs
        self._starts = [run.start for run in self._runs]
        self._padding = self._mean_row() if node.rows.padding and self._width else None

    def __call__(self, start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        """Fills `out` with elements [start, stop)."""
        self._fill(start, stop, out)

    def _fill(self, start: int, stop: int, out: Array) -> None:
        position = start
        index = bisect_right(self._starts, start // self._width) - 1
        while position < stop:
            run = self._runs[index]
            end = min(stop, (run.start + run.count) * self._width)
            self._run(run, position, out[position - start : end - start])
            position, index = end, index + 1

    def _run(self, run: Run, position: int, out: Array) -> None:
        """Fills `out` with elements from `position` on, all in one run."""
        if run.is_padding:
            assert self._padding is not None
            out[:] = np.take(self._padding, np.arange(position, position + len(out)) % self._width)
        elif not run.taken:
            out[:] = 0
        elif len(run.taken) == 1 and self._dtypes[run.taken[0][0]] == self._dtype:
            self._inputs[run.taken[0][0]].read(self._place(run, 0, position), out)
        else:
            out[:] = self._rounded(self._mean(run, position, len(out)))

    def _place(self, run: Run, index: int, position: int) -> int:
        """Where in its input that stands which comes to stand at `position`."""
        return position + (run.taken[index][1] - run.start) * self._width

    def _mean(self, run: Run, position: int, count: int) -> Array:
        total = np.zeros(count, np.float64)
        for index, (source, _) in enumerate(run.taken):
            raw = np.empty(count, RAW[self._dtypes[source]])
            self._inputs[source].read(self._place(run, index, position), raw)
            total += widen(raw, self._dtypes[source])
        return total / len(run.taken)

    def _rounded(self, values: Array) -> Array:
        return narrow(values.astype(np.float32) if self._dtype == "F32" else to_odd(values), self._dtype)

    def _mean_row(self) -> Array:
        """The mean of the rows that are not padding, added up one after the other."""
        total = np.zeros((1, self._width))
        rows = 0
        for run in (run for run in self._runs if not run.is_padding):
            step = max(1, BLOCK // self._width)
            for first in range(run.start, run.start + run.count, step):
                count = min(step, run.start + run.count - first)
                raw = np.empty(count * self._width, RAW[self._dtype])
                self._run(run, first * self._width, raw)
                block = widen(raw, self._dtype).reshape(count, self._width).astype(np.float64)
                # An accumulation adds row by row; a sum may add in any order, even by the size of the block.
                total = np.add.accumulate(np.concatenate([total, block]), axis=0)[-1:]
            rows += run.count
        return self._rounded(total[0] / rows) if rows else np.zeros(self._width, RAW[self._dtype])


def to_odd(values: Array) -> Array:
    """float64 values as float32, rounded to odd: rounding those to a shorter type is rounding the values themselves.

    What float32 does not hold lies between two neighbours; of these the one whose last bit is 1 is taken.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        near = values.astype(np.float32)
        lost = values - near
    even = near.view(np.uint32) & np.uint32(1) == 0
    towards = np.where(lost > 0, np.float32(np.inf), np.float32(-np.inf))
    return np.where((lost != 0) & even & np.isfinite(near), np.nextafter(near, towards), near)
