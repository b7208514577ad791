"""What the methods with a `weight` on each input share: reading the weights and deciding which inputs count."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelbuild.methods.base import Request

if TYPE_CHECKING:
    from modelbuild.plan.node import Node

LANES = 8
"""Sums that are formed side by side where there are that many weights."""


def weights_of(request: Request) -> tuple[float, ...]:
    """The `weight` of every input, as float64, in order."""
    return tuple(float(values["weight"] or 0.0) for values in request.per_input)


def nonzero(weights: Sequence[float]) -> tuple[int, ...]:
    """The indexes of the weights that are not 0 in float32, in which every kernel computes."""
    return tuple(index for index, weight in enumerate(weights) if to_float32(weight) != 0.0)


def to_float32(value: float) -> float:
    """The float32 nearest to `value`; values beyond float32's range become infinite."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return float(rounded)


def divisor(weights: Sequence[float]) -> float:
    """The sum of the weights, in float32, as every method that normalises forms it.

    Up to seven weights: four sums, of every fourth weight, what is left over going to the first; these are added in
    order. From eight on: eight such sums side by side, of every eighth weight; what is left over is added up in order,
    then the eight. Up to four weights that is one after the other. It is the order in which torch, and so mergekit,
    adds numbers that lie side by side.
    """
    rounded = [to_float32(weight) for weight in weights]
    if len(rounded) < LANES:
        return _quarters(rounded)
    whole = len(rounded) - len(rounded) % LANES
    lanes = [_quarters(rounded[lane:whole:LANES]) for lane in range(LANES)]
    return _in_order([*rounded[whole:], *lanes])


def bad_divisor(weights: Sequence[float], tiny: float = 0.0) -> str | None:
    """Why nothing can be divided by the sum of these weights: 0, below `tiny`, or infinite; None if it can."""
    total = divisor(weights)
    if total == 0.0 or abs(total) < tiny:
        return "its normalised weights sum to 0"
    return "its weights sum to more than float32 holds" if total - total else None


def divisor_of(node: Node) -> float:
    """What the weighted sum of a node is divided by: the sum of its weights with `normalize`, else 1."""
    weights = node.param("weights")
    assert isinstance(weights, tuple)
    if not node.param("normalize"):
        return 1.0
    return divisor([weight for weight in weights if isinstance(weight, (int, float))])


def number_of(node: Node, name: str) -> float:
    """A parameter of a node that is a number."""
    value = node.param(name)
    assert isinstance(value, (int, float))
    return float(value)


def numbers_of(node: Node, name: str) -> tuple[float, ...]:
    """A parameter of a node that is a tuple of numbers."""
    values = node.param(name)
    assert isinstance(values, tuple)
    return tuple(float(value) for value in values if isinstance(value, (int, float)))


def _quarters(values: Sequence[float]) -> float:
    whole = len(values) - len(values) % 4
    sums = [_in_order(values[place:whole:4]) for place in range(4)]
    return _in_order([_in_order([sums[0], *values[whole:]]), *sums[1:]])


def _in_order(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total = to_float32(total + value)
    return total
