"""The stamp of a finished build: what it depended on and made, by stat, so that doing nothing costs next to nothing.

A stamp is only believed when the Modelfile's bytes, every source's stat, the lock and every file of the output are what
they were, by the same version of modelbuild. Anything else, and any doubt, is the full build's to decide.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from modelbuild import __version__
from modelbuild.digest import seal, unseal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelbuild.result import ArtifactResult
    from modelbuild.session import Session
    from modelbuild.sources.content import SourceAdapter, SourceModel, Stamp

RACY_NS = 2_000_000_000
"""A file edited less than this before it was looked at could be edited again without another mtime."""

COARSE_NS = 20_000_000
"""What the clock of a file system may be behind."""

_OWN = {
    "MODELBUILD_CACHE",
    "MODELBUILD_KERNEL_CACHE",
    "MODELBUILD_OUT",
    "MODELBUILD_FILE",
    "MODELBUILD_ALLOW_PATH",
    "MODELBUILD_OFFLINE",
    "MODELBUILD_PLUGINS",
}
TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
"""What a variable says to set a flag."""

FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
"""What a variable says to leave a flag unset."""

_HELD = {"MODELBUILD_LOCKED", "MODELBUILD_FROZEN"}
"""Flags that make no difference where a stamp is believed: the lock is the one that the build left, and up to date."""


def answer(arguments: Sequence[str]) -> str | None:
    """What `modelbuild ARGUMENTS` prints if that is a plain build with nothing to do; None where that is uncertain."""
    started = time.perf_counter()
    try:
        words = _parse(arguments)
        if words is None:
            return None
        stamp = _believed(words)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if stamp is None:
        return None
    if words.as_json:
        seconds = round(time.perf_counter() - started, 3)
        return json.dumps({"seconds": seconds, "artifacts": stamp["artifacts"], "notes": []}, indent=2)
    return "\n".join(
        f"{a['name']}: nothing to do ({a['tensors']['total']} tensors, {a['path']})" for a in stamp["artifacts"]
    )


class Words(NamedTuple):
    """A command line that a stamp can answer."""

    modelfile: str
    cache: str | None
    out: str | None
    allow_path: bool
    plugins: str
    as_json: bool
    targets: tuple[str, ...]


def _parse(arguments: Sequence[str]) -> Words | None:
    """The few forms of `build` that a stamp can answer; None for all others."""
    environ = os.environ
    if any(name.startswith("MODELBUILD_") and name not in _OWN and not _harmless(name) for name in environ):
        return None
    given = {"-f": environ.get("MODELBUILD_FILE", "Modelfile")}
    given |= {"--cache": environ.get("MODELBUILD_CACHE", ""), "--out": environ.get("MODELBUILD_OUT", "")}
    given |= {"--plugins": environ.get("MODELBUILD_PLUGINS", "")}
    # Nothing is asked of the Hub here, so that `--offline` changes nothing.
    flags = {
        "--json": False,
        "--offline": False,
        "--locked": False,
        "--frozen": False,
        "--allow-path": environ.get("MODELBUILD_ALLOW_PATH", "").lower() in TRUE,
    }
    names: list[str] = []
    named = False
    rest = iter(arguments)
    for word in rest:
        if word in given or word == "--file":
            named = named or word in ("-f", "--file")
            given["-f" if word == "--file" else word] = next(rest, "")
        elif word in flags:
            flags[word] = True
        elif word.startswith("-"):
            return None
        else:
            names.append(word)
    if names[:1] != ["build"] or not given["-f"]:
        return None
    if names[1:] and names[1].lower().endswith((".yml", ".yaml")):
        if named:
            return None
        given["-f"] = names.pop(1)
    places = given["-f"], given["--cache"] or None, given["--out"] or None
    return Words(*places, flags["--allow-path"], given["--plugins"], flags["--json"], tuple(names[1:]))


def _harmless(name: str) -> bool:
    """Whether a variable is one of the flags that make no difference, and says what a flag's variable may say."""
    return name in _HELD and os.environ[name].lower() in TRUE | FALSE


def path_of(cache_root: str, workspace: str, targets: Sequence[str], allow_path: bool, plugins: str = "") -> str:
    """Where the stamp of a build of these targets, as they were asked for, lies.

    With other `plugins`, as they were written, it is another: who trusts nobody gets no answer from one who did.
    """
    asked = [*targets, str(allow_path), *([f"plugins {plugins}"] if plugins else [])]
    name = hashlib.sha256("\0".join(asked).encode()).hexdigest()[:16]
    return os.path.join(cache_root, "records", workspace, f"stamp-{name}.json")


def _believed(words: Words) -> dict[str, Any] | None:
    folder = os.path.dirname(os.path.abspath(words.modelfile))
    cache_root = os.path.abspath(words.cache or os.path.join(folder, "cache"))
    out_root = os.path.abspath(words.out or os.path.join(folder, "build"))
    workspace = workspace_id(words.modelfile, out_root)
    with open(path_of(cache_root, workspace, words.targets, words.allow_path, words.plugins), "rb") as file:
        stamp = json.loads(unseal(file.read()))
    with open(words.modelfile, "rb") as file:
        text = file.read()
    sound = stamp["version"] == __version__ and stamp["modelfile"] == hashlib.sha256(text).hexdigest()
    sound = sound and stamp.get("python", sys.prefix) == sys.prefix
    sound = sound and stamp.get("path", sys.path) == sys.path
    if not sound or stamp["folder"] != os.getcwd():
        return None
    sources = all(facts(path, True) == found for path, found in stamp["sources"])
    links = all(os.path.realpath(path) == real for path, real in stamp["links"])
    return stamp if sources and links and all(facts(path) == found for path, found in stamp["outputs"]) else None


def workspace_id(modelfile: str, out: str) -> str:
    """The identity of a workspace: a Modelfile's path and the output folder, links resolved."""
    paths = f"{os.path.realpath(modelfile)}\0{os.path.realpath(out)}"
    return hashlib.sha256(paths.encode("utf-8", "surrogateescape")).hexdigest()


def facts(path: str, with_ctime: bool = False) -> list[int] | None:
    """What tells that a file, or which entries a folder has, is as it was; None where there is nothing.

    Linking an output elsewhere changes its ctime, so that counts for sources only.
    """
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    if os.path.isdir(path):
        return [found.st_ino, found.st_mtime_ns]
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns if with_ctime else 0]


def write(
    session: Session,
    asked: Sequence[str],
    results: Mapping[str, ArtifactResult],
    started_ns: int,
    lock: Mapping[str, list[int] | None],
) -> None:
    """Writes the stamp of a finished build, unless its options or a source's youth make it worthless.

    `lock` are the facts of the lock, by path, that says what the build was made from: so a stamp answers for builds
    that are held to their lock as well.

    What was edited while the build went on, after it was read, has to be seen by the next one: the stamp says what was
    read and written, and is not written where something is no longer that.
    """
    import threading

    options = session.options
    if options.overrides or options.no_cache or options.link:
        return
    # What lies on the Hub is what the lock says, whether it is still on this machine or not.
    sources = [file for source in _local(session).values() for file in source.files]
    sources += [file for source in _local(session).values() for file in getattr(source, "side_files", {}).values()]
    if any(file.stamp.mtime_ns > started_ns - RACY_NS for file in sources):
        return
    found = {file.path: facts(file.path, True) for file in sources}
    links = _links(session)
    named = {os.path.dirname(path) for path in links} | {os.path.dirname(path) for path in found}
    folders = {folder: facts(folder, True) for folder in map(os.path.realpath, named)}
    outputs = _outputs(session)
    # Another version of a library computes other bytes, and another Python may have another one.
    libraries = {place: facts(place, True) for place in _libraries(session)}
    if outputs is None or any(_differs(file.stamp, found[file.path]) for file in sources):
        return
    if any(entries is None or entries[1] > started_ns - COARSE_NS for entries in folders.values()):
        return
    plugins = options.plugins if isinstance(options.plugins, str) else ",".join(options.plugins)
    data = {
        "version": __version__,
        "modelfile": session.spec.digest,
        "folder": os.getcwd(),
        "sources": sorted({**found, **folders, **libraries, **lock}.items()),
        "links": [(path, real) for path, real in sorted(links.items()) if path != real],
        "outputs": sorted(outputs.items()),
        "artifacts": [_fresh(results[name]) for name in session.plan.targets],
    }
    if libraries:
        data["python"] = sys.prefix
    if session.spec.outside:
        # Another release may lie elsewhere on the path.
        data["path"] = sys.path
    path = path_of(options.cache_root, session.records.workspace, asked, options.allow_path, plugins)
    scratch = f"{path}.{os.getpid()}.{threading.get_ident()}.new"
    with open(scratch, "wb") as out:
        out.write(seal(json.dumps(data)))
    os.replace(scratch, path)


def _local(session: Session) -> dict[str, SourceModel | SourceAdapter]:
    """The sources that lie on this machine, by name."""
    found: dict[str, SourceModel | SourceAdapter] = {**session.plan.models, **session.plan.adapters}
    return {name: source for name, source in found.items() if source.commit is None}


def _links(session: Session) -> dict[str, str]:
    """Every file of the sources under the path that the Modelfile names, with where links led to."""
    home = os.path.dirname(os.path.abspath(session.options.modelfile))
    links = {}
    for name, source in _local(session).items():
        artifact = session.spec.artifacts[name]
        place = os.path.join(home, getattr(artifact, "source", ""), getattr(artifact, "subfolder", None) or "")
        files = [*source.files, *getattr(source, "side_files", {}).values()]
        for file in files:
            whole = os.path.join(place, file.name)
            links[os.path.normpath(whole if os.path.lexists(whole) else place)] = file.path
    return links


def _libraries(session: Session) -> list[str]:
    """The files of the outside libraries, and of methods from outside, that computed parts of the plan."""
    from modelbuild.formats.numerics import library_places
    from modelbuild.formats.registry import formats
    from modelbuild.modelfile.spec import Merge, Quantize

    spec = session.spec
    found: set[str] = set()
    places: list[str] = []
    for artifact in (spec.artifacts[name] for name in session.plan.artifacts):
        if isinstance(artifact, Quantize):
            found.update(formats()[artifact.format].libraries)
        elif isinstance(artifact, Merge) and (method := spec.method(artifact.method)) is not None:
            found.update(method.libraries(artifact.parameters))
            places += method.places
    return [*library_places(found), *sorted(set(places))]


def _outputs(session: Session) -> dict[str, list[int] | None] | None:
    """The facts of every file of the outputs; None where a file is no longer as it was written."""
    found: dict[str, list[int] | None] = {}
    for name in session.plan.targets:
        target = os.path.join(session.options.out_root, name)
        stored = session.outputs.read("output", name)
        try:
            rows = json.loads(stored["record"])["files"] if stored is not None else None
        except (KeyError, ValueError, TypeError):
            return None
        for folder, _, files in os.walk(target):
            found |= {path: facts(path) for path in (os.path.join(folder, file) for file in files)}
        for file, (size, mtime_ns, _, _, inode) in (rows or {}).items():
            now = found.get(os.path.join(target, *file.split("/")))
            if now is None or now[1:4] != [inode, size, mtime_ns]:
                return None
    return found


def _differs(stamp: Stamp, now: list[int] | None) -> bool:
    """Whether a source is no longer the file that was read; inside the cache its ctime does not count."""
    return now is None or now[:4] != list(stamp[:4]) or stamp.ctime_ns not in (0, now[4])


def _fresh(result: ArtifactResult) -> dict[str, Any]:
    """The result that the next build has for an artifact if nothing changes until then."""
    from dataclasses import replace

    from modelbuild.result import Counts

    total = result.tensors.total
    again = replace(result, status="fresh", tensors=Counts(total, reused=total), read=0, written=0, seconds=0.0)
    return replace(again, reasons=(), notes=()).as_json()
