"""Values of parameters: mergekit's scalars, lists and filters as the constants, gradients and choices of a Modelfile.

mergekit's rules, which a Modelfile keeps: the first filter that fits wins, a list that nothing fits leaves the decision
to the next level, a list of numbers is a gradient. It compares filters letter by letter, so that one with a `*` or a
character of regular expressions in it fits no tensor; such entries are left out, since here they would fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelbuild.importing.known import METHODS, RENAMED, without_effect
from modelbuild.importing.nouns import Findings, Item
from modelbuild.importing.read import fields, truth
from modelbuild.methods.base import Parameter
from modelbuild.methods.registry import method as method_called
from modelbuild.modelfile.suggest import did_you_mean, shown

FILTER = "mergekit's `filter` is `match`: a piece of the tensor's name; the first entry that fits wins."
GRADIENT = (
    "A list of numbers is a gradient over the layers of a slice; tensors outside of the layers, such as embeddings, "
    "final norm and head, take its first number."
)
_NEVER = frozenset("*\\^$(){}[]|+? \t\n")
"""Characters that are in no tensor's name."""


def parameters(findings: Findings, method: str, item: Item | None, level: str, what: str) -> dict[str, Item]:
    """The parameters of `method` that stand in a `parameters` mapping, by their names here.

    `level`: "merge", "slice" or "input". Those that mergekit reads without effect, or does not read at all, are left
    out and noted. `what` is whose parameters they are.
    """
    if item is None:
        return {}
    known = METHODS[method]
    if not isinstance(item.value, dict):
        findings.expected(item, f"`parameters` of {what}", "a mapping")
        return {}
    found: dict[str, Item] = {}
    for name, inner in item.value.items():
        if name not in known.parameters:
            text = f"`{shown(name)}` is no parameter of {method}: mergekit does not read it"
            findings.unread(inner.place, text, did_you_mean(name, known.parameters))
        elif (reason := _left_out(method, name, level)) is not None:
            findings.note(inner.place, reason)
        else:
            declared = method_called(method)
            here = RENAMED.get(name, name)
            parameter = declared.parameter(here) if declared else None
            assert parameter is not None, f"{method} has no {here}"
            if (value := setting(findings, inner, parameter)) is not None:
                found[here] = value
    return found


def _left_out(method: str, name: str, level: str) -> str | None:
    """Why a parameter is left out, as a sentence; None if it is not."""
    if (reason := without_effect(method, name)) is not None:
        return f"`{name}` is left out: {reason}"
    if level == "input" and name in METHODS[method].shared:
        return f"`{name}` belongs to the merge: mergekit does not read it on a model, and it is left out"
    return None


def setting(findings: Findings, item: Item, parameter: Parameter) -> Item | None:
    """The value of a parameter, in the form of the Modelfile; None where mergekit has no value, or with a fault."""
    if isinstance(item.value, dict):
        return _choices(findings, item, [item], parameter)
    if not isinstance(item.value, list):
        value = scalar(findings, item, parameter)
        return None if value is None else item.but(value)
    if not item.value:
        findings.note(item.place, f"`{parameter.name}` is an empty list, which decides nothing, and is left out")
        return None
    if all(isinstance(entry.value, dict) for entry in item.value):
        return _choices(findings, item, item.value, parameter)
    return _gradient(findings, item, parameter)


def _gradient(findings: Findings, item: Item, parameter: Parameter) -> Item | None:
    values = [scalar(findings, entry, parameter) for entry in item.value]
    if any(value is None for value in values):
        return None
    if all(value == values[0] for value in values):
        return item.but(values[0])
    if parameter.type != "number":
        message = f"`{parameter.name}` changes over the layers, and only numbers can here"
        findings.fault(item.where, message, hint="give it one value, or choose by the names of tensors")
        return None
    findings.remark(GRADIENT)
    return item.but([entry.but(value) for entry, value in zip(item.value, values, strict=True)])


def _choices(findings: Findings, item: Item, entries: list[Item], parameter: Parameter) -> Item | None:
    """The entries that can fit, in order, up to the first that fits everything; that one's value if it is alone."""
    found: list[Item] = []
    for index, entry in enumerate(entries):
        given = fields(findings, entry, "a filter", ("filter", "value"))
        if "value" not in given:
            findings.fault(entry.where, "a filter has no `value`")
            continue
        if given["value"].value == [] or _is_nested(given["value"]):
            findings.expected(given["value"], "`value` of a filter", "a number, or a list of numbers")
            continue
        match = _pattern(findings, given.get("filter"))
        value = setting(findings, given["value"], parameter)
        if match is False or value is None:
            continue
        if match is None:
            if len(entries) > index + 1:
                text = "entries after one that fits every tensor are never reached, and are left out"
                findings.note(entries[index + 1].where, text)
            found.append(entry.but({"value": value}))
            break
        found.append(entry.but({"match": match, "value": value}))
    if found and "match" not in found[0].value:
        return item.but(found[0].value["value"].value)
    if found:
        findings.remark(FILTER)
    return item.but(found) if found else None


def _is_nested(item: Item) -> bool:
    return isinstance(item.value, dict) or (
        isinstance(item.value, list) and any(isinstance(entry.value, dict | list) for entry in item.value)
    )


def _pattern(findings: Findings, item: Item | None) -> Any:
    """The item of a filter; None for one that fits everything, False for one that fits nothing, or with a fault."""
    if item is None or item.value in ("*", ""):
        return None
    if not isinstance(item.value, str):
        findings.expected(item, "`filter`", "a string")
        return False
    if _NEVER & set(item.value):
        text = (
            f"the filter `{shown(item.value)}` is left out: mergekit compares it letter by letter, and no tensor has it"
        )
        findings.note(item.place, text)
        return False
    return item


def scalar(findings: Findings, item: Item, parameter: Parameter) -> float | int | bool | str | None:
    """A single value as its parameter takes it; YAML 1.1 reads `1e-5` as a string, and mergekit that as a number."""
    value = item.value
    found: float | int | bool | str | None = None
    if parameter.type == "boolean":
        found = truth(item)
    elif parameter.type == "string":
        found = value if isinstance(value, str) else None
    elif isinstance(value, bool | int | float):
        found = value if not isinstance(value, bool) else int(value)
    elif isinstance(value, str):
        found = _number(value)
    if found is not None and parameter.type == "integer" and isinstance(found, float):
        found = int(found) if found.is_integer() else None
    if found is None:
        wanted = {"boolean": "true or false", "string": "a string", "integer": "an integer"}
        point = value.replace(",", ".") if isinstance(value, str) and parameter.type == "number" else ""
        hint = f"write `{shown(point)}`" if _number(point) is not None else None
        findings.expected(item, f"`{parameter.name}`", wanted.get(parameter.type, "a number"), hint)
    return found


def _number(text: str) -> float | int | None:
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        return None


# --- levels -----------------------------------------------------------------------------------------------------------


def first_of(inner: Item | None, outer: Item | None) -> Item | None:
    """Two levels as one: what `inner` leaves undecided, `outer` decides."""
    if inner is None or outer is None:
        return inner or outer
    if not _is_choices(inner) or any("match" not in entry.value for entry in inner.value):
        return inner
    rest = outer.value if _is_choices(outer) else [outer.but({"value": outer})]
    return inner.but([*inner.value, *rest])


def names_layers(item: Item) -> bool:
    """Whether a filter could be about the number of a layer, which differs between input and output."""
    return _is_choices(item) and any(
        any(char.isdigit() for char in entry.value["match"].value) for entry in item.value if "match" in entry.value
    )


def _is_choices(item: Item) -> bool:
    return isinstance(item.value, list) and isinstance(item.value[0].value, dict)


def joined(inner: Mapping[str, Item], outer: Mapping[str, Item]) -> dict[str, Item]:
    """The parameters of two levels as those of one."""
    found = {name: first_of(inner.get(name), outer.get(name)) for name in dict.fromkeys([*inner, *outer])}
    return {name: item for name, item in found.items() if item is not None}


def layered(method: str, given: Mapping[str, Item]) -> Iterator[str]:
    """The parameters of each input that stand on a slice or the merge with a filter that could be about a layer.

    mergekit compares the filters of such a parameter with the names in the input, wherever they stand.
    """
    each = {RENAMED.get(name, name) for name in METHODS[method].each}
    return (name for name, item in given.items() if name in each and names_layers(item))
