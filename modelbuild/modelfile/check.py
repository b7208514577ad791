"""What only the whole file shows: names, references, cycles, targets; and what this version does not build yet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from modelbuild.errors import Fault
from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.keys import NAME
from modelbuild.modelfile.spec import (
    Adapter,
    Artifact,
    Base,
    Constant,
    Input,
    Merge,
    Path,
    Publish,
    Quantize,
    Settings,
    Spec,
)
from modelbuild.modelfile.suggest import listed, shown

MODELS = ("base", "merge")
ADAPTERS = ("adapter",)


@dataclass(frozen=True, slots=True)
class Reference:
    """One artifact naming another: where, whom, and of which kinds that must be."""

    path: Path
    name: str
    kinds: tuple[str, ...]


def references(artifact: Artifact) -> Iterator[Reference]:
    """Every reference of the artifact, in order; a name may come more than once."""
    path: Path = (artifact.kind, artifact.name)
    if isinstance(artifact, Adapter):
        if artifact.extract is not None:
            yield Reference((*path, "extract", "model"), artifact.extract.model, MODELS)
            yield Reference((*path, "extract", "base"), artifact.extract.base, MODELS)
        for index, (name, _) in enumerate(artifact.combine or ()):
            yield Reference((*path, "combine", index, "adapter"), name, ADAPTERS)
    elif isinstance(artifact, Quantize):
        yield Reference((*path, "model"), artifact.model, MODELS)
    elif isinstance(artifact, Merge):
        if artifact.base is not None:
            yield Reference((*path, "base"), artifact.base, MODELS)
        if artifact.router is not None:
            yield Reference((*path, "router"), artifact.router, MODELS)
        yield from _inputs(artifact.models, "model", MODELS)
        yield from _inputs(artifact.adapters, "adapter", ADAPTERS)
        for part in artifact.slices:
            yield from _inputs(part.models, "model", MODELS)
        ends = tuple(dict.fromkeys(artifact.ends or ()))
        for index, name in enumerate(ends):
            yield Reference((*path, "ends", index) if len(ends) > 1 else (*path, "ends"), name, MODELS)


def _inputs(entries: Iterable[Input], key: str, kinds: tuple[str, ...]) -> Iterator[Reference]:
    return (Reference((*entry.path, key), entry.name, kinds) for entry in entries)


def check_names(faults: Faults, names: Iterable[tuple[str, str]]) -> None:
    """Notes names that are not well-formed and names that two artifacts have; (kind, name) in the order of the file."""
    kinds: dict[str, str] = {}
    for kind, name in names:
        check_name(faults, kind, name)
        if name in kinds:
            message = f"`{shown(name)}` is the name of two artifacts"
            faults.key((kind, name), message, f"[{kinds[name]}.{shown(name)}] stands before [{kind}.{shown(name)}]")
        kinds.setdefault(name, kind)


def check_name(faults: Faults, kind: str, name: str) -> None:
    """Notes a name that is not well-formed, with one that is."""
    if re.fullmatch(NAME, name):
        return
    better = re.sub(r"[^a-z0-9_-]+", "-", name[:60].lower()).strip("-_")
    # Where letters were lost, what is left says little: no suggestion is better than a strange one.
    hint = f"call it `[{kind}.{better}]`" if better and name.isascii() else None
    if "." in name:
        faults.key((kind, name), f"the name `{shown(name)}` has a dot, and names have no dots", hint=hint)
    else:
        fact = "names are made of a-z, 0-9, _ and -, and start with a letter or digit"
        faults.key((kind, name), f"`{shown(name)}` is not a name", fact, hint=hint)


def check_references(faults: Faults, artifacts: Mapping[str, Artifact]) -> None:
    """Notes references to nothing and to the wrong kind."""
    for artifact in artifacts.values():
        for reference in references(artifact):
            if reference.name:
                _check_reference(faults, artifact, reference, artifacts)


def _check_reference(
    faults: Faults, artifact: Artifact, reference: Reference, artifacts: Mapping[str, Artifact]
) -> None:
    name = shown(reference.name)
    target = artifacts.get(reference.name)
    if target is None:
        fitting = (
            other.name for other in artifacts.values() if other.kind in reference.kinds and other is not artifact
        )
        faults.unknown_value(reference.path, f"there is no artifact `{name}`", reference.name, fitting)
        return
    if target.kind in reference.kinds:
        return
    wanted = " or ".join(f"[{kind}.NAME]" for kind in reference.kinds)
    message = f"`{name}` is [{target.kind}.{name}], and `{reference.path[-1]}` takes {wanted}"
    hint = None
    if target.kind == "adapter" and artifact.kind == "merge":
        hint = "an adapter is folded into a model by a merge with method `lora`"
    elif isinstance(target, Quantize):
        hint = f"use `{shown(target.model)}`, which it is made from" if target.model else None
    faults.value(reference.path, message, hint=hint)


def check_cycles(faults: Faults, artifacts: Mapping[str, Artifact]) -> None:
    """Notes each cycle once, naming its members in order, at the reference that closes it."""
    done: set[str] = set()
    for start in artifacts:
        trail: dict[str, Iterator[Reference]] = {}
        _enter(trail, start, artifacts, done)
        while trail:
            reference = next(next(reversed(trail.values())), None)
            if reference is None:
                done.add(trail.popitem()[0])
            elif reference.name in trail:
                names = list(trail)
                _note_cycle(faults, names[names.index(reference.name) :], reference, artifacts)
            else:
                _enter(trail, reference.name, artifacts, done)


def _enter(trail: dict[str, Iterator[Reference]], name: str, artifacts: Mapping[str, Artifact], done: set[str]) -> None:
    if name in artifacts and name not in done:
        trail[name] = references(artifacts[name])


def _note_cycle(faults: Faults, members: list[str], reference: Reference, artifacts: Mapping[str, Artifact]) -> None:
    if len(members) == 1:
        faults.value(reference.path, f"`{shown(members[0])}` is made from itself")
        return
    facts = [
        f"`{shown(name)}` needs `{shown(other)}`"
        for name, other in zip(members, (*members[1:], members[0]), strict=True)
    ]
    names = " → ".join(f"`{shown(name)}`" for name in (*members, members[0]))
    faults.value(reference.path, f"these artifacts are made from each other: {names}", *facts)


def is_built(artifact: Artifact) -> bool:
    """Whether `build` makes the artifact, rather than finding it."""
    return not (isinstance(artifact, Base) or (isinstance(artifact, Adapter) and artifact.source is not None))


def check_targets(
    faults: Faults, artifacts: Mapping[str, Artifact], settings: Settings, publish: Mapping[str, Publish]
) -> None:
    """Notes default targets and publications that name nothing, or nothing that is built."""
    built = [name for name, artifact in artifacts.items() if is_built(artifact)]
    for index, name in enumerate(settings.default):
        path: Path = ("settings", "default", index)
        if name not in artifacts:
            faults.unknown_value(path, f"there is no artifact `{shown(name)}`", name, built)
        elif not is_built(artifacts[name]):
            faults.value(path, f"`{name}` is a source: there is nothing to build", *_buildable(built))
    for name in publish:
        if name not in artifacts:
            faults.unknown(("publish", name), f"there is no artifact `{shown(name)}` to publish", name, built)
        elif not is_built(artifacts[name]):
            faults.key(("publish", name), f"`{name}` is a source: only what is built is published", *_buildable(built))


def _buildable(built: list[str]) -> list[str]:
    return [f"built are {listed(built[:20])}"] if built else []


def not_built(spec: Spec, names: Iterable[str]) -> list[Fault]:
    """What this version of modelbuild does not build yet among these artifacts, each by name and place."""
    return [fault for name in names for fault in _missing(spec, spec.artifacts[name])]


def _missing(spec: Spec, artifact: Artifact) -> Iterator[Fault]:
    path: Path = (artifact.kind, artifact.name)
    for key, what in _unbuilt(spec, artifact):
        message = f"`{artifact.name}` needs {what}, which this version does not build yet"
        yield Fault(message, spec.where(*path, key), ("the Modelfile is right, and a later version builds it",))


def _unbuilt(spec: Spec, artifact: Artifact) -> Iterator[tuple[str, str]]:
    """The keys of an artifact that ask for something that is not built, and what that is."""
    if isinstance(artifact, Merge):
        yield from _unbuilt_merge(spec, artifact)
    elif isinstance(artifact, Quantize):
        from modelbuild.formats.registry import formats

        if not formats()[artifact.format].built:
            yield "format", f"format `{artifact.format}`"
    elif isinstance(artifact, Adapter):
        for key in ("extract", "combine"):
            if getattr(artifact, key) is not None:
                yield key, f"`{key}`"


def _is_shared(entry: Input) -> bool:
    value = entry.parameters.get("shared")
    return isinstance(value, Constant) and value.value is True


def _unbuilt_merge(spec: Spec, merge: Merge) -> Iterator[tuple[str, str]]:
    found = spec.method(merge.method)
    if found is None or found.step is None:
        yield "method", f"method `{merge.method}`"
    if any(_is_shared(entry) for entry in merge.models):
        yield "models", "shared experts"
    if merge.base_precision is not None:
        yield "base_precision", "`base_precision`"
