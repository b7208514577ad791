"""The recipe in a model card: a fenced block of YAML in a README.md, of which there may be several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from modelbuild.errors import Fault, ModelfileError, UsageError, Where
from modelbuild.importing.nouns import Findings, Item
from modelbuild.importing.yamltext import documents

ENDINGS = (".md", ".markdown")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([A-Za-z0-9_+-]*)[^`]*")
_LANGUAGES = ("yaml", "yml", "")
_TITLE = re.compile(r"#[ \t]+(.+?)[ \t]*#*[ \t]*")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its text, where that begins (lines and columns before it), what a reader knows it by ("" where it
    is no recipe), the language it says it is in, and whether it only looks like a recipe."""

    text: str
    origin: Where
    about: str = ""
    language: str = ""
    maybe: bool = False


def title(card: str) -> str:
    """The first heading of a card; "" if there is none."""
    found = (_TITLE.fullmatch(line) for line in card.splitlines())
    return next((match[1] for match in found if match), "")


def recipe(card: str, file: str, number: int | None = None) -> Block:
    """The block of a card that is a mergekit recipe; the one with this number, from 1 on, where there are several.

    Raises ModelfileError if there is none, and UsageError if there are several and none was chosen.
    """
    read = [_known(block) for block in _blocks(card, file)]
    recipes = [block for block in read if block.about and not block.maybe]
    # What only looks like a recipe is one whose `merge_method` is missing, or spelled otherwise.
    found = _distinct(recipes or [block for block in read if block.maybe])
    if not found:
        raise _none(card, file)
    if number is not None and not 1 <= number <= len(found):
        fact = f"there is one in `{file}`" if len(found) == 1 else f"there are {len(found)} in `{file}`"
        raise UsageError(f"there is no recipe number {number}", facts=(fact,))
    if number is None and len(found) > 1:
        facts = [f"{index}: line {block.origin.line + 1}, {block.about}" for index, block in enumerate(found, 1)]
        raise UsageError(f"`{file}` has {len(found)} recipes", facts=facts, hint="choose one with `--block NUMBER`")
    return found[(number or 1) - 1]


def _distinct(blocks: Sequence[Block]) -> list[Block]:
    """The blocks without those that stand above already, word for word."""
    found: dict[str, Block] = {}
    for block in blocks:
        found.setdefault(block.text, block)
    return list(found.values())


def _blocks(card: str, file: str) -> Iterator[Block]:
    """Every fenced block; one that nothing closes goes on to the end."""
    lines = card.split("\n")
    start, indent, fence, language = 0, "", "", ""
    for index, raw in enumerate(lines):
        line = raw.rstrip("\r")
        found = _FENCE.fullmatch(line)
        if not fence and found:
            start, (indent, fence, language) = index + 1, found.groups()
        elif fence and found and found[2].startswith(fence) and line.strip() == found[2]:
            yield _block(lines[start:index], Where(file, start, len(indent)), language)
            fence = ""
    if fence:
        yield _block(lines[start:], Where(file, start, len(indent)), language)


def _block(lines: Sequence[str], origin: Where, language: str) -> Block:
    width = origin.column
    inner = [raw[width:] if not raw[:width].strip() else raw.lstrip() for raw in lines]
    return Block("\n".join(inner).rstrip("\n") + "\n", origin, language=language.lower())


def _known(block: Block) -> Block:
    """The block with what it is about, if it is a recipe or looks like one."""
    try:
        items = documents(block.text, block.origin, Findings())
    except ModelfileError:
        # A recipe that is no YAML is better told of than passed over.
        broken = block.language in _LANGUAGES and "merge_method" in block.text
        return replace(block, about="not YAML" if broken else "")
    about = [name for item in items if (name := _about(item)) is not None]
    if about:
        return replace(block, about=", ".join(about))
    return replace(block, about="no `merge_method`", maybe=True) if any(map(_is_like_one, items)) else block


def _about(item: Item) -> str | None:
    if not isinstance(item.value, dict):
        return None
    if "merge_method" in item.value:
        return f"`{item.value['merge_method'].value}`"
    if "layer_slices" in item.value:
        return "a stack of layers"
    return "a mixture of experts" if {"experts", "base_model"} <= item.value.keys() else None


def _is_like_one(item: Item) -> bool:
    keys = ("models", "slices", "experts")
    return isinstance(item.value, dict) and any(isinstance(item.value[k].value, list) for k in keys if k in item.value)


def _none(card: str, file: str) -> ModelfileError:
    count = sum(1 for _ in _blocks(card, file))
    facts = {0: "it has no fenced block", 1: "its only fenced block has no `merge_method`"}
    fact = facts.get(count, f"it has {count} fenced blocks, and none has a `merge_method`")
    hint = "copy the recipe into a file that ends in .yml"
    return ModelfileError([Fault("there is no mergekit recipe in this card", Where(file), (fact,), hint)])
