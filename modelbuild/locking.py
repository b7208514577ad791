"""`lock` and `init`: the two files that stand beside each other, written."""

from __future__ import annotations

import os
from collections.abc import Mapping

from modelbuild import __version__
from modelbuild.errors import NotBuiltYet, UsageError
from modelbuild.importing.load import load
from modelbuild.methods.registry import method
from modelbuild.modelfile.check import not_built
from modelbuild.modelfile.spec import Merge, Spec
from modelbuild.modelfile.template import TEMPLATE
from modelbuild.options import Options
from modelbuild.plan.graph import is_source, source_requests
from modelbuild.report.terminal import Listener
from modelbuild.result import shown_path
from modelbuild.session import resolve
from modelbuild.sources import lock as locks
from modelbuild.sources.content import SourceAdapter, SourceModel
from modelbuild.sources.lockfile import read as read_lock


def lock_with(options: Options, listener: Listener) -> str:
    """Resolves every source and writes the lock; what was done, and what changed in one that was there."""
    spec = load(options.modelfile)
    names = [name for name in spec.artifacts if is_source(spec, name)]
    if faults := not_built(spec, names):
        raise NotBuiltYet(faults)
    found = resolve(options, source_requests(spec, names), listener)
    models = {name: source for name, source in found.items() if isinstance(source, SourceModel)}
    adapters = {name: source for name, source in found.items() if isinstance(source, SourceAdapter)}
    path = f"{options.modelfile}.lock"
    old = read_lock(path)
    changed = update_lock(options, spec, models, adapters)
    new = read_lock(path)
    told = [] if old is None or new is None else locks.differences(old, new)
    head = f"{shown_path(os.path.abspath(path))}: {len(found)} sources, {'written' if changed else 'nothing changed'}"
    return "\n".join([head, *(f"  {sentence}" for sentence in told)])


def write_template(path: str) -> str:
    """Writes a commented Modelfile at `path`; what was done. Raises UsageError if there is one already."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise UsageError(f"{path} is there already", hint="it is left as it is") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written", facts=(error.strerror or str(error),)) from error
    return f"wrote {path}"


def update_lock(
    options: Options, spec: Spec, models: Mapping[str, SourceModel], adapters: Mapping[str, SourceAdapter]
) -> bool:
    """Brings the lock beside the Modelfile up to date, and tells whether it changed.

    What it says of sources that were not resolved now stays, as long as the Modelfile names them.
    """
    path = f"{options.modelfile}.lock"
    new = locks.from_sources([*models.values(), *adapters.values()], methods_of(spec))
    return locks.write(path, joined(read_lock(path), new, spec))


def joined(old: locks.Lock | None, new: locks.Lock, spec: Spec) -> locks.Lock:
    """The new lock, and of the old one what the Modelfile still names but this build did not need."""
    if old is None:
        return new
    sources = {name: found for name, found in old.sources.items() if name in spec.artifacts} | dict(new.sources)
    outputs = {name: found for name, found in old.outputs.items() if name in spec.artifacts}
    return locks.Lock(sources, new.methods, outputs)


def methods_of(spec: Spec) -> dict[str, int | str]:
    """modelbuild's version and those of the methods that the Modelfile uses."""
    used = {artifact.method for artifact in spec.artifacts.values() if isinstance(artifact, Merge)}
    versions = {name: found.version for name in sorted(used) if (found := method(name)) is not None}
    return {"modelbuild": __version__, **versions}
