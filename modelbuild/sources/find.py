"""Finds the files of a source: names, places and small JSON files. Weights are not opened.

Which files are a model or an adapter is decided here for every kind of folder: one of this machine, or a repository of
the Hub at a commit (`hub/find.py`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelbuild.errors import BuildFailed, NotBuiltYet, SourceNotFound
from modelbuild.sources.content import SourceFile
from modelbuild.sources.fence import Fence
from modelbuild.sources.shards import KINDS, SHOWN, choose_weights, is_shard_name, kind_of, listed, weight_map
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
    """The files of a source, by name: of those that have to be hashed the `paths`, absolute and without links; the
    `files` that are identified already; of JSON files also the text and the object.

    `shown` is the source as messages call it, `origin` as the lock does; `weights` and `side` are names. A source that
    is no folder is one file. `commit` is that of a repository.
    """

    shown: str
    origin: str
    weights: tuple[str, ...]
    paths: Mapping[str, str]
    texts: Mapping[str, bytes]
    objects: Mapping[str, Mapping[str, Any]]
    side: tuple[str, ...] = ()
    in_folder: bool = True
    files: Mapping[str, SourceFile] = field(default_factory=dict)
    commit: str | None = None

    def called(self, name: str) -> str:
        """A file of the source as messages call it; a source that is one file is called as the Modelfile calls it."""
        return f"{self.shown}/{name}" if self.in_folder else self.shown


class Folder(Protocol):
    """A place that holds a source's files."""

    @property
    def shown(self) -> str:
        """What messages call it."""

    @property
    def origin(self) -> str:
        """What the lock calls the source."""

    @property
    def commit(self) -> str | None:
        """The commit of a repository."""

    def names(self) -> tuple[str, ...]:
        """The names in the folder, sorted, of files and of folders."""

    def nested(self) -> Collection[str]:
        """Names one level down, in the folders that may hold side files."""

    def texts(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """The contents of small files; BuildFailed for one that is larger than its limit in bytes."""

    def places(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, SourceFile]]:
        """Where the files lie that have to be hashed, each readable; and the files that are identified already."""


def find_model(source: str, inside: Fence) -> Found:
    """The files of the model at `source`, a folder or one file of weights.

    Raises SourceNotFound, UsageError for what lies outside, NotBuiltYet for other formats, and BuildFailed for a
    folder that is ambiguous or whose index or configs are no proper JSON.
    """
    place = inside.resolve(source, source)
    if not os.path.isdir(place):
        return _single_file(source, place)
    return model_in(LocalFolder(inside, place, source, f"local:{source}"))


def find_adapter(source: str, subfolder: str | None, inside: Fence) -> Found:
    """The files of the PEFT adapter in the folder `source`, or in its `subfolder`; raises what `find_model` raises."""
    shown = source if subfolder is None else f"{source.rstrip('/')}/{subfolder}"
    place = inside.resolve(shown, shown)
    if not os.path.isdir(place):
        facts = ["an adapter is a folder with its weights and its config"]
        raise BuildFailed(
            f"{show(shown)} is a file", facts=facts, hint=f"name its folder {show(os.path.dirname(shown))}"
        )
    return adapter_in(LocalFolder(inside, place, shown, f"local:{shown}"))


def model_in(folder: Folder) -> Found:
    """The files of the model in a folder; raises what `find_model` raises."""
    names, shown = folder.names(), folder.shown
    index = kind_of(names).index
    limits = {"config.json": JSON_LIMIT, "generation_config.json": JSON_LIMIT, index: INDEX_LIMIT}
    texts = folder.texts({name: limit for name, limit in limits.items() if name in names})
    parsed = {name: _object(text, shown, name) for name, text in texts.items()}
    weights = _indexed(parsed[index], names, shown, index) if index in parsed else choose_weights(names, shown)
    side = side_files(name for name in (*names, *folder.nested()))
    paths, files = folder.places({*weights, *texts, *side})
    return Found(shown, folder.origin, weights, paths, texts, parsed, side, True, files=files, commit=folder.commit)


def adapter_in(folder: Folder) -> Found:
    """The files of the PEFT adapter in a folder; raises what `find_model` raises."""
    names, shown = folder.names(), folder.shown
    weights = next((name for name in ADAPTER_WEIGHTS if name in names), None)
    if weights is None:
        raise _no_adapter(names, shown)
    if ADAPTER_CONFIG not in names:
        raise SourceNotFound(f"{show(shown)} has no `{ADAPTER_CONFIG}`", facts=[f"it holds {listed(names)}"])
    texts = folder.texts({ADAPTER_CONFIG: JSON_LIMIT})
    parsed = {ADAPTER_CONFIG: _object(texts[ADAPTER_CONFIG], shown, ADAPTER_CONFIG)}
    paths, files = folder.places({weights, ADAPTER_CONFIG})
    return Found(shown, folder.origin, (weights,), paths, texts, parsed, files=files, commit=folder.commit)


def _single_file(source: str, place: str) -> Found:
    name = os.path.basename(source)
    if not any(is_shard_name(name, kind) for kind in KINDS):
        hint = "a source is a folder, a .safetensors file, or a .bin, .pt or .pth file of torch.save"
        raise NotBuiltYet(
            f"{show(source)} is not a safetensors file", facts=["other formats are not read yet"], hint=hint
        )
    check_readable(place, source)
    return Found(source, f"local:{source}", (name,), {name: place}, {}, {}, in_folder=False)


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


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine, at a `place` without links."""

    inside: Fence
    place: str
    shown: str
    origin: str
    commit: str | None = None

    def names(self) -> tuple[str, ...]:
        """The names in the folder, sorted; those that no message or lock could hold are passed over."""
        return _names(self.place, self.shown)

    def nested(self) -> list[str]:
        """Names one level down, in the folders that may hold side files."""
        at = self.place
        folders = [name for name in self.names() if FOLDERS.fullmatch(name) and os.path.isdir(os.path.join(at, name))]
        return [f"{folder}/{name}" for folder in folders for name in _names(os.path.join(at, folder), folder)]

    def texts(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """The contents of small files."""
        return {name: self._text(name, limit) for name, limit in limits.items()}

    def places(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, SourceFile]]:
        """The places of the files, each a file that this user may read."""
        resolve = self.inside.resolve
        paths = {name: resolve(os.path.join(self.place, name), f"{self.shown}/{name}") for name in sorted(names)}
        for name, path in paths.items():
            check_readable(path, f"{self.shown}/{name}")
        return paths, {}

    def _text(self, name: str, limit: int) -> bytes:
        called = f"{self.shown}/{name}"
        descriptor = open_regular(self.inside.resolve(os.path.join(self.place, name), called), called)
        try:
            with open(descriptor, "rb") as file:
                text = file.read(limit + 1)
        except OSError as error:
            raise unreadable(called, error) from error
        if len(text) > limit:
            raise too_large(called, limit)
        return text


def too_large(called: str, limit: int) -> BuildFailed:
    """The error for a file that is called so and has more bytes than are read."""
    return BuildFailed(f"{show(called)} is too large", facts=[f"the limit is {limit} bytes"])


def _names(place: str, shown: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(name for name in os.listdir(place) if name.isprintable()))
    except OSError as error:
        raise unreadable(shown, error) from error


def _object(text: bytes, shown: str, name: str) -> dict[str, Any]:
    try:
        return parse_object(text)
    except Malformed as error:
        raise BuildFailed(f"{show(f'{shown}/{name}')} is not to be relied on", facts=[f"it {error}"]) from None
