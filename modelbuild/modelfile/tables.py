"""Reading one table against the keys that it may have: types, ranges and choices, with a fault for each that is off."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, TypeAlias

from modelbuild.dtypes import GREATEST
from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.keys import Key, Keys, Toml, Type
from modelbuild.modelfile.spec import Path
from modelbuild.modelfile.suggest import described, listed, nearest, number, shown
from modelbuild.units import parse_size

Table: TypeAlias = "dict[str, Any]"

DEEPEST = 64
"""How deep tables and lists of `config` and the like may be nested."""

ALIASES = {
    "merge_method": "method", "base_model": "base", "source_model": "model", "sources": "models", "lora": "adapter",
    "layer_range": "layers", "out_dtype": "dtype", "torch_dtype": "dtype", "tokenizer_source": "tokenizer",
    "path": "source", "repo_id": "source", "filter": "match", "targets": "default", "random_seed": "seed",
    "experts": "models", "positive_prompts": "prompt", "positive_prompt": "prompt", "prompts": "prompt",
    "negative_prompts": "negative_prompt",
}  # fmt: skip
"""What other tools call a key, and its name here."""

_TYPES: dict[Type, tuple[str, Callable[[Any], bool]]] = {
    "string": ("a string", lambda value: isinstance(value, str)),
    "integer": ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "number": ("a finite number", lambda value: is_number(value)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "size": ('a size such as "5GB"', lambda value: isinstance(value, str)),
    "strings": ("a list of strings", lambda value: _is_list(value, str)),
    "patterns": ("a pattern or a list of patterns", lambda value: isinstance(value, str) or _is_list(value, str)),
    "ends": (
        "the name of a model, or two: [BEFORE, AFTER]",
        lambda value: isinstance(value, str) or (_is_list(value, str) and len(value) == 2),
    ),
    "layers": ("a range of layers [START, END]", lambda value: _is_range(value)),
    "table": ("a table", lambda value: isinstance(value, dict)),
    "tables": ("a list of tables", lambda value: isinstance(value, list)),
    "value": ("a value", lambda value: True),
    "points": ("a list of [LAYER, VALUE] pairs", lambda value: isinstance(value, list)),
}


def is_number(value: Toml) -> bool:
    """Whether this is an integer or float that a float can hold and that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(float(value))
    except OverflowError:
        return False


def in_range(faults: Faults, path: Path, name: str, value: float) -> bool:
    """Whether float32, in which everything is computed, holds the number; notes a fault if not."""
    if abs(value) <= GREATEST:
        return True
    fact = f"everything is computed in float32, which ends at {GREATEST}"
    faults.value(path, f"`{name}` is out of range: {number(value)}", fact)
    return False


def _is_list(value: Toml, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _is_range(value: Toml) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_TYPES["integer"][1](entry) for entry in value)


def title(path: Path) -> str:
    """What a table is called in a message: "[merge.x]", "entry 2 of `models` in [merge.x]"."""
    head = f"[{'.'.join(shown(str(part)) for part in path[:2])}]"
    rest = path[2:]
    while rest:
        index, rest = (rest[-1], rest[:-1]) if isinstance(rest[-1], int) else (None, rest)
        name, rest = (rest[-1], rest[:-1]) if rest else ("", rest)
        what = f"`{shown(str(name))}`" if index is None else f"entry {index + 1} of `{shown(str(name))}`"
        return f"{what} in {title((*path[:2], *rest))}"
    return head


def read(faults: Faults, path: Path, raw: Table, keys: Keys) -> Table:
    """The values of those known keys that are right; faults for those that are wrong and for required ones not there.

    Keys that are not known are left to the caller, and so are entries of a list of tables that are no tables.
    """
    good: Table = {}
    for name, key in keys.items():
        if name in raw:
            if fits(faults, (*path, name), raw[name], key):
                good[name] = raw[name]
        elif key.required and not any(means(other, name) for other in raw if other not in keys):
            faults.key(path, f"{title(path)} has no `{name}`", f"`{name}`: {key.help}")
    return good


def means(word: str, name: str) -> bool:
    """Whether an unknown key is a misspelling of this one, so that it need not be reported as missing too."""
    return ALIASES.get(word) == name or nearest(word, [name]) is not None


def read_all(faults: Faults, path: Path, raw: Table, keys: Keys) -> Table:
    """As `read`, and every key that is not known is a fault."""
    for name in raw:
        if name not in keys:
            unknown_key(faults, (*path, name), keys)
    return read(faults, path, raw, keys)


def unknown_key(faults: Faults, path: Path, known: Mapping[str, object], *facts: str) -> None:
    """Notes that the table around `path` has no such key; the hint is the nearest that it has."""
    name = str(path[-1])
    message = f"{title(path[:-1])} has no key `{shown(name)}`"
    if (alias := ALIASES.get(name)) in known:
        faults.key(path, message, *facts, hint=f"here it is called `{alias}`")
    else:
        faults.unknown(path, message, name, known, *facts)


def fits(faults: Faults, path: Path, value: Toml, key: Key) -> bool:
    """Whether the value is what the key takes; notes a fault if not."""
    wanted, fits = _TYPES[key.type]
    name = f"`{key.name}`"
    if key.type == "tables" and isinstance(value, list):
        return _are_tables(faults, path, value, key)
    if not fits(value):
        _wrong_type(faults, path, value, key, wanted)
    elif key.choices and value not in key.choices:
        faults.unknown_value(
            path, f"{name} is one of {listed(key.choices)}, not {described(value)}", value, key.choices
        )
    elif key.pattern and not re.fullmatch(key.pattern, value):
        faults.expected(path, name, key.example, value)
    elif key.type == "integer" and not within(value, key.low, key.high):
        faults.expected(path, name, f"an integer {bounds(key.low, key.high)}", value)
    elif key.type == "number":
        return in_range(faults, path, key.name, value)
    elif key.type == "layers" and not 0 <= value[0] < value[1]:
        text = f"[{number(value[0])}, {number(value[1])}]"
        faults.value(path, f"{text} is not a range of layers", "a range is [START, END], from 0, END excluded")
    elif (isinstance(value, list) and len(value) < key.least) or (isinstance(value, str) and not value.strip()):
        faults.value(path, f"{name} is empty")
    elif key.type == "size":
        return _is_size(faults, path, value)
    elif key.type == "table":
        return is_data(faults, path, value)
    else:
        return True
    return False


def _are_tables(faults: Faults, path: Path, value: list[Toml], key: Key) -> bool:
    """Whether the list is long enough; entries that are no tables are noted, and are for the caller to skip."""
    inner = "adapter" if key.name in ("adapters", "combine") else "model"
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            hint = f'an entry is written `{{ {inner} = "{shown(entry)}" }}`' if isinstance(entry, str) else None
            faults.expected((*path, index), f"entry {index + 1} of `{key.name}`", "a table", entry, hint=hint)
    if len(value) < key.least:
        faults.value(path, f"`{key.name}` is empty")
    return len(value) >= key.least


def _wrong_type(faults: Faults, path: Path, value: Toml, key: Key, wanted: str) -> None:
    hint = None
    if key.type == "strings" and isinstance(value, str):
        hint = f'write `{key.name} = ["{shown(value)}"]`'
    elif key.type == "tables" and isinstance(value, dict):
        hint = f"a list, even of one: `{key.name} = [ {{ … }} ]`"
    elif key.type == "boolean" and isinstance(value, str) and value.casefold() in ("true", "false"):
        hint = f"without quotes: `{value.casefold()}`"
    faults.expected(path, f"`{key.name}`", wanted, value, hint=hint)


def _is_size(faults: Faults, path: Path, value: str) -> bool:
    try:
        if parse_size(value) > 0:
            return True
    except ValueError:
        pass
    faults.expected(path, f"`{path[-1]}`", 'a size such as "5GB"', value)
    return False


def within(value: float, low: float | None, high: float | None) -> bool:
    """Whether the value lies between the bounds, inclusive; None is no bound."""
    return (low is None or value >= low) and (high is None or value <= high)


def bounds(low: float | None, high: float | None) -> str:
    """The bounds in words: "from 0 to 1", "of at least 0"."""
    if low is not None and high is not None:
        return f"from {number(low)} to {number(high)}"
    return f"of at least {number(low)}" if low is not None else f"of at most {number(high or 0)}"


def is_data(faults: Faults, path: Path, value: Toml) -> bool:
    """Whether a table is fit to be written as JSON: finite numbers, no dates, not nested too deep."""
    rest: list[tuple[Path, Any]] = [(path, value)]
    fine = True
    while rest:
        where, entry = rest.pop()
        if len(where) - len(path) > DEEPEST:
            faults.value(path, f"`{path[-1]}` is nested deeper than {DEEPEST} levels")
            return False
        if isinstance(entry, dict):
            rest += [((*where, name), inner) for name, inner in entry.items()]
        elif isinstance(entry, list):
            rest += [((*where, index), inner) for index, inner in enumerate(entry)]
        elif not (isinstance(entry, str | bool) or is_number(entry)):
            faults.value(where, f"{described(entry)} has no place in JSON", "JSON has finite numbers, and no dates")
            fine = False
    return fine
