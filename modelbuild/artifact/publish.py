"""An output folder, whole or not at all: assembled out of sight, then put in the old one's place in one step.

What stands out of sight has the name `.NAME.STATE-RANDOM`. STATE `new`: being assembled, or, after the exchange, the
older output; `old`: set back while the new one moves in, where folders cannot be exchanged; `gone`: being removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from modelbuild.artifact import links
from modelbuild.artifact.edits import OutputFile, OutputRecord, is_inside
from modelbuild.artifact.links import Link
from modelbuild.artifact.older import Older
from modelbuild.cache import disk
from modelbuild.cache.disk import DISK_FULL, Durability
from modelbuild.cache.locks import take
from modelbuild.cache.nouns import Manifest
from modelbuild.errors import BuildFailed, SourceNotFound
from modelbuild.sources.stamps import changed, open_regular

ATTEMPTS = 5
"""How often an output is assembled anew when its folder is removed under it."""

_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<state>new|old|gone)-(?P<random>[0-9a-f]{12})\Z")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of an output: a folder of the cache and the manifest of what lies there."""

    folder: str
    manifest: Manifest


def write_output(
    target: str,
    weights: Weights | None,
    side_files: Mapping[str, bytes | str],
    *,
    key: str,
    edited_root: str,
    link: Link | None = None,
    previous: OutputRecord | None = None,
    durability: Durability = "batch",
    expected: Mapping[str, str] | None = None,
) -> OutputRecord:
    """Write the output folder `target` in one step, and give what was written.

    `side_files` are bytes, or the path of a file to copy, by name (`/` between folders). What somebody changed or added
    in the older output, judged by `previous` or else by its own `modelbuild.json`, is moved to `edited_root/NAME/`; a
    folder that is no output of ours is moved there whole. The notes of the record name all of it. Raises BuildFailed
    when the disk is full, ValueError for names that are paths to somewhere else, and SourceChanged for a file to copy
    that is not there or has not the SHA-256 in `expected`, its digest by name; the older output stays then.
    """
    target = os.path.normpath(target)
    root, name = os.path.dirname(target) or ".", os.path.basename(target)
    _check_names(name, weights, side_files)
    os.makedirs(root, exist_ok=True)
    recover(root)
    told: list[str] = []

    def write() -> dict[str, OutputFile]:
        with _hidden_folder(root, name) as new:
            files, notes = _assemble(new, weights, side_files, link, durability)
            _check_copies(side_files, files, expected or {})
            older = Older(target, previous, os.path.join(edited_root, name), files)
            told.extend([*notes, *older.make_way()])
            displaced = take_place(new, target)
            if durability != "none":
                disk.sync_folder(root)
            if displaced is not None:
                told.extend(older.look_again(displaced))
                _forget(displaced)
        return files

    try:
        files = _again_if_removed(write)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk.full(name, sum(_sizes(weights, side_files)), root) from error
        raise BuildFailed(f"the output {target} cannot be written", facts=(str(error),)) from error
    return OutputRecord(name, key, files, tuple(dict.fromkeys(told)))


def _again_if_removed(write: Callable[[], dict[str, OutputFile]]) -> dict[str, OutputFile]:
    """What `write` gives; where no locks are, another process may take the folder away that is being assembled."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return write()
    return write()


def _sizes(weights: Weights | None, side_files: Mapping[str, bytes | str]) -> Iterator[int]:
    yield from (file.size for file in weights.manifest.files) if weights else ()
    for content in side_files.values():
        yield len(content) if isinstance(content, bytes) else os.path.getsize(content)


def _check_names(name: str, weights: Weights | None, side_files: Mapping[str, bytes | str]) -> None:
    names = [*side_files, *((file.name for file in weights.manifest.files) if weights else ())]
    for file in names:
        if not is_inside(file):
            raise ValueError(f"{file!r} is not the name of a file in an output")
    if len(set(names)) != len(names):
        raise ValueError("a weight file and a side file have the same name")
    if not name or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of an output")


@contextlib.contextmanager
def _hidden_folder(root: str, name: str) -> Iterator[str]:
    """A new folder for assembling `name`, locked so that `recover` of other processes leaves it alone.

    What has that name at the end, if anything, is removed: the folder itself, or the output whose place it took.
    """
    while True:
        new = os.path.join(root, f".{name}.new-{disk.token()}")
        os.mkdir(new)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
            take(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.lexists(new):
                break
            os.close(fd)
    try:
        yield new
    finally:
        os.close(fd)
        _forget(new)


def _assemble(
    new: str,
    weights: Weights | None,
    side_files: Mapping[str, bytes | str],
    link: Link | None,
    durability: Durability,
) -> tuple[dict[str, OutputFile], list[str]]:
    """Fill the folder `new`, and bring it to the disk."""
    files: dict[str, OutputFile] = {}
    ways: set[Link] = set()
    for file in weights.manifest.files if weights else ():
        path = os.path.join(new, file.name)
        ways.add(links.show(os.path.join(weights.folder if weights else "", file.name), path, link))
        if durability != "none":
            _sync(path)
        files[file.name] = _written(path, f"xxh3:{file.checksum}", True)
    for name, content in side_files.items():
        path = os.path.join(new, name)
        _make_folders(new, name)
        digest = _write_side(path, content, durability)
        files[name] = _written(path, digest, False)
    if durability != "none":
        for place, _, _ in os.walk(new, topdown=False):
            disk.sync_folder(place)
    fell_back = link in ("ref", "hard") and "copy" in ways
    return files, [f"weight files are copied: --link {link} is not possible here"] if fell_back else []


def _make_folders(new: str, name: str) -> None:
    """The folders that the file `name` lies in; never `new` itself, which is missing only if it was taken away."""
    parts = name.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(new, *parts[:count]))


def _check_copies(
    side_files: Mapping[str, bytes | str], files: Mapping[str, OutputFile], expected: Mapping[str, str]
) -> None:
    for name, content in side_files.items():
        if isinstance(content, str) and name in expected and files[name].digest != f"sha256:{expected[name]}":
            raise changed(content, "its bytes are not those that were planned with")


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        disk.sync(fd)
    finally:
        os.close(fd)


def _written(path: str, digest: str, is_weight: bool) -> OutputFile:
    facts = os.stat(path)
    return OutputFile(facts.st_size, facts.st_mtime_ns, digest, is_weight, facts.st_ino)


def _write_side(path: str, content: bytes | str, durability: Durability) -> str:
    """Write a side file; its digest."""
    digest = hashlib.sha256()
    with (
        io.BytesIO(content) if isinstance(content, bytes) else _open_source(content) as old,
        open(path, "xb") as new,
    ):
        while chunk := old.read(2**20):
            digest.update(chunk)
            new.write(chunk)
        new.flush()
        if durability != "none":
            disk.sync(new.fileno())
    return f"sha256:{digest.hexdigest()}"


def _open_source(path: str) -> IO[bytes]:
    """A file to copy, which was there when it was planned."""
    try:
        return open(open_regular(path, path), "rb")
    except SourceNotFound as error:
        raise changed(path, *error.faults[0].facts) from None


def take_place(new: str, target: str) -> str | None:
    """Put the folder `new` at `target` in one step; where the folder that stood there is now, None if there was none.

    Where folders cannot be exchanged it takes two renames, the second of which `recover` does if a kill prevents it.
    """
    if not os.path.lexists(target):
        try:
            os.rename(new, target)
            return None
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    if links.exchange(new, target):
        return new
    folder, name = os.path.split(new)
    old = os.path.join(folder, name.replace(".new-", ".old-"))
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    return old


def _forget(path: str) -> None:
    """Remove a hidden folder; a kill leaves what `recover` removes."""
    gone = re.sub(r"\.(new|old)-", ".gone-", path)
    with contextlib.suppress(OSError):
        os.rename(path, gone)
        disk.remove(gone)


def recover(root: str) -> list[str]:
    """Finish or undo what kills left in the folder of outputs; the names of outputs that were put in place.

    What another process works on is left alone.
    """
    found = [match for name in sorted(_hidden(root)) if (match := _HIDDEN.match(name))]
    finished = []
    for match in (match for match in found if match["state"] == "old"):
        target = os.path.join(root, match["name"])
        old, new = (os.path.join(root, match[0].replace(".old-", f".{state}-")) for state in ("old", "new"))
        with contextlib.suppress(OSError):
            if not os.path.lexists(target) and not _is_in_use(new):
                os.rename(new if os.path.lexists(new) else old, target)
                finished.append(match["name"])
    for match in found:
        path = os.path.join(root, match[0])
        if os.path.lexists(path) and not _is_in_use(path):
            _forget(path)
    return finished


def _hidden(root: str) -> Sequence[str]:
    try:
        return [name for name in os.listdir(root) if name.startswith(".")]
    except FileNotFoundError:
        return []


def _is_in_use(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not take(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)
