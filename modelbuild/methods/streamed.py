"""What the operations that only stream have in common: no input is needed whole, nothing is held besides tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node


class Streamed:
    """The part of an operation that is the same for all that only stream; see methods/base.py."""

    floats = 1
    """float32 values of scratch for each element, where their number is always the same."""

    def scratch(self, node: Node) -> int:
        """As many float32 values for each element as `floats` says."""
        return self.floats

    def room(self, node: Node) -> int:
        """Any stretch will do."""
        return 1

    def surveys(self, node: Node) -> bool:
        """One pass is enough."""
        return False

    def whole(self, node: Node) -> tuple[int, ...]:
        """No input is needed whole."""
        return ()

    def asks(self, node: Node) -> bool:
        """Whole inputs are handed over together."""
        return False

    def shared(self, node: Node) -> bool:
        """Nothing else is made of its value."""
        return False

    def memory(self, node: Node) -> int:
        """Nothing is held besides tiles."""
        return 0


def nothing(start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: NDArray[Any]) -> None:
    """The kernel of a tensor without elements."""
