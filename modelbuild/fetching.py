"""What a build downloads: of the files on the Hub those that tensors are read from, and those copied beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from modelbuild.plan.demand import Need
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Planned
from modelbuild.report.terminal import Listener
from modelbuild.session import Session
from modelbuild.sources.content import SourceFile
from modelbuild.sources.hub.fetch import bring_all, downloading, to_download


def downloads(session: Session) -> dict[str, list[SourceFile]]:
    """For each needed artifact the files that would be downloaded for it, each with the first that needs it."""
    found: dict[str, list[SourceFile]] = {}
    told: set[str] = set()
    for name, files in _needed(session).items():
        missing = [file for file in to_download(files) if file.path not in told]
        told.update(file.path for file in missing)
        found[name] = missing
    return found


def fetch(session: Session, listener: Listener) -> None:
    """Brings all files on the Hub that the build reads to this machine, and checks those that never were.

    Raises what `hub.fetch.bring` raises.
    """
    if session.options.require_cached and any(need.computed for need in session.needs.values()):
        return  # a build that stops at the first tensor to compute downloads nothing for it
    files = list(dict.fromkeys(file for files in _needed(session).values() for file in files))
    missing = to_download(files)
    if not missing:
        bring_all(files)
        return
    total = sum(file.size for file in missing)
    listener.say(downloading(len(missing), total))
    with listener:
        listener.begin("from the Hub", "downloading", total)
        bring_all(files, listener.advance)


def here(files: Mapping[str, bytes | str], artifact: Planned) -> dict[str, bytes | str]:
    """The files of an output, those that are copied from the Hub as they lie on this machine."""
    copied = {name: file for name, file in artifact.side.files.items() if file.remote is not None and name in files}
    brought = bring_all(list(copied.values()))
    return {**files, **{name: file.path for name, file in zip(copied, brought, strict=True)}}


def _needed(session: Session) -> dict[str, list[SourceFile]]:
    """The files on the Hub that each needed artifact takes tensors or side files from, whether they are here or not."""
    seen: set[str] = set()
    return {name: _files(session, name, need, seen) for name, need in session.needs.items()}


def _files(session: Session, name: str, need: Need, seen: set[str]) -> list[SourceFile]:
    artifact = session.plan.artifacts[name]
    nodes = [artifact.tensors[tensor] for tensor in (*need.computed, *need.copied)]
    files = [file for file in _read(nodes, session.stored, seen) if file.remote is not None]
    if name in session.plan.targets and name not in session.ready:
        files += [file for file in artifact.side.files.values() if file.remote is not None]
    return list(dict.fromkeys(files))


def _read(nodes: Sequence[Node], stored: Iterable[str], seen: set[str]) -> list[SourceFile]:
    """The files of the source tensors that the nodes are made from, down to what the cache has.

    `seen` are the keys of nodes that were followed before, for other artifacts too.
    """
    known, pending = frozenset(stored), list(nodes)
    files = []
    while pending:
        node = pending.pop()
        if node.key in seen or node.key in known:
            continue
        seen.add(node.key)
        pending += node.inputs
        if node.source is not None:
            files.append(node.source.file)
    return files


def on_the_same_disk(session: Session, files: Sequence[SourceFile]) -> int:
    """The bytes of files that would be downloaded to the file system that the cache is on."""
    device = os.stat(session.options.cache_root).st_dev
    return sum(file.size for file in files if _device(file.path) == device)


def _device(path: str) -> int:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev
