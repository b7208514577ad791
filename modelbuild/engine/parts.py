"""A stage for tensors that are packed before their artifact's layout is known, since that depends on what they become.

Each output has a place of its own there, a late one as much room as it may take, filled up with zeros. What an
interrupted build finished is taken from it; once the artifact is published, it is removed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from modelbuild.cache.nouns import Layout, Located
from modelbuild.cache.stage import Stage, write_at
from modelbuild.checksum import checksum
from modelbuild.digest import identity
from modelbuild.engine.making import Making
from modelbuild.engine.pack import Packed
from modelbuild.plan.node import Node

PARTS = "parts"
"""The name of its one file."""


def parts_stage(making: Making, names: Sequence[str]) -> AbstractContextManager[Stage]:
    """The stage that these tensors of an artifact are packed into, one for each key."""
    places = {}
    end = 0
    for file, node in making.flat(names).items():
        places[file] = (PARTS, end, node.nbytes)
        end += node.nbytes
    keys = {file: node.key for file, node in making.flat(names).items()}
    key = identity("parts/1", tuple(sorted(keys.items())))
    layout = Layout({PARTS: end}, {}, places)
    shop = making.shop
    return shop.store.stage(key, making.artifact.name, layout, keys, waiting=shop.say, anew=shop.anew)


def fill_parts(
    making: Making, stage: Stage, names: Sequence[str], cached: Mapping[str, Located]
) -> tuple[dict[str, Located], dict[str, bytes]]:
    """Packs what is not finished; where each output lies, and the bytes of late ones, both by key."""
    checksums = dict(stage.finished)
    todo = [name for name in names if not making.files[name].keys() <= checksums.keys()]
    making.resumed |= set(names) - set(todo)
    making.missing(todo, {})

    def record(file: str, node: Node, digest: str) -> None:
        checksums[file] = digest
        stage.record(file, node.key, digest)

    def done(packed: Packed) -> None:
        making.recording(packed, record)
        (name,) = packed.job.names
        for output, (file, node) in zip(packed.job.node.outputs, making.files[name].items(), strict=True):
            if output.late:
                slot = packed.late[output.name].ljust(node.nbytes, b"\0")
                write_at(stage.fds[PARTS], slot, stage.layout.places[file][1])
                record(file, node, checksum(slot))

    making.pack(todo, cached, stage, done)
    located: dict[str, Located] = {}
    late: dict[str, bytes] = {}
    for name in names:
        for output, (file, node) in zip(making.artifact.tensors[name].outputs, making.files[name].items(), strict=True):
            _, offset, nbytes = stage.layout.places[file]
            if output.late:
                late[node.key] = os.pread(stage.fds[PARTS], nbytes, offset).rstrip(b"\0")
            else:
                located[node.key] = Located(node.key, stage.path(PARTS), offset, nbytes, checksums[file], stage.key)
    return located, late
