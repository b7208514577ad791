"""nearswap: take more of the model where it is nearer to the base.

    y = w·b + (1 − w)·a, w = t / max(|a − b|, 1e-6), clamped to [0, 1]        a the base, b the model

From the model card of https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001. Exact arithmetic:
kernels/nearswap.py, in float32.

Identities: t = 0 takes the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods.base import Compute, Kernel, Method, Parameter, Request, Step, Take
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import number_of, to_float32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node


def step(request: Request) -> Step:
    """Takes the base at t = 0."""
    assert request.base is not None
    t = float(request.shared["t"] or 0.0)
    return Take(-1) if to_float32(t) == 0.0 else Compute((("t", t),), (request.base, request.inputs[0]))


class Nearswap(Streamed):
    """The operation: inputs are the base and the model."""

    floats = 0

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel for one tensor."""
        from modelbuild.kernels.nearswap import nearswap

        first, second = (used.dtype for used in node.inputs)
        t = number_of(node, "t")

        def run(
            start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: NDArray[Any]
        ) -> None:
            nearswap((first, second), node.dtype, t, inputs[0], inputs[1], out)

        return run


METHOD = Method(
    name="nearswap",
    summary="interpolate more where base and model are nearer",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    version=1,
    base="required",
    inputs=(1, 1),
    parameters=(Parameter("t", "merge", "number", None, "distance at which the model is taken whole", 0.0),),
    step=step,
    operation=Nearswap,
)
