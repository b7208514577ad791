"""From the spec to the plan: sources resolved side by side, then every artifact in building order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import TypeAlias

from modelbuild.errors import UsageError
from modelbuild.modelfile.spec import Adapter, Base, Merge, Quantize, Spec
from modelbuild.modelfile.suggest import nearest
from modelbuild.plan.adapt import plan_lora
from modelbuild.plan.merge import plan_merge
from modelbuild.plan.mixture import names_of, plan_mixture
from modelbuild.plan.node import source_node
from modelbuild.plan.planned import Plan, Planned, Side
from modelbuild.plan.quantize import plan_quantize
from modelbuild.plan.tokenizers import with_chat_template
from modelbuild.sources.content import SourceAdapter, SourceModel
from modelbuild.sources.resolve import Request

Resolve: TypeAlias = "Callable[[Sequence[Request]], Mapping[str, SourceModel | SourceAdapter]]"
"""Finds sources, all at once so that hashing large files keeps every core busy."""


def targets_of(spec: Spec, names: Sequence[str]) -> tuple[str, ...]:
    """The targets: those named, else `settings.default`, else every built artifact that nothing else uses.

    Raises UsageError for a name that is not an artifact, or is one that exists already.
    """
    built = [name for name, artifact in spec.artifacts.items() if not is_source(spec, name)]
    for name in names:
        if name not in spec.artifacts:
            guess = nearest(name, built)
            raise UsageError(
                f"`{name}` is not in {spec.file}",
                facts=(f"it can build {', '.join(f'`{n}`' for n in built)}",) if built else (),
                hint=f"did you mean `{guess}`?" if guess else None,
            )
        if name not in built:
            raise UsageError(f"`{name}` is a source: there is nothing to build", where=spec.where_artifact(name))
    if names or spec.settings.default:
        return tuple(dict.fromkeys(names or spec.settings.default))
    used = {reference for name in spec.artifacts for reference in spec.references(name)}
    found = tuple(name for name in built if name not in used)
    if not found:
        raise UsageError(f"{spec.file} builds nothing", hint="add a [merge.NAME] that uses the sources")
    return found


def is_source(spec: Spec, name: str) -> bool:
    """Whether an artifact exists already: a base, or an adapter that is fetched."""
    artifact = spec.artifacts[name]
    return isinstance(artifact, Base) or (isinstance(artifact, Adapter) and artifact.source is not None)


def closure(spec: Spec, targets: Iterable[str]) -> tuple[str, ...]:
    """The targets and everything they need, each after what it refers to; the order of the file breaks ties."""
    needed: dict[str, tuple[str, ...]] = {}
    pending = list(targets)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed[name] = spec.references(name)
            pending += needed[name]
    ordered = TopologicalSorter({name: sorted(needed[name]) for name in sorted(needed)})
    return tuple(ordered.static_order())


def make_plan(spec: Spec, targets: Sequence[str], resolve: Resolve) -> Plan:
    """The plan of the targets. Raises with every fault of the first stage that has any: sources, then each merge."""
    names = closure(spec, targets)
    found = resolve(source_requests(spec, [name for name in names if is_source(spec, name)]))
    models = {name: source for name, source in found.items() if isinstance(source, SourceModel)}
    adapters = {name: source for name, source in found.items() if isinstance(source, SourceAdapter)}
    artifacts: dict[str, Planned] = {}
    for name in names:
        artifact = spec.artifacts[name]
        if isinstance(artifact, Base):
            artifacts[name] = plan_source(models[name])
        elif isinstance(artifact, Merge):
            artifacts[name] = _plan_one(spec, artifact, artifacts, adapters)
        elif isinstance(artifact, Quantize):
            artifacts[name] = plan_quantize(spec, artifact, artifacts[artifact.model])
    return Plan(spec, tuple(name for name in names if name in targets), artifacts, models, adapters)


def source_requests(spec: Spec, names: Sequence[str]) -> list[Request]:
    """The sources called `names`, as their reader wants to be asked for them."""
    sources = [spec.artifacts[name] for name in names]
    return [Request(a, spec.where(a.kind, a.name, "source")) for a in sources if isinstance(a, (Base, Adapter))]


def _plan_one(
    spec: Spec, merge: Merge, artifacts: Mapping[str, Planned], adapters: Mapping[str, SourceAdapter]
) -> Planned:
    found = spec.method(merge.method)
    assert found is not None
    inputs = {name: artifacts[name] for name in spec.references(merge.name) if name in artifacts}
    if found.takes == "adapters":
        planned = plan_lora(spec, merge, found, artifacts[merge.base or ""], adapters)
    elif found.mixture:
        planned = plan_mixture(spec, merge, found, inputs)
        inputs = {name: inputs[name] for name in names_of(merge)}
    else:
        planned = plan_merge(spec, merge, found, inputs)
    return with_chat_template(spec, merge, planned, inputs)


def plan_source(model: SourceModel) -> Planned:
    """A base as planned: every tensor is its own node."""
    by_name = {file.name: file for file in model.files}
    side = Side(
        config=model.config,
        config_file=by_name.get("config.json"),
        generation=model.generation,
        generation_file=by_name.get("generation_config.json"),
        files=model.side_files,
    )
    nodes = {name: source_node(tensor) for name, tensor in model.tensors.items()}
    return Planned(model.name, "base", nodes, side, notes=model.notes)
