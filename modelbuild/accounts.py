"""What a build says of itself: counts, bytes, reasons and notes of each artifact, before and after it was made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modelbuild.plan.demand import Need, demand
from modelbuild.plan.node import Node, inputs_of
from modelbuild.result import ArtifactResult, Counts
from modelbuild.session import Session

if TYPE_CHECKING:
    from modelbuild.engine.make import Outcome


def first_result(session: Session, name: str, need: Need) -> ArtifactResult:
    """The result of a needed artifact before anything is made: counts, bytes to read, and reasons."""
    artifact = session.plan.artifacts[name]
    counts = Counts(len(artifact.tensors), len(need.computed), len(need.copied), len(need.reused))
    reasons = session.reasons(name, need.computed)
    read = read_bytes(session, name, need)
    return ArtifactResult(name, artifact.kind, artifact.key, "streamed", None, counts, read, 0, 0.0, reasons)


def read_bytes(session: Session, name: str, need: Need) -> int:
    """The bytes of stored tensors that making an artifact reads itself: of sources it names, and of the cache.

    What streams in from another built artifact is that one's to count.
    """
    artifact = session.plan.artifacts[name]
    built = session.plan.artifacts.keys() - session.plan.models.keys()
    linked = session.linked.get(name, frozenset())
    total = 0
    shared: set[str] = set()
    for tensor in (*need.computed, *need.copied):
        if tensor in linked:
            continue
        node = artifact.tensors[tensor]
        at_hand: dict[str, Node] = {used.key: used for used in (node, *inputs_of(node))}
        decision = artifact.decisions.get(tensor)
        for label, key in decision.inputs if decision is not None else ():
            # What lies below inner nodes is read once for all tensors that are made of it.
            if key in at_hand and (label not in built or key in session.stored) and key not in shared:
                total += at_hand[key].nbytes
                shared |= {key} - {used.key for used in (node, *node.inputs)}
    if name in session.plan.targets and name not in session.ready:
        nodes = (artifact.tensors[tensor] for tensor in need.reused if tensor not in linked)
        total += sum(node.nbytes for node in nodes if node.key in session.stored)
    return total


def made_counts(counts: Counts, need: Need, outcome: Outcome) -> Counts:
    """The counts after a target was made, or was found made by somebody else meanwhile."""
    if outcome.found:
        return Counts(counts.total, reused=counts.total)
    computed = len(set(need.computed) & set(outcome.resumed))
    copied = len(set(need.copied) & set(outcome.resumed) - set(outcome.linked))
    redone = len(set(need.reused) & set(outcome.redone))
    return Counts(
        counts.total,
        counts.computed - computed + redone,
        counts.copied - copied,
        counts.reused + computed + copied - redone,
    )


def settled(
    session: Session, results: Mapping[str, ArtifactResult], made: Collection[str], spent: Mapping[str, float]
) -> dict[str, ArtifactResult]:
    """The results once it is known which targets were made: intermediates count what those needed, and no more.

    `spent` are seconds in kernels by a node's key, of all threads together divided by their number.
    """
    if all(result.status in ("built", "fresh") for result in results.values()):
        return dict(results)
    targets = tuple(name for name in session.plan.targets if name in made)
    needs = demand(replace(session.plan, targets=targets), session.stored, session.ready) if targets else {}
    done = dict(results)
    for name, result in results.items():
        artifact = session.plan.artifacts.get(name)
        if artifact is None or name in made or result.status in ("built", "fresh"):
            continue
        need = needs.get(name, Need()) if result.status == "streamed" else Need()
        again = first_result(session, name, need)
        seconds = sum(spent.get(artifact.tensors[tensor].key, 0.0) for tensor in need.computed)
        reasons = again.reasons if result.status == "streamed" else result.reasons
        done[name] = replace(
            result, tensors=again.tensors, read=again.read, reasons=reasons, seconds=result.seconds or seconds
        )
    return done


def warnings_of(outcome: Outcome) -> tuple[str, ...]:
    """Sentences for tensors that hold NaN or infinities, and for what operations found amiss with their inputs."""
    told = [
        f"the inputs of {first_five([f'`{name}`' for name in sorted(names)])} are {text}"
        for text, names in sorted(outcome.tally.warnings.items())
    ]
    if outcome.nonfinite:
        names = [f"`{name}` ({count})" for name, count in sorted(outcome.nonfinite.items())]
        told.append(f"NaN or infinite values in {first_five(names)}")
    return tuple(told)


def first_five(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
