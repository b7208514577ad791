"""The rows of a router from vectors that stand for prompts, in float64, every sum in the order of the vectors.

    s⁺ = Σ x over an expert's prompts, s⁻ = Σ x over those that it is not for
    v = s⁺/n⁺ − s⁻/n⁻        or, where vectors are made `unit` first, s⁺/‖s⁺‖ − s⁻/‖s⁻‖
    y = v/‖v‖

Norms below 1e-8 count as 1e-8. y is rounded to float32 once. An expert without such prompts has no s⁻.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import address, narrow, widen
from modelbuild.kernels.fma import Array, Pointer, doubles, floats, integers

if TYPE_CHECKING:
    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node

LEAST = 1e-8


@inlined
def norm(values: Pointer, columns: int) -> float:
    """The length of a vector, at least 1e-8."""
    total = 0.0
    for j in range(columns):
        total += values[j] * values[j]
    length: float = np.sqrt(total)
    return max(length, LEAST)


@inlined
def mean(rows: Pointer, first: int, count: int, columns: int, unit: int, into: Pointer) -> None:
    """The mean of vectors [first, first + count), or their sum made as long as 1; zeros of none."""
    for j in range(columns):
        into[j] = 0.0
    for row in range(first, first + count):
        for j in range(columns):
            into[j] += rows[row * columns + j]
    if count == 0:
        return
    length = norm(into, columns) if unit != 0 else float(count)
    for j in range(columns):
        into[j] = into[j] / length


@kernel("void(int64, int64, int64, int64, int64, int64, int64)")
def router_loop(rows: int, counts: int, experts: int, columns: int, unit: int, scratch: int, out: int) -> None:
    """A row for each expert; `counts` are pairs: vectors that are for it, and as many that are not."""
    vectors, numbers, target = floats(rows), integers(counts), floats(out)
    own, other = doubles(scratch), doubles(scratch + 8 * columns)
    first = 0
    for expert in range(experts):
        positive, negative = numbers[2 * expert], numbers[2 * expert + 1]
        mean(vectors, first, positive, columns, unit, own)
        mean(vectors, first + positive, negative, columns, unit, other)
        first += positive + negative
        for j in range(columns):
            own[j] = own[j] - other[j]
        length = norm(own, columns)
        for j in range(columns):
            target[expert * columns + j] = np.float32(own[j] / length)


def routed(vectors: Array, counts: Sequence[tuple[int, int]], unit: bool) -> Array:
    """The rows [experts, columns], float32, from float32 vectors [prompts, columns] in the order of the experts."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    pairs = np.array(counts, np.int64).reshape(-1, 2)
    if int(pairs.sum()) != vectors.shape[0]:
        raise ValueError(f"{vectors.shape[0]} vectors, but counts of {int(pairs.sum())}")
    columns = vectors.shape[1]
    rows, scratch = np.empty((len(pairs), columns), np.float32), np.empty(2 * columns, np.float64)
    router_loop(address(vectors), address(pairs), len(pairs), columns, int(unit), address(scratch), address(rows))
    return rows


def router(node: Node, raw: Array, counts: Sequence[tuple[int, int]], unit: bool) -> Kernel:
    """The kernel of a router, given the raw vectors of its one input."""
    rows = narrow(routed(widen(raw, node.inputs[0].dtype), counts, unit), node.dtype).reshape(-1)

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        out[:] = rows[start:stop]

    return run
