"""The routers of a mixture of experts: drawn, or made from vectors that stand for prompts; operations that plans use.

Exact arithmetic: kernels/noise.py and kernels/router.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from modelbuild.methods.streamed import Streamed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node


class Drawn(Streamed):
    """The operation of a router that is drawn: it has no inputs; `key` says which numbers, `scale` how large."""

    floats = 0

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel of the random numbers."""
        from modelbuild.kernels.noise import random_tensor

        kind = cast("Literal['normal', 'uniform']", node.param("kind"))
        return random_tensor(node, str(node.param("key")), kind, float(cast("float", node.param("scale"))))


class Router(Streamed):
    """The operation of a router that is made from prompts: its one input has a vector for each of them, by expert.

    `counts` are for each expert its prompts and those that it is not for; `unit` see kernels/router.py.
    """

    floats = 0

    def whole(self, node: Node) -> tuple[int, ...]:
        """The vectors."""
        return (0,)

    def memory(self, node: Node) -> int:
        """The vectors, raw and widened, the rows, and what it takes to make the vectors."""
        vectors = node.inputs[0]
        return vectors.nbytes + 4 * vectors.count + 8 * node.count + _inside(vectors)

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel that hands out the rows, which are made at once."""
        from modelbuild.kernels.router import router

        counts = cast("tuple[tuple[int, int], ...]", node.param("counts"))
        return router(node, whole[0], counts, bool(node.param("unit")))


def _inside(node: Node) -> int:
    """The bytes that making the input of a router holds: those of the hidden states below it, if any are."""
    from modelbuild.methods.operations import operation

    while node.rows is not None:
        node = node.inputs[0]
    return 0 if node.operation == "source" else operation(node.operation).memory(node)
