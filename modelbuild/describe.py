"""What a build would do, and why: `plan` and `why`.

Both read no weights but those of adapters, once sources are known, and write nothing but what they learn of sources.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbuild.accounts import read_bytes
from modelbuild.artifact.output import is_fresh, side_files
from modelbuild.artifact.provenance import FILE as PROVENANCE
from modelbuild.engine.program import Read, Run, compile_program
from modelbuild.errors import UsageError
from modelbuild.fetching import downloads, on_the_same_disk
from modelbuild.methods.operations import operation
from modelbuild.modelfile.suggest import nearest
from modelbuild.options import Options, named
from modelbuild.plan.demand import Need
from modelbuild.plan.node import Node
from modelbuild.plan.outputs import late_outputs
from modelbuild.plan.planned import Planned
from modelbuild.report.terminal import Listener
from modelbuild.result import Counts
from modelbuild.session import Session, open_session, output_record
from modelbuild.sources.content import SourceFile, SourceTensor
from modelbuild.units import parse_size, show_bytes


@dataclass(frozen=True, slots=True)
class ArtifactPlan:
    """What a build would do for one artifact; sizes in bytes. `status`: build | link | fresh | stream.

    `alone` names tensors that need more memory than the budget and would run alone; `output` are the bytes that the
    output folder takes where weights are copied into it.
    """

    name: str
    kind: str
    key: str
    status: str
    tensors: Counts
    read: int
    write: int
    kept: int
    keep_reason: str | None
    reasons: tuple[str, ...]
    alone: tuple[str, ...] = ()
    output: int = 0
    download: int = 0

    def as_json(self) -> dict[str, Any]:
        """The artifact as it stands in `plan --json`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "key": self.key,
            "status": self.status,
            "tensors": self.tensors.as_json(),
            "bytes": {"download": self.download, "read": self.read, "write": self.write},
            "kept": {"tensors": self.kept, "reason": self.keep_reason},
            "reasons": list(self.reasons),
            "alone": list(self.alone),
        }


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a build would do: each needed artifact, what the user should know, bytes in all, and disk at its peak."""

    artifacts: tuple[ArtifactPlan, ...]
    notes: tuple[str, ...]
    read: int
    write: int
    peak: int
    free: int
    download: int = 0

    def __getitem__(self, name: str) -> ArtifactPlan:
        """The plan of the artifact `name`; KeyError if it is not needed."""
        return next(artifact for artifact in self.artifacts if artifact.name == name)

    def as_json(self) -> dict[str, Any]:
        """The plan as `plan --json` prints it."""
        return {
            "artifacts": [artifact.as_json() for artifact in self.artifacts],
            "notes": list(self.notes),
            "bytes": {"download": self.download, "read": self.read, "write": self.write},
            "disk": {"peak": self.peak, "free": self.free},
        }


def plan(
    path: str = "Modelfile", targets: Sequence[str] = (), *, listener: Listener | None = None, **options: Any
) -> PlanResult:
    """What `build` would do with these targets; `options` are the fields of `Options`. Raises what planning raises."""
    return plan_with(Options(modelfile=path, **options), named(targets), listener or Listener())


def plan_with(options: Options, targets: Sequence[str], listener: Listener) -> PlanResult:
    """What `build` would do, given all options as one."""
    with open_session(options, targets, listener) as session:
        missing = downloads(session)
        far = [file for files in missing.values() for file in files]
        artifacts = tuple(_describe(session, name, need, missing[name]) for name, need in session.needs.items())
        write = sum(artifact.write for artifact in artifacts)
        copied = sum(artifact.output for artifact in artifacts) if _copies(options) else 0
        usage = os.statvfs(options.cache_root)
        return PlanResult(
            artifacts,
            (*session.plan.notes, *session.store.notes),
            sum(artifact.read for artifact in artifacts),
            write,
            write + copied + on_the_same_disk(session, far),
            usage.f_bavail * usage.f_frsize,
            sum(file.size for file in far),
        )


def _describe(session: Session, name: str, need: Need, missing: Sequence[SourceFile]) -> ArtifactPlan:
    artifact = session.plan.artifacts[name]
    target = name in session.plan.targets
    reasons = session.reasons(name, need.computed)
    read = read_bytes(session, name, need)
    status, write = "stream", sum(artifact.tensors[tensor].nbytes for tensor in need.kept)
    if target:
        ready = name in session.ready
        status = _target_status(session, artifact) if ready else "build"
        linked = session.linked.get(name, frozenset())
        write = 0 if ready else sum(node.nbytes for tensor, node in artifact.tensors.items() if tensor not in linked)
        # What is packed before the layout is known is written twice.
        write += sum(node.nbytes for node in map(artifact.tensors.get, need.computed) if node and late_outputs(node))
    return ArtifactPlan(
        name,
        artifact.kind,
        artifact.key,
        status,
        Counts(len(artifact.tensors), len(need.computed), len(need.copied), len(need.reused)),
        read,
        write,
        len(need.kept),
        need.keep_reason,
        reasons,
        tuple(_alone(session, [artifact.tensors[tensor] for tensor in need.computed], need.computed)),
        sum(node.nbytes for node in artifact.tensors.values()) if status in ("build", "link") else 0,
        sum(file.size for file in missing),
    )


def _copies(options: Options) -> bool:
    """Whether outputs are copies of what is in the cache: asked for, or on another file system."""
    out = options.out_root
    while not os.path.exists(out):
        out = os.path.dirname(out)
    return options.link == "copy" or os.stat(out).st_dev != os.stat(options.cache_root).st_dev


def _target_status(session: Session, artifact: Planned) -> str:
    manifest = session.store.manifest(session.weights_key(artifact))
    assert manifest is not None
    side = side_files(session.plan, artifact, manifest, session.options.overrides)
    record = output_record(session.outputs, artifact.name)
    path = os.path.join(session.options.out_root, artifact.name)
    return "fresh" if is_fresh(path, record, side, manifest, session.store.path(manifest.key)) else "link"


def _alone(session: Session, nodes: Sequence[Node], names: Sequence[str]) -> list[str]:
    budget = parse_size(session.options.memory)
    pairs = list(zip(names, nodes, strict=True))
    needed = [(name, _memory(node)) for name, node in pairs if not node.outputs]
    told = [f"`{name}` needs {show_bytes(memory)}" for name, memory in needed if memory > budget]
    return told + _packed_alone([(name, node) for name, node in pairs if node.outputs], budget)


def _memory(node: Node) -> int:
    """The bytes that making a tensor holds besides tiles; what is decomposed was made before, and is stored."""
    if node.numerics is not None:
        return operation(node.operation).memory(node)
    return compile_program(node, {}).memory if node.operation == "lora" else 0


def _packed_alone(packed: Sequence[tuple[str, Node]], budget: int) -> list[str]:
    """The packed tensors that need more than the budget."""
    if not packed:
        return []
    from modelbuild.engine.pack import for_tensors, packing_memory

    return [
        f"`{name}` needs {show_bytes(needed)}"
        for name, node in packed
        if (needed := packing_memory(node)) > for_tensors(budget)
    ]


# --- why --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Why:
    """Why an artifact, or one tensor of it, would be or was rebuilt: each cause with the tensors it explains.

    `state`: "new" (never built), "changed" (the next build computes some of these), "cached" (they are not what the
    last build made, but the cache has them from an earlier one), "same" (as in the last build, whose causes these are).
    """

    name: str
    tensor: str | None
    state: str
    causes: tuple[tuple[str, tuple[str, ...]], ...]
    steps: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The answer as `why --json` prints it."""
        causes = [{"cause": cause, "tensors": list(tensors)} for cause, tensors in self.causes]
        return {
            "name": self.name,
            "tensor": self.tensor,
            "state": self.state,
            "causes": causes,
            "steps": list(self.steps),
        }


def why(
    path: str = "Modelfile",
    name: str = "",
    tensor: str | None = None,
    *,
    listener: Listener | None = None,
    **options: Any,
) -> Why:
    """Why the artifact `name`, or one tensor of it, would be (or was) rebuilt. Raises what planning raises."""
    return why_with(Options(modelfile=path, **options), name, tensor, listener or Listener())


def why_with(options: Options, name: str, tensor: str | None, listener: Listener) -> Why:
    """Why an artifact or tensor would be (or was) rebuilt, given all options as one."""
    with open_session(options, [name], listener) as session:
        artifact = session.plan.artifacts[name]
        if tensor is not None and tensor not in artifact.tensors:
            guess = nearest(tensor, artifact.tensors)
            hint = f"did you mean `{guess}`?" if guess else None
            raise UsageError(f"`{name}` has no tensor `{tensor}`", hint=hint)
        names = [tensor] if tensor is not None else list(artifact.tensors)
        steps = tuple(_steps(artifact.tensors[tensor], _owners(session))) if tensor is not None else ()
        old = session.records.read("plan", name)
        if old is None:
            return Why(name, tensor, "new", (("it was never built here", tuple(names)),), steps)
        found = session.causes(name, names)
        if found:
            need = session.needs.get(name, Need())
            state = "cached" if set(names) <= set(need.reused) else "changed"
            return Why(name, tensor, state, tuple((str(cause), tuple(t)) for cause, t in found.items()), steps)
        if tensor is None and (files := _changed_files(session, artifact)):
            return Why(name, tensor, "changed", tuple((f"{file} of the output changes", ()) for file in files), steps)
        last = tuple((reason, ()) for reason in old.get("reasons", ())) if tensor is None else ()
        return Why(name, tensor, "same", last, steps)


def _changed_files(session: Session, artifact: Planned) -> list[str]:
    """The files beside the weights that a build would write otherwise: config, tokenizer, card."""
    manifest = session.store.manifest(session.weights_key(artifact))
    record = output_record(session.outputs, artifact.name)
    if manifest is None or record is None:
        return []
    side = side_files(session.plan, artifact, manifest, session.options.overrides)
    have = {name: file.digest for name, file in record.files.items() if not file.is_weight}
    wanted = {name: f"sha256:{digest}" for name, digest in side.digests.items()}
    changed = [name for name in sorted({*have, *wanted}) if have.get(name) != wanted.get(name)]
    # Provenance changes with everything else: it is a cause only where it is the only one.
    return [name for name in changed if name != PROVENANCE] or changed


def _owners(session: Session) -> dict[str, str]:
    """What the Modelfile calls the source of each file, by the file's path."""
    found = [(file.path, name) for name, source in session.sources.items() for file in source.files]
    return dict(reversed(found))


def _steps(node: Node, owners: Mapping[str, str]) -> list[str]:
    """How a tensor comes about, innermost first, as `why NAME TENSOR` shows it; `owners` of files by path."""
    if node.outputs:
        params = ", ".join(f"{key} = {value!r}" for key, value in node.params)
        made = ", ".join(f"{output.name} {output.dtype}" for output in node.outputs)
        last = f"{node.operation} ({params}) by {node.numerics} → {made}, key {node.key[:12]}"
        return [*_steps(node.inputs[0], owners), last]
    lines = []
    for step in compile_program(node, {}).steps:
        shape = _shape(step.node)
        if isinstance(step, Read):
            assert step.node.source is not None
            lines.append(f"read {_at_rest(step.node.source, owners)} ({step.node.dtype} {shape})")
        elif isinstance(step, Run):
            params = ", ".join(f"{key} = {value!r}" for key, value in step.node.params)
            if step.node.rows is not None:
                lines += [f"rows of {_called(used, owners)} ({used.dtype} {_shape(used)})" for used in step.node.inputs]
            by = f" by {step.node.numerics}" if step.node.numerics is not None else ""
            lines.append(f"{step.node.operation} ({params}){by} → {step.node.dtype} {shape}, key {step.node.key[:12]}")
    return lines


def _shape(node: Node) -> str:
    return "×".join(map(str, node.shape)) or "scalar"


def _at_rest(tensor: SourceTensor, owners: Mapping[str, str]) -> str:
    file = tensor.source_file
    owner = f" of `{owners[file.path]}`" if file.path in owners else ""
    return f"{tensor.name}{owner} from {file.name}"


def _called(node: Node, owners: Mapping[str, str]) -> str:
    """What a tensor of which rows are taken is called: a source's by its name and file, another by its operation."""
    if node.source is None:
        return f"what {node.operation} makes, key {node.key[:12]}"
    return _at_rest(node.source, owners)
