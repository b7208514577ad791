"""Faults on demand: `modelbuild WORDS` in a process of its own that is killed, interrupted or refused at one step.

A step is a call that changes a disk. The process is forked from this one, which has its kernels compiled already, so a
whole build takes milliseconds and every step of it can be a test. MODELBUILD_TEST_THOROUGH=1 tries all of them.
"""

import builtins
import contextlib
import functools
import gc
import io
import itertools
import mmap
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from world import World

THOROUGH = os.environ.get("MODELBUILD_TEST_THOROUGH", "") not in ("", "0")

CALLS = (
    "write", "pwrite", "rename", "replace", "fsync", "fdatasync", "fchmod", "chmod", "link", "unlink", "rmdir", "mkdir",
    "ftruncate", "copy_file_range", "utime",
)  # fmt: skip
"""Functions of `os` that are steps; so are a file opened for writing, an exchange of folders and a reservation."""

SYNCS = ("fsync", "fdatasync")


class Ran(NamedTuple):
    """What a process came to: its exit code (minus the signal that killed it), what it said, its steps by name."""

    code: int
    stdout: str
    stderr: str
    calls: list[str]

    @property
    def steps(self):
        """How many steps there were."""
        return len(self.calls)


class Process:
    """`modelbuild WORDS` under way in the folder of a world, with `fault` installed before it starts.

    Functions of `os` in `also` are steps too; `user` is the number of the user who runs it.
    """

    def __init__(self, world, *words, fault=None, env=None, also=(), user=None):
        warm()
        self._shared = mmap.mmap(-1, 2**20)
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(world, words, fault, env or {}, also, user)

    def _live(self, world, words, fault, env, also, user):
        code = 1
        try:
            os.chdir(world.root)
            for number, file in enumerate(self._files, 1):
                os.dup2(file.fileno(), number)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for name in [name for name in os.environ if name.startswith(("MODELBUILD_", "HF_"))]:
                if name != "MODELBUILD_KERNEL_CACHE":
                    del os.environ[name]
            os.environ.update(env)
            sys.argv = ["modelbuild", *words]
            from modelbuild.__main__ import main

            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            count_steps(self._shared, fault, also)
            main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self, number=signal.SIGKILL):
        """Sends a signal."""
        os.kill(self.pid, number)

    @property
    def steps(self):
        """How many steps it has done or begun so far."""
        return len(self.calls)

    @property
    def calls(self):
        """The steps it has done or begun so far, by name."""
        end = struct.unpack("q", self._shared[:8])[0]
        return self._shared[8 : 8 + end].decode().split("\n")[:-1]

    def told(self):
        """What it has written on stderr so far."""
        return os.pread(self._files[1].fileno(), 2**20, 0).decode()

    def over(self):
        """Whether it has ended, without waiting and without reaping it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self):
        """Waits for its end."""
        _, status = os.waitpid(self.pid, 0)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return Ran(os.waitstatus_to_exitcode(status), *texts, self.calls)


@functools.cache
def warm():
    """Has everything imported and compiled that a build needs, so that a forked process starts at once."""
    from modelbuild.cli import app

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        world = two_models(World(Path(folder) / "world"))
        for words in (["build", "--json"], ["cache", "size"]):
            app(["-f", str(world.path), *words, "--cache", f"{folder}/cache"], standalone_mode=False)
    gc.freeze()


def two_models(world):
    """Two models of 21 tensors each and their linear merge `m`, which takes all of both."""
    world.root.mkdir(exist_ok=True)
    return world.model("a", seed=1).model("b", seed=2).modelfile(LINEAR)


LINEAR = """\
    [base.a]
    source = "a"
    [base.b]
    source = "b"
    [merge.m]
    method = "linear"
    models = [{ model = "a", weight = 0.5 }, { model = "b", weight = 0.5 }]
    """


def run(world, *words, **options):
    """Runs `modelbuild WORDS` to its end; options are those of `Process`."""
    return Process(world, *words, **options).wait()


def count_steps(shared, fault, also=()):
    """From now on each step is counted, and `fault(number, name, arguments)` is called before it.

    Functions of `os` in `also` count as steps too.
    """

    lock, steps = threading.Lock(), itertools.count(1)

    def counted(name, original):
        def call(*arguments, **options):
            with lock:
                number = next(steps)
                end = struct.unpack("q", shared[:8])[0]
                shared[8 + end : 9 + end + len(name)] = f"{name}\n".encode()
                shared[:8] = struct.pack("q", end + len(name) + 1)
            if fault is not None:
                fault(number, name, arguments)
            return None if name in SYNCS else original(*arguments, **options)

        return call

    from modelbuild.artifact import links
    from modelbuild.cache import disk

    for name in (*CALLS, *also):
        setattr(os, name, counted(name, getattr(os, name)))
    links.exchange = counted("exchange", links.exchange)
    disk.preallocate = counted("preallocate", disk.preallocate)
    plain, writing = builtins.open, counted("open", builtins.open)

    def choose(file, mode="r", *arguments, **options):
        return (writing if set(mode) & set("wxa+") else plain)(file, mode, *arguments, **options)

    builtins.open = choose


def kill_at(step):
    """SIGKILL before that step."""
    return at(step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def interrupt_at(step):
    """Ctrl-C before that step."""
    return at(step, lambda: os.kill(os.getpid(), signal.SIGINT))


def once(name, number, action):
    """Does something just before the call of that name with that number, counted from 1."""
    seen = 0

    def fault(_, called, arguments):
        nonlocal seen
        seen += called == name
        if called == name and seen == number:
            action()

    return fault


def at(step, action):
    """Does something just before that step."""

    def fault(number, name, arguments):
        if number == step:
            action()

    return fault


def refuse(names, error_number, after=0):
    """An OSError in place of each of these calls, but for the first `after` of them."""
    seen = 0

    def fault(number, name, arguments):
        nonlocal seen
        if name in names:
            seen += 1
            if seen > after:
                raise OSError(error_number, os.strerror(error_number))

    return fault


def some(total, wanted, always=()):
    """The numbers from 1 to `total` if the tests are thorough; else about `wanted` of them, evenly spread."""
    stride = 1 if THOROUGH else max(1, total // wanted)
    return sorted({*range(1, total + 1, stride), *(n for n in always if 1 <= n <= total), total})


class Snapshot:
    """What a world's builds made and its Modelfile, to be put back as often as wanted: same bytes, times, hard links.

    The sources stay as they are.
    """

    def __init__(self, world):
        self._world = world
        self._kept = World(tempfile.mkdtemp(prefix="snapshot-", dir=world.root.parent))
        _clone(world, self._kept)

    def restore(self):
        """Puts everything back."""
        for path in _parts(self._world):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        _clone(self._kept, self._world)


def _parts(world):
    return world.path, world.root / "Modelfile.lock", world.cache, world.out


def _clone(old, new):
    seen = {}

    def copy(source, target):
        facts = os.lstat(source)
        if (first := seen.setdefault(facts.st_ino, target)) != target:
            return os.link(first, target)
        return shutil.copy2(source, target, follow_symlinks=False)

    for source, target in zip(_parts(old), _parts(new), strict=True):
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, copy_function=copy)
        elif source.exists():
            copy(source, target)


def litter(world):
    """What has no place after a build: names that are staged, half removed, hidden or temporary."""
    places = [world.cache / name for name in ("stage", "trash", "aside", "locks")] + [world.out, world.root]
    found = [path for place in places if place.is_dir() for path in place.iterdir()]
    told = [str(path.relative_to(world.root)) for path in found]
    good = re.compile(r"cache/locks/(\.cache|\w+)|build/(\.edited|\w+)|Modelfile(\.lock)?|\w+")
    return sorted(name for name in told if not good.fullmatch(name))


def grow_old(world, seconds=120):
    """Makes temporary files as old as if their writers had been killed some time ago."""
    for path in world.root.glob("*.tmp"):
        os.utime(path, (time.time() - seconds,) * 2)
