"""Finds the files of a local source: names, places and small JSON files. Weights are not opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.errors import BuildFailed, NotBuiltYet, SourceNotFound
from modelbuild.sources.fence import Fence
from modelbuild.sources.shards import INDEXES, KINDS, SHOWN, choose_weights, is_shard_name, kind_of, listed, weight_map
from modelbuild.sources.sidefiles import FOLDERS, side_files
from modelbuild.sources.stamps import check_readable, open_regular, unreadable
from modelbuild.sources.strictjson import Malformed, parse_object, show

JSON_LIMIT = 10_000_000
"""Bytes that a config may have."""

INDEX_LIMIT = 100_000_000
"""Bytes that an index may have."""

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""The names of an adapter's weights, the preferred one first."""

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a source: `paths` by name, absolute and without links; of JSON files also the text and the object.

    `shown` is the source as messages call it; `weights` and `side` are names. A source that is no folder is one file.
    """

    shown: str
    weights: tuple[str, ...]
    paths: Mapping[str, str]
    texts: Mapping[str, bytes]
    objects: Mapping[str, Mapping[str, Any]]
    side: tuple[str, ...] = ()
    in_folder: bool = True

    def called(self, name: str) -> str:
        """A file of the source as messages call it; a source that is one file is called as the Modelfile calls it."""
        return f"{self.shown}/{name}" if self.in_folder else self.shown


def find_model(source: str, inside: Fence) -> Found:
    """The files of the model at `source`, a folder or one file of weights.

    Raises SourceNotFound, UsageError for what lies outside, NotBuiltYet for other formats, and BuildFailed for a
    folder that is ambiguous or whose index or configs are no proper JSON.
    """
    place = inside.resolve(source, source)
    if not os.path.isdir(place):
        return _single_file(source, place)
    names = _names(place, source)
    index = kind_of(names).index
    objects = ("config.json", "generation_config.json", index)
    texts = {name: _text(inside, place, source, name) for name in objects if name in names}
    parsed = {name: _object(text, source, name) for name, text in texts.items()}
    weights = _indexed(parsed[index], names, source, index) if index in parsed else choose_weights(names, source)
    side = side_files(name for name in (*names, *_nested(place, names)))
    return Found(source, weights, _paths(inside, place, source, {*weights, *texts, *side}), texts, parsed, side)


def find_adapter(source: str, subfolder: str | None, inside: Fence) -> Found:
    """The files of the PEFT adapter in the folder `source`, or in its `subfolder`; raises what `find_model` raises."""
    shown = source if subfolder is None else f"{source.rstrip('/')}/{subfolder}"
    place = inside.resolve(shown, shown)
    if not os.path.isdir(place):
        facts = ["an adapter is a folder with its weights and its config"]
        raise BuildFailed(
            f"{show(shown)} is a file", facts=facts, hint=f"name its folder {show(os.path.dirname(shown))}"
        )
    names = _names(place, shown)
    weights = next((name for name in ADAPTER_WEIGHTS if name in names), None)
    if weights is None:
        raise _no_adapter(names, shown)
    if ADAPTER_CONFIG not in names:
        raise SourceNotFound(f"{show(shown)} has no `{ADAPTER_CONFIG}`", facts=[f"it holds {listed(names)}"])
    text = _text(inside, place, shown, ADAPTER_CONFIG)
    paths = _paths(inside, place, shown, {weights, ADAPTER_CONFIG})
    parsed = {ADAPTER_CONFIG: _object(text, shown, ADAPTER_CONFIG)}
    return Found(shown, (weights,), paths, {ADAPTER_CONFIG: text}, parsed)


def _single_file(source: str, place: str) -> Found:
    name = os.path.basename(source)
    if not any(is_shard_name(name, kind) for kind in KINDS):
        hint = "a source is a folder, a .safetensors file, or a .bin, .pt or .pth file of torch.save"
        raise NotBuiltYet(
            f"{show(source)} is not a safetensors file", facts=["other formats are not read yet"], hint=hint
        )
    check_readable(place, source)
    return Found(source, (name,), {name: place}, {}, {}, in_folder=False)


def _no_adapter(names: tuple[str, ...], shown: str) -> SourceNotFound:
    nested = [name for name in names if name.startswith("checkpoint-")]
    message = f"{show(shown)} has no `{ADAPTER_WEIGHTS[0]}`"
    return SourceNotFound(
        message,
        facts=[f"it holds {listed(names)}"],
        hint=f'`subfolder = "{nested[-1]}"` may be meant' if nested else None,
    )


def _indexed(index: Mapping[str, Any], names: tuple[str, ...], shown: str, called: str) -> tuple[str, ...]:
    files = sorted(set(weight_map(index, f"{shown}/{called}", kind_of(names)).values()))
    missing = [name for name in files if name not in names]
    if missing:
        raise SourceNotFound(f"{show(shown)} lacks shards that its index names", facts=missing[:SHOWN])
    return tuple(files)


def _names(place: str, shown: str) -> tuple[str, ...]:
    """The names in a folder, sorted; those that no message or lock could hold are passed over."""
    try:
        return tuple(sorted(name for name in os.listdir(place) if name.isprintable()))
    except OSError as error:
        raise unreadable(shown, error) from error


def _nested(place: str, names: tuple[str, ...]) -> list[str]:
    """Names one level down, in the folders that may hold side files."""
    folders = [name for name in names if FOLDERS.fullmatch(name) and os.path.isdir(os.path.join(place, name))]
    return [f"{folder}/{name}" for folder in folders for name in _names(os.path.join(place, folder), folder)]


def _paths(inside: Fence, place: str, shown: str, names: Iterable[str]) -> dict[str, str]:
    """The places of the files, each a file that this user may read."""
    paths = {name: inside.resolve(os.path.join(place, name), f"{shown}/{name}") for name in sorted(names)}
    for name, path in paths.items():
        check_readable(path, f"{shown}/{name}")
    return paths


def _text(inside: Fence, place: str, shown: str, name: str) -> bytes:
    called, limit = f"{shown}/{name}", INDEX_LIMIT if name in INDEXES else JSON_LIMIT
    descriptor = open_regular(inside.resolve(os.path.join(place, name), called), called)
    try:
        with open(descriptor, "rb") as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise unreadable(called, error) from error
    if len(text) > limit:
        raise BuildFailed(f"{show(called)} is too large", facts=[f"the limit is {limit} bytes"])
    return text


def _object(text: bytes, shown: str, name: str) -> dict[str, Any]:
    try:
        return parse_object(text)
    except Malformed as error:
        raise BuildFailed(f"{show(f'{shown}/{name}')} is not to be relied on", facts=[f"it {error}"]) from None
