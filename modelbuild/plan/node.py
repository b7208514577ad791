"""The node: how one tensor comes about, and the key that says so.

A source node's key is the digest of its file and its name (for an adapter, of the tensor's own bytes); every other
node's key is the digest of its operation, version, parameters, dtype, shape, numerics class and its inputs' keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from modelbuild.digest import Field, identity
from modelbuild.dtypes import FLOATS as FLOATS
from modelbuild.dtypes import ITEMSIZE as ITEMSIZE
from modelbuild.methods._cast import VERSION as CAST

if TYPE_CHECKING:
    from modelbuild.formats.base import Output
    from modelbuild.plan.rows import RowMap
    from modelbuild.sources.content import SourceTensor

Params = tuple[tuple[str, Field], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One tensor of the plan. Two nodes with the same key are the same bytes.

    `operation` is the name of a method's operation, or "source" for a tensor that exists already; then `source` says
    where. `inputs` are in the order the operation defines. `free` nodes have no numerics class. A node that makes
    several tensors together has `outputs`, and the dtype and shape of the first of them. `rows` says, for the operation
    of that name, which rows of the inputs make it; `params` have its digest.
    """

    key: str
    operation: str
    version: int
    params: Params
    inputs: tuple[Node, ...]
    dtype: str
    shape: tuple[int, ...]
    source: SourceTensor | None = None
    numerics: str | None = None
    outputs: tuple[Output, ...] = ()
    rows: RowMap | None = None

    @property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the value, of all outputs together."""
        if self.outputs:
            return sum(prod(output.shape) * ITEMSIZE[output.dtype] for output in self.outputs)
        return self.count * ITEMSIZE[self.dtype]

    def param(self, name: str) -> Field:
        """The parameter `name`; KeyError if the operation has none of that name."""
        for key, value in self.params:
            if key == name:
                return value
        raise KeyError(name)


def source_node(tensor: SourceTensor) -> Node:
    """The node of a tensor at rest."""
    if tensor.sha256 is not None:
        key = identity("tensor/1", tensor.sha256, tensor.dtype, tensor.shape)
    else:
        key = identity("source/1", tensor.source_file.sha256, tensor.name)
    return Node(key, "source", 1, (), (), tensor.dtype, tensor.shape, source=tensor)


def operation_node(
    operation: str,
    version: int,
    params: Params,
    inputs: tuple[Node, ...],
    dtype: str,
    shape: tuple[int, ...],
    numerics: str | None = None,
    rows: RowMap | None = None,
) -> Node:
    """The node of a computed tensor; `params` in the order the operation defines, part of the key as they are."""
    inputs_keys = tuple(node.key for node in inputs)
    key = identity("node/1", operation, version, params, inputs_keys, dtype, shape, numerics)
    return Node(key, operation, version, params, inputs, dtype, shape, numerics=numerics, rows=rows)


def cast(node: Node, dtype: str) -> Node:
    """`node` rounded to `dtype` (nearest even); the node itself where it has that dtype already."""
    if node.dtype == dtype:
        return node
    return operation_node("cast", CAST, (), (node,), dtype, node.shape)


def is_inner(node: Node) -> bool:
    """Whether a node is no tensor of a model's, but made for others: rows in another order, hidden states."""
    return node.rows is not None or node.operation == "states"


def inputs_of(node: Node) -> list[Node]:
    """The inputs of a node, and with them those of inner nodes, down to tensors of models."""
    found: list[Node] = []
    pending = [*reversed(node.inputs)]
    while pending:
        found.append(used := pending.pop())
        pending += reversed(used.inputs) if is_inner(used) else ()
    return found
