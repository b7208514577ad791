"""`[merge.NAME]`: from the table to a `Merge`, with every fault that the table and its method alone show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from modelbuild.methods.outside import TRUSTS_NOBODY, Outside, unknown
from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.keys import FOLDED, MERGE, MODEL, SLICE, Keys, Toml
from modelbuild.modelfile.merge_rules import check_lengths, check_merge
from modelbuild.modelfile.spec import Input, Merge, Path, Slice, Value
from modelbuild.modelfile.suggest import listed, shown
from modelbuild.modelfile.tables import Table, read, title, unknown_key
from modelbuild.modelfile.values import read_patterns, read_value

if TYPE_CHECKING:
    from modelbuild.methods.base import Method, Parameter

Level: TypeAlias = Literal["merge", "slice", "input"]


@dataclass(frozen=True)
class _Reader:
    """What is at hand while one merge is read; `method` None if it is not known.

    `offered` where somebody who is not trusted has it: then nobody knows its parameters.
    """

    faults: Faults
    path: Path
    method: Method | None
    methods: Mapping[str, Method]
    offered: bool = False

    def declared(self, name: str) -> list[Parameter]:
        """The declarations of a parameter: the method's own, or those of all methods if it is not known."""
        among = [self.method] if self.method else self.methods.values()
        return [found for method in among if (found := method.parameter(name)) is not None]

    def names(self, level: Level) -> list[str]:
        """The parameters that may stand at this level."""
        among = [self.method] if self.method else self.methods.values()
        found = [p.name for method in among for p in method.parameters if level != "input" or p.scope == "input"]
        return list(dict.fromkeys(found))

    def parameters(self, path: Path, raw: Table, keys: Keys, level: Level) -> dict[str, Value]:
        """The values of the parameters that stand in this table."""
        found: dict[str, Value] = {}
        for name in raw:
            if name in keys:
                continue
            declared = self.declared(name)
            if not declared and self.offered:
                continue
            if not declared:
                self._unknown(path, name, raw[name], keys, level)
            elif level == "input" and all(p.scope == "merge" for p in declared):
                message = f"`{name}` belongs to the merge, not to one input"
                self.faults.key((*path, name), message, hint=f"move it to {title(self.path)}")
            else:
                value = read_value(self.faults, (*path, name), raw[name], declared[0] if self.method else None)
                if value is not None:
                    found[name] = value
        return found

    def _unknown(self, path: Path, name: str, value: Toml, keys: Keys, level: Level) -> None:
        if name == "parameters" and isinstance(value, dict):
            message = f"{title(path)} has no key `parameters`"
            self.faults.key((*path, name), message, hint="parameters stand directly in the table")
            return
        facts = []
        others = [method.name for method in self.methods.values() if method.parameter(name)] if self.method else []
        if others and self.method:
            facts.append(f"it is a parameter of {listed(others)}, not of `{self.method.name}`")
        unknown_key(self.faults, (*path, name), dict.fromkeys([*keys, *self.names(level)]), *facts)


def read_merge(
    faults: Faults, name: str, raw: Table, methods: Mapping[str, Method], outside: Outside = TRUSTS_NOBODY
) -> Merge:
    """The merge that the table says; what is wrong in it is a fault and left out.

    A method that is not among `methods` may come from `outside`.
    """
    path: Path = ("merge", name)
    good = read(faults, path, raw, MERGE)
    method, offered = _method(faults, path, good, methods, outside)
    reader = _Reader(faults, path, method, methods, offered)
    merge = Merge(
        name,
        good.get("method", ""),
        base=good.get("base"),
        router=good.get("router"),
        models=_inputs(reader, (*path, "models"), good.get("models", []), "model"),
        adapters=_inputs(reader, (*path, "adapters"), good.get("adapters", []), "adapter"),
        slices=tuple(
            _slice(reader, (*path, "slices", i), part)
            for i, part in enumerate(good.get("slices", []))
            if isinstance(part, dict)
        ),
        parameters=reader.parameters(path, raw, MERGE, "merge"),
        only=read_patterns(faults, (*path, "only"), good.get("only", ())),
        ends=_ends(good.get("ends")),
        copy=read_patterns(faults, (*path, "copy"), good.get("copy", ())),
        **{key: good[key] for key in _PLAIN if key in good},
    )
    check_merge(faults, path, raw, merge, method)
    return merge


def _ends(given: str | list[str] | None) -> tuple[str, str] | None:
    if given is None:
        return None
    before, after = (given, given) if isinstance(given, str) else given
    return before, after


_PLAIN = (
    "dtype", "seed", "base_precision", "tokenizer", "tokens", "pad_to_multiple_of", "chat_template", "config",
    "generation", "description", "keep",
)  # fmt: skip


def _method(
    faults: Faults, path: Path, good: Table, methods: Mapping[str, Method], outside: Outside
) -> tuple[Method | None, bool]:
    """The method that a merge names; None for one that is not known, and whether somebody offers it."""
    name, place = good.get("method"), (*path, "method")
    if name is None:
        return None, False
    found = methods.get(name) or outside.method(name, faults.where(place))
    if found is None:
        facts, hint = unknown(name, outside)
        faults.no_method(place, name, [*methods, *outside.offers], facts, hint)
        return None, hint is not None
    taken = [p.name for p in found.parameters if p.name in {**MERGE, **MODEL, **SLICE}]
    if found.distribution and taken:
        fact = f"{listed(taken)} has a meaning of its own in a merge"
        message = f"method `{name}` of `{found.distribution}` {found.release} declares a parameter that none can have"
        faults.value(place, message, fact, hint="report it to those who made it")
    return found, False


def _inputs(
    reader: _Reader, path: Path, raw: list[Table], what: Literal["model", "adapter"], sliced: bool = False
) -> tuple[Input, ...]:
    """The entries of `models` or `adapters`; a name that stands twice is a fault."""
    found: list[Input] = []
    names: set[str] = set()
    for index, entry in enumerate(raw):
        if not isinstance(entry, dict):
            continue
        keys = MODEL if what == "model" else FOLDED
        where = (*path, index)
        good = read(reader.faults, where, entry, keys)
        parameters = reader.parameters(where, entry, keys, "input")
        if "layers" in good and not sliced:
            hint = "ranges of layers are for `slices`"
            reader.faults.key((*where, "layers"), "`layers` has no meaning outside a slice", hint=hint)
        name = good.get(what)
        if name is None:
            continue
        if name in names:
            reader.faults.value((*where, what), f"`{shown(name)}` stands twice in the same `{path[-1]}`")
        names.add(name)
        layers = tuple(good["layers"]) if "layers" in good else None
        found.append(Input(name, where, layers, parameters))
    return tuple(found)


def _slice(reader: _Reader, path: Path, raw: Table) -> Slice:
    good = read(reader.faults, path, raw, SLICE)
    parameters = reader.parameters(path, raw, SLICE, "slice")
    models = _inputs(reader, (*path, "models"), good.get("models", []), "model", sliced=True)
    layers = tuple(good["layers"]) if "layers" in good else None
    part = Slice(path, models, layers, parameters)
    if "layers" not in raw:
        for entry in models:
            if entry.layers is None and "layers" not in raw["models"][entry.path[-1]]:
                message = f"`{shown(entry.name)}` has no `layers` in this slice"
                reader.faults.key(entry.path, message, hint="`layers = [START, END]` on the model or on the slice")
    check_lengths(reader.faults, part)
    return part
