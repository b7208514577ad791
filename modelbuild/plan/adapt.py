"""From `method = "lora"` to a node for each tensor of the base: which adapters touch it, and by what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from modelbuild.adapters.lora import AdapterFault, Change, Factors, locate, read
from modelbuild.dtypes import GREATEST
from modelbuild.errors import BuildFailed, Fault
from modelbuild.methods.base import Method, Take
from modelbuild.methods.lora import Add, LowRank, Replace, Term, lora_step
from modelbuild.modelfile.spec import Input, Merge, Scalar, Spec
from modelbuild.plan.chosen import idle_patterns, is_merged
from modelbuild.plan.fit import Row, is_vocabulary
from modelbuild.plan.merge import (
    FLOAT_DTYPES,
    computed,
    parameters,
    wanted_dtype,
)
from modelbuild.plan.node import Node, cast, source_node
from modelbuild.plan.overrides import overridden
from modelbuild.plan.planned import Decision, Planned
from modelbuild.plan.values import Spot, greatest_layer
from modelbuild.sources.content import SourceAdapter, SourceTensor

HEAD = "lm_head.weight"
SHOWN = 3
"""How many tensors that one adapter does not fit are told one by one."""
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_NAMES = ("c_", "q_attn")
_HEADS = (HEAD, "embed_out.weight", "output.weight", "output_layer.weight", "head.weight")


class _Misfit(Exception):
    """What is wrong with one adapter."""

    def __init__(self, entry: Input, fault: AdapterFault) -> None:
        super().__init__(str(fault))
        self.entry = entry
        self.fault = fault


@dataclass(slots=True)
class Touch:
    """What one adapter does to one tensor of the base; all parts are added, a replacement before a pair."""

    factors: Factors | None = None
    added: tuple[SourceTensor, Factors] | None = None
    replaced: SourceTensor | None = None


def plan_lora(
    spec: Spec, merge: Merge, method: Method, base: Planned, adapters: Mapping[str, SourceAdapter]
) -> Planned:
    """The base with the adapters folded in; raises BuildFailed naming every adapter key that fits nothing."""
    tensors, side, notes = dict(base.tensors), base.side, []
    faults: list[Fault] = []
    touches: list[dict[str, Touch]] = []
    for entry in merge.adapters:
        try:
            touches.append(_touches(read(adapters[entry.name]), base, adapters[entry.name]))
        except AdapterFault as fault:
            faults.append(_fault(spec, merge, entry, fault))
            touches.append({})
    faults += _points_faults(spec, merge, base)
    if faults:
        raise BuildFailed(faults)
    embedding = _embedding(base)
    if tied := _tied(base):
        # A tied head stays what it was where the adapter was trained on the embedding alone.
        tensors[HEAD] = base.tensors[embedding]
    decisions: dict[str, Decision] = {}
    misfits: list[_Misfit] = []
    for name, own in tensors.items():
        try:
            tensors[name], decisions[name] = _tensor(spec, merge, method, spot_of(base, name), own, touches)
        except _Misfit as misfit:
            misfits.append(misfit)
    faults += _misfit_faults(spec, merge, misfits)
    faults += _vocabulary_faults(spec, merge, base, tensors)
    if faults:
        raise BuildFailed(faults)
    if tied and tensors[HEAD].key == tensors[embedding].key:
        del tensors[HEAD], decisions[HEAD]
    elif tied or _unties(base, touches):
        side = replace(side, untied=True)
        notes.append(f"an adapter changes `{embedding}` or the head, which the base ties: the output unties them")
    notes += [
        f"`{name}` grows from {own.shape[0]} to {tensors[name].shape[0]} rows; the tokenizer stays the base's"
        for name, own in base.tensors.items()
        if tensors[name].shape != own.shape
    ]
    notes += idle_patterns(merge, tensors)
    return Planned(merge.name, "merge", tensors, overridden(side, merge), decisions, tuple(notes))


def _tensor(
    spec: Spec, merge: Merge, method: Method, spot: Spot, own: Node, touches: Sequence[Mapping[str, Touch]]
) -> tuple[Node, Decision]:
    name = spot.name
    wanted = wanted_dtype(spec, merge, own)
    found = [(entry, touch[name]) for entry, touch in zip(merge.adapters, touches, strict=True) if name in touch]
    if not found or not is_merged(merge, name):
        return cast(own, wanted), Decision(inputs=((merge.base or "", own.key),))
    weights = weights_at(method, merge, spot, tuple(entry for entry, _ in found))
    start, terms = _terms(name, own, found, weights)
    step = lora_step(start, terms)
    labels: list[tuple[str, Scalar | None]] = []
    inputs = [(merge.base or "", own.key)]
    for (entry, touch), weight in zip(found, weights, strict=True):
        labels.append((f"weight of `{entry.name}`", weight))
        if touch.factors is not None:
            labels.append((f"alpha/r of `{entry.name}`", touch.factors.scale(1.0)))
        inputs += [(entry.name, source_node(tensor).key) for tensor in _parts(touch)]
    decision = Decision(tuple(labels), tuple(inputs))
    if isinstance(step, Take):
        taken = start if step.index < 0 else _node_of(terms[step.index])
        return cast(taken, wanted), decision
    return computed(method, step, wanted, start.shape), decision


def _node_of(term: Term) -> Node:
    assert isinstance(term, Replace)
    return term.node


def _parts(touch: Touch) -> list[SourceTensor]:
    pair = [touch.factors.b, touch.factors.a] if touch.factors is not None else []
    added = [touch.added[0]] if touch.added is not None else []
    return [*pair, *added, *([touch.replaced] if touch.replaced is not None else [])]


def weights_at(method: Method, merge: Merge, spot: Spot, entries: tuple[Input, ...]) -> list[float]:
    """The weight of each adapter for the tensor at a spot."""
    name, count = spot.name, len(entries)
    row = Row(name, name, merge.base, merge.base or "", entries, (name,) * count, (spot,) * count, spot, None)
    _, per_input = parameters(method, merge, row)
    return [float(values["weight"] or 0.0) for values in per_input]


def _terms(
    name: str, own: Node, found: Sequence[tuple[Input, Touch]], weights: Sequence[float]
) -> tuple[Node, list[Term]]:
    """The tensor that deltas are added to, and the terms. A replacement that is alone and at weight 1 takes its place,
    so that a pair trained on top of it is added to what it was trained on."""
    terms: list[Term] = []
    start = own
    whole = len(found) == 1 and weights[0] == 1.0
    for (entry, touch), weight in zip(found, weights, strict=True):
        try:
            if whole and touch.replaced is not None:
                start = _replacement(name, own, touch.replaced)
            terms += _terms_of(name, start, touch, weight, whole)
        except AdapterFault as fault:
            raise _Misfit(entry, fault) from None
    return start, terms


def _terms_of(name: str, start: Node, touch: Touch, weight: float, whole: bool) -> list[Term]:
    terms: list[Term] = []
    if touch.replaced is not None and weight != 0.0 and not whole:
        node = _replacement(name, start, touch.replaced)
        _same_shape(name, start, node)
        terms.append(Replace(node, weight))
    if touch.factors is not None:
        terms.append(_low_rank(name, start, touch.factors, weight))
    if touch.added is not None:
        tensor, factors = touch.added
        added = _replacement(name, start, tensor)
        _same_shape(name, start, added)
        terms.append(Add(added, _scale(factors, weight)))
    return terms


def _replacement(name: str, own: Node, tensor: SourceTensor) -> Node:
    """The node of a trained tensor; it and what it changes must be of dtypes that are computed with."""
    for dtype in (own.dtype, tensor.dtype):
        if dtype not in FLOAT_DTYPES:
            facts = (f"`{name}` is {own.dtype}", f"`{tensor.name}` is {tensor.dtype}")
            quantised = own.dtype not in (*FLOAT_DTYPES, "F64")
            hint = "the base is quantised: name the model that it was made from" if quantised else None
            raise AdapterFault(f"it changes `{name}` in a dtype that is not computed with", facts, hint)
    return source_node(tensor)


def _same_shape(name: str, own: Node, node: Node) -> None:
    if node.shape != own.shape:
        facts = (f"`{name}` is {list(own.shape)}", f"its replacement is {list(node.shape)}")
        raise AdapterFault("a replacement of another shape can only be taken whole, alone and at weight 1", facts)


def _low_rank(name: str, own: Node, factors: Factors, weight: float) -> LowRank:
    a, b = _replacement(name, own, factors.a), _replacement(name, own, factors.b)
    inner, outer = factors.a.shape[1], factors.b.shape[0]
    turned = own.shape == (inner, outer) and (factors.transposed or inner != outer)
    if turned:
        return LowRank(a, b, _scale(factors, weight), True, True)
    if own.shape == (outer, inner) and not factors.embedding:
        return LowRank(b, a, _scale(factors, weight))
    return _misfit(name, own, factors)


def _scale(factors: Factors, weight: float) -> float:
    """The factor on B·A, which float32 must hold."""
    scale = factors.scale(weight)
    if abs(scale) > GREATEST:
        facts = (f"weight {weight:g} times alpha/r {factors.scale(1.0):g} is more than float32 holds, {GREATEST}",)
        raise AdapterFault("its weight and its scaling multiply to a number that is out of range", facts)
    return scale


def _misfit(name: str, own: Node, factors: Factors) -> LowRank:
    facts = (
        f"`{name}` is {list(own.shape)}",
        f"`{factors.a.name}` is {list(factors.a.shape)}",
        f"`{factors.b.name}` is {list(factors.b.shape)}",
    )
    raise AdapterFault(f"its factors do not fit `{name}`", facts, "the adapter was trained on another model")


# --- which tensors an adapter touches ---------------------------------------------------------------------------------


def _touches(changes: Mapping[str, Change], base: Planned, adapter: SourceAdapter) -> dict[str, Touch]:
    tensors = dict(base.tensors)
    if _tied(base):
        tensors[HEAD] = base.tensors[_embedding(base)]
    where = locate(list(changes), tensors)
    flips = _flips(changes, where, base, adapter)
    found: dict[str, Touch] = {}
    lost: list[str] = []
    for module, change in changes.items():
        target = where.get(module, module)
        if change.factors is not None:
            if f"{target}.weight" not in tensors:
                lost += [change.factors.a.name, change.factors.b.name]
            else:
                factors = replace(change.factors, transposed=change.factors.embedding or flips(target))
                found.setdefault(f"{target}.weight", Touch()).factors = factors
            if change.bias is not None:
                bias = f"{target}.bias"
                if bias not in tensors:
                    lost.append(change.bias.name)
                else:
                    found.setdefault(bias, Touch()).added = (change.bias, change.factors)
        for leaf, tensor in change.replaced.items():
            name = f"{target}.{leaf}"
            if name not in tensors:
                lost.append(tensor.name)
            else:
                found.setdefault(name, Touch()).replaced = tensor
    if lost:
        shown = [f"`{key}`" for key in lost[:5]] + ([f"and {len(lost) - 5} more"] if len(lost) > 5 else [])
        raise AdapterFault(
            f"{len(lost)} of its {len(adapter.tensors)} keys fit no tensor of `{base.name}`", shown,
            "the adapter was trained on a model with other tensor names" if len(lost) == len(adapter.tensors) else None,
        )  # fmt: skip
    return found


def _flips(
    changes: Mapping[str, Change], where: Mapping[str, str], base: Planned, adapter: SourceAdapter
) -> Callable[[str], bool]:
    """Tells of a module of the base whether it is stored [in, out], where its shape cannot tell because it is square.

    Some architectures are known for it. Of others the adapter's `fan_in_fan_out` says so, but PEFT ignores it for
    plain linear layers: it is believed where another layer of this adapter, one that is not square, is stored so.
    """
    model_type = (base.side.config or {}).get("model_type")
    if model_type in _CONV1D:
        return lambda module: module.rpartition(".")[2].startswith(_CONV1D_NAMES)
    said = bool(adapter.config.get("fan_in_fan_out"))
    stored = []
    for module, change in changes.items():
        node = base.tensors.get(f"{where.get(module, module)}.weight")
        if change.factors is not None and node is not None and not change.factors.embedding:
            inner, outer = change.factors.a.shape[1], change.factors.b.shape[0]
            stored += [node.shape == (inner, outer)] if inner != outer else []
    flipped = said and (any(stored) if stored else model_type is None)
    return lambda module: flipped


def _tied(base: Planned) -> bool:
    """Whether the base is a language model whose head is its embedding: it generates, but stores no head."""
    config = base.side.config or {}
    architectures = config.get("architectures") or []
    generates = any(str(a).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in architectures)
    said = config.get("tie_word_embeddings") is not False
    return generates and said and not _stored_head(base) and not base.side.untied and bool(_embedding(base))


def _stored_head(base: Planned) -> str | None:
    ends = tuple(f".{head}" for head in _HEADS)
    return next((name for name in base.tensors if name in _HEADS or name.endswith(ends)), None)


def _unties(base: Planned, touches: Sequence[Mapping[str, Touch]]) -> bool:
    """Whether embedding or head change, and the base ties them although it stores both."""
    ties = (base.side.config or {}).get("tie_word_embeddings") is True and not base.side.untied
    return ties and any(name in touch for touch in touches for name in (_stored_head(base), _embedding(base)))


def _embedding(base: Planned) -> str:
    for name, node in base.tensors.items():
        if is_vocabulary(name) and name.endswith(".weight") and len(node.shape) == 2:
            return name
    return ""


def _vocabulary_faults(spec: Spec, merge: Merge, base: Planned, tensors: Mapping[str, Node]) -> list[Fault]:
    """Embedding and head must not come to have different numbers of rows."""
    embedding = _embedding(base)
    if not embedding:
        return []
    before = {name: base.tensors.get(name, base.tensors[embedding]).shape for name in tensors}
    alike = [name for name in tensors if is_vocabulary(name) and before[name] == before[embedding]]
    rows = {name: tensors[name].shape[0] for name in alike}
    if len(set(rows.values())) == 1:
        return []
    message = f"the adapters of merge `{merge.name}` leave embedding and head with different vocabularies"
    facts = tuple(f"`{name}` has {count} rows" for name, count in rows.items())
    hint = "save the adapter with both: `save_embedding_layers=True`"
    return [Fault(message, spec.where("merge", merge.name, "adapters"), facts, hint)]


def spot_of(base: Planned, name: str) -> Spot:
    """Where a tensor of the base stands among its layers."""
    place = base.layout.places.get(name)
    layer = place.layer if place is not None else None
    return Spot(name, layer, layer or 0, base.layout.count(place))


def _points_faults(spec: Spec, merge: Merge, base: Planned) -> list[Fault]:
    faults = []
    levels = [(entry.path, entry.parameters) for entry in merge.adapters]
    for path, values in [*levels, (("merge", merge.name), merge.parameters)]:
        for name, value in values.items():
            layer = greatest_layer(value)
            if layer is not None and layer >= base.layout.depth:
                facts = (f"the last point is at layer {layer}", f"`{base.name}` has {base.layout.depth} layers, from 0")
                message = f"points reach past the layers of `{base.name}`"
                faults.append(Fault(message, spec.where(*path, name), facts))
    return faults


def _misfit_faults(spec: Spec, merge: Merge, misfits: Sequence[_Misfit]) -> Iterator[Fault]:
    """The first misfits of each adapter, and how many more there are."""
    for entry in merge.adapters:
        found = [misfit.fault for misfit in misfits if misfit.entry is entry]
        more = (f"and {len(found) - SHOWN} more that do not fit",) if len(found) > SHOWN else ()
        for number, fault in enumerate(found[:SHOWN], 1):
            last = more if number == SHOWN else ()
            yield _fault(spec, merge, entry, AdapterFault(str(fault), (*fault.facts, *last), fault.hint))


def _fault(spec: Spec, merge: Merge, entry: Input, fault: AdapterFault) -> Fault:
    message = f"adapter `{entry.name}` does not fit `{merge.base}`: {fault}"
    return Fault(message, spec.where(*entry.path), fault.facts, fault.hint)
