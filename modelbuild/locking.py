"""`lock` and `init`: the two files that stand beside each other, written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from modelbuild.cache.folders import Folders
from modelbuild.cache.locks import exclusive
from modelbuild.digest import identity
from modelbuild.errors import NotBuiltYet, UsageError
from modelbuild.importing.load import load
from modelbuild.modelfile.check import not_built
from modelbuild.modelfile.spec import Spec
from modelbuild.modelfile.suggest import nearest
from modelbuild.modelfile.template import TEMPLATE
from modelbuild.options import Options
from modelbuild.pins import Found, Held, hold, next_lock, pinned
from modelbuild.plan.graph import is_source, source_requests
from modelbuild.report.terminal import Listener
from modelbuild.result import shown_path
from modelbuild.session import resolve
from modelbuild.sources.lock import Lock, LockedOutput, LockedSource, check_writable, differences, write
from modelbuild.sources.lockfile import read
from modelbuild.stamps import facts


@dataclass(frozen=True, slots=True)
class Locked:
    """What `lock` came to: where the lock is, whether it was written, its sources, and what changed in an older one."""

    path: str
    written: bool
    sources: Mapping[str, LockedSource]
    changes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The answer as `lock --json` prints it."""
        sources = [
            {
                "name": name,
                "origin": source.origin,
                "commit": source.commit,
                "files": len(source.files),
                "bytes": sum(file.size for file in source.files),
            }
            for name, source in sorted(self.sources.items())
        ]
        return {"path": self.path, "written": self.written, "sources": sources, "changes": list(self.changes)}


def lock_with(options: Options, listener: Listener, update: Sequence[str] | None = None) -> Locked:
    """Resolves every source and writes the lock.

    Sources on the Hub stay at their locked commits, but for those that `update` names; an empty `update` names all.
    Raises UsageError for names that are no sources, and what resolving and writing raise.
    """
    if options.overrides:
        raise UsageError("a lock is of the Modelfile as it is", hint="leave out `--set`")
    spec = load(options.modelfile, trusted=options.trusted)
    names = [name for name in spec.artifacts if is_source(spec, name)]
    _check_names(spec, names, update or ())
    if faults := not_built(spec, names):
        raise NotBuiltYet(faults)
    held = hold(options, spec, spec.artifacts)
    renew = names if update is not None and not update else update or ()
    found = resolve(options, source_requests(spec, names), listener, pinned(held, renew))
    with _alone(options, held.file):
        new = next_lock(replace(held, lock=read(held.file)), found)
        written = write(held.file, new)
    changes = differences(held.lock, new) if held.lock is not None else []
    return Locked(shown_path(os.path.abspath(held.file)), written, new.sources, tuple(changes))


def _check_names(spec: Spec, sources: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if name not in spec.artifacts:
            guess = nearest(name, sources)
            hint = f"did you mean `{guess}`?" if guess else None
            facts = (f"its sources are {', '.join(f'`{n}`' for n in sources)}",) if sources else ()
            raise UsageError(f"`{name}` is not in {spec.file}", facts=facts, hint=hint)
        if name not in sources:
            raise UsageError(f"`{name}` is not a source: there is nothing to lock", where=spec.where_artifact(name))


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


def check_lock(options: Options, held: Held, found: Found) -> None:
    """Raises BuildFailed where the lock will have to be written when the build is done, and its folder takes none."""
    if options.record or (writes_lock(options) and next_lock(held, found) != held.lock):
        check_writable(held.file)


def writes_lock(options: Options) -> bool:
    """Whether a build with these options brings the lock up to date: not where it is held to, nor with overrides."""
    return not (options.overrides or options.locked or options.frozen)


def settle_lock(
    options: Options, held: Held, found: Found, outputs: Mapping[str, LockedOutput]
) -> dict[str, list[int] | None] | None:
    """Brings the lock up to date after a build, and records these outputs in it.

    The facts of the lock by path if it now says what this build was made from; None where it does not.
    """
    if options.overrides:
        return None
    with _alone(options, held.file):
        # Another build may have written it meanwhile: what that one knows stays.
        old = read(held.file)
        new = next_lock(replace(held, lock=old), found)
        told = Lock(new.sources, new.methods, {**new.outputs, **outputs})
        if writes_lock(options):
            write(held.file, told)
        elif outputs and old is not None:
            write(held.file, Lock(old.sources, old.methods, {**old.outputs, **outputs}))
        places = {os.path.abspath(held.file), os.path.realpath(held.file)}
        known = {place: facts(place, True) for place in sorted(places)}
        now = read(held.file)
    current = now is not None and not differences(now, new)
    return known if current else None


@contextmanager
def _alone(options: Options, file: str) -> Iterator[None]:
    """A time in which no other process that uses this cache writes the lock; where no locks can be, nothing is held."""
    folders = Folders(options.cache_root)
    key = identity("lock file/1", os.fsencode(os.path.realpath(file)))
    with ExitStack() as stack:
        with suppress(OSError):
            os.makedirs(folders.locks, exist_ok=True)
            stack.enter_context(exclusive(folders.lock(key), os.path.basename(file), lambda _: None))
        yield
