"""The whole story on one page: Modelfile → spec → sources → plan → weights → output, lock and records.

`build` is the Python API; the command line parses words for it and prints what it gives.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from modelbuild import stamps
from modelbuild.accounts import first_result, made_counts, settled, warnings_of
from modelbuild.artifact.library import packed_layout
from modelbuild.artifact.output import PACKED, is_fresh, side_files, weights_layout
from modelbuild.artifact.publish import Weights, recover, write_output
from modelbuild.cache.nouns import Manifest
from modelbuild.engine.make import Outcome, Workshop, make_weights
from modelbuild.engine.packed import make_packed
from modelbuild.engine.run import Limits
from modelbuild.errors import BuildFailed, Interrupted, ModelbuildError, of_system
from modelbuild.fetching import fetch, here
from modelbuild.locking import check_lock, settle_lock
from modelbuild.options import Options, named
from modelbuild.plan.demand import Need, kept_key
from modelbuild.plan.graph import closure
from modelbuild.plan.planned import Planned
from modelbuild.recording import recorded_outputs
from modelbuild.report.terminal import Listener
from modelbuild.result import ArtifactResult, Counts, Result, error_info, shown_path
from modelbuild.session import Session, open_session, open_spec, output_record
from modelbuild.sources.hashing import available_threads
from modelbuild.units import parse_size


def build(
    path: str = "Modelfile", targets: Sequence[str] = (), *, listener: Listener | None = None, **options: Any
) -> Result:
    """Builds the targets of a Modelfile into the output folder; `options` are the fields of `Options`.

    Raises a ModelbuildError for whatever went wrong, its `result` telling what became of each artifact before.
    """
    return run(Options(modelfile=path, **options), named(targets), listener or Listener())


def run(options: Options, targets: Sequence[str], listener: Listener) -> Result:
    """Builds, given all options as one; see `build`."""
    started = time.monotonic()
    work = Work(options, listener)
    try:
        work.build(targets)
    except KeyboardInterrupt:
        work.fail(Interrupted("interrupted", hint="build again: what is finished is kept"))
    except ModelbuildError as error:
        work.fail(error)
    except OSError as error:
        work.fail(of_system(error))
    seconds = time.monotonic() - started
    failure = work.error
    told = error_info(failure) if failure is not None else None
    result = Result(seconds, tuple(work.results.values()), tuple(work.notes), told, work.peak)
    if failure is not None:
        failure.result = result
        raise failure
    return result


@dataclass
class Work:
    """A build under way: results so far, notes, and the first error."""

    options: Options
    listener: Listener
    results: dict[str, ArtifactResult] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: ModelbuildError | None = None
    store_notes: list[str] = field(default_factory=list)
    peak: int = 0
    broken: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    spent: dict[str, float] = field(default_factory=dict)
    current: str | None = None
    asked: tuple[str, ...] = ()
    started_ns: int = field(default_factory=time.time_ns)

    def fail(self, error: ModelbuildError) -> None:
        """Remembers the first error, and which artifact it happened to."""
        self.error = self.error or error
        name, self.current = self.current, None
        if name is not None:
            self.broken.add(name)
            before = self.results.get(name)
            kind = before.kind if before is not None else "merge"
            empty = ArtifactResult(name, kind, "", "failed", None, Counts(0))
            self.results[name] = replace(before or empty, status="failed", path=None, error=error_info(error))

    def build(self, targets: Sequence[str]) -> None:
        """Builds the targets, one after the other; with `keep_going` past those that fail."""
        _, chosen = open_spec(self.options, targets)
        self.asked = tuple(targets)
        try:
            self.build_together(chosen)
        except ModelbuildError:
            # A plan that fails fails for all its targets: with `keep_going` each gets a plan of its own.
            if not self.options.keep_going or len(chosen) == 1 or self.results:
                raise
            self.build_apart(chosen)

    def build_apart(self, targets: Sequence[str]) -> None:
        """Builds each target for itself."""
        for target in targets:
            try:
                self.build_together((target,))
            except ModelbuildError as found:
                self.current = target
                self.fail(found)

    def build_together(self, targets: Sequence[str]) -> None:
        """Builds targets that share a plan, then writes the lock and what the next build wants to know."""
        with self.telling_notes(), open_session(self.options, targets, self.listener) as session:
            self.store_notes = session.store.notes
            recover(self.options.out_root)
            # A lock that cannot be brought up to date in the end is better told at once.
            check_lock(self.options, session.held, session.sources)
            fetch(session, self.listener)
            self.announce(session)
            try:
                self.make_all(session, self.workshop(session))
            finally:
                self.results = settled(session, self.results, self.made, self.spent)
            if not self.broken:
                session.store.sweep()
                remember(session, self.asked, self.results, self.started_ns, self.listener)

    def make_all(self, session: Session, shop: Workshop) -> None:
        """Makes what is needed, in building order."""
        for name, need in session.needs.items():
            if name in session.plan.targets:
                self.target(session, shop, session.plan.artifacts[name])
            else:
                self.intermediate(session, shop, session.plan.artifacts[name], need)

    @contextmanager
    def telling_notes(self) -> Iterator[None]:
        """At its end tells what was wrong in the cache; some of that is only found when the session is over."""
        try:
            yield
        finally:
            for note in self.store_notes:
                self.listener.say(note)
            self.notes += self.store_notes
            self.store_notes = []

    def workshop(self, session: Session) -> Workshop:
        """What making needs: the limits from the options, the cache, and the listener."""
        from modelbuild.kernels.compile import on_first_compile

        on_first_compile(self.listener.say)
        limits = Limits(self.options.jobs or available_threads(), parse_size(self.options.memory))
        return Workshop(
            session.store,
            limits,
            anew=self.options.no_cache,
            require_cached=self.options.require_cached,
            say=self.listener.say,
            step=self.listener.advance,
        )

    def announce(self, session: Session) -> None:
        """Starts the result of every artifact that is needed, with counts and reasons."""
        for note in session.plan.notes:
            self.listener.say(f"note: {note}")
        self.notes += session.plan.notes
        for name, need in session.needs.items():
            self.results[name] = first_result(session, name, need)

    def intermediate(self, session: Session, shop: Workshop, artifact: Planned, need: Need) -> None:
        """Writes the tensors of an intermediate that are worth keeping; the rest is streamed when it is read."""
        if not need.kept:
            return
        self.current = artifact.name
        key = kept_key(artifact, need.kept)
        outcome = self.make(session, shop, artifact, need.kept, key, complete=False)
        before = self.results[artifact.name]
        self.results[artifact.name] = replace(before, written=outcome.tally.written, seconds=outcome.seconds)
        self.current = None

    def target(self, session: Session, shop: Workshop, artifact: Planned) -> None:
        """Makes a target's weights, unless they are there, and its output, unless it is as it should be."""
        if needed := self.broken & set(closure(session.spec, [artifact.name])):
            self.results[artifact.name] = replace(self.results[artifact.name], status="skipped")
            self.listener.say(f"{artifact.name}: skipped, it needs {', '.join(sorted(needed))}")
            return
        self.current = artifact.name
        try:
            self.results[artifact.name] = self.make_target(session, shop, artifact)
        except ModelbuildError as error:
            if not self.options.keep_going:
                raise
            self.fail(error)
        self.current = None

    def make_target(self, session: Session, shop: Workshop, artifact: Planned) -> ArtifactResult:
        """The result of one target, built or found fresh."""
        started = time.monotonic()
        before = self.results[artifact.name]
        key = session.weights_key(artifact)
        found = None if self.options.no_cache else session.store.manifest(key)
        outcome = (
            Outcome(found, found=True) if found else self.make(session, shop, artifact, list(artifact.tensors), key)
        )
        if outcome.differs:
            more = [f"and {len(outcome.differs) - 5} more"] if len(outcome.differs) > 5 else []
            raise BuildFailed(
                f"`{artifact.name}` is not what an earlier build made of the same inputs",
                facts=[*(f"`{name}` differs" for name in outcome.differs[:5]), *more],
                hint="this is non-determinism: please report it with `modelbuild env`",
            )
        session.store.touch([key])
        path = os.path.join(self.options.out_root, artifact.name)
        status, side_key, notes = self.output(session, artifact, outcome.manifest, path, found is None)
        if found is None and not outcome.found:
            self.made.add(artifact.name)
        return replace(
            before,
            key=side_key,
            status=status,
            path=shown_path(path),
            tensors=made_counts(before.tensors, session.needs[artifact.name], outcome),
            read=before.read if outcome.tally.read else 0,
            written=outcome.tally.written,
            reasons=() if outcome.found else before.reasons,
            seconds=time.monotonic() - started,
            notes=(*before.notes, *notes, *warnings_of(outcome)),
        )

    def make(
        self,
        session: Session,
        shop: Workshop,
        artifact: Planned,
        names: Sequence[str],
        key: str,
        complete: bool = True,
    ) -> Outcome:
        """Makes tensors of an artifact, with progress."""
        total = sum(artifact.tensors[name].nbytes for name in names)
        with self.listener:
            self.listener.begin(artifact.name, "building", total)
            settings = session.spec.settings
            if artifact.kind == PACKED:
                outcome = make_packed(shop, artifact, key, partial(packed_layout, artifact, settings.shard_size))
            else:
                layout = weights_layout(artifact, names, settings if complete else None)
                outcome = make_weights(shop, artifact, names, key, layout, complete)
        for note in warnings_of(outcome):
            self.listener.say(f"warning: {artifact.name}: {note}")
        self.peak = max(self.peak, outcome.tally.peak)
        for node, seconds in outcome.tally.spent.items():
            self.spent[node] = self.spent.get(node, 0.0) + seconds / shop.limits.threads
        return outcome

    def output(
        self, session: Session, artifact: Planned, manifest: Manifest, path: str, made_anew: bool
    ) -> tuple[str, str, tuple[str, ...]]:
        """Writes the output folder unless it is as it should be; its status, the artifact's key, and notes."""
        side = side_files(session.plan, artifact, manifest, self.options.overrides)
        previous = output_record(session.outputs, artifact.name)
        if is_fresh(path, previous, side, manifest, session.store.path(manifest.key), made_anew):
            return ("fresh", side.key, ())
        record = write_output(
            path,
            Weights(session.store.path(manifest.key), manifest),
            here(side.files, artifact),
            key=side.key,
            edited_root=os.path.join(self.options.out_root, ".edited"),
            link=self.options.link,
            previous=previous,
            durability=self.options.durability,
            expected=side.digests,
        )
        modelfile = os.path.realpath(self.options.modelfile)
        session.outputs.write("output", artifact.name, {"record": record.to_json(), "modelfile": modelfile})
        for note in record.notes:
            self.listener.say(note)
        return ("built", side.key, record.notes)


def remember(
    session: Session,
    asked: Sequence[str],
    results: Mapping[str, ArtifactResult],
    started_ns: int,
    listener: Listener,
) -> None:
    """Writes the lock, the records that `why` reads, what the cache must keep, and the stamp of a finished build."""
    outputs = recorded_outputs(session, listener) if session.options.record else {}
    lock = settle_lock(session.options, session.held, session.sources, outputs)
    for name in outputs:
        listener.say(f"{name}: recorded in {session.held.file}")
    for name, record in session.new_records.items():
        built = results.get(name)
        last = session.records.read("plan", name) or {}
        reasons = built.reasons if built is not None and built.reasons else last.get("reasons", ())
        if last.get("key") != record["key"] or list(reasons) != last.get("reasons"):
            session.records.write("plan", name, {**record, "reasons": list(reasons)})
    keys = [session.weights_key(artifact) for artifact in session.plan.target_artifacts()]
    keys += [kept_key(session.plan.artifacts[name], need.kept) for name, need in session.needs.items() if need.kept]
    modelfile = os.path.realpath(session.options.modelfile)
    session.store.set_root(session.records.workspace, keys, modelfile, modelfile)
    if lock is not None:
        stamps.write(session, asked, results, started_ns, lock)
