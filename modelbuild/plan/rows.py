"""Which rows of which tensors make a tensor: the map of one model's vocabulary to that of a merge.

A map is told as runs of consecutive rows. It is made once for all tensors of a model that have the same rows, and nodes
hold it by reference; their keys have its digest.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from modelbuild.digest import identity
from modelbuild.methods._rows import VERSION
from modelbuild.plan.node import Node, operation_node

Taken: TypeAlias = "tuple[tuple[int, int], ...]"
"""What one row is made of: (input, row) of one tensor, of several for their mean, or of none for zeros."""

PADDING: Taken = ((-1, 0),)
"""What a row is made of that stands for no token: the mean of all rows that are not padding."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [start, start + count) of the result; `taken` says what the first is made of, the next one row further."""

    start: int
    count: int
    taken: Taken

    @property
    def is_padding(self) -> bool:
        """Whether these rows are the mean of all others."""
        return self.taken == PADDING


@dataclass(frozen=True)
class RowMap:
    """The rows of a result, as runs in order without gaps."""

    runs: tuple[Run, ...]

    @cached_property
    def rows(self) -> int:
        """The number of rows of the result."""
        return self.runs[-1].start + self.runs[-1].count if self.runs else 0

    @cached_property
    def padding(self) -> int:
        """The number of rows that are the mean of the others."""
        return sum(run.count for run in self.runs if run.is_padding)

    @cached_property
    def digest(self) -> str:
        """What identifies the map."""
        packed = [
            struct.pack(f"<{3 + 2 * len(run.taken)}q", run.start, run.count, len(run.taken), *sum(run.taken, ()))
            for run in self.runs
        ]
        return identity("rowmap/1", b"".join(packed))

    def is_identity(self, rows: int) -> bool:
        """Whether it takes all `rows` of the first input, in order, and nothing else."""
        return self.runs == (Run(0, rows, ((0, 0),)),)

    def renumbered(self, places: Mapping[int, int]) -> RowMap:
        """The same map with other numbers for its inputs."""

        def moved(run: Run) -> Run:
            if run.is_padding:
                return run
            return replace(run, taken=tuple((places[source], row) for source, row in run.taken))

        return RowMap(tuple(moved(run) for run in self.runs))


def row_map(taken: Sequence[Taken]) -> RowMap:
    """The map in which row i is made of `taken[i]`."""
    runs: list[Run] = []
    start = 0
    for index in range(1, len(taken) + 1):
        if index < len(taken) and _goes_on(taken[start], taken[index], index - start):
            continue
        runs.append(Run(start, index - start, taken[start]))
        start = index
    return RowMap(tuple(runs) if taken else ())


def _goes_on(first: Taken, taken: Taken, rows: int) -> bool:
    """Whether a row is made of what lies so many `rows` after what the first is made of."""
    if first == PADDING or taken == PADDING or len(first) != len(taken):
        return taken == first
    return taken == tuple([(source, row + rows) for source, row in first])


def rows_node(table: RowMap, inputs: tuple[Node, ...]) -> Node:
    """The node of a tensor whose rows are those of `inputs`, the first of which it stands for; that one itself where
    nothing changes. Inputs of different dtypes make float32."""
    first = inputs[0]
    if table.is_identity(first.shape[0]):
        return first
    dtype = first.dtype if all(node.dtype == first.dtype for node in inputs) else "F32"
    return operation_node(
        "rows", VERSION, (("map", table.digest),), inputs, dtype, (table.rows, *first.shape[1:]), rows=table
    )
