"""Why a tensor has another key than last time: the record of a plan, and the difference between two records.

A record says of every tensor how its node came about, in words that the Modelfile's author knows: parameters by label,
inputs by artifact. Two records differ in a parameter, an input, a method or a version; an input that is itself built is
followed to what changed there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.digest import identity
from modelbuild.plan.node import source_node
from modelbuild.plan.planned import Planned
from modelbuild.sources.content import SourceAdapter

Record = Mapping[str, Any]
"""{"key", "tensors": {name: {"key", "operation", "version", "dtype", "shape", "parameters", "inputs", "file"}}}"""

Step = tuple[str, str, str]
"""An artifact, and the keys that one of its tensors had and has."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A reason for a new key: what changed (`t of `b``), from what to what, in which artifact."""

    artifact: str
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        change = f"{self.what} {self.before} → {self.after}" if self.before or self.after else self.what
        return change.strip()


def record(artifact: Planned, method: str | None = None) -> dict[str, Any]:
    """What is remembered of a planned artifact, as JSON data."""
    tensors = {}
    for name, node in artifact.tensors.items():
        decision = artifact.decisions.get(name)
        entry: dict[str, Any] = {"key": node.key, "operation": node.operation, "version": node.version}
        entry |= {"dtype": node.dtype, "shape": list(node.shape), "method": method}
        if decision is not None:
            entry["parameters"] = [list(pair) for pair in decision.parameters]
            entry["inputs"] = [list(pair) for pair in decision.inputs]
        if node.source is not None:
            entry["file"] = [node.source.source_file.name, node.source.source_file.sha256]
        tensors[name] = entry
    return {"key": artifact.key, "kind": artifact.kind, "tensors": tensors}


def adapter_record(adapter: SourceAdapter) -> dict[str, Any]:
    """What is remembered of an adapter: of each of its tensors the key, and the file it is in."""
    tensors: dict[str, dict[str, Any]] = {
        name: {"key": source_node(tensor).key, "file": [tensor.source_file.name, tensor.source_file.sha256]}
        for name, tensor in adapter.tensors.items()
    }
    key = identity("adapter/1", tuple((name, entry["key"]) for name, entry in tensors.items()))
    return {"key": key, "kind": "adapter", "tensors": tensors}


class Explainer:
    """Finds causes between old records, by artifact name, and the present ones."""

    def __init__(self, old: Mapping[str, Record | None], new: Mapping[str, Record]) -> None:
        self._old = old
        self._new = new
        self._by_key = {name: _by_key(found) for name, found in old.items() if found is not None}
        self._new_by_key = {name: _by_key(found) for name, found in new.items()}
        self._told: dict[Step, tuple[Cause, ...]] = {}

    def causes(self, artifact: str, tensor: str) -> list[Cause]:
        """Why the tensor's key is not what it was; empty where it is the same."""
        old = self._old.get(artifact)
        now = self._new[artifact]["tensors"].get(tensor)
        if now is None:
            return []
        if old is None:
            return [Cause(artifact, "built for the first time", "", "")]
        before = old["tensors"].get(tensor)
        if before is None:
            return [Cause(artifact, "a tensor that was not there before", "", "")]
        return [] if before["key"] == now["key"] else self._differences(artifact, before, now)

    def _differences(self, artifact: str, before: Record, now: Record) -> list[Cause]:
        """What differs between two entries: each built input is followed once, however many ways lead to it."""
        top = (artifact, before["key"], now["key"])
        causes: dict[Cause, None] = {}
        seen: set[Step] = set()
        ahead = [(artifact, before, now)]
        while ahead and top not in self._told:
            name, old, new = ahead.pop()
            step = (name, old["key"], new["key"])
            if step in self._told:
                causes.update(dict.fromkeys(self._told[step]))
            elif step not in seen:
                seen.add(step)
                found, deeper = self._step(name, old, new)
                causes.update(dict.fromkeys(found))
                ahead += reversed(deeper)
        return list(self._told.setdefault(top, tuple(causes)))

    def _step(self, artifact: str, before: Record, now: Record) -> tuple[list[Cause], list[tuple[str, Record, Record]]]:
        """What differs in one artifact itself, and its built inputs whose differences explain the rest."""
        if before.get("method") not in (None, now.get("method")):
            # Another method has other parameters: that they differ says nothing more.
            return [Cause(artifact, "method", str(before.get("method")), str(now.get("method")))], []
        found = _parameter_differences(artifact, before, now)
        # At some values of its parameters a tensor is an identity: then another operation is no cause of its own.
        found += _plain_differences(artifact, before, now, with_operation=not found)
        old_inputs, new_inputs = _pairs(before), _pairs(now)
        if [label for label, _ in old_inputs] != [label for label, _ in new_inputs]:
            names = [", ".join(f"`{label}`" for label, _ in pairs) or "none" for pairs in (old_inputs, new_inputs)]
            return [*found, Cause(artifact, "inputs", *names)], []
        deeper = []
        for (label, old_key), (_, new_key) in zip(old_inputs, new_inputs, strict=True):
            old_found = self._by_key.get(label, {}).get(old_key)
            new_found = self._new_by_key.get(label, {}).get(new_key)
            if old_key == new_key:
                continue
            if new_found is not None and "inputs" in new_found and old_found is not None:
                deeper.append((label, old_found, new_found))
            else:
                found.append(_source_difference(label, old_found, new_found))
        if not found and not deeper:
            found.append(Cause(artifact, f"method {now['operation']} computes anew", "", ""))
        return found, deeper


def _source_difference(label: str, old_found: Record | None, new_found: Record | None) -> Cause:
    if new_found is not None and old_found is not None and "file" in new_found and "file" in old_found:
        (old_file, old_sha), (new_file, new_sha) = old_found["file"], new_found["file"]
        if (old_file, old_sha) != (new_file, new_sha):
            return Cause(label, f"`{label}`: {new_file} changed, sha256", old_sha[:12], new_sha[:12])
    return Cause(label, f"`{label}` changed", "", "")


def _plain_differences(artifact: str, before: Record, now: Record, with_operation: bool) -> list[Cause]:
    found = []
    for field, what in (("operation", "method"), ("dtype", "dtype"), ("shape", "shape")):
        if before[field] != now[field] and (with_operation or field != "operation"):
            found.append(Cause(artifact, what, str(before[field]), str(now[field])))
    if before["operation"] == now["operation"] and before["version"] != now["version"]:
        what = f"version of {now['operation']}"
        found.append(Cause(artifact, what, str(before["version"]), str(now["version"])))
    return found


def _parameter_differences(artifact: str, before: Record, now: Record) -> list[Cause]:
    old = dict(before.get("parameters", ()))
    new = dict(now.get("parameters", ()))
    labels = dict.fromkeys([*old, *new])
    return [
        Cause(artifact, label, _show(old.get(label)), _show(new.get(label)))
        for label in labels
        if old.get(label) != new.get(label)
    ]


def _show(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pairs(entry: Record) -> list[tuple[str, str]]:
    return [(label, key) for label, key in entry.get("inputs", ())]


def _by_key(found: Record) -> dict[str, Record]:
    return {entry["key"]: entry for entry in found["tensors"].values()}
