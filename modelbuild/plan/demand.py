"""What a build needs: for each artifact which tensors are computed, copied, or reused, and which are worth keeping.

Order and need are two decisions: artifacts come in building order, and a tensor is needed only if something that is not
stored yet reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modelbuild.formats.numerics import takes_library
from modelbuild.methods.operations import operation
from modelbuild.modelfile.spec import Adapter, Merge, Quantize, Spec
from modelbuild.plan.node import Node, inputs_of, is_inner
from modelbuild.plan.planned import Plan, Planned

WIDE = 192
"""Rank, summed over a tensor's adapters, from which a low-rank product costs more to make than to read again."""


@dataclass(slots=True)
class Need:
    """The tensors of one artifact that a build needs, by what becomes of them; `kept` are computed ones that stay."""

    computed: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    keep_reason: str | None = None

    @property
    def count(self) -> int:
        """How many tensors are needed."""
        return len(self.computed) + len(self.copied) + len(self.reused)


def demand(plan: Plan, stored: Collection[str], ready: Collection[str] = ()) -> dict[str, Need]:
    """For each artifact that the targets need, and is not a source, what it needs.

    `stored` are the keys of tensors that lie in the cache, `ready` the targets that are complete there already.
    """
    built = [artifact for artifact in plan.artifacts.values() if artifact.kind != "base"]
    owner = owners(built)
    asked: dict[str, dict[str, set[str]]] = {artifact.name: {} for artifact in built}
    needs: dict[str, Need] = {}
    made_before = _made_before(plan, built)
    surveyed: set[str] = set()
    for artifact in reversed(built):
        need = needs[artifact.name] = Need()
        whole = artifact.name in plan.targets
        complete = artifact.name in ready
        for name, node in artifact.tensors.items():
            if not whole and node.key not in asked[artifact.name]:
                continue
            if complete or node.key in stored:
                need.reused.append(name)
                continue
            _sort(need, name, node, owner[node.key] == artifact.name)
            if node.operation != "source" or artifact.decisions:
                _ask(artifact, name, node, asked)
                surveyed |= _surveyed(node)
        if not whole:
            _keep(plan.spec, artifact, need, asked[artifact.name], made_before, surveyed)
    return {name: need for name, need in reversed(needs.items()) if need.count}


def owners(built: Sequence[Planned]) -> dict[str, str]:
    """For each tensor's key the first artifact, in building order, that has it: the one that makes it."""
    owner: dict[str, str] = {}
    for artifact in built:
        for node in artifact.tensors.values():
            owner.setdefault(node.key, artifact.name)
    return owner


def _sort(need: Need, name: str, node: Node, own: bool) -> None:
    if node.operation == "source":
        need.copied.append(name)
    elif own:
        need.computed.append(name)
    else:
        need.reused.append(name)


def _ask(artifact: Planned, name: str, node: Node, asked: Mapping[str, dict[str, set[str]]]) -> None:
    """Passes the need for a tensor on to the artifacts that its inputs are part of."""
    used = {node.key, *(read.key for read in inputs_of(node))}
    decision = artifact.decisions.get(name)
    for other, key in decision.inputs if decision is not None else ():
        if key in used and other in asked:
            asked[other].setdefault(key, set()).add(node.key)


def _surveyed(node: Node) -> set[str]:
    """The keys of inputs that are read more than once for this one tensor, or not from start to end."""
    gathered = {used.key for read in (node, *inputs_of(node)) if is_inner(read) for used in read.inputs}
    if node.operation == "source" or node.outputs or not operation(node.operation).surveys(node):
        return gathered
    return gathered | {read.key for read in inputs_of(node)}


def _made_before(plan: Plan, built: Sequence[Planned]) -> set[str]:
    """The keys that are in the cache by the time the last target is made: those of all targets before it."""
    order = [artifact for artifact in built if artifact.name in plan.targets]
    return {node.key for artifact in order[:-1] for node in artifact.tensors.values()}


def _keep(
    spec: Spec,
    artifact: Planned,
    need: Need,
    asked: Mapping[str, set[str]],
    made_before: Collection[str],
    surveyed: Collection[str],
) -> None:
    """Chooses which computed tensors of an intermediate are written to the cache on the way.

    `asked` gives, for the key of a tensor, the keys of the tensors that are made from it, or are it: where there are
    several, it is spilled once rather than computed for each. So is one of `surveyed`, which is read in several passes.
    """
    if not need.computed:
        return
    described = spec.artifacts[artifact.name]
    keep = described.keep if isinstance(described, (Adapter, Merge, Quantize)) else None
    if keep is False:
        return
    if keep:
        need.kept, need.keep_reason = list(need.computed), "`keep = true`"
        return
    loose = [name for name in need.computed if artifact.tensors[name].key not in made_before]
    keys = {name: artifact.tensors[name].key for name in loose}
    shared = [name for name, key in keys.items() if len(asked[key]) > 1 or key in surveyed]
    costly = [name for name in loose if _is_costly(artifact.tensors[name])]
    need.kept = [name for name in need.computed if name in {*shared, *costly}]
    if need.kept:
        need.keep_reason = "used more than once" if shared else "costs more to make than to read"


def _is_costly(node: Node) -> bool:
    """Whether a tensor costs more to make than to read: a wide low-rank product, or what takes a decomposition."""
    return takes_library(node.numerics) or _rank(node) >= WIDE


def _rank(node: Node) -> int:
    """The ranks of a node's low-rank terms, added up; 0 for other nodes."""
    if node.operation != "lora":
        return 0
    from modelbuild.methods.lora import factor_indexes

    return sum(min(node.inputs[left].shape) for left, _ in factor_indexes(node))


def kept_key(artifact: Planned, names: Sequence[str]) -> str:
    """The identity of the kept tensors of an artifact."""
    from modelbuild.digest import identity

    return identity("kept/1", tuple((name, artifact.tensors[name].key) for name in names))


def reachable(nodes: Iterable[Node]) -> set[str]:
    """The keys of all computed nodes that the nodes come from, themselves included, and of source tensors they are."""
    pending = list(nodes)
    found = {node.key for node in pending}
    while pending:
        for used in pending.pop().inputs:
            if used.key not in found and used.operation != "source":
                found.add(used.key)
                pending.append(used)
    return found
