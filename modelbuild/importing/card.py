"""The recipe in a model card: a fenced block of YAML in a README.md, of which there may be several."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modelbuild.errors import Fault, ModelfileError, UsageError, Where
from modelbuild.importing.nouns import Findings, Item
from modelbuild.importing.yamltext import documents

ENDINGS = (".md", ".markdown")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([A-Za-z0-9_+-]*)[^`]*")
_LANGUAGES = ("yaml", "yml", "")
_TITLE = re.compile(r"#[ \t]+(.+?)[ \t]*#*[ \t]*")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its text, where that begins (lines and columns before it), and what a reader knows it by."""

    text: str
    origin: Where
    about: str = ""


def title(card: str) -> str:
    """The first heading of a card; "" if there is none."""
    found = (_TITLE.fullmatch(line) for line in card.splitlines())
    return next((match[1] for match in found if match), "")


def recipe(card: str, file: str, number: int | None = None) -> Block:
    """The block of a card that is a mergekit recipe; the one with this number, from 1 on, where there are several.

    Raises ModelfileError if there is none, and UsageError if there are several and none was chosen.
    """
    found = [block for block in map(_known, _blocks(card, file)) if isinstance(block, Block)]
    if not found:
        raise _none(card, file)
    if number is not None and not 1 <= number <= len(found):
        fact = f"there is one in `{file}`" if len(found) == 1 else f"there are {len(found)} in `{file}`"
        raise UsageError(f"there is no recipe number {number}", facts=(fact,))
    if number is None and len(found) > 1:
        facts = [f"{index}: line {block.origin.line + 1}, {block.about}" for index, block in enumerate(found, 1)]
        raise UsageError(f"`{file}` has {len(found)} recipes", facts=facts, hint="choose one with `--block NUMBER`")
    return found[(number or 1) - 1]


def _blocks(card: str, file: str) -> Iterator[Block]:
    """Every fenced block without a language or with YAML's."""
    lines = card.split("\n")
    start, indent, fence, language = 0, "", "", ""
    for index, raw in enumerate(lines):
        line = raw.rstrip("\r")
        found = _FENCE.fullmatch(line)
        if not fence and found:
            start, (indent, fence, language) = index + 1, found.groups()
        elif fence and found and found[2].startswith(fence) and line.strip() == found[2]:
            if language.lower() in _LANGUAGES:
                width = len(indent)
                inner = [raw[width:] if not raw[:width].strip() else raw.lstrip() for raw in lines[start:index]]
                yield Block("\n".join(inner) + "\n", Where(file, start, width))
            fence = ""


def _known(block: Block) -> Block | ModelfileError:
    """The block if it is a recipe, with what it is about; what is wrong with it if it is not."""
    try:
        items = documents(block.text, block.origin, Findings())
    except ModelfileError as error:
        # A recipe that is no YAML is better told of than passed over.
        return Block(block.text, block.origin, "not YAML") if "merge_method" in block.text else error
    about = [name for item in items if (name := _about(item)) is not None]
    if not about:
        return ModelfileError("no recipe", where=block.origin)
    return Block(block.text, block.origin, ", ".join(about))


def _about(item: Item) -> str | None:
    if not isinstance(item.value, dict):
        return None
    if "merge_method" in item.value:
        return f"`{item.value['merge_method'].value}`"
    return "a mixture of experts" if {"experts", "base_model"} <= item.value.keys() else None


def _none(card: str, file: str) -> ModelfileError:
    count = sum(1 for _ in _blocks(card, file))
    fact = f"it has {count} fenced blocks, and none has a `merge_method`" if count else "it has no fenced block of YAML"
    hint = "copy the recipe into a file that ends in .yml"
    return ModelfileError([Fault("there is no mergekit recipe in this card", Where(file), (fact,), hint)])
