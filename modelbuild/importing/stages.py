"""Slices with bases of their own: a merge for each stretch of slices that share a base, and a stack of these.

A merge of a Modelfile has one base. mergekit's slices do not touch each other, so that a stack of merges comes to the
same: embeddings are made by the first, final norm and head by the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelbuild.importing.known import METHODS, RENAMED
from modelbuild.importing.nouns import Findings, Item, Place, Ref, Table
from modelbuild.importing.parameters import names_layers
from modelbuild.importing.slices import Around, Part, slices

STACKED = "mergekit's slices have bases of their own: each stretch with one base is a merge, and this is their stack."


def stacked(
    around: Around,
    stretches: Sequence[tuple[Ref | None, Sequence[Part]]],
    item: Item,
    shared: Mapping[str, Item],
    table: Table,
) -> list[Table]:
    """A table for each stretch, and `table`, which has everything but slices and parameters, as their stack."""
    findings = around.findings
    _check(around, stretches, shared, table)
    dtype = {key: value for key, value in table.entries.items() if key == "dtype"}
    made, layers = [], []
    for number, (base, parts) in enumerate(stretches, 1):
        name = f"{table.name}-{number}"
        stretch = Table("merge", name, parts[0].item.where, key=f"\0{name}")
        with findings.comments_of(stretch):
            stretch.entries = {"method": table.entries["method"]}
            if base is not None:
                stretch.entries["base"] = (parts[0].base or item).but(base)
            stretch.entries |= dtype | slices(replace(around, base=base), parts, item, shared)
        made.append(stretch)
        layers.append(_layers(stretch, parts))
    findings.remark(STACKED)
    table.entries["method"] = table.entries["method"].but("passthrough")
    table.entries["slices"] = item.but(layers)
    return [*made, table]


def _layers(stretch: Table, parts: Sequence[Part]) -> Item:
    """The slice of the stack that has all layers of a stretch."""
    place = parts[0].item
    span = place.but([place.but(0), place.but(sum(part.count for part in parts))])
    model = place.but({"model": place.but(Ref(Place(str(stretch.key))))})
    return place.but({"layers": span, "models": place.but([model])})


def _check(
    around: Around, stretches: Sequence[tuple[Ref | None, Sequence[Part]]], shared: Mapping[str, Item], table: Table
) -> None:
    """What a stack of merges cannot say is a fault: one vocabulary of all models, numbers of layers of the whole."""
    hint = "write a recipe for each base, and stack their outputs with `passthrough`"
    if "tokenizer" in table.entries:
        message = "slices with bases of their own cannot share a tokenizer that is made from all models"
        around.findings.fault(table.entries["tokenizer"].place, message, hint=hint)
    ours = {RENAMED.get(name, name) for name in METHODS[around.method].shared}
    levels = [shared, *(part.parameters for _, parts in stretches[1:] for part in parts)]
    for name, value in ((name, value) for level in levels for name, value in level.items() if name in ours):
        if names_layers(value):
            _fault(around.findings, value, name, hint)


def _fault(findings: Findings, value: Item, name: str, hint: str) -> None:
    fact = "the layers of each are numbered from 0 here"
    findings.fault(
        value.place, f"a filter of `{name}` names a layer, and the slices have several bases", fact, hint=hint
    )
