"""SHA-256 of many files at once, on all cores, each file once in its life.

A file cannot be hashed by two threads, but threads can take turns: each takes the file with the most bytes left for one
slice of it. So three equal files keep two cores busy to the end. Where a processor hashes several messages at a time
faster than one (see lanes.py), a thread takes its share of the files. Never through mmap: a file that is truncated
while it is being read has to be an error, not a dead process.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from modelbuild.errors import ModelbuildError
from modelbuild.sources.content import SourceFile, Stamp
from modelbuild.sources.lanes import Lanes, fitting
from modelbuild.sources.memory import Memory
from modelbuild.sources.stamps import changed, check_regular, difference, open_regular, same, stamp_of, unreadable

SLICE = 32 * 2**20
"""Bytes that a thread hashes of one stretch before it looks for the one with the most left."""

BUFFER = 2 * 2**20
"""Bytes of a thread's read buffer, which stays in the processor's cache; files hashed side by side share it."""

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
    """How far the hashing of a stretch is; `digest` is there when all of it is hashed."""

    index: int
    stretch: Stretch
    position: int
    state: Any
    digest: str | None = None

    @property
    def left(self) -> int:
        return self.stretch.stop - self.position


@dataclass(slots=True)
class _Slice:
    """What a thread hashes of a stretch before it gives it back: up to `end` of the open file."""

    turn: _Turn
    descriptor: int
    end: int

    def read(self, piece: memoryview) -> memoryview:
        """The next bytes of the file, as many as `piece` holds."""
        turn, count = self.turn, 0
        try:
            while count < len(piece):
                found = os.preadv(self.descriptor, [piece[count:]], turn.position)
                if not found:
                    raise changed(
                        turn.stretch.name, f"it ends after {turn.position} of {turn.stretch.stamp.size} bytes"
                    )
                count += found
                turn.position += found
        except OSError as error:
            raise unreadable(turn.stretch.name, error) from error
        return piece


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
        lanes = fitting([stretch.stop - stretch.start for stretch in stretches], workers)
        _Pool(stretches, workers, lanes, done, progress).run()


class _Pool:
    """Threads that take turns at stretches, those with the most bytes left first, several at a time if `lanes` can."""

    def __init__(
        self,
        stretches: Sequence[Stretch],
        workers: int,
        lanes: Lanes,
        done: Callable[[int, str], None],
        progress: Progress | None,
    ) -> None:
        turns = [_Turn(index, stretch, stretch.start, lanes.begin()) for index, stretch in enumerate(stretches)]
        self.waiting = sorted(turns, key=lambda turn: (turn.left, -turn.index))
        self.active: list[tuple[int, int, _Turn]] = []
        self.unfinished = len(turns)
        self.running = 0
        self.workers = workers
        self.lanes = lanes
        self.done = done
        self.progress = progress
        self.changed = threading.Condition()
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
            self.stop(error)
            for thread in others:
                thread.join()
        if self.error is not None:
            raise self.error

    def work(self) -> None:
        """Takes turns until nothing is left or something failed."""
        buffer = memoryview(bytearray(BUFFER))
        try:
            while turns := self.take():
                self.advance(turns, buffer)
                self.give_back(turns)
        except BaseException as error:
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        """Ends the work of all threads; the first error is the one that is told."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def take(self) -> list[_Turn]:
        """This thread's share of the stretches, those with the most left of a few that are under way; none at the end.

        Old ones are finished before many are begun. A thread that finds none waits for the share of another.
        """
        with self.changed:
            while self.unfinished and self.error is None:
                while self.waiting and len(self.active) + self.running < (self.lanes.most + 1) * self.workers:
                    self.push(self.waiting.pop())
                if self.active:
                    share = min(self.lanes.most, -(-self.unfinished // self.workers), len(self.active))
                    self.running += share
                    return [heapq.heappop(self.active)[2] for _ in range(share)]
                self.changed.wait()
            return []

    def push(self, turn: _Turn) -> None:
        """Puts a stretch where `take` finds it."""
        heapq.heappush(self.active, (-turn.left, turn.index, turn))

    def give_back(self, turns: Sequence[_Turn]) -> None:
        """Reports stretches that are finished, and lets other threads go on with the rest."""
        with self.changed:
            self.running -= len(turns)
            for turn in turns:
                if turn.digest is None:
                    self.push(turn)
                else:
                    self.unfinished -= 1
                    self.done(turn.index, turn.digest)
            self.changed.notify_all()

    def advance(self, turns: Sequence[_Turn], buffer: memoryview) -> None:
        """Hashes one slice of each; files are opened for it alone, so that no number of files is too many."""
        begun = sum(turn.position for turn in turns)
        with ExitStack() as files:
            slices = [files.enter_context(_opened(turn, self.lanes.grain)) for turn in turns]
            while (going := [part for part in slices if part.turn.position < part.end]) and self.error is None:
                self.side_by_side(going, buffer)
            for part in slices:
                self.finish(part, buffer)
        if self.progress is not None:
            with self.changed:
                self.progress(sum(turn.position for turn in turns) - begun)

    def side_by_side(self, going: Sequence[_Slice], buffer: memoryview) -> None:
        """Hashes the next bytes of each slice, equally many, with a part of the buffer for each."""
        room = len(buffer) // len(going)
        count = min(room - room % self.lanes.grain, *(part.end - part.turn.position for part in going))
        pieces = [part.read(buffer[room * n : room * n + count]) for n, part in enumerate(going)]
        self.lanes.update([part.turn.state for part in going], pieces)

    def finish(self, part: _Slice, buffer: memoryview) -> None:
        """Hashes what is less than a grain at the end of a stretch, if the slice went so far."""
        turn = part.turn
        if turn.left < self.lanes.grain:
            rest = bytes(part.read(buffer[: turn.left]))
            turn.digest = self.lanes.finish(turn.state, rest, turn.stretch.stop - turn.stretch.start)


@contextmanager
def _opened(turn: _Turn, grain: int) -> Iterator[_Slice]:
    """The next slice of a stretch, whole grains, in its file, which is the same at the end as in the beginning."""
    stretch, length = turn.stretch, min(max(SLICE, grain), turn.left)
    descriptor = open_regular(stretch.path, stretch.name)
    try:
        _check_same(descriptor, stretch)
        _advise(descriptor, turn.position, length)
        yield _Slice(turn, descriptor, turn.position + length - length % grain)
        _check_same(descriptor, stretch)
    except OSError as error:
        raise unreadable(stretch.name, error) from error
    finally:
        os.close(descriptor)


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
