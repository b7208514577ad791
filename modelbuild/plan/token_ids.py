"""The ids of tokens in config.json and generation_config.json, once the tokens have other ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelbuild.plan.overrides import merged
from modelbuild.plan.planned import Side
from modelbuild.sources.strictjson import show
from modelbuild.tokenizer.nouns import Tokenizer
from modelbuild.tokenizer.read import NAMED, role_of

_IDS = re.compile(r"(?:[a-z_]*_)?token_(?:id|ids|index)")
"""Keys of configs whose values are ids of tokens."""

_MAY_LACK = frozenset({f"{name}_id" for name in NAMED} | {"decoder_start_token_id", "forced_bos_token_id"})
"""Ids that a model can do without. Others are of tokens that stand for images and the like: those stay."""


@dataclass(frozen=True, slots=True)
class Renaming:
    """What ids become: `before` is the tokenizer that they are of, `chosen` the one whose tokens the output has, under
    the ids `after`, of which there are `rows`."""

    before: Tokenizer
    chosen: Tokenizer
    after: Mapping[str, int]
    rows: int


def with_ids(side: Side, renaming: Renaming, other: Side) -> tuple[Side, list[str]]:
    """The side with the ids in both configs made those of a new vocabulary, and notes of tokens that it has not.

    `other` is the artifact that the tokenizer comes from: what its configs name goes before what tokens are called.
    """
    notes: dict[str, None] = {}
    config = _moved(side.config or {}, other.config or {}, renaming, notes)
    theirs = {**(other.config or {}), **(other.generation or {})}
    generation = _moved(side.generation or {}, theirs, renaming, notes)
    made = replace(
        side,
        config_overrides=merged(config, side.config_overrides),
        generation_overrides=merged(generation, side.generation_overrides),
    )
    return made, list(notes)


def _moved(
    config: Mapping[str, Any], other: Mapping[str, Any], renaming: Renaming, notes: dict[str, None]
) -> dict[str, Any]:
    """The ids of a config that change, tables within tables."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            below = other.get(key)
            if inner := _moved(value, below if isinstance(below, Mapping) else {}, renaming, notes):
                found[key] = inner
        elif _IDS.fullmatch(key) and _are_ids(value):
            now = other[key] if _are_ids(other.get(key)) else _now(key, value, renaming, notes)
            if now != value:
                found[key] = now
    return found


def _are_ids(value: object) -> bool:
    return type(value) is int or (isinstance(value, (list, tuple)) and all(type(entry) is int for entry in value))


def _now(key: str, value: Any, renaming: Renaming, notes: dict[str, None]) -> Any:
    """The ids that the same tokens have now; for one that is gone that of the token which has its role, else none."""
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    renamed = [_renamed(entry, renaming) for entry in entries]
    gone = [entry for entry, number in zip(entries, renamed, strict=True) if number is None]
    kept = [number for number in renamed if number is not None]
    if not gone:
        return kept if isinstance(value, (list, tuple)) else kept[0]
    if key not in _MAY_LACK:
        notes.setdefault(_told(key, gone, renaming, "it stays, for want of another"))
        return value
    instead = renaming.after.get(role_of(renaming.chosen, key.removesuffix("_id")) or "")
    if not kept and instead is not None:
        kept = [instead]
    now = kept if isinstance(value, (list, tuple)) and kept else kept[0] if kept else None
    notes.setdefault(_told(key, gone, renaming, f"it is {'null' if now is None else now} instead"))
    return now


def _renamed(number: int, renaming: Renaming) -> int | None:
    """The id that the same token has now; an id that stood for no token stays, if it is a row of the output."""
    token = renaming.before.by_id.get(number)
    if token is None:
        return number if number < renaming.rows else None
    return renaming.after.get(token)


def _told(key: str, gone: list[int], renaming: Renaming, what: str) -> str:
    tokens = [show(renaming.before.by_id.get(number, str(number))) for number in gone]
    return f"`{key}` was {', '.join(tokens)}, which the vocabulary has not: {what}"
