"""modelbuild.json: where an artifact comes from, to the byte, without a time, a host or a path of the machine.

With the sources it names, a later modelbuild can build the same bytes again; with its digests anybody can check them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelbuild.artifact.recipe import closure, public_source, recipe
from modelbuild.cache.nouns import StoredFile
from modelbuild.formats.registry import formats
from modelbuild.modelfile.spec import Merge, Quantize, Spec
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Plan, Planned
from modelbuild.sources.content import SourceAdapter, SourceModel

FORMAT = 1
"""The version of the format of modelbuild.json."""

FILE = "modelbuild.json"


@dataclass(frozen=True, slots=True)
class Made:
    """One artifact and all that its provenance and its model card speak about.

    `version` is modelbuild's. `weights` are the published weight files, `files` the SHA-256 of each side file by name,
    `overrides` the `--set` options as given, `modelfile` the text of the Modelfile.
    """

    plan: Plan
    name: str
    version: str
    weights: Sequence[StoredFile] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    modelfile: str = ""


def provenance(made: Made) -> bytes:
    """modelbuild.json as bytes; the same for the same artifact, whatever machine, order of tables or time."""
    plan, planned = made.plan, made.plan.artifacts[made.name]
    document: dict[str, Any] = {
        "format": FORMAT,
        "modelbuild": made.version,
        "name": made.name,
        "kind": planned.kind,
        "key": planned.key,
        "settings": _settings(plan.spec),
        "overrides": [public_override(text) for text in made.overrides],
        "recipe": recipe(plan.spec, made.name),
        "sources": {source.name: _source(source) for source in sources(plan, made.name)},
        "methods": _methods(plan.spec, made.name),
        **operations(planned.tensors.values()),
        "weights": [_weight(file) for file in sorted(made.weights, key=lambda file: file.name)],
        "files": dict(sorted(made.files.items())),
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def sources(plan: Plan, name: str) -> list[SourceModel | SourceAdapter]:
    """The sources that the artifact `name` is made from, sorted by their names in the Modelfile."""
    known: dict[str, SourceModel | SourceAdapter] = {**plan.models, **plan.adapters}
    return [known[other] for other in sorted(closure(plan.spec, name)) if other in known]


def public_override(text: str) -> str:
    """A `--set` option without the folders of this machine in it."""
    path, equals, value = text.partition("=")
    bare = value.strip().strip("\"'")
    return f"{path}{equals}{value.replace(bare, public_source(bare))}" if bare else text


def public_modelfile(text: str, spec: Spec) -> str:
    """The text of a Modelfile with its absolute sources cut to their last names."""
    named = {getattr(artifact, "source", None) for artifact in spec.artifacts.values()}
    private = sorted((source for source in named if source and public_source(source) != source), key=len, reverse=True)
    for source in private:
        text = re.sub(rf"(?<=[\"']){re.escape(source)}(?=[\"'])", lambda found: public_source(found[0]), text)
    return text


def _settings(spec: Spec) -> dict[str, Any]:
    chosen = spec.settings
    dtype = {} if chosen.dtype is None else {"dtype": chosen.dtype}
    shards = {} if chosen.shards is None else {"shards": chosen.shards}
    return dtype | {"seed": chosen.seed, "shard_size": chosen.shard_size} | shards


def _source(source: SourceModel | SourceAdapter) -> dict[str, Any]:
    files = [
        {"name": file.name, "size": file.size, "sha256": file.sha256}
        for file in sorted(source.files, key=lambda file: file.name)
    ]
    commit = {} if source.commit is None else {"commit": source.commit}
    return {"origin": public_source(source.origin), **commit, "files": files}


def _methods(spec: Spec, name: str) -> dict[str, int | str]:
    artifacts = [spec.artifacts[other] for other in closure(spec, name)]
    used = {other.method for other in artifacts if isinstance(other, Merge)}
    versions = {known: found.locked for known in used if (found := spec.method(known)) is not None}
    versions |= {other.format: formats()[other.format].version for other in artifacts if isinstance(other, Quantize)}
    return dict(sorted(versions.items()))


def numerics_of(planned: Planned, operation: str) -> list[str]:
    """The numerics classes of what outside libraries compute of an artifact by an operation."""
    nodes = (node for node in planned.tensors.values() if node.operation == operation)
    return sorted({node.numerics for node in nodes if node.numerics is not None})


def operations(nodes: Iterable[Node]) -> dict[str, Any]:
    """The version of every operation behind the tensors, and the numerics classes of those that are bound to one."""
    versions: dict[str, int] = {}
    classes: set[str] = set()
    seen: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.key in seen:
            continue
        seen.add(node.key)
        waiting += node.inputs
        if node.operation != "source":
            versions[node.operation] = node.version
        if node.numerics is not None:
            classes.add(node.numerics)
    return {"operations": dict(sorted(versions.items())), "numerics": sorted(classes)}


def _weight(file: StoredFile) -> dict[str, Any]:
    known = {} if file.sha256 is None else {"sha256": file.sha256}
    return {"name": file.name, "size": file.size, "xxh3": file.checksum, **known}
