"""Singular values and what spectral methods make of them: matrices of torch, worked on in place, by one thread.

A decomposition is found from the Gram matrix G of the smaller side, G = MMᵀ for a matrix M of more columns than rows,
in float64: its eigenvectors are singular vectors of M, its eigenvalues the squares of singular values. Of a float32
matrix that is nearer to the truth than a decomposition in float32, the published one, and cheaper, the more so the
longer the matrix. With singular values from 1 down to 1e-4 what is made of them is right to 1e-8 of its norm, down to
1e-6 to 1e-4 (float32: 1e-4 and 1e-2); tests/test_method_spectra.py holds it to that.

A singular value below 2⁻²⁰ of the largest counts as 0, and has no vectors: float32 cannot tell it from rounding, and
its direction would be arbitrary.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEGLIGIBLE = 2.0**-20
"""What a singular value is compared with, relative to the largest."""

STRIP = 1024
"""Rows or columns that are in float64 at a time; part of what the results depend on."""

_lock = threading.Lock()
_inside, _before = 0, 1


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in torch for whoever calls: products must not depend on how many there are.

    That is a setting of each thread and what new ones begin with: the last to leave puts back what it was.
    """
    global _inside, _before
    import torch

    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of a matrix that are not 0, from small to large [rank], and their vectors on its smaller
    side [side, rank], all float64."""

    values: Tensor
    vectors: Tensor


def spectrum(matrix: Tensor) -> Spectrum:
    """The spectrum of a finite matrix [rows, columns] with elements; BuildFailed if it cannot be found."""
    import torch

    gram = _gram(matrix)
    try:
        squares, vectors = torch.linalg.eigh(gram)
    except RuntimeError as error:
        from modelbuild.errors import BuildFailed

        facts = [f"a delta of {list(matrix.shape)} has no singular values that torch finds", str(error)]
        raise BuildFailed("a matrix could not be decomposed", facts=facts) from error
    values = squares.clamp(min=0.0).sqrt()
    rank = int((values > NEGLIGIBLE * values[-1]).sum())
    return Spectrum(values[len(values) - rank :], vectors[:, len(values) - rank :])


def flatten(matrix: Tensor, scale: float) -> None:
    """Puts `scale` times the mean of all singular values in the place of each that is not 0."""
    found = spectrum(matrix)
    mean = math.fsum(found.values.tolist()) / min(matrix.shape)
    _transform(matrix, (found.vectors * (scale * mean / found.values)) @ found.vectors.T)


def orthonormalize(matrix: Tensor) -> None:
    """Puts 1 in the place of each singular value that is not 0: the nearest matrix with orthonormal columns or rows."""
    found = spectrum(matrix)
    _transform(matrix, (found.vectors / found.values) @ found.vectors.T)


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The singular vectors [rows, r], values [r] and vectors [columns, r] of the largest values, at most `rank`."""
    vectors = spectrum(matrix).vectors
    own = vectors[:, max(0, vectors.shape[1] - rank) :]
    other = matrix.new_empty((max(matrix.shape), own.shape[1]), dtype=own.dtype)
    long = matrix.T if _is_wide(matrix) else matrix
    for start in range(0, len(long), STRIP):
        other[start : start + STRIP] = long[start : start + STRIP].double() @ own
    # Their lengths are the values, and have more digits than roots of eigenvalues.
    values = other.norm(dim=0)
    other /= values
    return (own, values, other) if _is_wide(matrix) else (other, values, own)


def recombine(left: Tensor, values: Tensor, right: Tensor, into: Tensor) -> None:
    """Fills the matrix `into` with left·diag(values)·rightᵀ."""
    for start in range(0, len(into), STRIP):
        into[start : start + STRIP] = (left[start : start + STRIP] * values) @ right.T


def working_memory(rows: int, columns: int) -> int:
    """The bytes that finding a spectrum and a product with what comes of it take, besides the matrix."""
    side = min(rows, columns)
    return 8 * side * (5 * side + 3 * min(STRIP, max(rows, columns)))


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _gram(matrix: Tensor) -> Tensor:
    """The products of all pairs of rows, or of columns where there are fewer, added up strip by strip."""
    long = matrix.T if _is_wide(matrix) else matrix
    side = min(matrix.shape)
    gram = matrix.new_zeros((side, side)).double()
    for start in range(0, len(long), STRIP):
        strip = long[start : start + STRIP].double()
        gram.addmm_(strip.T, strip)
    return gram


def _transform(matrix: Tensor, symmetric: Tensor) -> None:
    """Multiplies by a symmetric matrix on the smaller side."""
    long = matrix.T if _is_wide(matrix) else matrix
    for start in range(0, len(long), STRIP):
        long[start : start + STRIP] = long[start : start + STRIP].double() @ symmetric
