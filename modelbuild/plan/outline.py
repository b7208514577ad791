"""What a merge's parameters come to for each tensor, without asking whether the merge could be built.

An outline needs the names and layers of the inputs, and nothing of the method but the parameters it declares: methods
that are not built yet, vocabularies that differ and weights that sum to 0 are all the same to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from modelbuild.methods.base import Method
from modelbuild.modelfile.spec import Input, Merge, Scalar, Spec
from modelbuild.plan.adapt import spot_of, weights_at
from modelbuild.plan.chosen import donor_name, is_merged
from modelbuild.plan.fit import Misfits, Row
from modelbuild.plan.language import named_alike
from modelbuild.plan.merge import FLOAT_DTYPES, check_points, parameters, rows_of, stretches_of
from modelbuild.plan.mixture import Part, chosen, constant, expert_parts, router_names, scales
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Planned
from modelbuild.plan.values import Level, Spot, resolve


@dataclass(frozen=True, slots=True)
class Resolved:
    """The parameters of one output tensor: those of the merge, and those of each input by its name.

    `layer` None for a tensor outside the layers; `kind` is its name within the layer, else its whole name. Both
    mappings are empty for a tensor that is taken from the donor as it is.
    """

    name: str
    layer: int | None
    kind: str
    shared: Mapping[str, Scalar | None]
    inputs: Mapping[str, Mapping[str, Scalar | None]]


@dataclass(frozen=True)
class Outline:
    """The tensors of a merge with their parameters, in order, and the merge as far as others can be outlined on it."""

    planned: Planned
    resolved: tuple[Resolved, ...]


def outline(spec: Spec, merge: Merge, method: Method, inputs: Mapping[str, Planned]) -> Outline:
    """The outline of a merge; raises BuildFailed where slices or points lie outside of the layers."""
    if method.takes == "adapters":
        return _adapted(merge, method, inputs[merge.base or ""])
    if method.mixture:
        return _mixed(spec, merge, method, inputs)
    inputs = named_alike(inputs, donor_name(merge))
    misfits = Misfits(spec, merge, inputs)
    stretches = stretches_of(merge, method, inputs, misfits)
    misfits.stop()
    check_points(merge, inputs, stretches, misfits)
    misfits.stop()
    tensors: dict[str, Node] = {}
    values = {}
    for row in rows_of(merge, inputs, stretches, misfits):
        own = inputs[row.donor].tensors[row.own]
        tensors[row.name] = own
        values[row.name] = _values(merge, method, row, own, inputs[row.donor])
    planned = Planned(merge.name, "merge", tensors, inputs[next(iter(inputs))].side)
    return Outline(planned, tuple(_resolved(planned, name, *found) for name, found in values.items()))


def _values(
    merge: Merge, method: Method, row: Row, own: Node, donor: Planned
) -> tuple[Mapping[str, Scalar | None], Mapping[str, Mapping[str, Scalar | None]]]:
    if not row.inputs or not is_merged(merge, row.name, donor, row.own) or own.dtype not in FLOAT_DTYPES:
        return {}, {}
    shared, per_input = parameters(method, merge, row)
    return shared, dict(zip([entry.name for entry in row.inputs], per_input, strict=True))


def _adapted(merge: Merge, method: Method, base: Planned) -> Outline:
    """Every tensor of the base with the weight that each adapter would have there."""
    found = []
    for name in base.tensors:
        weights: Mapping[str, Mapping[str, Scalar | None]] = {}
        if is_merged(merge, name):
            listed = weights_at(method, merge, spot_of(base, name), merge.adapters)
            pairs = zip(merge.adapters, listed, strict=True)
            weights = {entry.name: {"weight": weight} for entry, weight in pairs}
        found.append(_resolved(base, name, {}, weights))
    return Outline(replace(base, name=merge.name, kind="merge"), tuple(found))


def _mixed(spec: Spec, merge: Merge, method: Method, inputs: Mapping[str, Planned]) -> Outline:
    """Every tensor of the base that the mixture has too, its routers and the tensors of its experts."""
    base = inputs[merge.base or ""]
    mixture = chosen(spec, merge, base, inputs)
    misfits = Misfits(spec, merge, inputs)
    check_points(merge, inputs, stretches_of(merge, method, inputs, misfits), misfits)
    misfits.stop()
    parts = dict(expert_parts(merge, mixture, inputs))
    replaced = {part.row.own for part in parts.values()}
    tensors = {name: node for name, node in base.tensors.items() if name not in replaced}
    values: dict[str, tuple[Mapping[str, Scalar | None], Mapping[str, Mapping[str, Scalar | None]]]] = {}
    values |= dict.fromkeys(tensors, ({}, {}))
    shared = {name: constant(method, merge, name) for name in ("gate_mode", "experts_per_token")}
    # The prompts are the whole mixture's: they are told of each of its tensors.
    prompts = {entry.name: _prompts(merge, method, entry) for entry in merge.models}
    for name, own in router_names(merge, mixture, inputs).items():
        tensors[name], values[name] = own, (shared, prompts)
    for name, part in parts.items():
        if (dense := base.tensors.get(part.row.own)) is not None:
            expert = part.row.inputs[0].name
            told = {**prompts, expert: prompts[expert] | _scales(merge, method, part)}
            tensors[name], values[name] = dense, (shared, told)
    planned = Planned(merge.name, "merge", tensors, base.side)
    return Outline(planned, tuple(_resolved(planned, name, *found) for name, found in values.items()))


def _scales(merge: Merge, method: Method, part: Part) -> dict[str, Scalar | None]:
    _, (values,) = parameters(method, merge, part.row)
    return {name: values[name] for name in scales(part.part)}


def _prompts(merge: Merge, method: Method, entry: Input) -> dict[str, Scalar | None]:
    levels = [Level(entry.parameters, Spot("", None, 0, 0)), Level(merge.parameters, Spot("", None, 0, 0))]
    declared = [method.parameter(name) for name in ("prompt", "negative_prompt")]
    found = {p.name: resolve(p, levels) for p in declared if p is not None}
    return {name: value for name, value in found.items() if value is not None}


def _resolved(
    planned: Planned,
    name: str,
    shared: Mapping[str, Scalar | None],
    inputs: Mapping[str, Mapping[str, Scalar | None]],
) -> Resolved:
    place = planned.layout.places.get(name)
    if place is None:
        return Resolved(name, None, name, shared, inputs)
    kind = place.rest if place.stack == planned.layout.main else f"{place.stack}.*.{place.rest}"
    return Resolved(name, place.layer, kind, shared, inputs)
