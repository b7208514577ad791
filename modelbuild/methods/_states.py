"""states: what the layers of a model are given for a few prompts; an operation that plans use, not a method of users.

The inputs are the embeddings of all prompts' tokens, one behind the other, and then the tensors of each layer but the
last. For each layer the result has one row for each prompt: the hidden state that comes in at its last token, or the
mean over its tokens. Prompts are run one by one, without padding, in float32, by transformers: bound to its version.

A layer's weights are in memory only while the prompts pass through it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from modelbuild.methods.streamed import Streamed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node


class States(Streamed):
    """The operation: `config` is that of the model as JSON, `parts` the names of a layer's tensors, `lengths` those of
    the prompts in tokens, `average` whether their states are averaged."""

    floats = 0

    def whole(self, node: Node) -> tuple[int, ...]:
        """All inputs, each when its layer's turn comes."""
        return tuple(range(len(node.inputs)))

    def asks(self, node: Node) -> bool:
        """Inputs are asked for one by one."""
        return True

    def shared(self, node: Node) -> bool:
        """The routers of all layers are made of it."""
        return True

    def memory(self, node: Node) -> int:
        """A layer as it is stored and in float32, the prompts' states and attention, and the result twice."""
        parts = len(cast("tuple[str, ...]", node.param("parts")))
        layers = [node.inputs[start : start + parts] for start in range(1, len(node.inputs), max(1, parts))]
        largest = max((sum(used.nbytes + 4 * used.count for used in layer) for layer in layers), default=0)
        longest = max(cast("tuple[int, ...]", node.param("lengths")))
        heads = int(json.loads(str(node.param("config"))).get("num_attention_heads", 1))
        return largest + 32 * node.inputs[0].count + 12 * heads * longest**2 + 2 * node.nbytes

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel that hands out the rows, which are made at once."""
        from modelbuild.kernels.convert import widen
        from modelbuild.methods._forward import run_layers

        parts = cast("tuple[str, ...]", node.param("parts"))

        def layer(number: int) -> dict[str, NDArray[Any]]:
            first = 1 + number * len(parts)
            return {part: widen(whole[first + i], node.inputs[first + i].dtype) for i, part in enumerate(parts)}

        config = json.loads(str(node.param("config")))
        lengths = cast("tuple[int, ...]", node.param("lengths"))
        embedded = widen(whole[0], node.inputs[0].dtype)
        rows = run_layers(config, embedded, lengths, bool(node.param("average")), layer).reshape(-1)

        def run(start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: Any) -> None:
            out[:] = rows[start:stop]

        return run
