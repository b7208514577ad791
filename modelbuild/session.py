"""A Modelfile opened for work: what it says, its sources, its plan, and the cache that knows what is there already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from modelbuild.artifact.edits import OutputRecord
from modelbuild.artifact.output import PACKED, weights_key, weights_layout
from modelbuild.artifact.overlap import own_places, refuse_overlaps, source_places
from modelbuild.cache.records import Records
from modelbuild.cache.store import LocalStore, open_store
from modelbuild.cache.twins import Content, contents
from modelbuild.errors import NotBuiltYet
from modelbuild.modelfile.check import not_built
from modelbuild.modelfile.spec import Merge, Spec
from modelbuild.options import Options
from modelbuild.pins import Found, Held, check_before, check_found, hold, load_held, pinned
from modelbuild.plan.demand import Need, demand, reachable
from modelbuild.plan.explain import Cause, Explainer, Record, adapter_record, record
from modelbuild.plan.graph import closure, make_plan, targets_of
from modelbuild.plan.outputs import stored_keys, whole
from modelbuild.plan.planned import Plan, Planned
from modelbuild.report.terminal import Listener
from modelbuild.sources.content import SourceAdapter, SourceModel
from modelbuild.sources.lock import LockedSource
from modelbuild.sources.memory import Memory
from modelbuild.sources.resolve import Request, resolve_sources
from modelbuild.stamps import workspace_id

MOST_ALIKE = 3
"""How many causes of one kind are told one by one."""


@dataclass(frozen=True)
class Session:
    """An open Modelfile. `plan` is made; `needs` and `explainer` are worked out when first asked for.

    `records` remember builds of this Modelfile, `outputs` what was written into the output folder, by whichever one.
    `held` is the lock, and how strictly it is held to.
    """

    options: Options
    spec: Spec
    store: LocalStore
    records: Records
    outputs: Records
    plan: Plan
    held: Held

    @property
    def sources(self) -> Found:
        """Every source of the plan by name."""
        return {**self.plan.models, **self.plan.adapters}

    def weights_key(self, artifact: Planned) -> str:
        """The key that the artifact's weight files have in the cache."""
        return weights_key(artifact, self.spec.settings)

    @cached_property
    def ready(self) -> frozenset[str]:
        """The targets whose weights are complete in the cache."""
        if self.options.no_cache:
            return frozenset()
        found = (a.name for a in self.plan.target_artifacts() if self.store.manifest(self.weights_key(a)) is not None)
        return frozenset(found)

    @cached_property
    def needs(self) -> dict[str, Need]:
        """What the targets need, given what the cache has."""
        return demand(self.plan, self.stored, self.ready)

    @cached_property
    def stored(self) -> frozenset[str]:
        """The keys of the tensors that the targets could take from the cache."""
        if self.options.no_cache:
            return frozenset()
        nodes = [node for a in self.plan.target_artifacts() if a.name not in self.ready for node in a.tensors.values()]
        outputs = stored_keys(nodes)
        return whole(self.store.find(reachable(nodes).union(*outputs.values())), outputs)

    @cached_property
    def linked(self) -> dict[str, frozenset[str]]:
        """Of each target the tensors in files that stand in the cache by the time it is made: they are neither read nor
        written."""
        found: dict[str, frozenset[str]] = {}
        earlier: set[tuple[int, Content, bytes]] = set()
        for artifact in self.plan.target_artifacts():
            if artifact.kind == PACKED or artifact.name in self.ready or self.options.no_cache:
                continue
            keys = {name: node.key for name, node in artifact.tensors.items()}
            layout = weights_layout(artifact, list(keys), self.spec.settings)
            twins = {} if self.stored.isdisjoint(keys.values()) else self.store.twins(layout, keys)
            files = {file: (*inside, layout.headers[file]) for inside, file in contents(layout, keys).items()}
            linked = {file for file, whole in files.items() if file in twins or whole in earlier}
            found[artifact.name] = frozenset(name for name, (file, _, _) in layout.places.items() if file in linked)
            earlier.update(files.values())
        return found

    @cached_property
    def new_records(self) -> dict[str, Record]:
        """The records of all artifacts as planned now, adapters among them."""
        adapters = {name: adapter_record(adapter) for name, adapter in self.plan.adapters.items()}
        methods = {n: a.method for n, a in self.spec.artifacts.items() if isinstance(a, Merge)}
        return adapters | {n: record(artifact, methods.get(n)) for n, artifact in self.plan.artifacts.items()}

    @cached_property
    def explainer(self) -> Explainer:
        """Finds why keys differ from those of the last build."""
        old = {name: self.records.read("plan", name) for name in self.new_records}
        return Explainer(old, self.new_records)

    def causes(self, artifact: str, tensors: Sequence[str]) -> dict[Cause, list[str]]:
        """Why these tensors of an artifact are new, with the tensors that each cause explains, most tensors first."""
        found: dict[Cause, list[str]] = {}
        for tensor in tensors:
            for cause in self.explainer.causes(artifact, tensor):
                found.setdefault(cause, []).append(tensor)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def reasons(self, artifact: str, tensors: Sequence[str]) -> tuple[str, ...]:
        """Why these tensors of an artifact are new, in sentences, with the number of tensors each explains.

        A parameter that changed in many layers, in each by another amount, is one sentence.
        """
        together: dict[tuple[str, str], list[tuple[Cause, list[str]]]] = {}
        for cause, found in self.causes(artifact, tensors).items():
            together.setdefault((cause.artifact, cause.what), []).append((cause, found))
        sentences: list[tuple[str, int]] = []
        for same in together.values():
            if len(same) > MOST_ALIKE:
                text = f"{same[0][0]}, and {len(same) - 1} changes like it"
                sentences.append((text, len({name for _, found in same for name in found})))
            else:
                sentences += [(str(cause), len(found)) for cause, found in same]
        sentences.sort(key=lambda sentence: -sentence[1])
        return tuple(f"{text} ({count} tensor{'s' if count > 1 else ''})" for text, count in sentences)


def open_spec(options: Options, targets: Sequence[str]) -> tuple[Spec, tuple[str, ...]]:
    """The Modelfile and the targets that are meant; raises what the file alone shows, and NotBuiltYet."""
    spec = load_held(options)
    chosen = targets_of(spec, targets)
    faults = not_built(spec, closure(spec, chosen))
    if faults:
        raise NotBuiltYet(faults)
    return spec, chosen


def outputs_of(options: Options) -> Records:
    """The records of an output folder, which several Modelfiles may share."""
    return Records(options.cache_root, workspace_id(options.out_root, options.out_root))


def output_record(outputs: Records, name: str) -> OutputRecord | None:
    """What was written into the output `name` last; None where that is not known."""
    stored = outputs.read("output", name)
    return OutputRecord.from_json(stored["record"]) if stored and "record" in stored else None


@contextmanager
def open_session(options: Options, targets: Sequence[str], listener: Listener) -> Iterator[Session]:
    """A session in which nothing is collected from the cache."""
    spec, chosen = open_spec(options, targets)
    refuse_overlaps(spec, chosen, options, own_places(options))
    store = open_store(options.cache_root, options.durability)
    records = Records(options.cache_root, workspace_id(options.modelfile, options.out_root))
    try:
        held = hold(options, spec, closure(spec, chosen))
        check_before(held)
        with store.shared(", ".join(chosen), listener.say):
            plan = make_plan(spec, chosen, lambda requests: _resolve_held(options, held, requests, listener))
            refuse_overlaps(spec, chosen, options, source_places(plan, options))
            yield Session(options, spec, store, records, outputs_of(options), plan, held)
    finally:
        store.close()


def _resolve_held(options: Options, held: Held, requests: Sequence[Request], listener: Listener) -> Found:
    """The sources that the requests name, held to the lock as the options ask for."""
    found = resolve(options, requests, listener, pinned(held))
    check_found(held, found)
    return found


def resolve(
    options: Options, requests: Sequence[Request], listener: Listener, locked: Mapping[str, LockedSource]
) -> dict[str, SourceModel | SourceAdapter]:
    """The sources that the requests name, hashed or asked for where they are not known; `locked` ones as locked."""
    memory = Memory(options.cache_root)
    folder = os.path.dirname(os.path.abspath(options.modelfile))
    with listener:
        return resolve_sources(
            requests,
            folder,
            memory,
            allow_path=options.allow_path,
            threads=options.jobs,
            progress=listener.hashed,
            locked=locked,
            offline=options.offline,
            say=listener.say,
        )
