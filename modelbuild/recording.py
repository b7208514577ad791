"""`build --record`: what outputs are, for the lock, so that `verify` can say elsewhere whether they are that."""

from __future__ import annotations

import os
from collections.abc import Mapping

from modelbuild.artifact.card import FILE as CARD
from modelbuild.artifact.output import side_files
from modelbuild.artifact.provenance import FILE as PROVENANCE
from modelbuild.artifact.provenance import operations
from modelbuild.cache.nouns import Manifest
from modelbuild.errors import BuildFailed
from modelbuild.plan.planned import Planned
from modelbuild.report.terminal import Listener
from modelbuild.session import Session
from modelbuild.sources.hashing import read_digests
from modelbuild.sources.lock import LockedFile, LockedOutput

SPEAKING = frozenset({CARD, PROVENANCE})
"""Files of an output that speak about the others: no record has them."""


def recorded_outputs(session: Session, listener: Listener) -> dict[str, LockedOutput]:
    """For each target, built by now, its key and the size and SHA-256 of its weight, config and tokenizer files.

    Weight files whose digest is not known yet are read once, and their manifest keeps it. Raises BuildFailed where the
    cache has no sound weights any more.
    """
    with listener:
        return {target.name: _recorded(session, target, listener) for target in session.plan.target_artifacts()}


def _recorded(session: Session, target: Planned, listener: Listener) -> LockedOutput:
    manifest = session.store.manifest(session.weights_key(target))
    if manifest is None:
        raise _damaged(target.name)
    side = side_files(session.plan, target, manifest, session.options.overrides)
    digests = _weight_digests(session, target.name, manifest, listener)
    files = [LockedFile(file.name, file.size, digests[file.name]) for file in manifest.files]
    for name, content in side.files.items():
        if name not in SPEAKING:
            size = len(content) if isinstance(content, bytes) else target.side.files[name].size
            files.append(LockedFile(name, size, side.digests[name]))
    bound = tuple(operations(target.tensors.values())["numerics"])
    return LockedOutput(side.key, tuple(sorted(files, key=lambda file: file.name)), bound)


def _weight_digests(session: Session, name: str, manifest: Manifest, listener: Listener) -> Mapping[str, str]:
    """The SHA-256 of the weight files, of which the manifest may know some; a sound file has the checksum it had."""
    known = {file.name: file.sha256 for file in manifest.files if file.sha256 is not None}
    folder = session.store.path(manifest.key)
    unread = [(file.name, os.path.join(folder, file.name)) for file in manifest.files if file.name not in known]
    if unread:
        # What is damaged must not be what everybody else is held to.
        if session.store.examine(manifest.key):
            raise _damaged(name)
        read = read_digests(unread, session.options.jobs, listener.hashed)
        known |= {file: found.sha256 for (file, _), found in zip(unread, read, strict=True)}
        session.store.learn(manifest.key, known)
    return known


def _damaged(name: str) -> BuildFailed:
    return BuildFailed(f"`{name}` was damaged in the cache before it could be recorded", hint="build again")
