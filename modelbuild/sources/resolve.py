"""Sources: from what a Modelfile names to files that are identified, checked and ready to be read.

Three steps: find the files of each source, here or on the Hub, hash the local files of all sources together, then put
together what they contain. Digests and contents come from memory where the same bytes were seen before: then no weight
file is opened. What lies on the Hub is identified without being fetched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from modelbuild.errors import BuildFailed, ModelbuildError, VerificationFailed, Where
from modelbuild.modelfile.spec import Adapter, Base
from modelbuild.sources.content import SourceAdapter, SourceFile, SourceModel
from modelbuild.sources.fence import Fence, fence
from modelbuild.sources.find import ADAPTER_CONFIG, Found, find_adapter, find_model
from modelbuild.sources.hashing import Progress, digests
from modelbuild.sources.headers import at_rest, look_into, look_into_adapter
from modelbuild.sources.hub.files import Hub, open_hub
from modelbuild.sources.hub.find import find_on_hub
from modelbuild.sources.hub.headers import look_ahead
from modelbuild.sources.hub.names import hub_name
from modelbuild.sources.lock import LockedSource
from modelbuild.sources.memory import Memory
from modelbuild.sources.safetensors import Header
from modelbuild.sources.shards import KINDS, check_index, check_unique, listed, weight_map
from modelbuild.sources.stamps import changed
from modelbuild.sources.strictjson import show
from modelbuild.units import show_bytes

Resolved: TypeAlias = "SourceModel | SourceAdapter"


@dataclass(frozen=True, slots=True)
class Request:
    """A source that a Modelfile names, and where it does."""

    artifact: Base | Adapter
    where: Where | None = None


def resolve_sources(
    requests: Sequence[Request],
    folder: str | os.PathLike[str],
    memory: Memory,
    *,
    allow_path: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    locked: Mapping[str, LockedSource] | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Resolved]:
    """All sources by the artifact's name, their files hashed together on `threads` threads (None: all processors).

    A source on the Hub of the same origin as in `locked` is taken at that commit with those files, and the Hub is not
    asked what it has. With `offline`, or HF_HUB_OFFLINE, nothing is asked and only what is here is used.

    Raises SourceNotFound, UsageError (outside the Modelfile's folder without `allow_path`), NotBuiltYet (formats that
    are not read), VerificationFailed (a `sha256` that is not the file's, a file that is not what the Hub lists),
    SourceChanged, and BuildFailed for files that are not what their formats say; each with the place in the Modelfile.
    """
    inside = fence(folder, allow_path)
    hub = open_hub(inside, memory, offline=offline, threads=threads, say=say)
    found = []
    for request in requests:
        with _at(request.where):
            found.append(_find(request, inside, hub, (locked or {}).get(request.artifact.name)))
    files = _hash(found, memory, threads, progress)
    resolved: dict[str, Resolved] = {}
    for request, source, its_files in zip(requests, found, files, strict=True):
        with _at(request.where):
            _check_texts(source, its_files)
            _check_pin(request.artifact, source, its_files)
            if isinstance(request.artifact, Adapter):
                resolved[request.artifact.name] = _adapter(request.artifact, source, its_files, memory, threads)
            else:
                resolved[request.artifact.name] = _model(request.artifact, source, its_files, memory)
    return resolved


@contextmanager
def _at(where: Where | None) -> Iterator[None]:
    """Gives errors from inside the place in the Modelfile, where they have none."""
    try:
        yield
    except ModelbuildError as error:
        raise type(error)([replace(fault, where=fault.where or where) for fault in error.faults]) from error.__cause__


def _find(request: Request, inside: Fence, hub: Hub, locked: LockedSource | None) -> Found:
    artifact, source = request.artifact, request.artifact.source
    if source is None:
        raise BuildFailed(f"adapter `{artifact.name}` has no source", facts=["it is made from other artifacts"])
    name = hub_name(artifact, request.where)
    if name is not None:
        return find_on_hub(hub, name, artifact, locked)
    if isinstance(artifact, Adapter):
        return find_adapter(source, artifact.subfolder, inside)
    return find_model(source, inside)


def _hash(
    found: Sequence[Found], memory: Memory, threads: int | None, progress: Progress | None
) -> list[dict[str, SourceFile]]:
    """For each source its files by name: those that had to be hashed, then those that were identified already."""
    wanted = [(source.called(name), path) for source in found for name, path in source.paths.items()]
    hashed = iter(digests(wanted, memory, threads, progress))
    return [{name: replace(next(hashed), name=name) for name in source.paths} | dict(source.files) for source in found]


def _check_texts(found: Found, files: Mapping[str, SourceFile]) -> None:
    """The JSON that was read must be the JSON that was hashed."""
    for name, text in found.texts.items():
        if hashlib.sha256(text).hexdigest() != files[name].sha256:
            raise changed(found.called(name), "it was written to")


def _check_pin(artifact: Base | Adapter, found: Found, files: Mapping[str, SourceFile]) -> None:
    if artifact.sha256 is None:
        return
    if len(found.weights) != 1:
        facts = [f"{show(found.shown)} has {len(found.weights)} weight files"]
        raise BuildFailed(
            f"`sha256` of `{artifact.name}` pins a single file", facts=facts, hint="the lock pins all files"
        )
    file = files[found.weights[0]]
    if file.sha256 != artifact.sha256.lower():
        facts = [f"expected {artifact.sha256.lower()}", f"it is    {file.sha256}"]
        raise VerificationFailed(
            f"{show(found.called(found.weights[0]))} is not the file that `sha256` pins", facts=facts
        )


def _model(base: Base, found: Found, files: Mapping[str, SourceFile], memory: Memory) -> SourceModel:
    index = _index(found)
    headers = _headers(found, files, memory, index)
    check_unique(headers, found.shown)
    for kind in (kind for kind in KINDS if kind.index in found.objects):
        check_index(index, headers, found.shown, kind)
    tensors = {
        name: tensor
        for file, header in headers.items()
        for name, tensor in at_rest(header, _with_bytes(header, files[file]), memory, found.called(file)).items()
    }
    if not tensors:
        raise BuildFailed(f"{show(found.shown)} has no tensors", facts=[f"its weights are {', '.join(found.weights)}"])
    return SourceModel(
        name=base.name,
        origin=found.origin,
        commit=found.commit,
        tensors=tensors,
        files=tuple(files.values()),
        config=found.objects.get("config.json"),
        generation=found.objects.get("generation_config.json"),
        side_files={name: files[name] for name in found.side},
        notes=tuple(note for name, header in headers.items() for note in _notes(name, header)),
    )


def _with_bytes(header: Header, file: SourceFile) -> SourceFile:
    """The file, fetched if tensors have to be copied out of it."""
    strided = any(tensor.strides is not None for tensor in header.tensors)
    return file.remote.local() if strided and file.remote is not None else file


def _index(found: Found) -> Mapping[str, str]:
    """The file of each tensor, as far as an index tells."""
    for kind in KINDS:
        if kind.index in found.objects:
            return weight_map(found.objects[kind.index], found.called(kind.index), kind)
    return {}


def _headers(
    found: Found, files: Mapping[str, SourceFile], memory: Memory, index: Mapping[str, str]
) -> dict[str, Header]:
    """The headers of the weight files; of those on the Hub all at once."""
    distant = [name for name in found.weights if files[name].remote is not None]
    ahead = dict(zip(distant, look_ahead([files[name] for name in distant], index), strict=True))
    return {
        name: ahead[name] if name in ahead else look_into(files[name], memory, found.called(name))
        for name in found.weights
    }


def _adapter(
    adapter: Adapter, found: Found, files: Mapping[str, SourceFile], memory: Memory, threads: int | None
) -> SourceAdapter:
    weights = found.weights[0]
    file = files[weights]
    known = memory.contents(file)
    # What an adapter's tensors are is read from all of its bytes, once: it is fetched whole where it was never seen.
    here = file if file.remote is None or (known and known.digests is not None) else file.remote.local()
    header, sums = look_into_adapter(here, memory, found.called(weights), threads)
    tensors = at_rest(header, _with_bytes(header, file), memory, found.called(weights))
    return SourceAdapter(
        name=adapter.name,
        origin=found.origin,
        commit=found.commit,
        tensors={name: replace(tensors[name], sha256=digest) for name, digest in zip(tensors, sums, strict=True)},
        files=tuple(files.values()),
        config=found.objects[ADAPTER_CONFIG],
        notes=tuple(_notes(file.name, header)),
    )


def _notes(name: str, header: Header) -> list[str]:
    """What to know about a weight file, in sentences."""
    notes = [f"{show(name)}: {note}" for note in header.notes]
    strided = [tensor for tensor in header.tensors if tensor.strides is not None]
    if strided:
        told = f"{listed([tensor.name for tensor in strided])} ({show_bytes(sum(t.nbytes for t in strided))})"
        notes.append(f"{show(name)}: copied into the cache, being stored out of order: {told}")
    return notes
