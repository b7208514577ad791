"""From `[merge.NAME]` to a node for each tensor: rows of matching tensors, their parameters, the method's decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from modelbuild.methods.base import Compute, Method, Refuse, Request, Take
from modelbuild.modelfile.spec import Input, Merge, Scalar, Slice, Spec
from modelbuild.plan.bound import class_of
from modelbuild.plan.chosen import deepest, donor_name, idle_patterns, is_merged, left_to_donor
from modelbuild.plan.fit import Misfits, Row, agree_exactly
from modelbuild.plan.language import named_alike
from modelbuild.plan.layout import Place, comes_last
from modelbuild.plan.node import FLOATS, Node, cast, operation_node
from modelbuild.plan.other_tokens import other_tokens
from modelbuild.plan.overrides import overridden
from modelbuild.plan.planned import Decision, Planned, Side
from modelbuild.plan.token_tensors import with_heads
from modelbuild.plan.values import Level, Spot, greatest_layer, resolve
from modelbuild.plan.vocabulary import Aligned, align
from modelbuild.sources.buffers import is_recomputed

FLOAT_DTYPES = frozenset(FLOATS.values())


@dataclass(frozen=True, slots=True)
class Stretch:
    """A slice as planned: its inputs with the layer each starts at, and the output layers it makes.

    `donor` is the input whose tensors say which there are; it starts at `donor_start`, as the base does where there is
    one. Without slices one stretch, with no `part`, is the whole model.
    """

    part: Slice | None
    inputs: tuple[Input, ...]
    starts: tuple[int, ...]
    donor_start: int
    first: int
    count: int
    donor: str


def plan_merge(spec: Spec, merge: Merge, method: Method, inputs: Mapping[str, Planned]) -> Planned:
    """The merge with a node for each of its tensors; `inputs` are the planned artifacts it names.

    Raises BuildFailed with every misfit: missing or extra tensors, shapes, layer counts, refused parameters.
    """
    alike = named_alike(inputs, donor_name(merge))
    aligned = align(spec, merge, with_heads(alike, donor_name(merge)), donor_name(merge))
    inputs = aligned.inputs
    misfits = Misfits(spec, merge, inputs)
    stretches = stretches_of(merge, method, inputs, misfits)
    misfits.stop()
    check_points(merge, inputs, stretches, misfits)
    numerics = class_of(spec, merge, method)
    tensors: dict[str, Node] = {}
    decisions: dict[str, Decision] = {}
    for row in rows_of(merge, inputs, stretches, misfits):
        node, decision = _tensor(spec, merge, method, row, misfits, aligned, numerics)
        tensors[row.name] = node
        decisions[row.name] = aligned.told(decision)
    misfits.stop()
    unlike = other_tokens(merge, inputs, tensors, donor_name(merge))
    notes = (*aligned.notes, *unlike, *misfits.notes, *idle_patterns(merge, tensors), *misfits.buffer_notes())
    notes += left_to_donor(merge, inputs)
    return Planned(merge.name, "merge", tensors, _side(merge, aligned.side, stretches), decisions, notes)


def _side(merge: Merge, side: Side, stretches: Sequence[Stretch]) -> Side:
    layers = side.layers
    if merge.slices:
        chosen = [s.donor_start + i for s in stretches for i in range(s.count)]
        before = side.layers
        layers = tuple(before[layer] if before is not None else layer for layer in chosen)
    return overridden(replace(side, layers=layers), merge)


# --- which tensors meet which -----------------------------------------------------------------------------------------


def stretches_of(merge: Merge, method: Method, inputs: Mapping[str, Planned], misfits: Misfits) -> tuple[Stretch, ...]:
    """The stretches of output layers, in order: one for each slice, or one for all."""
    if not merge.slices:
        entries = merge.models
        return (Stretch(None, entries, (0,) * len(entries), 0, 0, 0, donor_name(merge)),)
    # A method that has no notion of a base takes every model of a slice as an input, and the base as the donor only.
    base = merge.base if method.base != "none" else None
    result = []
    first = 0
    for number, part in enumerate(merge.slices, 1):
        ranges = [(entry.layers or part.layers or (0, 0)) for entry in part.models]
        for entry, (start, end) in zip(part.models, ranges, strict=True):
            misfits.check_range(entry, inputs[entry.name], start, end, number)
        own = [span for entry, span in zip(part.models, ranges, strict=True) if entry.name == base]
        # The base takes its own range where the slice names it, else the slice's, else that of the first model.
        span = ranges[0] if base is None else own[0] if own else part.layers or ranges[0]
        if base is not None:
            misfits.check_range(None, inputs[base], *span, number)
        kept = [pair for pair in zip(part.models, ranges, strict=True) if pair[0].name != base]
        count = ranges[0][1] - ranges[0][0]
        starts = tuple(start for _, (start, _) in kept)
        entries = tuple(entry for entry, _ in kept)
        result.append(Stretch(part, entries, starts, span[0], first, count, base or part.models[0].name))
        first += count
    return tuple(result)


def rows_of(
    merge: Merge, inputs: Mapping[str, Planned], stretches: Sequence[Stretch], misfits: Misfits
) -> Iterator[Row]:
    """Each output tensor with the input tensors that meet in it, in the order of the donor's tensors."""
    if not merge.slices:
        yield from _whole_rows(merge, inputs, stretches[0], misfits)
        return
    first, last = merge.ends or (stretches[0].donor, stretches[-1].donor)
    before = [n for n in inputs[first].tensors if not _in_main(inputs[first], n) and not _comes_last(inputs[first], n)]
    after = [n for n in inputs[last].tensors if not _in_main(inputs[last], n) and _comes_last(inputs[last], n)]
    _check_ends(merge, inputs, first, before, False, misfits)
    _check_ends(merge, inputs, last, after, True, misfits)
    yield from (_end_row(merge, stretches[0], first, name) for name in before)
    for stretch in stretches:
        yield from _layer_rows(merge, inputs, stretch, misfits)
    yield from (_end_row(merge, stretches[-1], last, name) for name in after)
    for stretch, behind in ((stretches[0], False), (stretches[-1], True)):
        for other in (inputs[entry.name] for entry in stretch.inputs if merge.ends is None):
            pairs = [(n, n) for n in other.tensors if not _in_main(other, n) and _comes_last(other, n) == behind]
            _note_extra(merge, inputs, other.name, stretch.donor, pairs, misfits)


def _check_ends(
    merge: Merge, inputs: Mapping[str, Planned], name: str, ends: Sequence[str], last: bool, misfits: Misfits
) -> None:
    """What lies before or after the layers must be what config.json, which may be another model's, speaks of."""
    own, donor = inputs[name], inputs[donor_name(merge)]
    if own is donor:
        return
    for tensor in ends:
        there = donor.tensors.get(tensor)
        if there is not None and there.shape != own.tensors[tensor].shape and not _is_buffer(own, tensor):
            misfits.shape(tensor, donor.name, name, there, own.tensors[tensor])
    wanted = [n for n in donor.tensors if not _in_main(donor, n) and _comes_last(donor, n) == last]
    for tensor in (n for n in wanted if n not in own.tensors and not _is_buffer(donor, n)):
        misfits.missing(tensor, donor.name, name)
    misfits.extra(name, donor.name, [n for n in ends if n not in donor.tensors and not _is_buffer(own, n)])


def _in_main(planned: Planned, name: str) -> bool:
    place = planned.layout.places.get(name)
    return place is not None and place.stack == planned.layout.main


def _comes_last(planned: Planned, name: str) -> bool:
    """Whether a tensor outside the layers comes after them: what is not language stays together, before them."""
    return comes_last(name) and (planned.language is None or name in planned.language)


def _whole_rows(merge: Merge, inputs: Mapping[str, Planned], stretch: Stretch, misfits: Misfits) -> Iterator[Row]:
    donor = inputs[donor_name(merge)]
    names = [entry.name for entry in stretch.inputs]
    for name in donor.tensors:
        place = donor.layout.places.get(name)
        index = place.layer if place is not None else 0
        spot = Spot(name, place.layer if place is not None else None, index, donor.layout.count(place))
        spots = tuple(replace(spot, name=inputs[other].aliases.get(name, name)) for other in names)
        yield Row(name, name, merge.base, donor.name, stretch.inputs, (name,) * len(names), spots, spot, None)
    for other in dict.fromkeys(names):
        _note_extra(merge, inputs, other, donor.name, [(n, n) for n in inputs[other].tensors], misfits)


def _note_extra(
    merge: Merge, inputs: Mapping[str, Planned], other: str, donor: str, names: Sequence[tuple[str, str]],
    misfits: Misfits,
) -> None:  # fmt: skip
    """Notes tensors of `other`, given by their names in it and in the donor, that would meet none of the donor's."""
    have = inputs[donor].tensors
    extra = [own for own, there in names if there not in have and is_merged(merge, own, inputs[other])]
    buffers = {own for own in extra if _is_buffer(inputs[other], own)}
    misfits.left_out(other, [own for own in extra if own in buffers])
    if extra := [own for own in extra if own not in buffers]:
        misfits.extra(other, donor, extra)


def _is_buffer(planned: Planned, name: str) -> bool:
    """Whether a tensor is a buffer that loading computes anew, as an old checkpoint may have it: it is the donor's or
    left out, and need not be in every input."""
    return is_recomputed(name, planned.tensors[name].shape)


def _layer_rows(merge: Merge, inputs: Mapping[str, Planned], stretch: Stretch, misfits: Misfits) -> Iterator[Row]:
    donor, first = inputs[stretch.donor], inputs[donor_name(merge)]
    assert stretch.part is not None
    by_layer = donor.layout.by_layer
    kinds = [_kind(first, places) for places in first.layout.by_layer.values()] if donor is not first else []
    for index in range(stretch.count):
        places = by_layer.get(stretch.donor_start + index, ())
        if kinds and (kind := _kind(donor, places)) not in kinds:
            misfits.other_layers(donor.name, first.name, stretch.donor_start + index, dict(kind), dict(kinds[0]))
        for place in places:
            out = in_layer(first, place, stretch.first + index)
            spot = Spot(out, stretch.first + index, index, stretch.count)
            sources = [
                in_layer(inputs[e.name], place, s + index) for e, s in zip(stretch.inputs, stretch.starts, strict=True)
            ]
            spots = tuple(
                Spot(inputs[entry.name].aliases.get(source, source), start + index, index, stretch.count)
                for entry, source, start in zip(stretch.inputs, sources, stretch.starts, strict=True)
            )
            own = place.name(stretch.donor_start + index)
            yield Row(out, own, merge.base, donor.name, stretch.inputs, tuple(sources), spots, spot, stretch.part)
        for entry, start in zip(stretch.inputs, stretch.starts, strict=True):
            found = inputs[entry.name].layout.by_layer.get(start + index, ())
            names = [(p.name(start + index), in_layer(donor, p, stretch.donor_start + index)) for p in found]
            _note_extra(merge, inputs, entry.name, donor.name, names, misfits)


def _kind(planned: Planned, places: Sequence[Place]) -> frozenset[tuple[str, tuple[int, ...]]]:
    """What a layer is made of: names within the layer and shapes; layers of one model may be of several kinds."""
    named = [(place.rest, planned.tensors[place.name(place.layer)].shape) for place in places]
    return frozenset(pair for pair in named if not is_recomputed(*pair))


def in_layer(planned: Planned, place: Place, layer: int) -> str:
    """The name that `place` has in another model's main stack, whose prefix may differ."""
    return f"{planned.layout.main or place.stack}.{layer}.{place.rest}"


def _end_row(merge: Merge, stretch: Stretch, donor: str, name: str) -> Row:
    spot = Spot(name, None, 0, stretch.count)
    if merge.ends is not None:
        # Such ends come from their input as they are.
        return Row(name, name, None, donor, (), (), (), spot, None)
    count = len(stretch.inputs)
    return Row(name, name, merge.base, donor, stretch.inputs, (name,) * count, (spot,) * count, spot, stretch.part)


def check_points(merge: Merge, inputs: Mapping[str, Planned], stretches: Sequence[Stretch], misfits: Misfits) -> None:
    """Notes the points of parameters that lie beyond the layers that they speak of."""
    total = sum(s.count for s in stretches) if merge.slices else deepest(merge, inputs[donor_name(merge)])
    for name, value in merge.parameters.items():
        misfits.check_layer(greatest_layer(value), total, ("merge", merge.name, name), "the output")
    for stretch in stretches:
        for name, value in (stretch.part.parameters if stretch.part else {}).items():
            assert stretch.part is not None
            misfits.check_layer(greatest_layer(value), total, (*stretch.part.path, name), "the output")
        for entry in stretch.inputs:
            depth = deepest(merge, inputs[entry.name]) if entry.parameters else 0
            for name, value in entry.parameters.items():
                misfits.check_layer(greatest_layer(value), depth, (*entry.path, name), f"`{entry.name}`")


# --- one tensor -------------------------------------------------------------------------------------------------------


def _tensor(
    spec: Spec, merge: Merge, method: Method, row: Row, misfits: Misfits, aligned: Aligned, numerics: str | None
) -> tuple[Node, Decision]:
    inputs = misfits.inputs
    own = inputs[row.donor].tensors[row.own]
    wanted = wanted_dtype(spec, merge, aligned.original(own))
    asis = (cast(own, wanted), Decision(inputs=((row.donor, own.key),)))
    if not row.inputs or not is_merged(merge, row.name, inputs[row.donor], row.own):
        return asis
    nodes = [inputs[e.name].tensors.get(source) for e, source in zip(row.inputs, row.sources, strict=True)]
    base = own if row.base is not None and method.base != "none" else None
    if is_recomputed(row.name, own.shape):
        misfits.taken(row)
        return asis
    if misfits.row(row, own, nodes):
        return asis
    found = tuple(node for node in nodes if node is not None)
    if own.dtype not in FLOAT_DTYPES:
        agree_exactly(row, own, found, misfits)
        return asis
    shared, per_input = parameters(method, merge, row)
    labels = _labels(row, shared, per_input)
    if missing := [label for label, value, needed in _required(method, labels) if value is None and needed]:
        misfits.unset(row, missing)
        return asis
    seed = spec.settings.seed if merge.seed is None else merge.seed
    names = tuple(entry.name for entry in row.inputs)
    request = Request(base, found, shared, per_input, row.name, names, seed)
    step = method.step(request) if method.step else Refuse("the method is not built yet")
    if isinstance(step, Refuse):
        misfits.refused(row, step.reason)
        return asis
    named = tuple(zip(names, [n.key for n in found], strict=True))
    named = ((row.donor, own.key), *named) if base is not None else named
    told = [(label, value) for label, value, _ in labels] + ([("seed", seed)] if method.random else [])
    decision = Decision(tuple(told), named)
    if isinstance(step, Take):
        taken = own if step.index < 0 else found[step.index]
        return cast(taken, wanted), decision
    return computed(method, step, wanted, own.shape, numerics), decision


def wanted_dtype(spec: Spec, merge: Merge, own: Node) -> str:
    """The dtype of an output tensor: the merge's, the settings', or that of the donor's tensor; others stay."""
    dtype = merge.dtype or spec.settings.dtype
    return FLOATS[dtype] if dtype is not None and own.dtype in FLOAT_DTYPES else own.dtype


def computed(method: Method, step: Compute, dtype: str, shape: tuple[int, ...], numerics: str | None = None) -> Node:
    """The node of a tensor that the method computes; `numerics` is the class of what its libraries compute here."""
    bound = ", ".join(part for part in (method.numerics, numerics if step.bound else None) if part) or None
    return operation_node(method.operation_name, method.version, step.params, step.inputs, dtype, shape, bound)


def parameters(
    method: Method, merge: Merge, row: Row
) -> tuple[dict[str, Scalar | None], list[dict[str, Scalar | None]]]:
    """The resolved parameters of one output tensor: the merge's own, and each input's."""
    outer = [Level(row.part.parameters, row.spot)] if row.part is not None else []
    outer.append(Level(merge.parameters, row.spot))
    shared = {p.name: resolve(p, outer) for p in method.parameters if p.scope == "merge"}
    per_input = []
    for entry, spot in zip(row.inputs, row.spots, strict=True):
        levels = [Level(entry.parameters, spot), *outer]
        per_input.append({p.name: resolve(p, levels) for p in method.parameters if p.scope == "input"})
    return shared, per_input


def _labels(
    row: Row, shared: Mapping[str, Scalar | None], per_input: Sequence[Mapping[str, Scalar | None]]
) -> list[tuple[str, Scalar | None, str]]:
    labels = [(name, value, name) for name, value in shared.items()]
    for entry, values in zip(row.inputs, per_input, strict=True):
        labels += [(f"{name} of `{entry.name}`", value, name) for name, value in values.items()]
    return labels


def _required(
    method: Method, labels: Sequence[tuple[str, Scalar | None, str]]
) -> Iterator[tuple[str, Scalar | None, bool]]:
    for label, value, name in labels:
        declared = method.parameter(name)
        yield label, value, declared is not None and not declared.nullable
