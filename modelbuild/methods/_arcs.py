"""Coefficients of slerp and nuslerp: interpolation along the arc between two vectors.

Both come from Shoemake's slerp (https://doi.org/10.1145/325334.325242), with the thresholds of mergekit's methods of
those names: for vectors at an angle θ, the result is sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b, of the vectors as they
are, not of unit length; where they are (nearly) on one line it is (1−t)·a + t·b. θ is found from the part of b that is
at right angles to a, so that it is right for angles near 0 and near π as well, where the cosine alone says little. Of
vectors that are opposite as far as the Gram matrix can tell, that part is made of its last digits: they are on a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelbuild.methods._angles import angle, sine_cosine
from modelbuild.methods._span import Span, quiet, unit_interval, weighted

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOT_THRESHOLD = 0.9995
"""slerp: a greater cosine, of either sign, is a line."""

LEAST_NORM = 1e-8
"""slerp: a vector no longer than this is not brought to length one."""

LEAST_NORM_NU = 1e-7
"""nuslerp: a shorter vector is divided by this."""

COLINEAR = 1e-8
"""nuslerp: a smaller sine is a line."""


@quiet
def slerp(span: Span, t: float) -> NDArray[Any]:
    """The coefficients [rows, 2] of the point at `t` between two models: 0 is the first, 1 the second."""
    import numpy as np

    first, second = span.members()
    lengths = [span.norm(first), span.norm(second)]
    scales = [np.where(length > LEAST_NORM, length, 1.0) for length in lengths]
    whole = (lengths[0] > LEAST_NORM) & (lengths[1] > LEAST_NORM)
    cosine, sine = _between(span, first / scales[0][:, None], second / scales[1][:, None], whole)
    return _along(span, t, cosine, sine, np.abs(cosine) > DOT_THRESHOLD)


@quiet
def nuslerp(span: Span, t: float) -> NDArray[Any]:
    """The coefficients [rows, 2] of the point at `t` between two models, or between their differences from the base.

    A model of length zero is at right angles to the other, as in mergekit.
    """
    import numpy as np

    first, second = span.members()
    lengths = [span.norm(first), span.norm(second)]
    scales = [np.maximum(length, LEAST_NORM_NU) for length in lengths]
    whole = (lengths[0] >= LEAST_NORM_NU) & (lengths[1] >= LEAST_NORM_NU)
    units = first / scales[0][:, None], second / scales[1][:, None]
    cosine, sine = _between(span, *units, whole)
    opposite = (cosine < 0.0) & (sine <= span.blur(units[0]) + span.blur(units[1]))
    return _along(span, t, cosine, sine, (sine * sine <= COLINEAR * COLINEAR) | opposite)


def share(first: float, second: float) -> float:
    """nuslerp's t of two weights: the second's share of both, or one half where they sum to nearly 0."""
    total = first + second
    return 0.5 if abs(total) < 1e-6 else second / total


def _between(span: Span, a: NDArray[Any], b: NDArray[Any], whole: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cosine and sine of the angle between two vectors, of length one where `whole`; else the cosine decides alone."""
    import numpy as np

    cosine = unit_interval(span.inner(a, b))
    across = span.norm(b - cosine[:, None] * a)
    return cosine, np.where(whole, across, np.sqrt(np.maximum(1.0 - cosine * cosine, 0.0)))


def _along(span: Span, t: float, cosine: NDArray[Any], sine: NDArray[Any], line: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    theta = np.where(line, 1.0, angle(sine, cosine))
    divisor = sine_cosine(theta)[0]
    before = np.where(line, 1.0 - t, sine_cosine((1.0 - t) * theta)[0] / divisor)
    after = np.where(line, t, sine_cosine(t * theta)[0] / divisor)
    return span.coefficients(weighted(span.members(), [before, after]))
