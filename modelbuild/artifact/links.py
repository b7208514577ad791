"""Showing a cached file in an output: by reflink, by hardlink, or as a copy; and folders that trade places."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Literal, TypeAlias

Link: TypeAlias = Literal["ref", "hard", "copy"]

_FICLONE = 0x40049409
_CANNOT = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.EMLINK}
)
_CHUNK = 2**30


def show(source: str, target: str, link: Link | None) -> Link:
    """Make the new file `target` show what `source` holds, and say how that was done.

    Without a wish: by reflink, else by hardlink, else as a copy. "ref" and "hard" fall back to a copy. Raises
    FileExistsError if `target` exists.
    """
    if link in (None, "ref") and reflink(source, target):
        return "ref"
    if link in (None, "hard") and hardlink(source, target):
        return "hard"
    copy(source, target)
    return "copy"


def reflink(source: str, target: str) -> bool:
    """Make `target` a file of its own that shares its blocks with `source` until either is written to.

    False, leaving nothing, where the file system cannot.
    """
    if sys.platform == "darwin":
        return _call("clonefile", os.fsencode(source), os.fsencode(target), 0)
    if sys.platform != "linux":
        return False
    import fcntl

    with open(source, "rb") as old, open(target, "xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError as error:
            os.unlink(target)
            if error.errno not in _CANNOT:
                raise
            return False
    return True


def hardlink(source: str, target: str) -> bool:
    """Make `target` another name of the file `source`; False, leaving nothing, where the file system cannot."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def copy(source: str, target: str) -> None:
    """Make `target` a writable copy of `source`, inside the kernel where it can."""
    with open(source, "rb") as old, open(target, "xb") as new:
        size = os.fstat(old.fileno()).st_size
        if not _copy_in_kernel(old.fileno(), new.fileno(), size):
            old.seek(0)
            while chunk := old.read(2**20):
                new.write(chunk)


def _copy_in_kernel(old: int, new: int, size: int) -> bool:
    """Whether all `size` bytes were copied by `copy_file_range`; if not, `new` is empty."""
    if sys.platform != "linux":
        return False
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(old, new, min(_CHUNK, size - done), done, done)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            count = 0
        if count == 0:
            os.ftruncate(new, 0)
            return False
        done += count
    return True


def exchange(first: str, second: str) -> bool:
    """Let two folders trade names in one step; False, changing nothing, where the system cannot. Raises OSError."""
    if sys.platform == "linux":
        return _call("renameat2", -100, os.fsencode(first), -100, os.fsencode(second), 2)
    if sys.platform == "darwin":
        return _call("renamex_np", os.fsencode(first), os.fsencode(second), 2)
    return False


def _call(function: str, *arguments: int | bytes) -> bool:
    """Call the C library: True when done, False when it cannot. Raises OSError for any other failure."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        result = getattr(library, function)(*arguments)
    except AttributeError:
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number))
