"""`plan` and `why` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbuild.report.terminal import shorten
from modelbuild.units import show_bytes

if TYPE_CHECKING:
    from modelbuild.describe import ArtifactPlan, PlanResult, Why

_MOST = 5
"""Tensors that are named one by one."""

STATUS = {
    "build": "would be built",
    "link": "would be linked from the cache",
    "fresh": "nothing to do",
    "stream": "would be streamed",
}


def show_plan(plan: PlanResult) -> str:
    """A plan as text: each artifact with its reasons, then bytes in all."""
    lines = [line for artifact in plan.artifacts for line in _artifact(artifact)]
    lines += [f"note: {note}" for note in plan.notes]
    sizes = (plan.download, "download"), (plan.read, "read"), (plan.write, "write")
    total = "in all: " + ", ".join(f"{show_bytes(size)} to {what}" for size, what in sizes)
    return "\n".join(
        [*lines, f"{total}; {show_bytes(plan.peak)} of disk at the peak, {show_bytes(plan.free)} are free"]
    )


def _artifact(artifact: ArtifactPlan) -> list[str]:
    counts = artifact.tensors
    parts = [(counts.computed, "computed"), (counts.copied, "copied"), (counts.reused, "reused")]
    told = ", ".join(f"{count} {what}" for count, what in parts if count)
    lines = [f"{artifact.name}: {STATUS[artifact.status]} ({told} of {counts.total} tensors)"]
    lines += [f"  because {reason}" for reason in shorten(artifact.reasons)]
    if artifact.download:
        lines.append(f"  downloads {show_bytes(artifact.download)} from the Hub")
    if artifact.kept:
        lines.append(
            f"  keeps {artifact.kept} tensors in the cache, {show_bytes(artifact.write)}: {artifact.keep_reason}"
        )
    lines += [f"  {tensor} of memory, more than the budget: it runs alone" for tensor in artifact.alone[:_MOST]]
    more = len(artifact.alone) - _MOST
    return lines + ([f"  {more} more tensors run alone"] if more > 0 else [])


def show_why(why: Why) -> str:
    """The causes as text, most tensors first, and how a single tensor comes about."""
    name = f"{why.name} {why.tensor}" if why.tensor else why.name
    heads = {
        "new": f"{name}: would be built",
        "changed": f"{name}: would be rebuilt",
        "cached": f"{name}: nothing would be computed, an earlier build made this; since the last one",
        "same": f"{name}: nothing changed since the last build" + (", which was made because" if why.causes else ""),
    }
    lines = [heads[why.state]]
    for cause, tensors in why.causes:
        lines.append(f"  {cause}" + (f" ({_named(tensors)})" if tensors and why.tensor is None else ""))
    return "\n".join([*lines, *(f"  {step}" for step in why.steps)])


def _named(tensors: tuple[str, ...]) -> str:
    if len(tensors) == 1:
        return tensors[0]
    return f"{len(tensors)} tensors, such as {tensors[0]}"
