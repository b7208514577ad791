"""Stamps: whether a file is still the one that was looked at."""

from __future__ import annotations

import errno
import os
import stat

from modelbuild.errors import BuildFailed, ModelbuildError, SourceChanged, SourceNotFound
from modelbuild.sources.content import Stamp
from modelbuild.sources.strictjson import show

RACY_NS = 2_000_000_000
"""A file changed less than this many nanoseconds ago may change again without a new mtime: coarse clocks."""


def stamp_of(status: os.stat_result, *, linked: bool = False) -> Stamp:
    """The stamp in a stat result; a `linked` file, which gets hard links over time, has the ctime 0: any will do."""
    ctime = 0 if linked else status.st_ctime_ns
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, ctime)


def same(stamp: Stamp, status: os.stat_result) -> bool:
    """Whether the file with this stat result is still the one with this stamp."""
    return stamp == stamp_of(status, linked=stamp.ctime_ns == 0)


def racy(stamp: Stamp, now_ns: int) -> bool:
    """Whether a file read at `now_ns` could be edited later and keep its stamp."""
    return abs(now_ns - stamp.mtime_ns) < RACY_NS


def difference(stamp: Stamp, status: os.stat_result) -> str:
    """What tells the file with this stat result from the one with this stamp, in words."""
    now = stamp_of(status, linked=stamp.ctime_ns == 0)
    if (now.device, now.inode) != (stamp.device, stamp.inode):
        return "another file has taken its place"
    if now.size != stamp.size:
        return f"it had {stamp.size} bytes and has {now.size}"
    return (
        "it was written to"
        if now.mtime_ns != stamp.mtime_ns
        else "it was replaced, renamed or linked, or its mode was changed"
    )


def changed(name: str, fact: str) -> SourceChanged:
    """The error for the source file `name` that changed while it was being used."""
    return SourceChanged(f"{show(name)} changed while it was being read", facts=[fact], hint="build again")


def unreadable(name: str, error: OSError) -> ModelbuildError:
    """The error for the file `name` that the system refuses to give: SourceNotFound, or BuildFailed for a bad disk."""
    told = os.strerror(error.errno) if error.errno else str(error)
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return SourceNotFound(f"{show(name)} cannot be opened", facts=[told])
    return BuildFailed(f"{show(name)} could not be read", facts=[told])


def open_regular(path: str, name: str) -> int:
    """A descriptor of the regular file at `path`, which is no link; never waits for the other end of a pipe.

    Raises SourceNotFound where it is missing or not readable and BuildFailed where it is not a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(name, error) from error
    try:
        check_regular(os.fstat(descriptor), name)
    except ModelbuildError:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(status: os.stat_result, name: str) -> None:
    """Raises BuildFailed for a folder, a pipe, a socket or a device called `name`."""
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
    raise BuildFailed(f"{show(name)} is not a file", facts=[f"it is {kind}"])


def check_readable(path: str, name: str) -> None:
    """Raises BuildFailed where `path` is no regular file and SourceNotFound where this user may not read it."""
    try:
        check_regular(os.stat(path, follow_symlinks=False), name)
    except OSError as error:
        raise unreadable(name, error) from error
    if not os.access(path, os.R_OK):
        raise unreadable(name, PermissionError(errno.EACCES, "not readable"))
