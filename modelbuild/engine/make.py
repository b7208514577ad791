"""Makes the weights of one artifact: a stage, the jobs that fill it, and the artifact published whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelbuild.cache.disk import DISK_FULL
from modelbuild.cache.nouns import Layout, Located, Manifest, StoredTensor
from modelbuild.engine.files import StoredFiles
from modelbuild.engine.jobs import Damaged, Job, Made, Tally
from modelbuild.engine.program import compile_program
from modelbuild.engine.run import Limits, Runner
from modelbuild.engine.writer import Writer
from modelbuild.errors import BuildFailed, NotCached
from modelbuild.plan.demand import reachable
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Planned
from modelbuild.sources.reader import LocalReader

if TYPE_CHECKING:
    from modelbuild.cache.interface import Store
    from modelbuild.cache.stage import Stage
    from modelbuild.sources.reader import Reader

ATTEMPTS = 3
"""How often a build starts over with what is left after cached tensors turned out to be damaged."""


@dataclass(slots=True)
class Workshop:
    """What making needs besides the plan: the cache, limits, and whom to tell.

    `say` is told in a sentence what the user should know at once; `step` how many bytes were made.
    """

    store: Store
    limits: Limits
    anew: bool = False
    require_cached: bool = False
    say: Callable[[str], None] = lambda text: None
    step: Callable[[int], None] = lambda nbytes: None


@dataclass(slots=True)
class Outcome:
    """What making an artifact came to.

    `resumed` tensors were in the stage from the start: finished by an interrupted build, or `linked`, in files that
    another artifact has too. `redone` ones were damaged in the cache. `found` says that nothing was made: another
    process had published it by the time this one had its turn.
    """

    manifest: Manifest
    tally: Tally = field(default_factory=Tally)
    resumed: tuple[str, ...] = ()
    redone: tuple[str, ...] = ()
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    found: bool = False
    linked: Collection[str] = ()
    seconds: float = 0.0


def make_weights(
    shop: Workshop, artifact: Planned, names: Sequence[str], key: str, layout: Layout, complete: bool = True
) -> Outcome:
    """The tensors `names` of the artifact as files of that layout, published under `key`; what is stored is reused.

    With `shop.anew` everything is computed, and if the artifact is there its checksums are compared instead.
    Raises NotCached, SourceChanged, BuildFailed.
    """
    started = time.monotonic()
    nodes = {name: artifact.tensors[name] for name in names}
    keys = {name: node.key for name, node in nodes.items()}
    if shop.anew and (manifest := shop.store.manifest(key)) is not None:
        outcome = _compare(shop, nodes, manifest)
    else:
        with shop.store.stage(key, artifact.name, layout, keys=keys, waiting=shop.say, anew=shop.anew) as stage:
            if stage.published is not None:
                outcome = Outcome(stage.published, found=True)
            else:
                outcome = _fill(shop, artifact.name, nodes, layout, stage, complete)
    outcome.seconds = time.monotonic() - started
    return outcome


def _fill(
    shop: Workshop, name: str, nodes: Mapping[str, Node], layout: Layout, stage: Stage, complete: bool
) -> Outcome:
    checksums: dict[str, str] = dict(stage.finished)
    shop.step(sum(nodes[tensor].nbytes for tensor in checksums))
    nonfinite: dict[str, int] = {}
    tally = Tally()
    with LocalReader() as reader:

        def done(made: Made) -> None:
            # Nothing is recorded as finished that a changed source may have gone into.
            reader.check()
            for tensor in made.job.names:
                checksums[tensor] = made.checksum
                stage.record(tensor, nodes[tensor].key, made.checksum)
            if made.nonfinite:
                nonfinite[made.job.names[0]] = made.nonfinite

        bad: set[str] = set()
        for attempt in range(ATTEMPTS):
            left = {tensor: node for tensor, node in nodes.items() if tensor not in checksums}
            cached = {} if shop.anew else shop.store.find(reachable(left.values()) - bad)
            if shop.require_cached:
                check_cached(name, left, cached)
            jobs = _jobs(left, cached, layout, stage.fds, shop.anew)
            try:
                run_jobs(shop, jobs, reader, done, tally)
                break
            except Damaged as damage:
                if attempt == ATTEMPTS - 1:
                    raise BuildFailed(
                        "the cache is damaged again and again", hint="run `modelbuild cache verify`"
                    ) from None
                bad.update(damage.keys)
                shop.say(told_damage(len(damage.keys)))
                for located in (cached[key] for key in damage.keys if key in cached):
                    shop.store.verify_tensor(located)
        reader.check()
    stored = [
        StoredTensor(node.key, tensor, node.dtype, node.shape, *layout.places[tensor], checksums[tensor])
        for tensor, node in nodes.items()
    ]
    manifest = stage.publish(stored, complete=complete)
    redone = tuple(tensor for tensor, node in nodes.items() if node.key in bad)
    return Outcome(manifest, tally, tuple(stage.finished), redone, nonfinite, linked=stage.linked)


def told_damage(count: int) -> str:
    """The sentence about damaged tensors of the cache."""
    if count == 1:
        return "1 tensor in the cache is damaged; it is made anew"
    return f"{count} tensors in the cache are damaged; they are made anew"


def run_jobs(
    shop: Workshop,
    jobs: Sequence[Job],
    reader: Reader,
    done: Callable[[Made], None],
    tally: Tally,
) -> None:
    """Runs jobs, adding to the tally; raises Damaged, what a worker raised, and BuildFailed for files."""
    files = StoredFiles(reader)
    # Without a promise to survive a power cut there is no disk to wait for.
    writer = Writer(direct=shop.store.durability != "none")
    runner = Runner(files, shop.limits, done, shop.step, writer)
    try:
        runner.run(jobs)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise  # the stage knows what the artifact needs and what is free
        raise BuildFailed(f"a file could not be written: {error.strerror}", facts=(str(error),)) from error
    finally:
        files.close()
        writer.close()
        tally.read += runner.tally.read
        tally.written += runner.tally.written
        tally.peak = max(tally.peak, runner.tally.peak)
        for text, names in runner.tally.warnings.items():
            tally.warnings.setdefault(text, []).extend(names)
        for key, seconds in runner.tally.spent.items():
            tally.spent[key] = tally.spent.get(key, 0.0) + seconds


def _jobs(
    nodes: Mapping[str, Node], cached: Mapping[str, Located], layout: Layout, fds: Mapping[str, int], anew: bool
) -> list[Job]:
    """One job for each key: a tensor that the artifact has twice is made once and written twice."""
    names: dict[str, list[str]] = {}
    by_key: dict[str, Node] = {}
    for name, node in nodes.items():
        names.setdefault(node.key, []).append(name)
        by_key[node.key] = node
    jobs = []
    for key, same in names.items():
        places = tuple((fds[file], offset) for file, offset, _ in (layout.places[name] for name in same))
        jobs.append(Job(tuple(same), compile_program(by_key[key], cached, anew), places))
    return jobs


def check_cached(name: str, nodes: Mapping[str, Node], cached: Collection[str]) -> None:
    """Raises NotCached for the first of these tensors of the artifact `name` that would have to be computed."""
    for tensor, node in nodes.items():
        if node.operation != "source" and node.key not in cached:
            raise NotCached(
                f"`{tensor}` of `{name}` is not in the cache",
                facts=(f"it would have to be computed by {node.operation}",),
                hint=f"`modelbuild why {name} {tensor}` says what changed",
            )


def _compare(shop: Workshop, nodes: Mapping[str, Node], manifest: Manifest) -> Outcome:
    """Computes everything anew, writes nothing, and compares with what is there."""
    found: dict[str, str] = {}
    nonfinite: dict[str, int] = {}

    def done(made: Made) -> None:
        found.update(dict.fromkeys(made.job.names, made.checksum))
        if made.nonfinite:
            nonfinite[made.job.names[0]] = made.nonfinite

    tally = Tally()
    with LocalReader() as reader:
        jobs = [Job((name,), compile_program(node, {}, True), ()) for name, node in nodes.items()]
        run_jobs(shop, jobs, reader, done, tally)
        reader.check()
    expected = {tensor.name: tensor.checksum for tensor in manifest.tensors}
    differs = tuple(name for name in nodes if found[name] != expected.get(name))
    return Outcome(manifest, tally, (), (), nonfinite, differs)
