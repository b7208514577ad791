"""Exponentials and logarithms of many float64 at once, from arithmetic that every processor rounds alike.

Right to about two units in the last place. Arguments of `exponentials` below -700 count as -700; those of `logarithms`
are positive and no denormals.
"""

from __future__ import annotations

from math import factorial

from modelbuild.kernels.compile import inlined
from modelbuild.kernels.fma import doubles, integers

ROUND = float.fromhex("0x1.8p+52")
"""Added to a number of moderate size, it leaves no room for a fraction: the lower bits are the nearest whole number."""

LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
"""ln 2 as a sum whose first part has few bits: its product with an exponent is exact."""

LEAST = -700.0
BIAS = 1023
FRACTION = (1 << 52) - 1
ONE_BITS = 0x3FF0_0000_0000_0000
HALF_SQRT2_BITS = 0x3FE6_A09E_667F_3BCD
WHOLE, WHOLE_BITS = 2.0**52, 0x4330_0000_0000_0000
POWERS = tuple(1.0 / factorial(k) for k in range(14))
"""Of the series of the exponential."""

SERIES = tuple(2.0 / (2 * k + 1) for k in range(11))
"""Of the series of ln((1 + s) / (1 − s)) / s in s²."""


@inlined
def power_series(r: float) -> float:
    """The exponential of a number between -0.35 and 0.35."""
    p = POWERS[13] * r + POWERS[12]
    p = (p * r + POWERS[11]) * r + POWERS[10]
    p = (p * r + POWERS[9]) * r + POWERS[8]
    p = (p * r + POWERS[7]) * r + POWERS[6]
    p = (p * r + POWERS[5]) * r + POWERS[4]
    p = (p * r + POWERS[3]) * r + POWERS[2]
    return (p * r + POWERS[1]) * r + POWERS[0]


@inlined
def logarithm_series(square: float) -> float:
    """ln((1 + s) / (1 − s)) / s for s² up to 0.03."""
    p = SERIES[10] * square + SERIES[9]
    p = (p * square + SERIES[8]) * square + SERIES[7]
    p = (p * square + SERIES[6]) * square + SERIES[5]
    p = (p * square + SERIES[4]) * square + SERIES[3]
    p = (p * square + SERIES[2]) * square + SERIES[1]
    return p * square + SERIES[0]


@inlined
def exponentials(place: int, size: int, scratch: int) -> None:
    """Replaces `size` numbers by their exponentials; `scratch` has room for as many."""
    values, turns, bits = doubles(place), doubles(scratch), integers(scratch)
    for i in range(size):
        value = LEAST if values[i] < LEAST else values[i]
        turn = value * LOG2_E + ROUND
        turns[i] = turn
        whole = turn - ROUND
        values[i] = power_series((value - whole * LN2_HIGH) - whole * LN2_LOW)
    for i in range(size):
        bits[i] = (bits[i] + BIAS) << 52
    for i in range(size):
        values[i] = values[i] * turns[i]


@inlined
def logarithms(place: int, size: int, scratch: int) -> None:
    """Replaces `size` numbers by their natural logarithms; `scratch` has room for as many."""
    values, mantissas, exponents = doubles(place), integers(place), doubles(scratch)
    bits = integers(scratch)
    for i in range(size):
        # The exponent counts from √2/2 to √2, so that mantissas lie around 1. As the lower bits of 2⁵² + it, it is a
        # float64 without a conversion, which not every processor has for many at once.
        number = mantissas[i] + (ONE_BITS - HALF_SQRT2_BITS)
        bits[i] = (number >> 52) | WHOLE_BITS
        mantissas[i] = (number & FRACTION) + HALF_SQRT2_BITS
    for i in range(size):
        turns = exponents[i] - (WHOLE + BIAS)
        above = values[i] - 1.0
        s = above / (values[i] + 1.0)
        values[i] = turns * LN2_HIGH + (turns * LN2_LOW + s * logarithm_series(s * s))
