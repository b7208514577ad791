"""An artifact with packed tensors while it is made: what that takes, and what has come of it so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from modelbuild.cache.nouns import Located
from modelbuild.cache.stage import Stage
from modelbuild.engine.files import StoredFiles
from modelbuild.engine.jobs import Job, Made, Tally
from modelbuild.engine.make import Workshop, check_cached, run_jobs
from modelbuild.engine.pack import Packed, PackJob, PackRunner, Places, pack_job
from modelbuild.plan.demand import reachable
from modelbuild.plan.node import Node
from modelbuild.plan.outputs import in_files, stored_keys, whole
from modelbuild.plan.planned import Planned
from modelbuild.sources.reader import LocalReader

Record = Callable[[str, Node, str], None]
"""Takes a finished tensor of a file: its name, its node and its checksum."""


@dataclass
class Making:
    """`bad` are the keys of cached tensors that turned out to be damaged, `resumed` the tensors of the artifact that an
    interrupted build had finished or that are `linked`, in files of another artifact."""

    shop: Workshop
    artifact: Planned
    reader: LocalReader
    bad: set[str] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    nonfinite: dict[str, int] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)
    linked: set[str] = field(default_factory=set)

    @cached_property
    def files(self) -> Mapping[str, Mapping[str, Node]]:
        """Of each tensor the nodes of the tensors that it is in files, by their names there."""
        return {name: in_files(name, node) for name, node in self.artifact.tensors.items()}

    def flat(self, names: Iterable[str] | None = None) -> dict[str, Node]:
        """The nodes of the tensors in files, of all tensors of the artifact or of those named."""
        chosen = self.files if names is None else names
        return {file: node for name in chosen for file, node in self.files[name].items()}

    def find(self) -> dict[str, Located]:
        """Where cached tensors lie that may be read on the way, outputs of packed ones among them."""
        if self.shop.anew:
            return {}
        nodes = self.artifact.tensors.values()
        outputs = {key for keys in stored_keys(nodes).values() for key in keys}
        return self.shop.store.find((reachable(nodes) | outputs) - self.bad)

    def missing(self, names: Iterable[str], cached: Mapping[str, Located], checked: bool = True) -> list[str]:
        """Those of the tensors that are not cached, whole; where all must be, raises NotCached if that is `checked`."""
        nodes = {name: self.artifact.tensors[name] for name in names}
        have = whole(cached, stored_keys(nodes.values()))
        left = {name: node for name, node in nodes.items() if node.key not in have}
        if self.shop.require_cached and checked:
            check_cached(self.artifact.name, left, have)
        return list(left)

    def pack(
        self, names: Sequence[str], cached: Mapping[str, Located], stage: Stage | None, done: Callable[[Packed], None]
    ) -> None:
        """Packs tensors into their places in a stage, if there is one; `done` is called as each is complete."""
        jobs = [self._pack_job(same, cached, stage) for same in self._by_key(names)]

        def noted(packed: Packed) -> None:
            # Nothing is recorded as finished that a changed source may have gone into.
            self.reader.check()
            if packed.nonfinite:
                self.nonfinite[packed.job.names[0]] = packed.nonfinite
            done(packed)

        files = StoredFiles(self.reader)
        runner = PackRunner(files, self.shop.limits, noted, self.shop.step)
        try:
            runner.run(jobs)
        finally:
            files.close()
            self.tally.add(runner.tally)
        self.reader.check()

    def _pack_job(self, names: Sequence[str], cached: Mapping[str, Located], stage: Stage | None) -> PackJob:
        """A tensor that the artifact has under several names is packed once and written to all their places."""
        node = self.artifact.tensors[names[0]]
        places: dict[str, Places] = {output.name: () for output in node.outputs}
        for name in names if stage is not None else ():
            assert stage is not None
            for output, file in zip(node.outputs, self.files[name], strict=True):
                if file in stage.layout.places and not output.late:
                    at, offset, _ = stage.layout.places[file]
                    places[output.name] += ((stage.fds[at], offset),)
        return pack_job(names, node, cached, places)

    def _by_key(self, names: Iterable[str]) -> list[list[str]]:
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self.artifact.tensors[name].key, []).append(name)
        return list(found.values())

    def run(self, jobs: Sequence[Job], record: Record, quiet: bool = False) -> None:
        """Runs jobs that do not pack; those that only move what was counted before are `quiet`."""

        def done(made: Made) -> None:
            self.reader.check()
            for file in made.job.names:
                record(file, made.job.program.node, made.checksum)
            if made.nonfinite:
                self.nonfinite[made.job.names[0]] = made.nonfinite

        shop = replace(self.shop, step=lambda nbytes: None) if quiet else self.shop
        run_jobs(shop, jobs, self.reader, done, self.tally)
        self.reader.check()

    def recording(self, packed: Packed, record: Record, late: bool = False) -> None:
        """Records the outputs of a packed tensor, under each of its names; late ones only if they are asked for."""
        for name in packed.job.names:
            for output, (file, node) in zip(packed.job.node.outputs, self.files[name].items(), strict=True):
                if late or not output.late:
                    record(file, node, packed.checksums[output.name])
