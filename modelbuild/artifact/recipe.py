"""The recipe of an artifact as plain data: what the Modelfile says about it and all it needs, in one canonical order.

Neither the order of tables nor comments show. A source outside the Modelfile's folder is known by its last name only,
since nothing in an output may hold a path of the machine that made it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from modelbuild.modelfile.spec import (
    Adapter,
    Artifact,
    Base,
    Choices,
    Constant,
    Gradient,
    Input,
    Merge,
    Quantize,
    Slice,
    Spec,
    Texts,
    Value,
)

Data: TypeAlias = "dict[str, Any]"

_ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")


def closure(spec: Spec, name: str) -> tuple[str, ...]:
    """The artifact `name` and all that it needs, each after what it is made from, itself last."""
    found: dict[str, None] = {}
    waiting = [(name, False)]
    while waiting:
        current, ready = waiting.pop()
        if ready:
            found[current] = None
        elif current not in found:
            waiting.append((current, True))
            waiting += [(other, False) for other in reversed(spec.references(current))]
    return tuple(found)


def recipe(spec: Spec, name: str) -> list[Data]:
    """The artifacts of the closure as data, in the words of the Modelfile, each with its kind and name."""
    return [artifact_data(spec.artifacts[other]) for other in closure(spec, name)]


def artifact_data(artifact: Artifact) -> Data:
    """One artifact as data, without what is left at its default."""
    data: Data = {"kind": artifact.kind, "name": artifact.name}
    if isinstance(artifact, Base):
        return data | _given(source=public_source(artifact.source), revision=artifact.revision, sha256=artifact.sha256)
    if isinstance(artifact, Adapter):
        return data | _adapter(artifact)
    if isinstance(artifact, Quantize):
        fixed = _given(model=artifact.model, format=artifact.format, type=artifact.type, skip=artifact.skip)
        return data | fixed | _given(**artifact.options) | _kept(artifact)
    return data | _merge(artifact)


def public_source(source: str) -> str:
    """A source without the folders of this machine: an absolute path is cut to its last name."""
    kind, colon, path = source.partition("local:")
    if not kind and colon:
        return f"local:{public_source(path)}"
    if _ABSOLUTE.match(source):
        return re.split(r"[/\\]", source.rstrip("/\\"))[-1]
    return source


def value_data(value: Value) -> object:
    """A parameter's value as the Modelfile writes it."""
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, Gradient | Texts):
        return list(value.values)
    if isinstance(value, Choices):
        return [_given(match=choice.match) | {"value": value_data(choice.value)} for choice in value.entries]
    return {"points": [list(point) for point in value.points], "rest": value.rest, "shape": value.shape}


def _adapter(artifact: Adapter) -> Data:
    source = None if artifact.source is None else public_source(artifact.source)
    data = _given(source=source, revision=artifact.revision, sha256=artifact.sha256, subfolder=artifact.subfolder)
    if artifact.extract is not None:
        made = artifact.extract
        data["extract"] = {"model": made.model, "base": made.base, "rank": made.rank}
    if artifact.combine is not None:
        data["combine"] = [{"adapter": name, "weight": weight} for name, weight in artifact.combine]
    return data | _given(rank=artifact.rank) | _kept(artifact)


def _merge(artifact: Merge) -> Data:
    lists = {
        "models": [_input("model", entry) for entry in artifact.models],
        "adapters": [_input("adapter", entry) for entry in artifact.adapters],
        "slices": [_slice(part) for part in artifact.slices],
    }
    data = _given(method=artifact.method, base=artifact.base, router=artifact.router, **lists, ends=_ends(artifact))
    data |= _parameters(artifact.parameters)
    names = ("dtype", "seed", "base_precision", "tokenizer", "pad_to_multiple_of", "chat_template", "only", "copy")
    data |= _given(**{name: getattr(artifact, name) for name in names})
    return data | _given(**{n: getattr(artifact, n) for n in ("tokens", "config", "generation")}) | _kept(artifact)


def _ends(artifact: Merge) -> str | list[str] | None:
    """One name where both ends come from one model."""
    if artifact.ends is None:
        return None
    return artifact.ends[0] if artifact.ends[0] == artifact.ends[1] else list(artifact.ends)


def _input(word: str, entry: Input) -> Data:
    return {word: entry.name} | _given(layers=entry.layers) | _parameters(entry.parameters)


def _slice(part: Slice) -> Data:
    models = [_input("model", entry) for entry in part.models]
    return _given(layers=part.layers) | {"models": models} | _parameters(part.parameters)


def _parameters(parameters: Mapping[str, Value]) -> Data:
    return {name: value_data(parameters[name]) for name in sorted(parameters)}


def _kept(artifact: Adapter | Merge | Quantize) -> Data:
    return _given(description=artifact.description, keep=artifact.keep)


def _given(**fields: object) -> Data:
    """The fields that say something, as plain data."""
    return {name: _plain(value) for name, value in fields.items() if value is not None and value not in ((), [], {})}


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(inner) for inner in value]
    return value
