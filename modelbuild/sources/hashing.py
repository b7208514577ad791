"""SHA-256 of many files at once, on all cores, each file once in its life.

A file cannot be hashed by two threads, but threads can take turns: each takes the file with the most bytes left for one
slice of it. So three equal files keep two cores busy to the end. Never through mmap: a file that is truncated
while it is being read has to be an error, not a dead process.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelbuild.errors import ModelbuildError
from modelbuild.sources.content import SourceFile, Stamp
from modelbuild.sources.memory import Memory
from modelbuild.sources.stamps import changed, check_regular, difference, open_regular, same, stamp_of, unreadable

if TYPE_CHECKING:
    from hashlib import _Hash

SLICE = 32 * 2**20
"""Bytes that a thread hashes of one stretch before it looks for the one with the most left."""

BUFFER = 2**20
"""Bytes of a thread's read buffer: fits the processor's second-level cache."""

Progress = Callable[[int], None]
"""Called with the number of bytes that were hashed since the last call, from one thread at a time."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes [start, stop) of the file at `path`, which has this stamp; `name` is what messages call it."""

    name: str
    path: str
    stamp: Stamp
    start: int
    stop: int


@dataclass(slots=True)
class _Turn:
    """How far the hashing of a stretch is."""

    index: int
    stretch: Stretch
    position: int
    state: _Hash = field(default_factory=hashlib.sha256)

    @property
    def left(self) -> int:
        return self.stretch.stop - self.position


def available_threads() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def digests(
    files: Sequence[tuple[str, str]], memory: Memory, threads: int | None = None, progress: Progress | None = None
) -> list[SourceFile]:
    """The files, given as (name, absolute path without links), with their SHA-256; read only where not remembered.

    Raises SourceChanged naming a file that changes while it is read, SourceNotFound for a file that may not be read
    and BuildFailed for what is no regular file or cannot be read to its end.
    """
    read_ns = memory.clock()
    stamps = [memory.stamp(path, _status(path, name)) for name, path in files]
    known = {stamp: memory.digest(stamp) for stamp in stamps}
    places = dict(zip(stamps, files, strict=True))
    missing = [
        Stretch(places[stamp][0], places[stamp][1], stamp, 0, stamp.size)
        for stamp, digest in known.items()
        if not digest
    ]

    def keep(index: int, digest: str) -> None:
        stamp = missing[index].stamp
        known[stamp] = digest
        memory.remember(stamp, digest, read_ns)

    hash_stretches(missing, threads, keep, progress)
    return [
        SourceFile(name, path, stamp.size, known[stamp] or "", stamp)
        for (name, path), stamp in zip(files, stamps, strict=True)
    ]


def read_digests(
    files: Sequence[tuple[str, str]], threads: int | None = None, progress: Progress | None = None
) -> list[SourceFile]:
    """The files, given as (name, absolute path), with their SHA-256, all of them read now whatever is remembered.

    They may be linked elsewhere meanwhile. Raises what `digests` raises.
    """
    stamps = [stamp_of(_status(path, name), linked=True) for name, path in files]
    found: dict[int, str] = {}
    stretches = [Stretch(*file, stamp, 0, stamp.size) for file, stamp in zip(files, stamps, strict=True)]
    hash_stretches(stretches, threads, found.__setitem__, progress)
    return [
        SourceFile(name, path, stamp.size, found[index], stamp)
        for index, ((name, path), stamp) in enumerate(zip(files, stamps, strict=True))
    ]


def hash_stretches(
    stretches: Sequence[Stretch],
    threads: int | None,
    done: Callable[[int, str], None],
    progress: Progress | None = None,
) -> None:
    """Hashes all stretches, calling `done` with index and SHA-256 of each as it is finished, one call at a time.

    Raises what `digests` raises; the first error stops all threads.
    """
    if stretches:
        workers = min(threads or available_threads(), len(stretches))
        _Pool(stretches, workers, done, progress).run()


class _Pool:
    """Threads that take turns at stretches, the one with the most bytes left first."""

    def __init__(
        self, stretches: Sequence[Stretch], workers: int, done: Callable[[int, str], None], progress: Progress | None
    ) -> None:
        turns = [_Turn(index, stretch, stretch.start) for index, stretch in enumerate(stretches)]
        self.waiting = sorted(turns, key=lambda turn: (turn.left, -turn.index))
        self.active: list[tuple[int, int, _Turn]] = []
        self.running = 0
        self.workers = workers
        self.done = done
        self.progress = progress
        self.lock = threading.Lock()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Works on this thread and `workers` - 1 others until all is hashed; an interrupt here stops the others."""
        others = [threading.Thread(target=self.work, daemon=True) for _ in range(self.workers - 1)]
        for thread in others:
            thread.start()
        self.work()
        try:
            for thread in others:
                thread.join()
        except BaseException as error:
            self.error = error
            for thread in others:
                thread.join()
        if self.error is not None:
            raise self.error

    def work(self) -> None:
        """Takes turns until nothing is left or something failed."""
        buffer = memoryview(bytearray(BUFFER))
        try:
            while (turn := self.take()) is not None:
                self.advance(turn, buffer)
                self.give_back(turn)
        except BaseException as error:
            with self.lock:
                self.error = self.error or error

    def take(self) -> _Turn | None:
        """The stretch with the most left, of a few that are under way: old ones are finished before many are begun."""
        with self.lock:
            if self.error is not None:
                return None
            while self.waiting and len(self.active) + self.running < 2 * self.workers:
                self.push(self.waiting.pop())
            if not self.active:
                return None
            self.running += 1
            return heapq.heappop(self.active)[2]

    def push(self, turn: _Turn) -> None:
        """Puts a stretch where `take` finds it."""
        heapq.heappush(self.active, (-turn.left, turn.index, turn))

    def give_back(self, turn: _Turn) -> None:
        """Reports a stretch that is finished, or lets another thread go on with it."""
        with self.lock:
            self.running -= 1
            if turn.left:
                self.push(turn)
            else:
                self.done(turn.index, turn.state.hexdigest())

    def advance(self, turn: _Turn, buffer: memoryview) -> None:
        """Hashes one slice; the file is opened for it alone, so that no number of files is too many."""
        stretch, begun = turn.stretch, turn.position
        descriptor = open_regular(stretch.path, stretch.name)
        try:
            _check_same(descriptor, stretch)
            end = min(turn.position + SLICE, stretch.stop)
            _advise(descriptor, turn.position, min(SLICE, turn.left))
            while turn.position < end and self.error is None:
                count = os.preadv(descriptor, [buffer[: end - turn.position]], turn.position)
                if not count:
                    raise changed(stretch.name, f"it ends after {turn.position} of {stretch.stamp.size} bytes")
                turn.state.update(buffer[:count])
                turn.position += count
            _check_same(descriptor, stretch)
        except OSError as error:
            raise unreadable(stretch.name, error) from error
        finally:
            os.close(descriptor)
        if self.progress is not None:
            with self.lock:
                self.progress(turn.position - begun)


def _check_same(descriptor: int, stretch: Stretch) -> None:
    status = os.fstat(descriptor)
    if not same(stretch.stamp, status):
        raise changed(stretch.name, difference(stretch.stamp, status))


def _advise(descriptor: int, start: int, count: int) -> None:
    """Asks the system to have the bytes ready; a system that cannot is only slower."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_WILLNEED)


def _status(path: str, name: str) -> os.stat_result:
    try:
        status = os.stat(path, follow_symlinks=False)
        check_regular(status, name)
    except ModelbuildError:
        raise
    except OSError as error:
        raise unreadable(name, error) from error
    return status
