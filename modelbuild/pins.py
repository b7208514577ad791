"""Which entries of the lock count, what the lock would become, and whether it may.

By default sources on the Hub stay at their locked commits, and the lock follows what local files have become.
`--locked` stops where `[sources]` or `[methods]` would change. `--frozen` takes everything as the lock has it, and
stops where files or methods here are not that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelbuild import __version__
from modelbuild.artifact.edits import is_inside
from modelbuild.errors import Fault, LockOutOfDate, ModelfileError, VerificationFailed, Where
from modelbuild.importing.load import load
from modelbuild.methods.outside import LOCKED, not_installed
from modelbuild.modelfile.faults import UnknownMethod
from modelbuild.modelfile.spec import Adapter, Base, Spec
from modelbuild.options import Options
from modelbuild.plan.graph import is_source
from modelbuild.sources.content import SourceAdapter, SourceModel
from modelbuild.sources.find import ADAPTER_CONFIG
from modelbuild.sources.lock import Lock, LockedFile, LockedSource, differences, from_sources
from modelbuild.sources.lockfile import read
from modelbuild.sources.origin import below, is_hub, origin_of
from modelbuild.sources.strictjson import show
from modelbuild.versions import ADAPTER, Versions, adapter_version, next_versions, versions_of

LOCK = "`modelbuild lock` brings it up to date"

_COMMIT = re.compile(r"[0-9a-f]{40}")
Found = Mapping[str, "SourceModel | SourceAdapter"]


@dataclass(frozen=True, slots=True)
class Held:
    """The lock beside a Modelfile as it was read, what the Modelfile says, and how strictly the lock is held to.

    `lock` is None where there is none; `file` is what messages call it. `names` are the artifacts that are needed now.
    """

    file: str
    lock: Lock | None
    spec: Spec
    names: tuple[str, ...]
    locked: bool = False
    frozen: bool = False
    overridden: bool = False


def lock_path(options: Options) -> str:
    """Where the lock of the options' Modelfile lies."""
    return f"{options.modelfile}.lock"


def load_held(options: Options) -> Spec:
    """What the Modelfile of the options says.

    Raises what reading it raises; but where the lock is held to and names what is not installed, LockOutOfDate.
    """
    try:
        return load(options.modelfile, overrides=options.overrides, trusted=options.trusted)
    except ModelfileError as error:
        lock = read(lock_path(options)) if options.locked or options.frozen else None
        unknown = [fault.method for fault in error.faults if isinstance(fault, UnknownMethod)]
        locked = [(name, str(lock.methods[name])) for name in unknown if lock is not None and name in lock.methods]
        gone = [not_installed(text, name, Where(lock_path(options))) for name, text in locked]
        if faults := [fault for fault in gone if fault is not None]:
            raise LockOutOfDate(list(dict.fromkeys(faults))) from None
        raise


def hold(options: Options, spec: Spec, names: Iterable[str]) -> Held:
    """The lock as it is now, for the artifacts `names`.

    Raises what reading it raises, and LockOutOfDate where one is needed and there is none.
    """
    file = lock_path(options)
    lock = read(file)
    if lock is None and (options.locked or options.frozen):
        flag = "frozen" if options.frozen else "locked"
        raise LockOutOfDate(
            "there is no lock", where=Where(file), facts=[f"`--{flag}` needs one"], hint="`modelbuild lock` writes it"
        )
    return Held(file, lock, spec, tuple(names), options.locked, options.frozen, bool(options.overrides))


def pinned(held: Held, renew: Collection[str] = ()) -> dict[str, LockedSource]:
    """The needed sources that are taken as the lock has them, without being looked up, but for those to `renew`.

    These are the ones on the Hub whose origin the Modelfile has not changed since; with `--frozen` all of them.
    Raises LockOutOfDate for entries of the Hub that nobody can have locked.
    """
    entries = held.lock.sources if held.lock is not None else {}
    found = {}
    for name in held.names:
        entry, artifact = entries.get(name), held.spec.artifacts[name]
        if entry is None or name in renew or not isinstance(artifact, (Base, Adapter)) or not _fits(entry, artifact):
            continue
        if is_hub(entry.origin):
            _check_entry(held, name, entry)
        if held.frozen or is_hub(entry.origin):
            found[name] = entry
    return found


def _fits(entry: LockedSource, artifact: Base | Adapter) -> bool:
    """Whether an entry is of the source that the Modelfile names: the same origin, on the Hub of the same subfolder."""
    names, start = {file.name for file in entry.files}, below(artifact)
    whole = not isinstance(artifact, Adapter) or not is_hub(entry.origin) or f"{start}{ADAPTER_CONFIG}" in names
    return entry.origin == origin_of(artifact) and whole


def _check_entry(held: Held, name: str, entry: LockedSource) -> None:
    """Files are looked up by these names, and fetched at this commit: both may have been edited."""
    facts = [] if entry.commit and _COMMIT.fullmatch(entry.commit) else [f"`commit` of `{name}` is not a commit"]
    bad = [file.name for file in entry.files if not is_inside(file.name) or not file.name.isprintable()]
    facts += [f"{show(file)} of `{name}` is not the name of a file" for file in bad]
    facts += [] if entry.files else [f"`{name}` has no files"]
    if facts:
        hint = f"`modelbuild lock --update {name}` looks it up anew"
        raise LockOutOfDate("the lock was edited or damaged", where=Where(held.file), facts=facts, hint=hint)


# --- what the lock would become ---------------------------------------------------------------------------------------


def next_lock(held: Held, found: Found) -> Lock:
    """What the lock becomes with these sources as they were found.

    What the old one says of sources that were not looked at now stays as long as the Modelfile names them, and so do
    outputs. With `--set` nothing goes either: the Modelfile itself still names it.
    """
    old, spec = held.lock or Lock(), held.spec
    adapters = [source for source in found.values() if isinstance(source, SourceAdapter)]
    needed, whole = (versions_of(spec, names, adapters) for names in (held.names, spec.artifacts))
    methods = next_versions(old.methods, needed, whole)
    unread = [n for n, a in spec.artifacts.items() if isinstance(a, Adapter) and is_source(spec, n) and n not in found]
    for name, version in old.methods.items():
        if held.overridden or (unread and name.startswith(ADAPTER)):
            methods.setdefault(name, adapter_version(name.removeprefix(ADAPTER)) or version)
    kept = {n: e for n, e in old.sources.items() if held.overridden or (n in spec.artifacts and is_source(spec, n))}
    outputs = {n: e for n, e in old.outputs.items() if n in spec.artifacts and not is_source(spec, n)}
    return Lock(kept | dict(from_sources(found.values(), {}).sources), methods, outputs)


# --- whether it may ---------------------------------------------------------------------------------------------------


def check_before(held: Held) -> None:
    """With `--frozen` raises LockOutOfDate where the lock lacks a source that is needed, or its methods are others.

    Nothing was looked at yet.
    """
    if not held.frozen or held.lock is None:
        return
    faults = [
        *(fault for name in held.names for fault in _unlocked(held, held.lock, name)),
        *_other_methods(held, held.lock, versions_of(held.spec, held.names, ())),
    ]
    if faults:
        raise LockOutOfDate(faults)
    if gone := [fault for name in held.names for fault in _gone(held, held.lock, name)]:
        raise VerificationFailed(gone)


def _gone(held: Held, lock: Lock, name: str) -> Iterator[Fault]:
    """A fault if locked files of a local source are missing, though the source itself is there."""
    entry, artifact = lock.sources.get(name), held.spec.artifacts[name]
    if entry is None or not isinstance(artifact, (Base, Adapter)) or is_hub(entry.origin) or artifact.source is None:
        return
    place = os.path.join(os.path.dirname(os.path.abspath(held.file)), artifact.source)
    place = os.path.join(place, getattr(artifact, "subfolder", None) or "")
    if os.path.isdir(place):
        missing = [file.name for file in entry.files if not os.path.lexists(os.path.join(place, file.name))]
        yield from _not_as_locked(held, name, [f"{show(file)} is missing" for file in missing])


def check_found(held: Held, found: Found) -> None:
    """Raises where sources as they were found, or methods that they need, are not what the options ask for.

    VerificationFailed with `--frozen`, for a file that is not the locked one; LockOutOfDate with `--locked`.
    """
    if held.lock is None:
        return
    if held.frozen:
        adapters = [source for source in found.values() if isinstance(source, SourceAdapter)]
        if faults := list(_other_methods(held, held.lock, versions_of(held.spec, held.names, adapters))):
            raise LockOutOfDate(faults)
        if faults := [fault for source in found.values() for fault in _other_files(held, held.lock, source)]:
            raise VerificationFailed(faults)
    if held.locked and (changes := differences(held.lock, next_lock(held, found))):
        raise LockOutOfDate("the lock is out of date", where=Where(held.file), facts=changes, hint=LOCK)


def _unlocked(held: Held, lock: Lock, name: str) -> Iterator[Fault]:
    artifact, entry = held.spec.artifacts[name], lock.sources.get(name)
    if not isinstance(artifact, (Base, Adapter)) or not is_source(held.spec, name):
        return
    where, origin = held.spec.where(artifact.kind, name, "source"), origin_of(artifact)
    if entry is None:
        yield Fault(f"source `{name}` is not in the lock", where, hint=LOCK)
    elif not _fits(entry, artifact):
        facts = (f"the lock has {show(entry.origin)}", f"the Modelfile has {show(origin)}")
        if entry.origin == origin:
            facts = ("the lock has another subfolder of it", f"the Modelfile has {show(below(artifact) or '/')}")
        yield Fault(f"source `{name}` is another one in the lock", where, facts, LOCK)


def _other_methods(held: Held, lock: Lock, versions: Versions) -> Iterator[Fault]:
    """A fault for every version that is not the locked one; modelbuild's own may be another if all others are not.

    What is not installed is missed later, by whoever needs it.
    """
    where, writer = Where(held.file), lock.methods.get("modelbuild")
    for name, version in versions.items():
        locked = lock.methods.get(name)
        if name == "modelbuild" or version is None or locked == version:
            continue
        if locked is None:
            yield Fault(f"`{name}` is not in the lock", where, hint=LOCK)
        elif isinstance(version, str):
            facts = (f"the lock has {show(str(locked))}", f"here is {show(version)}")
            plugin = LOCKED.fullmatch(str(locked))
            wanted = f"{plugin['distribution']}=={plugin['release']}, which" if plugin else "what"
            hint = f"install {wanted} the lock names; `modelbuild lock` goes on with what is here"
            yield Fault(f"`{name}` is another one in the lock", where, facts, hint)
        else:
            told, hint = [f"this is modelbuild {__version__}, with version {version}"], "`modelbuild lock` writes that"
            if isinstance(writer, str) and writer != __version__:
                told, hint = [f"built with modelbuild {show(writer)}", *told], f"install modelbuild=={writer}"
            yield Fault(f"the lock has version {locked} of `{name}`, which is not here", where, tuple(told), hint)


def _other_files(held: Held, lock: Lock, source: SourceModel | SourceAdapter) -> Iterator[Fault]:
    """A fault if the files of a source are not the locked ones, with a line for what each should be and is."""
    locked = {file.name: file for file in lock.sources[source.name].files}
    found = {file.name: LockedFile(file.name, file.size, file.sha256) for file in source.files}
    facts: list[str] = []
    for name in sorted(locked.keys() | found.keys()):
        if name not in found:
            facts.append(f"{show(name)} is missing")
        elif name not in locked:
            facts.append(f"{show(name)} is not in the lock")
        elif locked[name] != found[name]:
            facts += [f"{show(name)}: expected {_told(locked[name])}", f"{show(name)}: found    {_told(found[name])}"]
    yield from _not_as_locked(held, source.name, facts)


def _not_as_locked(held: Held, name: str, facts: Sequence[str]) -> Iterator[Fault]:
    if facts:
        where = held.spec.where_artifact(name)
        hint = "put the locked files back; `modelbuild lock` accepts those that are here"
        yield Fault(f"source `{name}` is not what the lock says", where, tuple(facts), hint)


def _told(file: LockedFile) -> str:
    return f"{file.size} bytes, SHA-256 {file.sha256}"
