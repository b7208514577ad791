"""Parameter values made concrete for one tensor: gradients, points, choices, and the level that decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelbuild.modelfile.spec import Choices, Constant, Gradient, Points, Scalar, Texts, Value
from modelbuild.plan.pattern import matches

if TYPE_CHECKING:
    from modelbuild.methods.base import Parameter


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a tensor stands, as one level sees it: its name, its layer (None outside the layers), and its place in the
    slice: `index` of `count` layers."""

    name: str
    layer: int | None
    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Level:
    """The parameters written at one level (input, slice, merge) and the spot as that level sees it."""

    parameters: Mapping[str, Value]
    spot: Spot


def resolve(parameter: Parameter, levels: Sequence[Level]) -> Scalar | None:
    """The value of a parameter for one tensor: the nearest level that fits wins, then the method's default.

    None where no level decides and the method has no default.
    """
    for level in levels:
        value = level.parameters.get(parameter.name)
        if value is not None and (found := evaluate(value, level.spot)) is not None:
            return found
    return parameter.default


def evaluate(value: Value, spot: Spot) -> Scalar | None:
    """The value at a spot; None where a list of choices has no entry that fits."""
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, Texts):
        return "\n".join(value.values)
    if isinstance(value, Gradient):
        return _gradient(value.values, spot)
    if isinstance(value, Points):
        return _points(value, spot.layer)
    return _choose(value, spot)


def _choose(choices: Choices, spot: Spot) -> Scalar | None:
    for entry in choices.entries:
        if entry.match is None or matches(entry.match, spot.name):
            found = evaluate(entry.value, spot)
            if found is not None:
                return found
    return None


def _gradient(values: Sequence[float], spot: Spot) -> float:
    # As in mergekit: a slice of one layer takes the last value, tensors outside the layers the first.
    if spot.layer is None:
        return values[0]
    t = spot.index / (spot.count - 1) if spot.count > 1 else 1.0
    scaled = t * (len(values) - 1)
    low = int(scaled)
    high = min(len(values) - 1, low + 1)
    part = scaled - low
    return (1 - part) * values[low] + part * values[high]


def _points(value: Points, layer: int | None) -> float:
    if layer is None:
        return value.rest
    before = [point for point in value.points if point[0] <= layer]
    after = [point for point in value.points if point[0] > layer]
    if not before:
        return after[0][1]
    (start, low) = before[-1]
    if not after or value.shape == "step":
        return low
    (end, high) = after[0]
    part = (layer - start) / (end - start)
    if value.shape == "cosine":
        part = (1 - math.cos(math.pi * part)) / 2
    return low + (high - low) * part


def greatest_layer(value: Value) -> int | None:
    """The greatest layer that points anywhere in a value name; None without points."""
    if isinstance(value, Points):
        return max(layer for layer, _ in value.points)
    if isinstance(value, Choices):
        found = [layer for entry in value.entries if (layer := greatest_layer(entry.value)) is not None]
        return max(found, default=None)
    return None
