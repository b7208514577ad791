"""Sine, cosine and the angle of two vectors, in float64, from additions, multiplications, divisions and roots alone.

Those are rounded the same on every processor, what a library of mathematics gives is not. Series of Taylor, after the
argument is brought near 0; right to about 2e-16 for arguments up to a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

PI = float.fromhex("0x1.921fb54442d18p+1")
HALF_PI = PI / 2
HALF_PI_PARTS = tuple(
    float.fromhex(part) for part in ("0x1.921fb54400000p+0", "0x1.0b4611a600000p-34", "0x1.3198a2e037073p-69")
)
"""π/2 as a sum whose first two parts have 33 bits: their products with whole numbers up to a million are exact."""

SINE = tuple((-1) ** k / factorial(2 * k + 1) for k in range(9))
COSINE = tuple((-1) ** k / factorial(2 * k) for k in range(10))
ARCTANGENT = tuple((-1) ** k / (2 * k + 1) for k in range(12))
"""Coefficients of the series, in powers of x²."""


def _series(coefficients: Sequence[float], square: NDArray[Any]) -> NDArray[Any]:
    total: NDArray[Any] = square * 0.0 + coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * square + coefficient
    return total


def sine_cosine(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The sines and cosines of angles."""
    import numpy as np

    turns = np.rint(x / HALF_PI)
    rest = x
    for part in HALF_PI_PARTS:
        rest = rest - turns * part
    square = rest * rest
    sine, cosine = rest * _series(SINE, square), _series(COSINE, square)
    quarter = turns - 4.0 * np.floor(turns / 4.0)
    swapped = (quarter == 1.0) | (quarter == 3.0)
    return (
        np.where(swapped, cosine, sine) * np.where(quarter >= 2.0, -1.0, 1.0),
        np.where(swapped, sine, cosine) * np.where((quarter == 1.0) | (quarter == 2.0), -1.0, 1.0),
    )


def angle(sine: NDArray[Any], cosine: NDArray[Any]) -> NDArray[Any]:
    """The angles in [0, π] with these sines, none negative, and cosines, which need not be of length one."""
    import numpy as np

    along = np.abs(cosine)
    low, high = np.minimum(sine, along), np.maximum(sine, along)
    slope = low / np.where(high == 0.0, 1.0, high)
    steep = slope > 0.4
    reduced = np.where(steep, (slope - 1.0) / (slope + 1.0), slope)
    half = reduced / (1.0 + np.sqrt(1.0 + reduced * reduced))
    found: NDArray[Any] = 2.0 * half * _series(ARCTANGENT, half * half)
    found = np.where(steep, found + HALF_PI / 2, found)
    found = np.where(sine > along, HALF_PI - found, found)
    return np.where(cosine < 0.0, PI - found, found)
