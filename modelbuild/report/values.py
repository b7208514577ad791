"""`plan --values` as text: one line for a parameter that is the same everywhere, else a table of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from modelbuild.modelfile.suggest import shown

if TYPE_CHECKING:
    from modelbuild.plan.outline import Resolved
    from modelbuild.resolved import Stack, Values

Scalar: TypeAlias = "float | int | bool | str | None"
Label: TypeAlias = "tuple[str, str | None]"

LONGEST = 44
"""Columns of the longest title of a column."""


def show_values(found: Values) -> str:
    """The values as text: slices, then each parameter."""
    merged = [tensor for tensor in found.tensors if tensor.shared or tensor.inputs]
    layers = {tensor.layer for tensor in found.tensors if tensor.layer is not None}
    head = f"{found.name}: {found.method}, {len(found.tensors)} tensors, {len(layers)} layers"
    lines = [head, *(f"  {line}" for line in map(_slice, found.slices))]
    for label in _labels(merged):
        lines += _parameter(label, merged)
    if alone := [tensor.name for tensor in found.tensors if not (tensor.shared or tensor.inputs)]:
        lines.append(f"  taken as they are: {_named(alone)}")
    return "\n".join(lines)


def _slice(part: Stack) -> str:
    models = ", ".join(f"`{name}` {_span(start, start + part.end - part.first)}" for name, start in part.starts.items())
    word = "layer" if part.end == part.first + 1 else "layers"
    return f"{word} {_span(part.first, part.end)}: {models}"


def _span(first: int, end: int) -> str:
    return str(first) if end == first + 1 else f"{first}-{end - 1}"


def _labels(tensors: Sequence[Resolved]) -> list[Label]:
    """Every parameter that a tensor has, with the input it belongs to, in order."""
    found: dict[Label, None] = {}
    for tensor in tensors:
        found |= dict.fromkeys((name, None) for name in tensor.shared)
        found |= dict.fromkeys((name, entry) for entry, own in tensor.inputs.items() for name in own)
    return list(found)


def _of(tensor: Resolved, label: Label) -> str:
    """The value as it is shown; "-" where the input has no part in the tensor."""
    name, entry = label
    own: Mapping[str, Scalar] = tensor.shared if entry is None else tensor.inputs.get(entry, {})
    if name not in own:
        return "-"
    value = own[name]
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else shown(str(value))


def _parameter(label: Label, tensors: Sequence[Resolved]) -> list[str]:
    name, entry = label
    title = name if entry is None else f"{name} of `{entry}`"
    told = [(tensor, _of(tensor, label)) for tensor in tensors]
    if len(values := {value for _, value in told}) == 1:
        return [f"  {title}: {values.pop()}"]
    return [f"  {title}:", *(f"    {line}" for line in (*_layers(told), *_outside(told)))]


def _layers(told: Sequence[tuple[Resolved, str]]) -> list[str]:
    """The table of the layers: tensors of a layer that always agree share a column, layers that agree a row."""
    columns: dict[str, dict[int, str]] = {}
    for tensor, value in told:
        if tensor.layer is not None:
            columns.setdefault(tensor.kind, {})[tensor.layer] = value
    groups: dict[tuple[tuple[int, str], ...], list[str]] = {}
    for kind, values in columns.items():
        groups.setdefault(tuple(sorted(values.items())), []).append(kind)
    titles = _titles(list(groups.values()))
    tables = [dict(values) for values in groups]
    layers = sorted({layer for values in tables for layer in values})
    rows = [["layer", *titles]] if layers else []
    for found, cells in _runs((layer, [values.get(layer, "-") for values in tables]) for layer in layers):
        rows.append([_span(found[0], found[-1] + 1), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _runs(rows: Iterable[tuple[int, list[str]]]) -> list[tuple[list[int], list[str]]]:
    """The layers that follow each other and have the same values, with these; layers taken as they are end a run."""
    found: list[tuple[list[int], list[str]]] = []
    for layer, cells in rows:
        if found and found[-1][1] == cells and found[-1][0][-1] == layer - 1:
            found[-1][0].append(layer)
        else:
            found.append(([layer], cells))
    return found


def _outside(told: Sequence[tuple[Resolved, str]]) -> list[str]:
    """The tensors outside the layers, by value."""
    by_value: dict[str, list[str]] = {}
    for tensor, value in told:
        if tensor.layer is None:
            by_value.setdefault(value, []).append(tensor.name)
    if len(by_value) == 1:
        return [f"outside the layers: {value}" for value in by_value]
    return [f"{_named(names)}: {value}" for value, names in by_value.items()]


def _named(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _titles(groups: Sequence[Sequence[str]]) -> list[str]:
    """What each group of kinds is called: "all", else the parts of names that only it has, the largest "others"."""
    if len(groups) == 1:
        return ["all"]
    everything = [kind for group in groups for kind in group]
    titles = [", ".join(dict.fromkeys(_short(kind, group, everything) for kind in group)) for group in groups]
    largest = max(range(len(groups)), key=lambda index: len(groups[index]))
    return [
        title if len(title) <= LONGEST else "others" if index == largest else f"{group[0]} and {len(group) - 1} more"
        for index, (title, group) in enumerate(zip(titles, groups, strict=True))
    ]


def _short(kind: str, group: Iterable[str], everything: Iterable[str]) -> str:
    """The shortest beginning of a kind's name that no kind of another group has."""
    inside = set(group)
    others = [other for other in everything if other not in inside]
    parts = kind.split(".")
    for count in range(1, len(parts)):
        start = ".".join(parts[:count])
        if not any(other == start or other.startswith(f"{start}.") for other in others):
            return start
    return kind
