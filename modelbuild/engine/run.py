"""The only place that runs things: threads that pull parts of tensors, largest first, and stream them tile by tile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from modelbuild.engine.budget import Budget, Cancelled
from modelbuild.engine.gather import gather
from modelbuild.engine.jobs import Damaged, Job, Made, Progress, Tally, start
from modelbuild.engine.program import Program, Read, Run, compile_program, prepare
from modelbuild.engine.stretch import LEAST_TILE, RAW, Arena, Files, Stretch, bytes_of, pass_width, width_of
from modelbuild.engine.writer import Writer
from modelbuild.methods.operations import operation
from modelbuild.plan.node import ITEMSIZE, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.cache.nouns import Located
    from modelbuild.methods.base import Kernel, Pass

TILE = 256 * 1024
"""Elements of a tile at most: with their inputs they stay in a processor's own cache."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many threads, how many bytes of tensor data at once, and the most elements of a tile."""

    threads: int
    memory: int
    tile: int = TILE


@dataclass(frozen=True, slots=True)
class _Part:
    progress: Progress
    start: int
    stop: int


class Runner:
    """Makes the tensors of `jobs`; `done` is called from a worker as each is complete, `step` with bytes made."""

    def __init__(
        self,
        files: Files,
        limits: Limits,
        done: Callable[[Made], None],
        step: Callable[[int], None] = lambda nbytes: None,
        writer: Writer | None = None,
    ) -> None:
        self._files = files
        self._writer = writer or Writer(direct=False)
        self._done = done
        self._step = step
        self._limits = limits
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._damaged: list[str] = []
        self._parts: Iterator[_Part] = iter(())
        self._budget = Budget(limits.memory, self._stop)
        self._kept: dict[str, NDArray[Any]] = {}
        self._kept_lock = threading.Lock()
        self.tally = Tally()

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs all jobs. Raises the first error of any worker, or Damaged once everything else is finished."""
        ordered = sorted((job for job in jobs if not self._cloned(job)), key=lambda job: -job.program.node.nbytes)
        # A thread that writes past the page cache waits for the disk; another computes meanwhile.
        wanted = self._limits.threads * (2 if self._writer.direct else 1)
        threads = max(1, min(wanted, sum(_part_count(job.program) for job in ordered)))
        tile, nbytes = _tile_size(ordered, threads, self._limits)
        self._parts = _parts(ordered)
        self._budget = Budget(self._limits.memory - nbytes, self._stop)
        workers = [
            threading.Thread(target=self._work, args=(tile, ordered), name=f"tiles-{index}", daemon=True)
            for index in range(threads)
        ]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                # A join without a limit would hold back Ctrl-C.
                while worker.is_alive():
                    worker.join(0.2)
        except BaseException:
            self._stop.set()
            for worker in workers:
                worker.join()
            raise
        finally:
            self.tally.peak = max(self.tally.peak, self._budget.peak + nbytes)
        if self._errors:
            raise self._errors[0]
        if self._damaged:
            raise Damaged(self._damaged)

    def _cloned(self, job: Job) -> bool:
        """Whether the job was only to copy a cached tensor, and the file system could share its bytes instead.

        The file that they are in was found to be as it was published, by its size and time.
        """
        (first, *more) = job.program.steps
        if more or not isinstance(first, Read) or first.located is None:
            return False
        if not all(self._files.clone(first.located, *place) for place in job.places):
            return False
        self._step(first.node.nbytes)
        self._done(Made(job, first.located.checksum, 0))
        return True

    # --- one worker ---------------------------------------------------------------------------------------------------

    def _work(self, tile: int, jobs: Sequence[Job]) -> None:
        slots = max((job.program.slots for job in jobs), default=1)
        arena = Arena(tile, slots, max((job.program.scratch for job in jobs), default=0))
        try:
            while not self._stop.is_set() and (part := self._next()) is not None:
                self._part(part, arena)
        except Cancelled:
            return
        except BaseException as error:
            with self._lock:
                self._errors.append(error)
            self._stop.set()

    def _next(self) -> _Part | None:
        with self._lock:
            return next(self._parts, None)

    def _part(self, part: _Part, arena: Arena) -> None:
        progress = part.progress
        program = progress.job.program
        for step in program.steps:
            if isinstance(step, Read):
                size = ITEMSIZE[step.node.dtype]
                self._files.expect(step.node, step.located, part.start * size, (part.stop - part.start) * size)
        kernels = self._kernels(progress, arena)
        stretch = Stretch(self._files, progress, part.start, arena, kernels)
        written = 0
        width = width_of(program, arena)
        for begin in range(part.start, part.stop, width):
            if self._stop.is_set():
                return
            out = stretch.tile(begin, min(begin + width, part.stop))
            for descriptor, offset in progress.job.places:
                self._writer.write(descriptor, out, offset + begin * ITEMSIZE[program.node.dtype])
            written += len(out)
            self._step(len(out))
        self._finish(progress, stretch, written)

    def _kernels(self, progress: Progress, arena: Arena) -> Any:
        """The kernels of a job; the first thread prepares them, within the memory budget."""
        with progress.lock:
            if progress.kernels is None:
                program = progress.job.program
                self._budget.take(program.memory)
                progress.kernels = self._prepare(program, arena, partial(self._warn, progress.job.names))
            return progress.kernels

    def _show(self, program: Program, arena: Arena, run: Run, kernels: Mapping[int, Kernel], wanted: Pass) -> None:
        """Streams the inputs of one step for a pass, from the first element to the last."""
        stretch = Stretch(self._files, start(Job((), program, ()), 1), 0, arena, kernels)
        slots = run.inputs if wanted.inputs is None else [run.inputs[index] for index in wanted.inputs]
        steps, width = program.before(run, slots), pass_width(wanted.unit, arena)
        stretches = ((0, program.node.count),) if wanted.stretches is None else wanted.stretches
        for first, stop in stretches:
            for begin in range(first, stop, width):
                if self._stop.is_set():
                    raise Cancelled
                end = min(begin + width, stop)
                views = stretch.fill(steps, begin, end)
                wanted.look(begin, end, [views[slot] for slot in slots], arena.scratch)

    def _warn(self, names: Sequence[str], text: str) -> None:
        with self._lock:
            self.tally.warnings.setdefault(text, []).extend(names)

    def _whole(self, cached: Mapping[str, Located], node: Node) -> NDArray[Any]:
        """A tensor whole in memory, as raw elements in its shape; one that several are made of is kept."""
        if node.operation == "source" or not operation(node.operation).shared(node):
            return self._made(node, cached)
        with self._kept_lock:
            if node.key not in self._kept:
                self._kept[node.key] = self._made(node, cached)
            return self._kept[node.key]

    def _made(self, node: Node, cached: Mapping[str, Located]) -> NDArray[Any]:
        """A tensor whole in memory; raises Damaged for what is wrong in the cache."""
        raw = np.empty(node.count, RAW[node.dtype])
        program = compile_program(node, cached)
        view = bytes_of(raw.view(np.uint8)) if node.count else memoryview(b"")
        arena = Arena(max(TILE, program.room), program.slots, program.scratch)
        kernels = self._prepare(program, arena, lambda text: None)
        progress = start(Job((), program, ()), 1)
        stretch = Stretch(self._files, progress, 0, arena, kernels)
        size, width = ITEMSIZE[node.dtype], width_of(program, arena)
        for begin in range(0, node.count, width):
            if self._stop.is_set():
                raise Cancelled
            end = min(begin + width, node.count)
            view[begin * size : end * size] = stretch.tile(begin, end)
        self._count(stretch.bytes_read, 0)
        if bad := _damaged(progress):
            raise Damaged(bad)
        return raw.reshape(node.shape)

    def _prepare(self, program: Program, arena: Arena, warn: Callable[[str], None]) -> dict[int, Kernel]:
        whole = partial(self._whole, program.cached)
        gathered = partial(gather, self._files, whole, self._count)
        return prepare(program, whole, partial(self._show, program, arena), warn, gathered)

    def _count(self, read: int, written: int = 0) -> None:
        with self._lock:
            self.tally.read += read
            self.tally.written += written

    def _finish(self, progress: Progress, stretch: Stretch, written: int) -> None:
        self._count(stretch.bytes_read, written * len(progress.job.places))
        with self._lock:
            for key, seconds in stretch.spent.items():
                self.tally.spent[key] = self.tally.spent.get(key, 0.0) + seconds
        with progress.lock:
            progress.nonfinite += stretch.nonfinite
            progress.left -= 1
            if progress.left:
                return
            progress.kernels = None
        self._budget.give(progress.job.program.memory)
        if bad := _damaged(progress):
            with self._lock:
                self._damaged += bad
            return
        self._done(Made(progress.job, progress.blocks.checksum(), progress.nonfinite))


def _damaged(progress: Progress) -> list[str]:
    """The keys of cached tensors whose bytes, now that all were read, are not those that were written."""
    bad = []
    for index, blocks in progress.reads.items():
        step = progress.job.program.steps[index]
        assert isinstance(step, Read)
        if step.located is not None and blocks.checksum() != step.located.checksum:
            bad.append(step.node.key)
    return bad


def _part_count(program: Program) -> int:
    return max(1, -(-program.node.count // program.part))


def _parts(jobs: Sequence[Job]) -> Iterator[_Part]:
    for job in jobs:
        program = job.program
        progress = start(job, _part_count(program))
        for index in range(_part_count(program)):
            begin = index * program.part
            yield _Part(progress, begin, min(begin + program.part, program.node.count))


def _tile_size(jobs: Sequence[Job], threads: int, limits: Limits) -> tuple[int, int]:
    """Elements of a tile, and the bytes that all threads' buffers take: at most half of the memory budget.

    A row that may not be parted fits a tile, whatever the budget says.
    """
    widest = max((4 * (job.program.slots + job.program.scratch) for job in jobs), default=4)
    tile = limits.tile
    while tile > LEAST_TILE and tile * widest * threads > limits.memory // 2:
        tile //= 2
    tile = max([tile, *(job.program.room for job in jobs)])
    return tile, tile * widest * threads
