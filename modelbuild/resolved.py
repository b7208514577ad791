"""`plan --values`: what every parameter of a merge comes to, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.errors import NotBuiltYet, UsageError
from modelbuild.modelfile.check import not_built
from modelbuild.modelfile.spec import Base, Merge, Spec
from modelbuild.options import Options
from modelbuild.pins import hold, load_held, pinned
from modelbuild.plan.graph import closure, plan_source, source_requests, targets_of
from modelbuild.plan.outline import Outline, Resolved, outline
from modelbuild.plan.planned import Planned
from modelbuild.report.terminal import Listener
from modelbuild.session import resolve
from modelbuild.sources.content import SourceModel


@dataclass(frozen=True, slots=True)
class Stack:
    """A slice: the output layers from `first` up to, not including, `end`, and the first layer of each model in it."""

    first: int
    end: int
    starts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Values:
    """The parameters of every tensor of a merge, in order, and its slices."""

    name: str
    method: str
    slices: tuple[Stack, ...]
    tensors: tuple[Resolved, ...]

    def as_json(self) -> dict[str, Any]:
        """The values as `plan --values NAME --json` prints them."""
        return {
            "name": self.name,
            "method": self.method,
            "slices": [{"layers": [s.first, s.end], "models": dict(s.starts)} for s in self.slices],
            "tensors": [_tensor(tensor) for tensor in self.tensors],
        }


def _tensor(tensor: Resolved) -> dict[str, Any]:
    values = {"parameters": dict(tensor.shared), "inputs": {name: dict(own) for name, own in tensor.inputs.items()}}
    return {"name": tensor.name, "layer": tensor.layer, "kind": tensor.kind, **values}


def values_with(options: Options, name: str, listener: Listener) -> Values:
    """What every parameter of the merge `name` comes to; no weights are read, those of adapters included.

    Raises UsageError for what is no merge, and what planning raises of sources, slices and points.
    """
    spec = load_held(options)
    targets_of(spec, [name])
    merge = spec.artifacts[name]
    if not isinstance(merge, Merge):
        fact = f"[{merge.kind}.{name}] has no parameters that change from tensor to tensor"
        raise UsageError(f"`{name}` is no merge", where=spec.where_artifact(name), facts=(fact,))
    needed = closure(spec, [name])
    bases = [other for other in needed if isinstance(spec.artifacts[other], Base)]
    if faults := not_built(spec, bases):
        raise NotBuiltYet(faults)
    models = resolve(options, source_requests(spec, bases), listener, pinned(hold(options, spec, bases)))
    outlines: dict[str, Outline] = {}
    planned: dict[str, Planned] = {n: plan_source(m) for n, m in models.items() if isinstance(m, SourceModel)}
    for other in needed:
        artifact = spec.artifacts[other]
        if isinstance(artifact, Merge):
            outlines[other] = _outline(spec, artifact, planned)
            planned[other] = outlines[other].planned
    return Values(name, merge.method, _slices(merge), outlines[name].resolved)


def _outline(spec: Spec, merge: Merge, planned: Mapping[str, Planned]) -> Outline:
    found = spec.method(merge.method)
    assert found is not None
    inputs = {name: planned[name] for name in spec.references(merge.name) if name in planned}
    return outline(spec, merge, found, inputs)


def _slices(merge: Merge) -> tuple[Stack, ...]:
    found: list[Stack] = []
    for part in merge.slices:
        ranges = {entry.name: entry.layers or part.layers or (0, 0) for entry in part.models}
        start, end = next(iter(ranges.values()))
        first = found[-1].end if found else 0
        found.append(Stack(first, first + end - start, {name: span[0] for name, span in ranges.items()}))
    return tuple(found)
