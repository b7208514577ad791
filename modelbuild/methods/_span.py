"""The linear algebra of models that are known by a Gram matrix alone.

The vectors are those that kernels/vectors.py measures: with a base, each model's difference from it; without one
(`anchored`), the first model and the others' differences from it. A model, or whatever a method makes of models, is a
row of coordinates in them; many Gram matrices, one for each row of a tensor, are worked on at once. Sums run in order,
term by term: no matrix product of a library, whose order of addition is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import combinations
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

DIGITS = 2.0**-43
"""How far off, relatively, an entry of a Gram matrix may be: a float64 sum over as many elements as tensors have."""


def quiet(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Keeps numpy silent on divisions by 0 and NaN: NaN go through, and both branches of a choice are computed."""

    @wraps(function)
    def silenced(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        import numpy as np

        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return silenced


@dataclass(frozen=True, slots=True)
class Span:
    """What vectors with Gram matrices `gram` [rows, vectors, vectors] span."""

    gram: NDArray[Any]
    anchored: bool

    @property
    def size(self) -> int:
        """How many models there are, which is how many vectors."""
        return int(self.gram.shape[-1])

    def members(self) -> list[NDArray[Any]]:
        """Each model, or its difference from the base, as coordinates [rows, vectors]."""
        import numpy as np

        own = np.eye(self.size)
        if self.anchored:
            own[1:, 0] = 1.0
        return [np.broadcast_to(row, self.gram.shape[:2]) for row in own]

    def inner(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """The inner products [rows] of vectors in coordinates."""
        image = self.gram[:, :, 0] * b[:, :1]
        for k in range(1, self.size):
            image = image + self.gram[:, :, k] * b[:, k : k + 1]
        total: NDArray[Any] = a[:, 0] * image[:, 0]
        for j in range(1, self.size):
            total = total + a[:, j] * image[:, j]
        return total

    def norm(self, a: NDArray[Any]) -> NDArray[Any]:
        """The lengths [rows] of vectors in coordinates."""
        import numpy as np

        length: NDArray[Any] = np.sqrt(np.maximum(self.inner(a, a), 0.0))
        return length

    def blur(self, a: NDArray[Any]) -> NDArray[Any]:
        """The length [rows] that a vector in coordinates may seem to have though its terms cancel out exactly."""
        import numpy as np

        sizes = np.sqrt(np.maximum(np.diagonal(self.gram, axis1=1, axis2=2), 0.0)) * np.abs(a)
        total: NDArray[Any] = sizes[:, 0]
        for k in range(1, self.size):
            total = total + sizes[:, k]
        blur: NDArray[Any] = total * DIGITS**0.5
        return blur

    def coefficients(self, result: NDArray[Any]) -> NDArray[Any]:
        """What kernels/combination.py is to multiply the vectors with, so that base or first model + Σ is `result`."""
        import numpy as np

        if not self.anchored:
            return result
        return np.concatenate([result[:, :1] - 1.0, result[:, 1:]], axis=1)

    @quiet
    def lowest_cosine(self) -> float:
        """The least cosine between two models, or their differences from the base; 1 where there are none to compare.

        Near -1 two point away from each other, and what lies between them on the sphere is not well defined.
        """
        import numpy as np

        members = self.members()
        lengths = [self.norm(member) for member in members]
        lowest = 1.0
        for i, j in combinations(range(self.size), 2):
            scale = lengths[i] * lengths[j]
            cosine = self.inner(members[i], members[j])[scale > 0.0] / scale[scale > 0.0]
            lowest = min(lowest, float(np.min(cosine, initial=1.0)))
        return lowest


def weighted(vectors: Sequence[NDArray[Any]], weights: Sequence[NDArray[Any] | float]) -> NDArray[Any]:
    """Σ wᵢ·vᵢ of coordinates [rows, vectors], each weight a number or [rows], added in order."""
    import numpy as np

    total = np.zeros(vectors[0].shape)
    for vector, weight in zip(vectors, weights, strict=True):
        total = total + vector * np.asarray(weight)[..., None]
    return total


def unit_interval(cosine: NDArray[Any]) -> NDArray[Any]:
    """Cosines clamped to [-1, 1]; NaN stays."""
    import numpy as np

    clamped: NDArray[Any] = np.minimum(np.maximum(cosine, -1.0), 1.0)
    return clamped
