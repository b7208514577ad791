"""Which tensors are layers: numbers and stacks read from tensor names, so that any architecture works.

A stack is the part of a name before its first number (`model.layers` in `model.layers.3.mlp.up_proj.weight`), provided
that what follows the number names a module within the layer: `mm_projector.0.weight` is a plain sequence, not a stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

_NUMBER = re.compile(r"\.([0-9]{1,6})\.(?=.)")
_FIRST = ("embed", "embd", "embedding", "embeddings", "wte", "wpe")
_LAST = ("lm_head", "head", "output", "score", "classifier", "pooler", "embed_out", "cls", "qa_outputs", "ln_f")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor within a layer: the stack's prefix, the layer's number, and the rest of the name."""

    stack: str
    layer: int
    rest: str

    def name(self, layer: int) -> str:
        """The full name of the same tensor in another layer."""
        return f"{self.stack}.{layer}.{self.rest}"


@dataclass(frozen=True)
class Layout:
    """The stacks of a model: for each prefix its number of layers and bytes; and each tensor's place in a layer."""

    stacks: Mapping[str, int]
    places: Mapping[str, Place]
    weight: Mapping[str, int]
    chosen: str | None = None

    @cached_property
    def main(self) -> str | None:
        """The stack that slices speak of: the one `chosen`, else the one with most bytes (of equals, the first)."""
        if self.chosen is not None or not self.stacks:
            return self.chosen
        return min(self.stacks, key=lambda prefix: (-self.weight[prefix], prefix))

    @cached_property
    def by_layer(self) -> Mapping[int, Sequence[Place]]:
        """The places of the main stack, by layer."""
        found: dict[int, list[Place]] = {}
        for place in self.places.values():
            if place.stack == self.main:
                found.setdefault(place.layer, []).append(place)
        return found

    @property
    def layers(self) -> int:
        """The number of layers of the main stack; 0 without one."""
        return self.stacks[self.main] if self.main is not None else 0

    @property
    def depth(self) -> int:
        """The number of layers of the deepest stack; 0 without one."""
        return max(self.stacks.values(), default=0)

    def count(self, place: Place | None) -> int:
        """The number of layers of the stack that `place` is in."""
        return self.stacks[place.stack] if place is not None else 0


def layout(sizes: Mapping[str, int]) -> Layout:
    """The layout of a model with these tensors (name to bytes)."""
    candidates = {name: found for name in sizes if (found := _first_number(name)) is not None}
    real = {place.stack for place in candidates.values() if "." in place.rest}
    places = {name: place for name, place in candidates.items() if place.stack in real}
    stacks: dict[str, int] = {}
    weight: dict[str, int] = {}
    for name, place in places.items():
        stacks[place.stack] = max(stacks.get(place.stack, 0), place.layer + 1)
        weight[place.stack] = weight.get(place.stack, 0) + sizes[name]
    return Layout(stacks, places, weight)


def _first_number(name: str) -> Place | None:
    found = _NUMBER.search(name)
    if found is None or not found.start():
        return None
    return Place(name[: found.start()], int(found[1]), name[found.end() :])


def comes_last(name: str) -> bool:
    """Whether a tensor outside the layers comes after them (final norm, head) rather than before (embeddings)."""
    parts = name.split(".")
    words = [word for part in parts for word in part.split("_")]
    if any(part in _LAST for part in parts):
        return True
    if any(word in _FIRST for word in words):
        return False
    return any("norm" in part or part.startswith("final") for part in parts)
