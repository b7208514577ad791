"""From a merge by `moe` to a node for each tensor: the base's, with experts and a router in the place of every mlp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from modelbuild.errors import BuildFailed
from modelbuild.methods.base import Compute, Method, Request
from modelbuild.methods.moe import architectures
from modelbuild.modelfile.spec import Merge, Scalar, Spec
from modelbuild.plan.fit import Misfits, Row
from modelbuild.plan.layout import Place
from modelbuild.plan.merge import check_points, computed, in_layer, parameters, stretches_of, wanted_dtype
from modelbuild.plan.mixture_outputs import MIXTURES, Mixture, config_of, of_model_type, refusal
from modelbuild.plan.node import FLOATS, Node, cast
from modelbuild.plan.overrides import merged, overridden
from modelbuild.plan.planned import Decision, Planned, Side
from modelbuild.plan.routers import Routers
from modelbuild.plan.token_tensors import embedding
from modelbuild.plan.values import Level, Spot, resolve
from modelbuild.plan.vocabulary import align
from modelbuild.sources.buffers import is_recomputed

DOWN = "mlp.down_proj.weight"
"""The tensor whose output an expert adds to what is there."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of an expert to be: its name within the dense layer, and the row that it is the one input of."""

    part: str
    row: Row


def plan_mixture(spec: Spec, merge: Merge, method: Method, inputs: Mapping[str, Planned]) -> Planned:
    """The mixture with a node for each of its tensors; `inputs` are the planned artifacts that the merge names.

    Raises BuildFailed with what does not fit: architectures, tensors, shapes, prompts, missing libraries.
    """
    own = inputs[merge.base or ""]
    mixture = chosen(spec, merge, own, inputs)
    _check_base(spec, merge, mixture, own)
    misfits = Misfits(spec, merge, inputs, selecting=False)
    check_points(merge, inputs, stretches_of(merge, method, inputs, misfits), misfits)
    _check_layers(merge, mixture, inputs, misfits)
    misfits.stop()
    # The embedding may be brought into the order of another vocabulary; prompts are read with the base's own.
    aligned = align(spec, merge, {name: inputs[name] for name in names_of(merge)}, own.name)
    base = aligned.inputs[own.name]
    routers = Routers(spec, merge, method, mixture, own, inputs, effective_config(own))
    tensors: dict[str, Node] = {}
    decisions: dict[str, Decision] = {}
    for place, name in _order(base, mixture):
        if place is not None and place.rest in mixture.parts:
            router = f"{place.stack}.{place.layer}.{mixture.router}"
            tensors[router], decisions[router] = routers.of(place.layer, router)
            for expert, part in layer_parts(merge, mixture, inputs, place.layer):
                if (made := _expert(spec, merge, method, inputs, part, misfits)) is not None:
                    tensors[expert], decisions[expert] = made
            continue
        node = base.tensors[name]
        tensors[name] = cast(node, wanted_dtype(spec, merge, aligned.original(node)))
        decisions[name] = aligned.told(Decision(inputs=((base.name, node.key),)))
    misfits.stop()
    notes = (*aligned.notes, *_notes(merge, own, inputs))
    return Planned(merge.name, "merge", tensors, _side(merge, aligned.side, own, mixture), decisions, notes)


def names_of(merge: Merge) -> tuple[str, ...]:
    """The base and the models, each once: not the model that gives the routers."""
    return tuple(dict.fromkeys([merge.base or "", *(entry.name for entry in merge.models)]))


def constant(method: Method, merge: Merge, name: str) -> Scalar | None:
    """The value of a parameter that is the same for every tensor."""
    declared = method.parameter(name)
    assert declared is not None
    return resolve(declared, [Level(merge.parameters, Spot("", None, 0, 0))])


def effective_config(planned: Planned) -> dict[str, object]:
    """The config of a planned model as its config.json will have it, but for what the weights decide."""
    return merged(planned.side.config or {}, planned.side.config_overrides)


# --- which mixture ----------------------------------------------------------------------------------------------------


def chosen(spec: Spec, merge: Merge, base: Planned, inputs: Mapping[str, Planned]) -> Mixture:
    """The architecture of the mixture: the one that the base's kind makes, held to what the merge asks for."""
    config = effective_config(base)
    kind = config.get("model_type")
    found = of_model_type(kind)
    asked = merge.parameters.get("architecture")
    word = str(getattr(asked, "value", "")) if asked is not None else ""
    if found is None or (word and found.name not in architectures(word)):
        known = [f"{mixture.name} is made from {' or '.join(mixture.dense)} models" for mixture in MIXTURES]
        wanted = f" by architecture `{word}`" if word else ""
        raise _unfit(
            spec, merge, f"`{base.name}` makes no mixture of experts{wanted}", [_kind(base.name, kind), *known]
        )
    for name in names_of(merge):
        other = effective_config(inputs[name])
        if (reason := refusal(other)) is not None and name == base.name:
            raise _unfit(spec, merge, f"`{name}` makes no mixture of experts", [reason])
        if other and other.get("model_type") not in found.dense:
            facts = [_kind(name, other.get("model_type")), _kind(base.name, kind)]
            raise _unfit(spec, merge, f"`{name}` cannot be an expert beside `{base.name}`", facts)
        acts = [str(each.get("hidden_act", "silu")) for each in (other or config, config)]
        if acts[0] != acts[1]:
            facts = [f"`{name}` has the activation {acts[0]}", f"`{base.name}` has {acts[1]}, and a mixture has one"]
            raise _unfit(spec, merge, f"`{name}` cannot be an expert beside `{base.name}`", facts)
    return found


def _kind(name: str, model_type: object) -> str:
    if model_type is None:
        return f"`{name}` has no config.json that says what it is"
    return f"`{name}` is of type {model_type}"


def _unfit(spec: Spec, merge: Merge, message: str, facts: Sequence[str]) -> BuildFailed:
    return BuildFailed(message, where=spec.where("merge", merge.name, "architecture"), facts=facts)


# --- which tensors ----------------------------------------------------------------------------------------------------


def _order(base: Planned, mixture: Mixture) -> Iterator[tuple[Place | None, str]]:
    """The tensors of the base in order, of each mlp only the first, and no buffers that loading computes anew."""
    seen: set[int] = set()
    for name, node in base.tensors.items():
        place = _main(base, name)
        if is_recomputed(name, node.shape):
            continue
        if place is not None and place.rest in mixture.parts:
            if place.layer in seen:
                continue
            seen.add(place.layer)
        yield place, name


def _main(planned: Planned, name: str) -> Place | None:
    """The place of a tensor in the layers; None outside of them."""
    place = planned.layout.places.get(name)
    return place if place is not None and place.stack == planned.layout.main else None


def _check_base(spec: Spec, merge: Merge, mixture: Mixture, base: Planned) -> None:
    """The base has layers, and in each the whole mlp in whose place the experts stand."""
    stack, facts = base.layout.main, []
    for layer in range(base.layout.layers):
        for part in mixture.parts:
            found = base.tensors.get(name := f"{stack}.{layer}.{part}")
            if found is None or len(found.shape) != 2:
                facts.append(f"`{name}` is {'missing' if found is None else list(found.shape)}")
    if not base.layout.layers:
        facts = ["no layers were found in its tensors' names"]
    if facts:
        more = [f"and {len(facts) - 5} more"] if len(facts) > 5 else []
        raise _unfit(spec, merge, f"`{base.name}` makes no mixture of experts", [*facts[:5], *more])


def _check_layers(merge: Merge, mixture: Mixture, inputs: Mapping[str, Planned], misfits: Misfits) -> None:
    """Every layer of the base is one that the mixture can have, and no model has an mlp that would be lost."""
    base = inputs[merge.base or ""]
    for name in base.tensors:
        place = _main(base, name)
        if place is None or is_recomputed(name, base.tensors[name].shape):
            continue
        if place.rest not in mixture.attention and place.rest not in mixture.parts:
            misfits.foreign(base.name, mixture.name, name)
    for other in dict.fromkeys(entry.name for entry in merge.models):
        model = inputs[other]
        extra = []
        for name in model.tensors:
            place = _main(model, name)
            if place is None or not place.rest.startswith("mlp."):
                continue
            if place.layer >= base.layout.layers or place.rest not in mixture.parts:
                extra.append(name)
        if extra:
            misfits.extra(other, base.name, extra)


def expert_parts(merge: Merge, mixture: Mixture, inputs: Mapping[str, Planned]) -> Iterator[tuple[str, Part]]:
    """The tensors of all experts by name, layer by layer."""
    base = inputs[merge.base or ""]
    for layer in range(base.layout.layers):
        yield from layer_parts(merge, mixture, inputs, layer)


def layer_parts(
    merge: Merge, mixture: Mixture, inputs: Mapping[str, Planned], layer: int
) -> Iterator[tuple[str, Part]]:
    """The tensors of a layer's experts by name."""
    base = inputs[merge.base or ""]
    stack, count = base.layout.main, base.layout.layers
    for number, entry in enumerate(merge.models):
        for part in mixture.parts:
            name = f"{stack}.{layer}.{mixture.expert(part, number)}"
            within = Place(stack or "", layer, part)
            source = in_layer(inputs[entry.name], within, layer)
            spots = Spot(source, layer, layer, count), Spot(name, layer, layer, count)
            own = within.name(layer)
            yield name, Part(part, Row(name, own, None, base.name, (entry,), (source,), spots[:1], spots[1], None))


def router_names(merge: Merge, mixture: Mixture, inputs: Mapping[str, Planned]) -> dict[str, Node]:
    """The routers by name, each with a tensor of the base's mlp in whose place it stands."""
    base = inputs[merge.base or ""]
    found = {}
    for layer in range(base.layout.layers):
        own = base.tensors.get(f"{base.layout.main}.{layer}.{next(iter(mixture.parts))}")
        if own is not None:
            found[f"{base.layout.main}.{layer}.{mixture.router}"] = own
    return found


def _expert(
    spec: Spec, merge: Merge, method: Method, inputs: Mapping[str, Planned], part: Part, misfits: Misfits
) -> tuple[Node, Decision] | None:
    """One tensor of an expert: a renamed identity, but for noise and scales; None where it does not fit."""
    row = part.row
    (entry,), (source,) = row.inputs, row.sources
    own, node = inputs[row.donor].tensors[row.own], inputs[entry.name].tensors.get(source)
    if misfits.row(row, own, [node]) or node is None:
        return None
    if own.dtype not in FLOATS.values():
        misfits.differ(row, entry.name, f"`{row.own}` is {own.dtype}")
        return None
    _, (values,) = parameters(method, merge, row)
    seed = spec.settings.seed if merge.seed is None else merge.seed
    assert method.step is not None
    step = method.step(Request(None, (node,), {"residual": part.part == DOWN}, [values], row.name, (entry.name,), seed))
    told = [(f"{key} of `{entry.name}`", values[key]) for key in scales(part.part)]
    told += [("seed", seed)] if values["noise_scale"] else []
    decision = Decision(tuple(told), ((entry.name, node.key),))
    wanted = wanted_dtype(spec, merge, own)
    if isinstance(step, Compute):
        return computed(method, step, wanted, own.shape), decision
    return cast(node, wanted), decision


def scales(part: str) -> tuple[str, ...]:
    """The parameters of an expert that count for a tensor of this name within the dense layer."""
    return ("noise_scale", "residual_scale") if part == DOWN else ("noise_scale",)


# --- what goes beside the weights -------------------------------------------------------------------------------------


def _side(merge: Merge, side: Side, own: Planned, mixture: Mixture) -> Side:
    config = config_of(effective_config(own), mixture, len(merge.models), per_token(merge))
    # What a vocabulary changed lies in the overrides of the aligned side, over those that are part of the config now.
    kept = merged(side.config_overrides, {})
    changed = {key: value for key, value in kept.items() if own.side.config_overrides.get(key, ...) != value}
    made = replace(side, config=config, config_file=None, config_overrides=changed)
    return overridden(made, merge)


def per_token(merge: Merge) -> int:
    """How many experts work on one token."""
    return int(getattr(merge.parameters.get("experts_per_token"), "value", 2))


def _notes(merge: Merge, base: Planned, inputs: Mapping[str, Planned]) -> list[str]:
    """What the user should know of experts that are the same, or that learned other tokens."""
    notes = []
    mlps = [_mlp(inputs[entry.name]) for entry in merge.models]
    scaled = any({*scales(DOWN)} & {*given} for given in (merge.parameters, *(e.parameters for e in merge.models)))
    if all(mlp == mlps[0] for mlp in mlps) and not scaled:
        notes.append("all experts are the same: until it is trained the mixture says what one of them does")
    if merge.tokenizer is None:
        rows = {name: _token_rows(inputs[name]) for name in names_of(merge)}
        others = [name for name in rows if rows[name] not in (None, rows[base.name])]
        notes += [
            f"`{name}` has {rows[name]} tokens, `{base.name}` has {rows[base.name]}, which are those of the mixture"
            for name in others
        ]
    return notes


def _mlp(planned: Planned) -> list[str]:
    found = ((place.layer, place.rest, planned.tensors[name].key) for name, place in planned.layout.places.items())
    return [key for _, rest, key in sorted(found) if rest.startswith("mlp.")]


def _token_rows(planned: Planned) -> int | None:
    own = embedding(planned)
    return planned.tensors[own].shape[0] if own is not None else None
