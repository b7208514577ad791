"""Random numbers of the normal and of a uniform distribution, and noise that is added to a tensor.

An element's uniform number u is a multiple of 2⁻²⁴ in [0, 1), from its key and index alone (random.py). The middle of
its step gives x = 2u − 1 + 2⁻²⁴ in (−1, 1), exactly, and from that, in float64, rounded once to float32:

    normal:   z = √2·erfinv(x), by Giles, "Approximating the erfinv function" (2012): right to 1e-6, |z| < 5.5
    uniform:  x itself

Noise: y = (v + σ·z)·s, every operation rounded to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address, expand, shrink
from modelbuild.kernels.exponential import logarithms
from modelbuild.kernels.fma import Array, doubles, floats
from modelbuild.kernels.random import GROUP, uniforms
from modelbuild.kernels.workspace import workspace

if TYPE_CHECKING:
    from modelbuild.methods.base import Kernel
    from modelbuild.plan.node import Node

NORMAL, UNIFORM = 0, 1
SQRT2 = sqrt(2.0)
HALF_STEP = 2.0**-24
CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip
SCRATCH = BLOCK + 2 * GROUP + 3 * 2 * BLOCK + BLOCK
"""float32 values that drawing a block takes: the uniform numbers, three buffers of float64, and the result."""


@inlined
def centre(w: float) -> float:
    """The polynomial of erfinv(x)/x for w = −ln(1 − x²) below 5."""
    v = w - 2.5
    p = (CENTRE[0] * v + CENTRE[1]) * v + CENTRE[2]
    p = (p * v + CENTRE[3]) * v + CENTRE[4]
    p = (p * v + CENTRE[5]) * v + CENTRE[6]
    return (p * v + CENTRE[7]) * v + CENTRE[8]


@inlined
def tail(w: float) -> float:
    """The polynomial of erfinv(x)/x for w = −ln(1 − x²) from 5 on."""
    v: float = np.sqrt(w) - 3.0
    p = (TAIL[0] * v + TAIL[1]) * v + TAIL[2]
    p = (p * v + TAIL[3]) * v + TAIL[4]
    p = (p * v + TAIL[5]) * v + TAIL[6]
    return (p * v + TAIL[7]) * v + TAIL[8]


@inlined
def draw_block(key: int, kind: int, start: int, size: int, into: int, scratch: int) -> None:
    """Leaves at `into`, float32, the numbers of elements [start, start + size) under a key."""
    group = start // GROUP
    uniforms(key, group, (start + size - 1) // GROUP + 1 - group, scratch)
    numbers = floats(scratch + 4 * (start - group * GROUP))
    first = scratch + 4 * (BLOCK + 2 * GROUP)
    signed, logs, target = doubles(first), doubles(first + 8 * BLOCK), floats(into)
    for i in range(size):
        signed[i] = 2.0 * numbers[i] - 1.0 + HALF_STEP
    if kind == UNIFORM:
        for i in range(size):
            target[i] = np.float32(signed[i])
        return
    for i in range(size):
        logs[i] = (1.0 - signed[i]) * (1.0 + signed[i])
    logarithms(first + 8 * BLOCK, size, first + 16 * BLOCK)
    for i in range(size):
        w = -logs[i]
        p = centre(w) if w < 5.0 else tail(w)
        target[i] = np.float32(SQRT2 * p * signed[i])


@kernel("void(uint64, int64, float32, int64, int64, int64, int64, int64)")
def drawn_loop(key: int, kind: int, scale: float, start: int, count: int, out: int, code: int, scratch: int) -> None:
    """The numbers of elements [start, start + count), times `scale`, rounded into memory."""
    place = scratch + 4 * (SCRATCH - BLOCK)
    values = floats(place)
    for done in range(0, count, BLOCK):
        size = min(BLOCK, count - done)
        draw_block(key, kind, start + done, size, place, scratch)
        for i in range(size):
            values[i] = values[i] * scale
        shrink(values, out, code, done, size)


@kernel("void(uint64, float32, float32, int64, int64, int64, int64, int64, int64, int64, int64)")
def noise_loop(
    key: int,
    sigma: float,
    scale: float,
    start: int,
    place: int,
    code: int,
    out: int,
    out_code: int,
    count: int,
    values: int,
    scratch: int,
) -> None:
    """(v + σ·z)·s of elements [start, start + count), or v·s where σ is 0, rounded into memory."""
    noise_place = scratch + 4 * (SCRATCH - BLOCK)
    given, noise = floats(values), floats(noise_place)
    for done in range(0, count, BLOCK):
        size = min(BLOCK, count - done)
        expand(place, code, done, size, given)
        if sigma != np.float32(0.0):
            draw_block(key, NORMAL, start + done, size, noise_place, scratch)
            for i in range(size):
                given[i] = given[i] + sigma * noise[i]
        if scale != np.float32(1.0):
            for i in range(size):
                given[i] = given[i] * scale
        shrink(given, out, out_code, done, size)


def _room() -> int:
    return address(workspace(SCRATCH, "noise"))


def random_tensor(node: Node, key: str, kind: Literal["normal", "uniform"], scale: float) -> Kernel:
    """The kernel of a tensor of random numbers times `scale`; the key is 64 bits in hexadecimal."""
    number, factor, code = int(key, 16), np.float32(scale), CODES[node.dtype]
    chosen = NORMAL if kind == "normal" else UNIFORM

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        (target,) = places_of((out,), stop - start)
        drawn_loop(number, chosen, factor, start, stop - start, target, code, _room())

    return run


def noisy(node: Node, key: str, sigma: float, scale: float) -> Kernel:
    """The kernel of the one input of a node with noise of deviation `sigma`, times `scale`."""
    number, deviation, factor = int(key, 16), np.float32(sigma), np.float32(scale)
    code, out_code = CODES[node.inputs[0].dtype], CODES[node.dtype]

    def run(start: int, stop: int, inputs: Sequence[Array], out: Array, scratch: Array) -> None:
        count = stop - start
        place, target = places_of((*inputs, out), count)
        values = address(scratch)
        noise_loop(number, deviation, factor, start, place, code, target, out_code, count, values, _room())

    return run


def normal(key: int, start: int, stop: int) -> Array:
    """Normal random numbers of elements [start, stop) under a key of 64 bits, float32."""
    values = np.empty(stop - start, np.float32)
    drawn_loop(key, NORMAL, np.float32(1.0), start, stop - start, address(values), CODES["F32"], _room())
    return values
