"""What every model says alike is said once: a parameter that all of a list share stands on the slice or the merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelbuild.importing.known import METHODS, RENAMED
from modelbuild.importing.nouns import Item, Table
from modelbuild.importing.parameters import first_of, names_layers


def lift(table: Table) -> None:
    """Lifts the parameters of a merge that all of its models share: to their slice, and from all slices to the merge.

    No value changes: what stands on all models comes before what stands above them. A filter that could be about a
    layer stays below slices, where it means the layers of the model.
    """
    method = table.entries["method"].value
    if method not in METHODS:
        return
    for name in [RENAMED.get(name, name) for name in METHODS[method].each]:
        if "slices" in table.entries:
            parts = table.entries["slices"].value
            table.entries["slices"] = table.entries["slices"].but([_part(part, name) for part in parts])
            table.entries = _from(table.entries, "slices", name, sliced=True)
        elif "models" in table.entries:
            table.entries = _from(table.entries, "models", name, sliced=False)


def _part(part: Item, name: str) -> Item:
    return part.but(_from(part.value, "models", name, sliced=True))


def _from(outer: Mapping[str, Item], key: str, name: str, *, sliced: bool) -> dict[str, Item]:
    """The mapping with the parameter that all entries of its list `key` have alike on itself, if they do."""
    found = [entry.value.get(name) for entry in outer[key].value]
    shared = [item for item in found if item is not None]
    if len(shared) < 2 or len(shared) < len(found) or (sliced and names_layers(shared[0])):
        return dict(outer)
    if any(item.data() != shared[0].data() for item in shared):
        return dict(outer)
    lifted = first_of(shared[0], outer.get(name))
    assert lifted is not None
    rest = outer[key].but([_without(entry, name) for entry in outer[key].value])
    return dict(_ordered(outer, key, {name: lifted, key: rest}))


def _without(entry: Item, name: str) -> Item:
    return entry.but({key: value for key, value in entry.value.items() if key != name})


def _ordered(outer: Mapping[str, Item], key: str, changed: Mapping[str, Item]) -> Iterator[tuple[str, Item]]:
    """The entries with those that changed, the list last."""
    yield from ((name, changed.get(name, item)) for name, item in outer.items() if name != key)
    yield from ((name, item) for name, item in changed.items() if name not in outer)
    yield key, changed[key]
