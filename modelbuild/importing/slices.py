"""mergekit's `slices` as those of a Modelfile: ranges of layers, bases, and donors of what lies around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from modelbuild.importing.known import SLICE, SOURCE, Known
from modelbuild.importing.nouns import Findings, Item, Ref
from modelbuild.importing.parameters import joined, layered, parameters
from modelbuild.importing.read import entries, fields, integer, ref

PUSHED = (
    "mergekit compares filters of a model's parameters with that model's own names of layers, wherever they stand: "
    "they stand on each model here."
)


@dataclass(frozen=True)
class Around:
    """What models and slices are read within: the method, and the base_model with its place."""

    findings: Findings
    method: str
    known: Known
    base_item: Item | None
    base: Ref | None

    def item(self, ref: Ref) -> Item:
        """The base_model as an item."""
        assert self.base_item is not None
        return self.base_item.but(ref)

    def leave_out(self, given: Mapping[str, Item], model: Item, name: str) -> None:
        """Says that the base stands among the models, and that its parameters mean nothing there."""
        if "parameters" in given and given["parameters"].value:
            text = f"parameters of the base_model are left out: the base is no input of {self.method}"
            self.findings.note(given["parameters"].place, text)
        else:
            self.findings.remark(f"mergekit lists the base under `{name}` too; it is no input of {self.method}.")


@dataclass(frozen=True, slots=True)
class Source:
    """A model of a slice with its range of layers."""

    item: Item
    model: Item
    start: int
    end: int
    given: Mapping[str, Item] = field(default_factory=dict)

    @property
    def ref(self) -> Ref:
        """The model."""
        found = self.model.value
        assert isinstance(found, Ref)
        return found

    @property
    def layers(self) -> Item:
        """The range, to be written."""
        place = self.given["layer_range"]
        return place.but([place.but(self.start), place.but(self.end)])


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of the output."""

    item: Item
    sources: tuple[Source, ...]
    base: Item | None
    parameters: Mapping[str, Item]

    @property
    def count(self) -> int:
        """The number of layers."""
        return self.sources[0].end - self.sources[0].start


def read_parts(around: Around, item: Item) -> list[Part]:
    """The slices of a recipe; what is wrong with one is among the findings."""
    return [part for entry in entries(around.findings, item, "slices") if (part := _part(around, entry)) is not None]


def stretches(around: Around, parts: Sequence[Part]) -> list[tuple[Ref | None, list[Part]]]:
    """The slices by their base, those in a row that share one together; a fault where it is not among the sources."""
    findings = around.findings
    if around.known.base == "input":
        for part in parts:
            if part.base is not None:
                findings.note(part.base.place, f"`base_model` of a slice is left out: {around.method} has no base")
        return [(around.base, list(parts))]
    found = [
        (base, list(same))
        for base, same in groupby(parts, key=lambda part: part.base.value if part.base is not None else around.base)
    ]
    for base, part in ((base, part) for base, same in found for part in same):
        if base is not None and part.count and base not in [source.ref for source in part.sources]:
            fact = f"with {around.method}, mergekit wants it among the sources of every slice"
            findings.fault(part.item.where, "a slice has no layers of the base_model", fact)
    return found


def slices(around: Around, parts: Sequence[Part], item: Item, shared: Mapping[str, Item]) -> dict[str, Item]:
    """The entries of a merge with slices: its parameters, `slices`, and `ends` with a base where they are needed."""
    kept = [part for part in parts if part.count]
    if not kept:
        around.findings.fault(item.place, "the slices have no layers")
        return {}
    found = {} if parts[0].count and parts[-1].count else _ends(around, parts[0], parts[-1], shared)
    names = _pushed(around, kept, shared)
    lists = [_written(around, part, shared, names) for part in kept]
    return {**found, **{name: value for name, value in shared.items() if name not in names}, "slices": item.but(lists)}


def _part(around: Around, item: Item) -> Part | None:
    findings = around.findings
    given = fields(findings, item, "a slice", SLICE)
    if "residual_weight" in given:
        findings.note(given["residual_weight"].place, "`residual_weight` is left out: mergekit makes no use of it")
    if "sources" not in given:
        if isinstance(item.value, dict):
            findings.fault(item.where, "a slice has no `sources`")
        return None
    listed = entries(findings, given["sources"], "sources")
    sources = tuple(source for entry in listed if (source := _source(findings, entry)) is not None)
    base = given.get("base_model")
    base = base.but(ref(findings, base, "base_model")) if base is not None else None
    own = parameters(findings, around.method, given.get("parameters"), "slice", "a slice")
    lengths = {source.end - source.start for source in sources}
    if len(lengths) > 1:
        facts = [f"line {source.item.where.line} gives {source.end - source.start} layers" for source in sources]
        findings.fault(given["sources"].place, "the ranges of a slice are not equally long", *facts)
    return Part(item, sources, base, own) if sources else None


def _source(findings: Findings, item: Item) -> Source | None:
    given = fields(findings, item, "a source", SOURCE)
    if not isinstance(item.value, dict):
        return None
    for key in ("model", "layer_range"):
        if key not in given:
            findings.fault(item.where, f"a source has no `{key}`")
            return None
    model = ref(findings, given["model"])
    span = given["layer_range"]
    numbers = [integer(entry) for entry in span.value] if isinstance(span.value, list) else []
    if len(numbers) != 2 or None in numbers:
        findings.expected(span, "`layer_range`", "[START, END], END excluded")
        return None
    start, end = (number for number in numbers if number is not None)
    if not 0 <= start <= end:
        findings.fault(
            span.where, f"[{start}, {end}] is not a range of layers", "a range is [START, END], END excluded"
        )
        return None
    return Source(item, given["model"].but(model), start, end, given) if model is not None else None


def _ends(around: Around, first: Part, last: Part, shared: Mapping[str, Item]) -> dict[str, Item]:
    """`ends`, for slices without layers that only choose who gives the embeddings, or the final norm and the head."""
    scaled = any("scale" in given for given in (first.parameters, last.parameters, shared))
    scaled = scaled or any("parameters" in source.given for part in (first, last) for source in part.sources)
    empty = last if not last.count else first
    alone = all(len({source.ref for source in part.sources}) == 1 for part in (first, last))
    if around.method != "passthrough" or scaled or not alone:
        message = "a slice without layers chooses who gives what lies before or after the layers"
        fact = "in a Modelfile a model gives either as it is: `ends`"
        hint = "make the layers first, then a `passthrough` of them with these slices"
        around.findings.fault(empty.item.where, message, fact, hint=hint)
        return {}
    around.findings.remark("A slice without layers said who gives embeddings, final norm and head: `ends` does.")
    before, after = first.sources[0].model, last.sources[0].model
    same = before.value == after.value
    found = {"ends": before if same else empty.item.but([before, after])}
    return found if around.base is not None else {"base": before, **found}


def _pushed(around: Around, parts: Sequence[Part], shared: Mapping[str, Item]) -> Collection[str]:
    """The parameters that have to stand on each model: their filters may be about layers, and layers are renumbered."""
    offset = 0
    moved = False
    for part in parts:
        moved = moved or any(source.start != offset for source in part.sources)
        offset += part.count
    levels = [shared, *(part.parameters for part in parts)]
    names = dict.fromkeys(name for level in levels for name in layered(around.method, level)) if moved else {}
    if names:
        around.findings.remark(PUSHED)
    return names


def _written(around: Around, part: Part, shared: Mapping[str, Item], pushed: Collection[str]) -> Item:
    """A slice as it is written: one range where all models have the same, else a range on each."""
    alike = len({source.start for source in part.sources}) == 1
    outer = {name: joined(part.parameters, shared)[name] for name in pushed if name in {**part.parameters, **shared}}
    models = []
    for source in part.sources:
        is_base = source.ref == around.base and around.known.base != "input"
        if is_base and len(part.sources) > 1 and alike:
            around.leave_out(source.given, source.model, "sources")
            continue
        entry = {"model": source.model} | ({} if alike else {"layers": source.layers})
        if not is_base:
            given = source.given.get("parameters")
            own = parameters(around.findings, around.method, given, "input", "a source")
            entry |= joined(own, outer)
        models.append(source.item.but(entry))
    fields = {"layers": part.sources[0].layers} if alike else {}
    fields |= {name: value for name, value in part.parameters.items() if name not in pushed}
    return part.item.but({**fields, "models": part.item.value["sources"].but(models)})
