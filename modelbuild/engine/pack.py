"""Packs tensors that are needed whole: a worker streams one into memory of its own, has it packed, and writes what
comes of it, piece by piece, to its places. As many tensors are under way as there are threads and memory for."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from modelbuild.checksum import checksum
from modelbuild.engine.block import BLOCK, Blocks, Running
from modelbuild.engine.budget import Budget, Cancelled
from modelbuild.engine.jobs import Damaged, Job, Made, Tally
from modelbuild.engine.program import Program, compile_program
from modelbuild.engine.run import TILE, Limits, Runner
from modelbuild.engine.stretch import RAW, Files
from modelbuild.errors import BuildFailed
from modelbuild.formats.registry import packer
from modelbuild.plan.node import ITEMSIZE, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.cache.nouns import Located
    from modelbuild.formats.base import Output

_TILES = 8
"""The part of the memory budget that tiles may take, as its divisor."""

Places = tuple[tuple[int, int], ...]
"""Where the copies of an output go: descriptor and offset."""


@dataclass(frozen=True, slots=True)
class PackJob:
    """A tensor to be packed: its names in the artifact, the program of what goes in, where each output goes.

    Late outputs have no places: they are handed over with what was made.
    """

    names: tuple[str, ...]
    node: Node
    program: Program
    places: Mapping[str, Places]

    @property
    def memory(self) -> int:
        """The bytes that packing the tensor holds at once, tiles aside."""
        return packing_memory(self.node, self.program)


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed tensor: the checksum of each output, the bytes of late ones, and how many elements that went in are NaN
    or infinite."""

    job: PackJob
    checksums: Mapping[str, str]
    late: Mapping[str, bytes]
    nonfinite: int


def pack_job(
    names: Sequence[str], node: Node, cached: Mapping[str, Located], places: Mapping[str, Places] | None = None
) -> PackJob:
    """The job of a packed node, reading `cached` tensors on the way where it can."""
    return PackJob(tuple(names), node, compile_program(node.inputs[0], cached), places or {})


def packing_memory(node: Node, program: Program | None = None) -> int:
    """The bytes that packing a node holds at once: what goes in, whole, and what the packer and its input need."""
    program = program or compile_program(node.inputs[0], {})
    return node.inputs[0].nbytes + packer(node.operation).memory(node) + program.memory


def for_tensors(memory: int) -> int:
    """The part of the memory budget that whole tensors may take; the rest is for the tiles they come in."""
    return memory - memory // _TILES


class PackRunner:
    """Packs the tensors of `jobs`; `done` is called from a worker as each is complete, `step` with bytes made."""

    def __init__(
        self, files: Files, limits: Limits, done: Callable[[Packed], None], step: Callable[[int], None]
    ) -> None:
        self._files = files
        self._limits = limits
        self._done = done
        self._step = step
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._damaged: list[str] = []
        self._jobs: Iterator[PackJob] = iter(())
        self._budget = Budget(for_tensors(limits.memory), self._stop)
        self._threads = 1
        self.tally = Tally()

    def run(self, jobs: Sequence[PackJob]) -> None:
        """Packs all. Raises the first error of any worker, or Damaged once everything else is finished."""
        if not jobs:
            return
        self._jobs = iter(sorted(jobs, key=lambda job: -job.node.inputs[0].nbytes))
        self._threads = min(self._limits.threads, len(jobs))
        workers = [
            threading.Thread(target=self._work, name=f"pack-{index}", daemon=True) for index in range(self._threads)
        ]
        with packer(jobs[0].node.operation).running():
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
        self.tally.peak = max(self.tally.peak, self._budget.peak)
        if self._errors:
            raise self._errors[0]
        if self._damaged:
            raise Damaged(self._damaged)

    def _work(self) -> None:
        whole = _Whole()
        try:
            while not self._stop.is_set() and (job := self._next()) is not None:
                self._budget.take(job.memory)
                try:
                    self._pack(job, whole)
                finally:
                    whole.clear()
                    self._budget.give(job.memory)
        except Cancelled:
            return
        except BaseException as error:
            with self._lock:
                self._errors.append(error)
            self._stop.set()
        finally:
            whole.close()

    def _next(self) -> PackJob | None:
        with self._lock:
            return next(self._jobs, None)

    def _pack(self, job: PackJob, whole: _Whole) -> None:
        try:
            nonfinite = self._stream(job, whole)
        except Damaged as damage:
            with self._lock:
                self._damaged += damage.keys
            return
        sinks = {output.name: _Sink(output, job.places.get(output.name, ())) for output in job.node.outputs}

        def emit(name: str, data: bytes) -> None:
            if self._stop.is_set():
                raise Cancelled
            sinks[name].write(data)
            self._step(len(data))

        started = time.perf_counter()
        packer(job.node.operation).pack(job.node, whole.array(job.node.inputs[0]), emit)
        spent = time.perf_counter() - started
        with self._lock:
            self.tally.written += sum(sink.written for sink in sinks.values())
            self.tally.spent[job.node.key] = self.tally.spent.get(job.node.key, 0.0) + spent
        late = {name: bytes(sink.late) for name, sink in sinks.items() if sink.output.late}
        self._done(Packed(job, {name: sink.checksum(job.names[0]) for name, sink in sinks.items()}, late, nonfinite))

    def _stream(self, job: PackJob, whole: _Whole) -> int:
        """Fills `whole` with what goes into the job; how many elements of it are NaN or infinite."""
        made: list[Made] = []
        limits = Limits(1, max(1, self._limits.memory // (_TILES // 2) // self._threads), TILE)
        runner = Runner(self._files, limits, made.append)
        try:
            runner.run([Job(job.names, job.program, ((whole.make(job.program.node.nbytes), 0),))])
        finally:
            with self._lock:
                self.tally.read += runner.tally.read
                for key, seconds in runner.tally.spent.items():
                    self.tally.spent[key] = self.tally.spent.get(key, 0.0) + seconds
        return made[0].nonfinite


class _Whole:
    """Memory for one tensor, which is filled through a descriptor."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("modelbuild") if hasattr(os, "memfd_create") else _unnamed()

    def make(self, nbytes: int) -> int:
        """The descriptor, with that many bytes behind it."""
        os.ftruncate(self._fd, nbytes)
        return self._fd

    def array(self, node: Node) -> NDArray[Any]:
        """The raw elements of the node in its shape; the memory is theirs as long as they are in use."""
        return np.frombuffer(mmap.mmap(self._fd, node.nbytes), RAW[node.dtype]).reshape(node.shape)

    def clear(self) -> None:
        """Gives the memory back."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._fd)


def _unnamed() -> int:
    """A file without a name, where the system has no memory behind a descriptor."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@dataclass(slots=True)
class _Sink:
    """Takes the bytes of one output in order: writes them to each place, and keeps those of a late one."""

    output: Output
    places: Places
    late: bytearray = field(default_factory=bytearray)
    written: int = 0
    _taken: int = 0
    _blocks: Blocks = field(init=False)
    _running: Running = field(init=False)

    def __post_init__(self) -> None:
        self._blocks = Blocks(self.nbytes)
        self._running = Running(self._blocks, 0, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes that the output has, a late one at most."""
        return prod(self.output.shape) * ITEMSIZE[self.output.dtype]

    def write(self, data: bytes) -> None:
        """Takes the next bytes."""
        if self._taken + len(data) > self.nbytes:
            raise self._wrong(self._taken + len(data))
        view = memoryview(data)
        if self.output.late:
            self.late += data
        for descriptor, offset in self.places:
            _write_all(descriptor, view, offset + self._taken)
            self.written += len(data)
        while view:
            room = BLOCK - self._taken % BLOCK
            if not self.output.late:
                self._running.update(view[:room])
            self._taken += len(view[:room])
            view = view[room:]

    def checksum(self, name: str) -> str:
        """The checksum of all the bytes; BuildFailed where there are not as many as there have to be."""
        if self.output.late:
            return checksum(bytes(self.late))
        if self._taken != self.nbytes:
            raise self._wrong(self._taken, name)
        return self._blocks.checksum()

    def _wrong(self, found: int, name: str = "") -> BuildFailed:
        facts = [f"`{self.output.name}`{f' of `{name}`' if name else ''} has {found} bytes instead of {self.nbytes}"]
        return BuildFailed("a library packs a tensor into another size than was planned", facts=facts)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
