"""Makes the weights of an artifact whose tensors are packed: each of them is several tensors of a file.

Where the length of an output is known only once it is made, so is the layout of the file: such tensors are packed into
a stage of their own first, from which the artifact's is filled. A kill costs no more than the tensors under way, since
both stages have journals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TypeAlias

from modelbuild.cache.nouns import Layout, Located, Manifest, StoredTensor
from modelbuild.cache.stage import Stage, write_at
from modelbuild.checksum import checksum
from modelbuild.engine.jobs import Damaged, Job
from modelbuild.engine.make import ATTEMPTS, Outcome, Workshop, told_damage
from modelbuild.engine.making import Making
from modelbuild.engine.parts import fill_parts, parts_stage
from modelbuild.engine.program import compile_program
from modelbuild.errors import BuildFailed
from modelbuild.plan.node import Node
from modelbuild.plan.outputs import late_outputs, output_node
from modelbuild.plan.planned import Planned
from modelbuild.sources.reader import LocalReader

LayoutOf: TypeAlias = "Callable[[Mapping[str, int]], Layout]"
"""The layout of an artifact's files, given the bytes of each late output by its name in the file."""


def make_packed(shop: Workshop, artifact: Planned, key: str, layout: LayoutOf) -> Outcome:
    """The artifact as files of that layout, published under `key`; what is stored is reused.

    With `shop.anew` everything is computed, and if the artifact is there its checksums are compared instead.
    Raises NotCached, SourceChanged, BuildFailed.
    """
    started = time.monotonic()
    with LocalReader() as reader:
        making = Making(shop, artifact, reader)
        if shop.anew and (manifest := shop.store.manifest(key)) is not None:
            outcome = _compare(making, manifest)
        else:
            outcome = _make(making, key, layout)
    outcome.seconds = time.monotonic() - started
    return outcome


def _make(making: Making, key: str, layout: LayoutOf) -> Outcome:
    for attempt in range(ATTEMPTS):
        try:
            manifest, found = _attempt(making, key, layout)
            break
        except Damaged as damage:
            if attempt == ATTEMPTS - 1:
                raise BuildFailed(
                    "the cache is damaged again and again", hint="run `modelbuild cache verify`"
                ) from None
            _set_aside(making, making.shop.store.find(damage.keys))
            making.bad.update(damage.keys)
    redone = [
        name
        for name, files in making.files.items()
        if making.bad & {making.artifact.tensors[name].key, *(node.key for node in files.values())}
    ]
    return Outcome(
        manifest, making.tally, tuple(making.resumed), tuple(redone), making.nonfinite, (), found, making.linked
    )


def _set_aside(making: Making, damaged: Mapping[str, Located]) -> None:
    """Takes note of cached tensors whose bytes are wrong."""
    making.bad.update(damaged)
    if damaged:
        making.shop.say(told_damage(len(damaged)))
    for located in damaged.values():
        making.shop.store.verify_tensor(located)


def _attempt(making: Making, key: str, layout: LayoutOf) -> tuple[Manifest, bool]:
    """The artifact's manifest, and whether another process had made it; raises Damaged."""
    shop, tensors = making.shop, making.artifact.tensors
    cached = making.find()
    late = _cached_late(making, cached)
    first = {node.key: name for name, node in reversed([*tensors.items()])}
    unknown = making.missing([name for name in first.values() if late_outputs(tensors[name])], cached, checked=False)
    with ExitStack() as opened:
        parts: Stage | None = None
        if unknown:
            parts = opened.enter_context(parts_stage(making, unknown))
            if not shop.anew and (manifest := shop.store.manifest(key)) is not None:
                parts.abandon()
                return manifest, True
            located, made_late = fill_parts(making, parts, unknown, cached)
            cached, late = cached | located, late | made_late
        files = making.flat()
        placed = layout({file: len(late[node.key]) for file, node in files.items() if node.key in late})
        keys = {file: node.key for file, node in files.items()}
        with shop.store.stage(key, making.artifact.name, placed, keys, waiting=shop.say, anew=shop.anew) as stage:
            found = stage.published
            moved = {tensors[name].key for name in unknown}
            manifest = found if found is not None else _fill(making, stage, cached, late, moved)
        if parts is not None:
            parts.abandon()
    return manifest, found is not None


def _cached_late(making: Making, cached: dict[str, Located]) -> dict[str, bytes]:
    """The bytes of the late outputs that the cache has, by key; damaged ones are taken out of `cached`."""
    nodes = (output_node(node, output) for node in making.artifact.tensors.values() for output in late_outputs(node))
    wanted = [node.key for node in nodes if node.key in cached]
    found = {key: _read(cached[key]) for key in wanted}
    _set_aside(making, {key: cached.pop(key) for key, data in found.items() if data is None})
    return {key: data for key, data in found.items() if data is not None}


def _read(located: Located) -> bytes | None:
    """The bytes of a small cached tensor; None where they are damaged."""
    try:
        with open(located.path, "rb") as file:
            data = os.pread(file.fileno(), located.nbytes, located.offset)
    except OSError:
        return None
    return data if checksum(data) == located.checksum else None


def _fill(
    making: Making, stage: Stage, cached: Mapping[str, Located], late: Mapping[str, bytes], moved: Iterable[str]
) -> Manifest:
    """Fills the stage and publishes it; `moved` are the keys of tensors that were packed for it elsewhere."""
    checksums = dict(stage.finished)
    tensors = making.artifact.tensors
    kept = {name for name, files in making.files.items() if files.keys() <= checksums.keys()}
    making.linked |= {name for name in kept if making.files[name].keys() <= stage.linked}
    making.resumed |= {name for name in kept if tensors[name].key not in moved}

    def record(file: str, node: Node, digest: str) -> None:
        checksums[file] = digest
        stage.record(file, node.key, digest)

    for file, node in making.flat().items():
        if node.key in late and file not in checksums:
            at, offset, _ = stage.layout.places[file]
            write_at(stage.fds[at], late[node.key], offset)
            record(file, node, checksum(late[node.key]))
    todo = [name for name in tensors if name not in kept]
    fresh = [name for name in making.missing(todo, cached) if tensors[name].outputs]
    making.pack(fresh, cached, stage, lambda packed: making.recording(packed, record))
    copied = [name for name in todo if name not in set(fresh)]
    for quiet in (False, True):
        files = making.flat(name for name in copied if (tensors[name].key in moved) == quiet)
        left = {file: node for file, node in files.items() if file not in checksums}
        making.run(_jobs(left, cached, stage, making.shop.anew), record, quiet)
    return stage.publish([_stored(file, node, stage, checksums[file]) for file, node in making.flat().items()])


def _jobs(nodes: Mapping[str, Node], cached: Mapping[str, Located], stage: Stage, anew: bool) -> list[Job]:
    """Jobs for what is not packed: copied from a source or the cache, or computed, once for each key."""
    same: dict[str, list[str]] = {}
    for file, node in nodes.items():
        same.setdefault(node.key, []).append(file)
    jobs = []
    for key, names in same.items():
        places = (stage.layout.places[name] for name in names)
        program = compile_program(nodes[names[0]], cached, anew and key not in cached)
        jobs.append(Job(tuple(names), program, tuple((stage.fds[file], offset) for file, offset, _ in places)))
    return jobs


def _stored(file: str, node: Node, stage: Stage, digest: str) -> StoredTensor:
    at, offset, nbytes = stage.layout.places[file]
    shape = node.shape if nbytes == node.nbytes else (nbytes,)
    return StoredTensor(node.key, file, node.dtype, shape, at, offset, nbytes, digest)


def _compare(making: Making, manifest: Manifest) -> Outcome:
    """Computes everything anew, writes nothing, and compares with what is there."""
    found: dict[str, str] = {}

    def record(file: str, _: Node, digest: str) -> None:
        found[file] = digest

    tensors = making.artifact.tensors
    packed = [name for name, node in tensors.items() if node.outputs]
    making.pack(packed, {}, None, lambda packed: making.recording(packed, record, late=True))
    plain = {name: node for name, node in tensors.items() if not node.outputs}
    making.run([Job((name,), compile_program(node, {}, True), ()) for name, node in plain.items()], record)
    expected = {tensor.name: tensor.checksum for tensor in manifest.tensors}
    differs = tuple(file for file in making.flat() if found[file] != expected.get(file))
    return Outcome(manifest, making.tally, (), (), making.nonfinite, differs)
