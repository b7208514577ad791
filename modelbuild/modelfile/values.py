"""The values of a merge's parameters: constants, gradients, points and choices, from what the file says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.keys import CHOICE, POINTS, Toml
from modelbuild.modelfile.spec import Choice, Choices, Constant, Gradient, Path, Points, Texts, Value
from modelbuild.modelfile.suggest import described, listed, number, shown
from modelbuild.modelfile.tables import bounds, in_range, is_number, read_all, within

if TYPE_CHECKING:
    from modelbuild.methods.base import Parameter

DEEPEST = 16
"""How deep choices may be nested in choices."""

_KINDS: dict[str, tuple[type[int | bool | str], str]] = {
    "integer": (int, "an integer"),
    "boolean": (bool, "true or false"),
    "string": (str, "a string"),
    "strings": (str, "a string or a list of strings"),
}
_REGEX = set("\\^$(){}[]|+?")


def read_value(faults: Faults, path: Path, raw: Toml, parameter: Parameter | None, depth: int = 0) -> Value | None:
    """The value at `path` of a parameter; None, and faults, where it is not one.

    Without `parameter`, because the method is not known, only the form is checked.
    """
    if isinstance(raw, list) and raw and any(isinstance(entry, dict) for entry in raw):
        return _choices(faults, path, raw, parameter, depth)
    if isinstance(raw, list) and raw and _are_texts(raw, parameter):
        return Texts(tuple(raw))
    if isinstance(raw, list):
        return _gradient(faults, path, raw, parameter)
    if isinstance(raw, dict):
        return _points(faults, path, raw, parameter)
    return _constant(faults, path, raw, parameter)


def _are_texts(raw: list[Any], parameter: Parameter | None) -> bool:
    """Whether a list is one of strings, for a parameter that takes them or is not known."""
    return (parameter is None or parameter.type == "strings") and all(isinstance(entry, str) for entry in raw)


def _constant(faults: Faults, path: Path, raw: Toml, parameter: Parameter | None) -> Constant | None:
    if parameter is None:
        if isinstance(raw, str | bool):
            return Constant(raw)
        if is_number(raw):
            return Constant(raw) if in_range(faults, path, _name(path), raw) else None
        wanted = "a finite number" if isinstance(raw, float | int) else "a finite number, true, false or a string"
        faults.expected(path, f"`{_name(path)}`", wanted, raw)
        return None
    if parameter.type == "number":
        found = _number(faults, path, raw, parameter)
        return None if found is None else Constant(found)
    kind, wanted = _KINDS[parameter.type]
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        faults.expected(path, f"`{parameter.name}`", wanted, raw)
    elif parameter.choices and raw not in parameter.choices:
        message = f"`{parameter.name}` is one of {listed(parameter.choices)}, not {described(raw)}"
        faults.unknown_value(path, message, str(raw), parameter.choices)
    elif parameter.type == "integer" and not within(int(raw), parameter.low, parameter.high):
        faults.expected(path, f"`{parameter.name}`", f"an integer {bounds(parameter.low, parameter.high)}", raw)
    else:
        return Constant(raw)
    return None


def _number(faults: Faults, path: Path, raw: Toml, parameter: Parameter | None) -> float | None:
    """A finite number within the parameter's bounds, as a float, so that 1 and 1.0 are the same value."""
    name = parameter.name if parameter else _name(path)
    if not is_number(raw):
        faults.expected(path, f"`{name}`", "a finite number", raw)
        return None
    if parameter and not within(raw, parameter.low, parameter.high):
        faults.expected(path, f"`{name}`", f"a number {bounds(parameter.low, parameter.high)}", raw)
        return None
    return float(raw) + 0.0 if in_range(faults, path, name, raw) else None


def _numeric(faults: Faults, path: Path, parameter: Parameter | None, form: str) -> bool:
    """Whether the parameter is a number, and so may run over the layers; notes a fault if not."""
    if parameter is None or parameter.type == "number":
        return True
    wanted = _KINDS[parameter.type][1]
    faults.value(path, f"`{parameter.name}` is {wanted}, not {form}", "only numbers run over the layers")
    return False


def _gradient(faults: Faults, path: Path, raw: list[Any], parameter: Parameter | None) -> Gradient | None:
    if parameter is not None and parameter.type == "strings":
        fact = "not everything in this list is a string" if raw else "this list is empty"
        faults.value(path, f"`{parameter.name}` is {_KINDS[parameter.type][1]}", fact)
        return None
    if not raw:
        faults.value(path, "a gradient has at least one number")
        return None
    if not _numeric(faults, path, parameter, "a gradient"):
        return None
    numbers = [_number(faults, (*path, index), entry, parameter) for index, entry in enumerate(raw)]
    good = tuple(entry for entry in numbers if entry is not None)
    return Gradient(good) if len(good) == len(raw) else None


def _points(faults: Faults, path: Path, raw: dict[str, Any], parameter: Parameter | None) -> Points | None:
    if "points" not in raw and ("match" in raw or "value" in raw):
        faults.value(path, "choices are a list", hint="write `[ { match = …, value = … } ]`")
        return None
    good = read_all(faults, path, raw, POINTS)
    if not _numeric(faults, path, parameter, "points") or "points" not in good:
        return None
    points = [_point(faults, (*path, "points", index), entry, parameter) for index, entry in enumerate(good["points"])]
    rest = _number(faults, (*path, "rest"), good.get("rest", 0.0), parameter)
    right = tuple(point for point in points if point is not None)
    for index, (before, after) in enumerate(pairwise(points), 1):
        if before is not None and after is not None and before[0] >= after[0]:
            message = f"layer {number(after[0])} comes after layer {number(before[0])}"
            faults.value((*path, "points", index), message, "layers of points are strictly increasing")
    shape = good.get("shape", "linear")
    return Points(right, rest, shape) if rest is not None and len(right) == len(points) else None


def _point(faults: Faults, path: Path, raw: Toml, parameter: Parameter | None) -> tuple[int, float] | None:
    if not isinstance(raw, list) or len(raw) != 2:
        faults.expected(path, "a point", "a pair [LAYER, VALUE]", raw)
        return None
    layer, value = raw[0], _number(faults, (*path, 1), raw[1], parameter)
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        faults.expected((*path, 0), "the layer of a point", "an integer of at least 0", layer)
        return None
    return None if value is None else (layer, value)


def _choices(faults: Faults, path: Path, raw: list[Any], parameter: Parameter | None, depth: int) -> Choices | None:
    if depth >= DEEPEST:
        faults.value(path, f"choices are nested deeper than {DEEPEST} levels")
        return None
    entries = [_choice(faults, (*path, index), entry, parameter, depth) for index, entry in enumerate(raw)]
    for index, entry in enumerate(raw[:-1]):
        if isinstance(entry, dict) and entry.get("match", "*") == "*":
            message = "this choice is never reached"
            faults.key((*path, index + 1), message, f"entry {index + 1} before it fits every tensor")
            break
    good = tuple(entry for entry in entries if entry is not None)
    return Choices(good) if len(good) == len(raw) else None


def _choice(faults: Faults, path: Path, raw: Toml, parameter: Parameter | None, depth: int) -> Choice | None:
    if not isinstance(raw, dict):
        faults.expected(path, "a choice", "a table { match, value }", raw)
        return None
    if "points" in raw and "value" not in raw:
        faults.value(path, "points are not a choice", hint="write `{ value = { points = … } }`")
        return None
    good = read_all(faults, path, raw, CHOICE)
    if "match" in good:
        check_pattern(faults, (*path, "match"), good["match"])
    if "value" not in good:
        return None
    value = read_value(faults, (*path, "value"), good["value"], parameter, depth + 1)
    return None if value is None else Choice(good.get("match"), value)


def read_patterns(faults: Faults, path: Path, raw: str | Sequence[str]) -> tuple[str, ...]:
    """A pattern or a list of patterns, as a tuple; a fault for each that is empty or a regular expression."""
    if isinstance(raw, str):
        check_pattern(faults, path, raw)
        return (raw,)
    for index, pattern in enumerate(raw):
        check_pattern(faults, (*path, index), pattern)
    return tuple(raw)


def check_pattern(faults: Faults, path: Path, pattern: str) -> None:
    """Notes a fault for a pattern that is empty or was meant as a regular expression."""
    if not pattern.strip():
        faults.value(path, "a pattern is empty")
    elif _REGEX & set(pattern):
        message = f"`{shown(pattern)}` looks like a regular expression"
        faults.value(path, message, "a pattern is a piece of a tensor's name, `*` standing for anything")


def _name(path: Path) -> str:
    """The parameter's name: the last part of the path that is a word of the file's own."""
    words = [part for part in path if isinstance(part, str) and part not in ("value", "points", "rest")]
    return shown(words[-1])
