"""What the methods that work on singular values have in common: which tensors are matrices, how deltas get into memory.

The inputs of a node are the base and the models. A delta is Σ wᵢ·(xᵢ − B) in float64, rounded to float32 once; what a
method makes of it is a float32 too, and y = B + that, rounded to the output's dtype once. Decompositions are torch's
(methods/_spectrum.py): bound to its version and the kind of processor. Tensors that are no matrices are averaged,

    y = B + λ·Σ wᵢ·(xᵢ − B) / N        N the number of models that are left

by the loop of task_arithmetic, and free.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from modelbuild.methods._spectrum import one_thread, working_memory
from modelbuild.methods.base import Compute, Parameter, Pass, Request, Step, Take
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import nonzero, number_of, numbers_of, to_float32, weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from modelbuild.methods.base import Kernel, Survey
    from modelbuild.plan.node import Node, Params

    Passes: TypeAlias = Generator[Pass | str, None, Any]

WEIGHT = Parameter("weight", "input", "number", 1.0, "factor on this model's difference from the base")
LAMBDA = Parameter("lambda", "merge", "number", 1.0, "factor on the merged difference")
SPECTRAL = Parameter(
    "spectral", "merge", "boolean", None, nullable=True,
    help="merge by singular values, or average; by default matrices are merged, and other tensors averaged",
)  # fmt: skip

NOT_FINITE = "not all finite in a matrix, which then has no singular values, and becomes NaN as a whole"

# --- the plan ---------------------------------------------------------------------------------------------------------


def is_matrix(name: str, shape: tuple[int, ...], asked: bool | None = None) -> bool:
    """Whether a tensor is a matrix, or a stack of matrices, that is merged by singular values.

    By itself a tensor of two axes is, and of those that hold all experts of a layer (`….experts.NAME`) one of three:
    such a tensor of two axes is a stack of vectors. `asked` True makes any tensor of two or three axes one.
    """
    if asked is False or 0 in shape:
        return False
    stacked = name.split(".")[-2:-1] == ["experts"]
    return len(shape) in ((2, 3) if asked else (3,) if stacked else (2,))


def spectral_step(request: Request, own: Callable[[tuple[int, ...], int], Params | Take | None]) -> Step:
    """Drops the models at weight 0; takes the base where nothing is added to it, and a lone model that is averaged.

    `own` gives the parameters that the method adds for a matrix, by its shape and the number of models that are left,
    or what is taken instead, or None where the average is the same.
    """
    assert request.base is not None
    weights, scale = weights_of(request), float(request.shared["lambda"] or 0.0)
    kept = nonzero(weights)
    if not kept or to_float32(scale) == 0.0:
        return Take(-1)
    asked, shape = request.shared["spectral"], request.base.shape
    spectral = is_matrix(request.tensor, shape, None if asked is None else bool(asked))
    added = own(shape, len(kept)) if spectral else None
    if isinstance(added, Take):
        return added
    if added is None and len(kept) == 1 and to_float32(weights[kept[0]]) == to_float32(scale) == 1.0:
        return Take(kept[0])
    params: Params = (
        ("spectral", added is not None),
        ("weights", tuple(weights[index] for index in kept)),
        ("lambda", scale),
        *(added or ()),
    )
    return Compute(params, (request.base, *(request.inputs[index] for index in kept)), bound=added is not None)


# --- the operation ----------------------------------------------------------------------------------------------------


class Spectral(Streamed):
    """The part of the operation that is the same for all; a method adds `merge` and what that takes."""

    floats = 3

    @abstractmethod
    def merge(self, node: Node, start: int, matrix: Tensor) -> Passes:
        """Fills `matrix`, elements from `start` on of the tensor, with what is added to the base."""

    @abstractmethod
    def taken(self, node: Node) -> int:
        """The bytes that `merge` holds besides the matrix and what finding a spectrum of its own takes."""

    def surveys(self, node: Node) -> bool:
        """A matrix is decomposed first."""
        return bool(node.param("spectral"))

    def memory(self, node: Node) -> int:
        """The float32 that are added to the base, and what decomposing one matrix takes."""
        if not self.surveys(node):
            return 0
        return 4 * node.count + working_memory(*node.shape[-2:]) + self.taken(node)

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel | Survey:
        """The kernel of the average, or the survey that decomposes."""
        if self.surveys(node):
            return self._survey(node)
        from modelbuild.kernels.combine import task_arithmetic

        return task_arithmetic(node, float(len(node.inputs) - 1))

    def _survey(self, node: Node) -> Survey:
        import torch

        # Memory of torch's own lies at whole cache lines, on which the last bit of a product may depend.
        delta = torch.empty(node.count, dtype=torch.float32, device="cpu")
        rows, columns = node.shape[-2:]
        for start in range(0, node.count, rows * columns):
            yield from self.merge(node, start, delta[start : start + rows * columns].view(rows, columns))
        return _added(node, delta.numpy())


def difference(node: Node, first: int, matrix: Tensor, models: Sequence[tuple[int, float]]) -> Passes:
    """Fills `matrix`, elements from `first` on, with the sum of differences from the base: inputs with factors.

    Gives whether all of it is finite.
    """
    import numpy as np

    from modelbuild.kernels.convert import widen

    flat = matrix.view(-1).numpy()
    chosen = (0, *(index for index, _ in models))
    dtypes = [node.inputs[index].dtype for index in chosen]

    def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
        base, *others = (widen(raw, dtype).astype(np.float64) for raw, dtype in zip(inputs, dtypes, strict=True))
        total = np.zeros(stop - start)
        with np.errstate(all="ignore"):
            for other, (_, factor) in zip(others, models, strict=True):
                total += factor * (other - base)
            flat[start - first : stop - first] = total

    yield Pass(look, ((first, first + matrix.numel()),), inputs=chosen)
    with one_thread():
        return bool(matrix.isfinite().all())


def weights_in(node: Node) -> tuple[float, ...]:
    """The weights of a node's models, as float32 has them."""
    return tuple(to_float32(weight) for weight in numbers_of(node, "weights"))


def scale_in(node: Node) -> float:
    """The factor on the merged difference, as float32 has it."""
    return to_float32(number_of(node, "lambda"))


def _added(node: Node, delta: NDArray[Any]) -> Kernel:
    """The kernel that adds a float32 to the base, which stays as it is where that is 0."""
    import numpy as np

    from modelbuild.kernels.convert import narrow, widen

    dtype = node.inputs[0].dtype

    def run(start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: NDArray[Any]) -> None:
        values, change = widen(inputs[0], dtype), delta[start:stop]
        with np.errstate(all="ignore"):
            np.add(values, change, out=values, where=change != 0)
        # Of two NaN it is not defined whose bits stay.
        values[np.isnan(change)] = np.nan
        out[:] = narrow(values, node.dtype)

    return run
