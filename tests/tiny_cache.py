"""A cache of artifacts of a few bytes, and ways to damage it and to be killed at every step."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from modelbuild.cache.nouns import Layout, Manifest, StoredTensor
from modelbuild.cache.stage import Stage
from modelbuild.cache.store import LocalStore
from modelbuild.checksum import checksum

HEADER = b"<header>"
VALUES = {"a": b"aaaaaaaa", "b": b"bbbbbbbb", "c": b"cccccccc", "d": b"dddddddd"}
"""Four tensors of eight bytes: a and b in one file, c and d in another."""

FIRST, SECOND = "model-1.safetensors", "model-2.safetensors"
LAYOUT = Layout(
    sizes={FIRST: 24, SECOND: 24},
    headers={FIRST: HEADER, SECOND: HEADER},
    places={"a": (FIRST, 8, 8), "b": (FIRST, 16, 8), "c": (SECOND, 8, 8), "d": (SECOND, 16, 8)},
)
KEYS = {name: f"key-of-{name}" for name in VALUES}
WHOLE = {FIRST: HEADER + VALUES["a"] + VALUES["b"], SECOND: HEADER + VALUES["c"] + VALUES["d"]}
"""What the files of a finished artifact hold."""


def never(message: str) -> None:
    """A `waiting` that nobody should call."""
    raise AssertionError(message)


def stored(name: str, values: dict[str, bytes] = VALUES, keys: dict[str, str] = KEYS) -> StoredTensor:
    file, offset, nbytes = LAYOUT.places[name]
    return StoredTensor(keys[name], name, "U8", (nbytes,), file, offset, nbytes, checksum(values[name]))


def write(stage: Stage, name: str, values: dict[str, bytes] = VALUES, keys: dict[str, str] = KEYS) -> None:
    """Write one tensor and say that it is finished."""
    file, offset, _ = LAYOUT.places[name]
    os.pwrite(stage.fds[file], values[name], offset)
    stage.record(name, keys[name], checksum(values[name]))


def build(
    store: LocalStore,
    key: str = "k1",
    *,
    values: dict[str, bytes] = VALUES,
    keys: dict[str, str] = KEYS,
    computed: list[str] | None = None,
    waiting: Callable[[str], None] = never,
) -> Manifest:
    """Build the artifact `key` as the engine does; the names of what had to be written go to `computed`."""
    if (found := store.manifest(key)) is not None:
        return found
    with store.stage(key, "model", LAYOUT, keys, waiting=waiting) as stage:
        if stage.published is not None:
            return stage.published
        for name in VALUES:
            if name not in stage.finished:
                write(stage, name, values, keys)
                if computed is not None:
                    computed.append(name)
        return stage.publish([stored(name, values, keys) for name in VALUES])


def interrupt(store: LocalStore, *names: str, key: str = "k1", layout: Layout = LAYOUT, garbage: bytes = b"") -> None:
    """Begin to build, write these tensors (after `garbage` in the first file), and be stopped by Ctrl-C."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        store.stage(key, "model", layout, KEYS, waiting=never) as stage,
    ):
        os.pwrite(stage.fds[FIRST], garbage, 0)
        for name in names:
            write(stage, name)
        raise KeyboardInterrupt


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name; an empty dictionary if there is no folder."""
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def weights(folder: str | Path) -> dict[str, bytes]:
    """The data files of an artifact."""
    return {name: data for name, data in contents(folder).items() if name != "manifest.json"}


def flip(path: str | Path, offset: int, *, keep_time: bool = False) -> None:
    """Flip one bit, as root or a failing disk can."""
    facts = os.stat(path)
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + (0 if keep_time else 10**9)))


STEPS = (
    "open", "write", "pwrite", "rename", "replace", "fsync", "fdatasync", "fchmod", "chmod", "link", "unlink",
    "rmdir", "mkdir", "ftruncate", "close",
)  # fmt: skip
"""The calls before each of which a process is killed."""


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Within, this process is killed just before its `step`-th call that changes a disk; syncs are only counted."""
    count = 0
    originals = {name: getattr(os, name) for name in STEPS}

    def counting(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return None if name in ("fsync", "fdatasync") else original(*arguments, **options)

        return call

    for name, original in originals.items():
        setattr(os, name, counting(name, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def run_and_kill(work: Callable[[], object], step: int) -> bool:
    """Do the work in a process of its own that is killed at its `step`-th step; False if it ended before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with killed_at(step):
                work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, f"the work failed by itself, step {step}"
    return False


def each_kill(folder: Path, prepare: Callable[[Path], Callable[[], object]]) -> Iterator[Path]:
    """For each step of the work that `prepare` readies in a fresh folder: that folder, after the kill."""
    for step in range(1, 1000):
        place = folder / f"kill-{step}"
        place.mkdir()
        work = prepare(place)
        killed = run_and_kill(work, step)
        yield place
        shutil.rmtree(place)
        if not killed:
            assert step > 3, "nothing was done"
            return
    raise AssertionError("the work has no end")
