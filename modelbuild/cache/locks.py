"""Advisory locks that save work and name who holds them. Nothing is ever wrong for the lack of one.

A lock lasts as long as its open file: a killed process holds none. Where the file system knows no locks, every lock is
granted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator

from modelbuild.cache.disk import token

_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_BUILDER = ".builder-"

Waiting = Callable[[str], None]


def take(fd: int, operation: int) -> bool:
    """Take a lock on an open file; False only if it was asked not to wait and somebody else has it."""
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return True


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _is(fd: int, path: str) -> bool:
    """Whether the open file still has its name: a lock file may be removed while somebody waits for it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _acquire(path: str, operation: int, wait: Callable[[int], bool]) -> int | None:
    """An open, locked file; None if `wait`, called with the open file while another has the lock, says not to."""
    while True:
        fd = _open(path)
        try:
            if not take(fd, operation | fcntl.LOCK_NB):
                if not wait(fd):
                    os.close(fd)
                    return None
                take(fd, operation)
            if _is(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _write_facts(fd: int, name: str) -> None:
    facts = {"pid": os.getpid(), "host": os.uname().nodename, "name": name, "since": time.time()}
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(facts).encode(), 0)


def _holder(fd: int) -> str:
    """Who holds a lock, as a clause; what the file says may be half written."""
    try:
        facts = json.loads(os.pread(fd, 4096, 0))
        since = time.strftime("%H:%M:%S", time.localtime(facts["since"]))
        process = f"process {int(facts['pid'])} on {facts['host']}"
        return f"{process}, which has been building `{facts['name']}` since {since}"
    except (ValueError, KeyError, TypeError, OverflowError):
        return "another process"


@contextlib.contextmanager
def exclusive(path: str, name: str, waiting: Waiting) -> Iterator[None]:
    """Hold the lock file `path` alone, for building `name`; `waiting` is told once who has it now."""

    def wait(fd: int) -> bool:
        waiting(f"waiting for {_holder(fd)}")
        return True

    fd = _acquire(path, fcntl.LOCK_EX, wait)
    assert fd is not None
    try:
        _write_facts(fd, name)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def attempt(path: str) -> Iterator[bool]:
    """Hold the lock file `path` alone if nobody has it; the value says whether."""
    fd = _acquire(path, fcntl.LOCK_EX, lambda _: False)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


@contextlib.contextmanager
def building(folder: str, name: str, waiting: Waiting) -> Iterator[None]:
    """Hold the lock on the whole cache together with other builders, so that nothing is collected meanwhile."""

    def wait(_: int) -> bool:
        waiting("waiting for another process, which is removing things from the cache")
        return True

    fd = _acquire(os.path.join(folder, ".cache"), fcntl.LOCK_SH, wait)
    assert fd is not None
    badge = os.path.join(folder, f"{_BUILDER}{token()}")
    try:
        mark = _open(badge)
        try:
            take(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_facts(mark, name)
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(badge)
            os.close(mark)
    finally:
        os.close(fd)


@contextlib.contextmanager
def collecting(folder: str, waiting: Waiting) -> Iterator[None]:
    """Hold the lock on the whole cache alone: no build is under way."""

    def wait(_: int) -> bool:
        waiting(f"waiting for {' and '.join(builders(folder)) or 'another process'}")
        return True

    fd = _acquire(os.path.join(folder, ".cache"), fcntl.LOCK_EX, wait)
    assert fd is not None
    try:
        yield
    finally:
        os.close(fd)


def builders(folder: str) -> list[str]:
    """Who is building now, each as a clause; the badges of killed builders are removed."""
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.startswith(_BUILDER):
            continue
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if take(fd, fcntl.LOCK_EX | fcntl.LOCK_NB):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            else:
                found.append(_holder(fd))
        finally:
            os.close(fd)
    return found
