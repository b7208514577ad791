"""YAML 1.1 text, as mergekit reads it, as items with places; everything that PyYAML would let pass in silence is told.

Keys that stand twice, keys that are no strings, tags, and aliases that multiply without end are faults.
"""

from __future__ import annotations

import codecs
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelbuild.errors import ModelfileError, Where
from modelbuild.importing.nouns import Findings, Item
from modelbuild.modelfile.suggest import shown

if TYPE_CHECKING:
    from yaml import MappingNode, Node, SafeLoader, ScalarNode

LARGEST = 2**20
"""Bytes of the largest file that is read: recipes are a few KiB."""

MOST = 50_000
"""How many values a file may come to; aliases make few lines into many values."""

_PLAIN = "tag:yaml.org,2002:"
_SCALARS = {f"{_PLAIN}{name}" for name in ("str", "int", "float", "bool", "null")}


def decoded(data: bytes, file: str) -> str:
    """The text of a file; raises ModelfileError for one that is too large, or not UTF-8."""
    if len(data) > LARGEST:
        raise ModelfileError(f"the file is larger than {LARGEST // 2**20} MiB", where=Where(file))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ModelfileError("the file is UTF-16", where=Where(file, 1), hint="save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        facts = (f"byte 0x{data[error.start]:02x}",)
        raise ModelfileError("the file is not UTF-8", where=Where(file, line), facts=facts) from None


def documents(text: str, origin: Where, findings: Findings) -> list[Item]:
    """The documents of a YAML text that hold anything, each with the places of all that is in it.

    `origin` is where the text stands: its file, and how many lines and columns are before it. Raises ModelfileError for
    a text that is no YAML; what else is wrong is among the findings.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        reader = _Reader(loader, origin, findings)
        found = []
        while loader.check_node():
            found.append(reader.item(loader.get_node()))
        return [item for item in found if item.value is not None]
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, text, origin) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = Where(origin.file, origin.line + before.count("\n") + 1)
        raise ModelfileError("not YAML: a character that no text has", where=where) from None
    except RecursionError:
        raise ModelfileError("mappings and lists are nested too deep", where=Where(origin.file)) from None


def _not_yaml(error: Any, text: str, origin: Where) -> ModelfileError:
    mark = error.problem_mark or error.context_mark
    problem = shown(error.problem or error.context or "it cannot be read")
    hint = None
    if r"'\t'" in (error.problem or ""):
        problem, hint = "a tab stands where YAML wants spaces", "indent with spaces"
    elif "<block end>" in problem:
        hint = "YAML knows by the indentation what a line belongs to"
    where = Where(origin.file) if mark is None else _at(mark, origin)
    lines = [] if mark is None else text.splitlines()[mark.line : mark.line + 1]
    facts = [shown(line.strip()) for line in lines if line.strip()]
    return ModelfileError(f"not YAML: {problem}", where=where, facts=facts, hint=hint)


def _at(mark: Any, origin: Where) -> Where:
    return Where(origin.file, mark.line + origin.line + 1, mark.column + origin.column + 1)


class _Reader:
    """Turns nodes of PyYAML into items."""

    def __init__(self, loader: SafeLoader, origin: Where, findings: Findings) -> None:
        self.loader = loader
        self.origin = origin
        self.findings = findings
        self.count = 0
        self.around: set[int] = set()

    def item(self, node: Node) -> Item:
        """The node as an item; aliases are written out."""
        from yaml import MappingNode, ScalarNode

        where = _at(node.start_mark, self.origin)
        self.count += 1
        if self.count > MOST:
            raise ModelfileError(f"the file comes to more than {MOST} values", where=where, hint="aliases multiply")
        if isinstance(node, ScalarNode):
            return self._scalar(node, where)
        kind = "map" if isinstance(node, MappingNode) else "seq"
        if node.tag != f"{_PLAIN}{kind}":
            self.findings.fault(where, f"a recipe has no place for the tag `{shown(node.tag)}`")
            return Item(None, where)
        if id(node) in self.around:
            raise ModelfileError("an alias stands inside of what it names", where=where)
        self.around.add(id(node))
        value = self._mapping(node) if isinstance(node, MappingNode) else [self.item(inner) for inner in node.value]
        self.around.discard(id(node))
        return Item(value, where)

    def _scalar(self, node: ScalarNode, where: Where) -> Item:
        from yaml import YAMLError

        value: Any = None
        if node.tag in _SCALARS:
            try:
                value = self.loader.construct_object(node)
            except (YAMLError, ValueError, OverflowError):
                self.findings.fault(where, f"`{shown(str(node.value))}` is not what its form says it is")
        elif node.tag == f"{_PLAIN}timestamp":
            self.findings.fault(where, f"`{shown(node.value)}` is a date to YAML", hint="put it in quotes")
        else:
            self.findings.fault(where, f"a recipe has no place for the tag `{shown(node.tag)}`")
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            self.findings.fault(where, "half of a surrogate pair is not text")
            value = ""
        return Item(value, where)

    def _mapping(self, node: MappingNode) -> dict[str, Item]:
        found: dict[str, Item] = {}
        merged: dict[str, Item] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_PLAIN}merge":
                merged = {**self._merged(value_node), **merged}
                continue
            key, value = self.item(key_node), self.item(value_node)
            if not isinstance(key.value, str):
                hint = "put it in quotes" if not isinstance(key.value, dict | list) else None
                self.findings.fault(key.where, f"a key is a string, not {key.told()}", hint=hint)
            elif key.value in found:
                fact = f"it stands in line {found[key.value].place.line} already"
                hint = "YAML knows by the indentation what a key belongs to"
                self.findings.fault(key.where, f"`{shown(key.value)}` stands twice", fact, hint=hint)
            else:
                found[key.value] = replace(value, key=key.where)
        return {**merged, **found}

    def _merged(self, node: Node) -> dict[str, Item]:
        """What a `<<` brings in: a mapping, or several of which the first has the last word."""
        item = self.item(node)
        parts = item.value if isinstance(item.value, list) else [item]
        if not all(isinstance(part.value, dict) for part in parts):
            self.findings.fault(item.where, f"`<<` takes a mapping, not {item.told()}")
            return {}
        result: dict[str, Item] = {}
        for part in reversed(parts):
            result |= part.value
        return result
