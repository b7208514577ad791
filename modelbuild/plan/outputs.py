"""The tensors that lie in an artifact's files: a packed weight is one tensor of a Modelfile and several of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelbuild.digest import identity
from modelbuild.formats.base import Output
from modelbuild.plan.node import Node

OUTPUT = "output"
"""The operation of the node that is one output of another."""


def output_node(node: Node, output: Output) -> Node:
    """One output of a node, as a node of its own: its key is that of the whole and the output's name."""
    key = identity("output/1", node.key, output.name)
    params = (("name", output.name),)
    return Node(key, OUTPUT, 1, params, (node,), output.dtype, output.shape, numerics=node.numerics)


def in_files(name: str, node: Node) -> dict[str, Node]:
    """The nodes of the tensors that a tensor is in the files, by their names there: itself, or its outputs."""
    if not node.outputs:
        return {name: node}
    module = name.removesuffix("weight")
    return {f"{module}{output.name}": output_node(node, output) for output in node.outputs}


def late_outputs(node: Node) -> tuple[Output, ...]:
    """The outputs whose length is known only once they are made."""
    return tuple(output for output in node.outputs if output.late)


def stored_keys(nodes: Iterable[Node]) -> dict[str, tuple[str, ...]]:
    """For each packed node the keys of all its outputs, which are what a cache has of it."""
    packed = {node.key: node for node in nodes if node.outputs}
    return {key: tuple(output_node(node, output).key for output in node.outputs) for key, node in packed.items()}


def whole(found: Mapping[str, object], outputs: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    """The keys that were found, and of the packed nodes those of which every output was."""
    return frozenset(found) | {key for key, parts in outputs.items() if all(part in found for part in parts)}
