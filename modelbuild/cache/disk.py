"""What the cache asks of a file system: room in advance, syncs that reach the disk, replacement in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Literal, TypeAlias

from modelbuild.errors import BuildFailed
from modelbuild.units import show_bytes

Durability: TypeAlias = Literal["full", "batch", "none"]
"""How sure it is that what was finished survives a power cut: each tensor at once, within a second, or not at all."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The error numbers that mean that there is no room left."""


def token() -> str:
    """Twelve random hexadecimal digits, for names that nobody else uses."""
    return os.urandom(6).hex()


def sync(fd: int) -> None:
    """Bring the file's bytes and times to the disk itself, past the drive's own cache where the system allows it."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_data(fd: int) -> None:
    """Bring the file's bytes to the disk; its times may follow later."""
    if sys.platform == "darwin":
        sync(fd)
    else:
        os.fdatasync(fd)


def sync_folder(path: str) -> None:
    """Bring the names in a folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def preallocate(fd: int, size: int) -> None:
    """Reserve room for the first `size` bytes of a file, whose content does not change.

    Raises OSError (one of DISK_FULL) when there is none. A file system that cannot reserve is left to find out later:
    the C library's `posix_fallocate` would write zeros there, perhaps over what another process has just written.
    """
    if sys.platform != "linux" or size == 0:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size))
    if result != 0 and (number := ctypes.get_errno()) in DISK_FULL:
        raise OSError(number, os.strerror(number))


def free_bytes(path: str) -> int:
    """Bytes that this user may still write to the file system of `path`."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def write_new(path: str, data: bytes, durability: Durability) -> None:
    """Write a file that must not exist yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durability != "none":
            sync(fd)
    finally:
        os.close(fd)


def replace(path: str, data: bytes, durability: Durability, scratch: str | None = None) -> None:
    """Put a file in the place of an older one in one step; `scratch` is the folder of the file while it is written."""
    folder, name = os.path.split(path)
    temporary = os.path.join(scratch or folder, f".{name}.{token()}")
    try:
        write_new(temporary, data, durability)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durability != "none":
        sync_folder(folder)


def remove(path: str) -> None:
    """Remove a file or a folder with all that is in it, never following links; what is gone already is no error."""
    import shutil

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def discard(path: str, trash: str) -> bool:
    """Take a file or folder out of its place in one step, then remove it; False if it was not there.

    A folder that is half removed never stands under its own name: what a kill leaves is in `trash`.
    """
    away = os.path.join(trash, f"{os.path.basename(path)}-{token()}")
    try:
        os.rename(path, away)
    except FileNotFoundError:
        return False
    remove(away)
    return True


def newest(path: str) -> float:
    """The latest mtime of a folder and what is in it, in seconds since 1970."""
    times = [0.0]
    for folder, _, names in os.walk(path):
        for place in (folder, *(os.path.join(folder, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                times.append(os.lstat(place).st_mtime)
    return max(times)


def full(name: str, needed: int, folder: str) -> BuildFailed:
    """The error that says that the disk of `folder` has no room for `name`, which takes `needed` bytes."""
    free = free_bytes(folder)
    return BuildFailed(
        f"the disk is full: `{name}` does not fit",
        facts=(
            f"it takes {show_bytes(needed)} ({needed} bytes)",
            f"{show_bytes(free)} ({free} bytes) are free in {folder}",
        ),
        hint="free some space, or run `modelbuild cache gc --max-size SIZE`, and build again: what is finished is kept",
    )
