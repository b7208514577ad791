"""Whether the inputs of a merge fit each other; every misfit is collected, with the facts, before the plan stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from modelbuild.dtypes import FLOATS
from modelbuild.errors import BuildFailed, Fault
from modelbuild.modelfile.spec import Input, Merge, Path, Slice, Spec
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Planned
from modelbuild.plan.values import Spot

Shapes: TypeAlias = "Mapping[str, tuple[int, ...]]"

LAYERS = "it has another number of layers"

SHOWN = 5
"""How many tensors of one kind of misfit are named."""


@dataclass(frozen=True, slots=True)
class Row:
    """An output tensor and the input tensors that meet in it.

    `own` is the tensor's name in the donor; `sources` its name in each input, `spots` where each input sees it, and
    `spot` where the output does.
    """

    name: str
    own: str
    base: str | None
    donor: str
    inputs: tuple[Input, ...]
    sources: tuple[str, ...]
    spots: tuple[Spot, ...]
    spot: Spot
    part: Slice | None


class Misfits:
    """Collects what does not fit in one merge, and stops the plan with all of it.

    `selecting`: whether `only`, `copy` and `slices` may leave tensors out of the merge, as hints say.
    """

    def __init__(self, spec: Spec, merge: Merge, inputs: Mapping[str, Planned], selecting: bool = True) -> None:
        self.spec = spec
        self.merge = merge
        self.inputs = inputs
        self._selecting = selecting
        self.notes: list[str] = []
        self._faults: list[Fault] = []
        self._lists: dict[tuple[str, str], list[str]] = {}
        self._buffers: dict[str, list[str]] = {}
        self._paths: dict[str, Path] = {entry.name: entry.path for entry in _entries(merge)}

    def stop(self) -> None:
        """Raises BuildFailed if anything was collected."""
        for (message, name), facts in sorted(self._lists.items(), key=lambda item: LAYERS not in item[0][0]):
            shown = facts[:SHOWN] + ([f"and {len(facts) - SHOWN} more"] if len(facts) > SHOWN else [])
            hint = _hint(message, bool(self.merge.slices)) if self._selecting else None
            self._add(message, name, shown, hint)
        self._lists.clear()
        if self._faults:
            raise BuildFailed(self._faults)

    def _add(self, message: str, name: str, facts: Sequence[str], hint: str | None = None) -> None:
        path = self._paths.get(name, ("merge", self.merge.name))
        self._faults.append(Fault(message, self.spec.where(*path), tuple(facts), hint))

    def _note(self, message: str, name: str, fact: str) -> None:
        facts = self._lists.setdefault((message, name), [])
        if fact not in facts[-1:]:
            facts.append(fact)

    def check_range(self, entry: Input | None, planned: Planned, start: int, end: int, number: int) -> None:
        """The range of a slice, the one with this number from 1 on, must lie inside the model's layers."""
        have = planned.layout.layers
        if end <= have:
            return
        facts = [f"it takes layers {start} to {end - 1}", f"`{planned.name}` has layers 0 to {have - 1}"]
        if not have:
            facts[1] = f"no layers were found in the tensor names of `{planned.name}`"
        message = f"entry {number} of `slices` in [merge.{self.merge.name}] reaches past the layers of `{planned.name}`"
        where = self.spec.where(*(entry.path if entry is not None else ("merge", self.merge.name)))
        self._faults.append(Fault(message, where, tuple(facts), "ranges are half-open: [0, 16] is layers 0 to 15"))

    def check_layer(self, layer: int | None, count: int, path: Path, whose: str) -> None:
        """Points must lie inside the model."""
        if layer is None or layer < count:
            return
        facts = (f"the last point is at layer {layer}", f"{whose} has {count} layers, numbered from 0")
        self._faults.append(Fault(f"points reach past the layers of {whose}", self.spec.where(*path), facts))

    def extra(self, other: str, donor: str, names: Sequence[str]) -> None:
        """Tensors that an input has and the donor has not."""
        message = f"`{other}` does not fit `{donor}` in merge `{self.merge.name}`: it has tensors that `{donor}` lacks"
        for name in names:
            if not self._beyond(name, other, donor, other, donor):
                own = self.inputs[other].aliases.get(name, name)
                self._note(message, other, f"`{own}` is only in `{other}`")

    def other_layers(self, other: str, donor: str, layer: int, mine: Shapes, theirs: Shapes) -> None:
        """A layer that a slice takes from an input, and that is of no kind that the donor of config.json has."""
        message = f"`{other}` does not fit `{donor}` in merge `{self.merge.name}`: its layers are of another kind"
        for rest in sorted({*mine, *theirs}):
            shapes = [f"{list(found[rest])}" if rest in found else "missing" for found in (mine, theirs)]
            if shapes[0] != shapes[1]:
                self._note(
                    message, other, f"`{rest}` is {shapes[0]} in layer {layer} of `{other}`, {shapes[1]} in `{donor}`"
                )

    def _beyond(self, name: str, there: str, lacking: str, other: str, donor: str) -> bool:
        """Whether a tensor is missing because one model has fewer layers; that is told once, not for each tensor."""
        place = self.inputs[there].layout.places.get(name)
        have = self.inputs[lacking].layout.stacks
        if self.merge.slices or place is None or place.layer < have.get(place.stack, place.layer + 1):
            return False
        counts = [f"`{model}` has {self.inputs[model].layout.stacks[place.stack]}" for model in (donor, other)]
        stacks = {**self.inputs[there].layout.stacks, **have}
        where = f" in `{place.stack}`" if len(stacks) > 1 else ""
        message = f"`{other}` does not fit `{donor}` in merge `{self.merge.name}`: {LAYERS}"
        self._note(message, other, f"{counts[0]} layers{where}, {counts[1]}")
        return True

    def taken(self, row: Row) -> None:
        """A buffer that loading computes anew and that is the donor's, whatever the other inputs have."""
        message = f"buffers that loading computes anew are those of `{row.donor}`"
        self._buffers.setdefault(message, []).append(row.name)

    def left_out(self, other: str, names: Sequence[str]) -> None:
        """Buffers that loading computes anew and that only another input than the donor has."""
        if names:
            message = f"buffers that loading computes anew, and that only `{other}` has, are left out"
            self._buffers.setdefault(message, []).extend(names)

    def buffer_notes(self) -> list[str]:
        """A sentence for what was done with buffers of each model."""
        return [
            f"{message}: `{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for message, names in self._buffers.items()
        ]

    def row(self, row: Row, own: Node, nodes: Sequence[Node | None]) -> bool:
        """Whether something about the row does not fit: a missing tensor, another shape, or no numbers to merge."""
        wrong = False
        for entry, source, node in zip(row.inputs, row.sources, nodes, strict=True):
            if node is None:
                if not self._beyond(row.own, row.donor, entry.name, entry.name, row.donor):
                    self.missing(source, row.donor, entry.name)
            elif node.shape != own.shape:
                self.shape(row.name, row.donor, entry.name, own, node)
            elif own.dtype in FLOATS.values() and node.dtype not in FLOATS.values():
                self.differ(row, entry.name, other_dtype(row, own, entry.name, node))
            else:
                continue
            wrong = True
        return wrong

    def missing(self, name: str, donor: str, other: str) -> None:
        """A tensor that the donor has and another input has not."""
        message = f"`{other}` does not fit `{donor}` in merge `{self.merge.name}`: tensors are missing"
        self._note(message, other, f"`{name}` is not in `{other}`")

    def shape(self, name: str, donor: str, other: str, own: Node, node: Node) -> None:
        """A tensor that is `own` in the donor, and of another shape in another input."""
        message = f"`{other}` does not fit `{donor}` in merge `{self.merge.name}`: shapes differ"
        fact = f"`{name}` is {list(own.shape)} in `{donor}` and {list(node.shape)} in `{other}`"
        if is_vocabulary(name) and own.shape[1:] == node.shape[1:]:
            message = f"`{other}` and `{donor}` have different vocabularies"
            fact = f"`{name}` has {own.shape[0]} rows in `{donor}`, {node.shape[0]} in `{other}`"
        self._note(message, other, fact)

    def foreign(self, other: str, kind: str, name: str) -> None:
        """A tensor of the base of a mixture of experts for which that has no place."""
        self._note(f"`{other}` has tensors that a layer of {kind} has not", other, f"`{name}`")

    def unset(self, row: Row, labels: Sequence[str]) -> None:
        """Parameters that no level gives a value for this tensor."""
        for label in labels:
            self._note(f"no value for {label} in merge `{self.merge.name}`", "", f"`{row.name}`")

    def refused(self, row: Row, reason: str) -> None:
        """The method refuses the parameters for this tensor."""
        self._note(f"merge `{self.merge.name}` cannot compute some tensors", "", f"`{row.name}`: {reason}")

    def differ(self, row: Row, other: str, fact: str) -> None:
        """Tensors of a dtype that is not computed with, and that are not the same."""
        message = f"`{other}` and `{row.donor}` differ in tensors that cannot be merged"
        self._note(message, other, fact)


_VOCABULARY = frozenset({
    "embed_tokens", "embed_tokens_per_layer", "wte", "word_embeddings", "embed_in", "embed_out", "tok_embeddings",
})  # fmt: skip


def is_vocabulary(name: str) -> bool:
    """Whether a tensor's rows are tokens by its module's name: embeddings and heads, and no other tensor beside them
    (`word_embeddings_layernorm`, `lm_head.dense`)."""
    module = (name.split(".") if "." in name else [name, ""])[-2]
    return module in _VOCABULARY or module.endswith("lm_head")


def agree_exactly(row: Row, own: Node, nodes: Sequence[Node], misfits: Misfits) -> None:
    """Tensors of a dtype that is not computed with must be the same in all inputs."""
    from modelbuild.sources.compare import same_bytes

    for entry, node in zip(row.inputs, nodes, strict=True):
        if node.key == own.key:
            continue
        if node.dtype != own.dtype:
            misfits.differ(row, entry.name, other_dtype(row, own, entry.name, node))
        elif own.source is None or node.source is None or not same_bytes(own.source, node.source):
            misfits.differ(row, entry.name, f"`{row.name}` ({own.dtype}) has other values in `{entry.name}`")


def other_dtype(row: Row, own: Node, other: str, node: Node) -> str:
    """The fact that two tensors have dtypes that do not go together."""
    return f"`{row.name}` is {own.dtype} in `{row.donor}`, {node.dtype} in `{other}`"


def _entries(merge: Merge) -> list[Input]:
    return [*merge.models, *merge.adapters, *(entry for part in merge.slices for entry in part.models)]


def _hint(message: str, sliced: bool) -> str | None:
    if "vocabularies" in message and sliced:
        return "take both ends from one model: ends = NAME"
    if "vocabularies" in message:
        choice = 'choose a vocabulary: tokenizer = "union", "base" or the name of an input'
        return f'{choice}; or leave these tensors to the donor: copy = ["embed_tokens", "lm_head"]'
    if "missing" in message or "lacks" in message:
        return "restrict the merge to what both have (only = [PATTERN]), or take it from the donor (copy = [PATTERN])"
    if "cannot be merged" in message:
        return "only BF16, F16 and F32 are computed with; take them from the donor: copy = [PATTERN]"
    if LAYERS in message:
        return "choose equally many layers of each with `slices`"
    if "no value for" in message:
        return "add an entry without `match` that fits everything else, or set it on the merge"
    return None
