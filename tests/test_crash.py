"""Whole or not at all, and nothing twice: builds that are killed, interrupted or refused at any step, through the CLI.

Each test runs the `modelbuild` command in a process that is stopped before one of the calls that change the disk.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import faults
import pytest
from faults import Process, Snapshot, kill_at, litter, refuse, run, some, two_models
from world import World

FAST = ("build", "--jobs", "1", "--durability", "none")
EDIT = ('"a", weight = 0.5', '"a", weight = 0.75')


def whole(folder):
    """The bytes of an output that may be exchanged for another at any moment: all files of one folder, or None."""
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        found = {}
        for name in sorted(os.listdir(place)):
            descriptor = os.open(name, os.O_RDONLY, dir_fd=place)
            with open(descriptor, "rb") as file:
                found[name] = file.read()
        if os.path.samestat(os.fstat(place), os.stat(folder)):
            return found
    except FileNotFoundError:
        pass
    finally:
        os.close(place)
    return whole(folder)


class Scene(SimpleNamespace):
    """A world in three states: `fresh` (never built), `older` (built), `edited` (built, then the Modelfile edited).

    `before` and `after` are the bytes that clean builds of the two Modelfiles make.
    """

    def counts(self):
        """What the next build makes of `m`: its counts, after it was checked to be right and tidy."""
        faults.grow_old(self.world)
        ran = run(self.world, *FAST, "--json")
        assert ran.code == 0, ran.stderr
        assert self.world.bytes("m") == self.after
        assert litter(self.world) == []
        tensors = json.loads(ran.stdout)["artifacts"][-1]["tensors"]
        assert tensors["computed"] + tensors["reused"] == tensors["total"] == 21
        return tensors


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash")
    world = two_models(World(folder / "world"))
    before = world.from_nothing().bytes("m")
    fresh = Snapshot(world)
    assert run(world, *FAST).code == 0
    older = Snapshot(world)
    world.edit(*EDIT)
    edited = Snapshot(world)
    after = world.from_nothing().bytes("m")
    assert before != after
    yield Scene(world=world, fresh=fresh, older=older, edited=edited, before=before, after=after)
    shutil.rmtree(folder)


def steps_of(scene, snapshot, *words):
    """How many steps a command has, from a snapshot on."""
    snapshot.restore()
    ran = run(scene.world, *words)
    assert ran.code == 0, ran.stderr
    return ran.steps


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


def test_killed_at_any_step_of_a_first_build_there_is_no_output_or_all_of_it(scene):
    total = steps_of(scene, scene.fresh, *FAST)
    assert total > 80
    computed = []
    for step in some(total, 20):
        scene.fresh.restore()
        assert run(scene.world, *FAST, fault=kill_at(step)).code == -signal.SIGKILL
        assert whole(scene.world.out / "m") in (None, scene.before)
        faults.grow_old(scene.world)
        ran = run(scene.world, *FAST, "--json")
        assert ran.code == 0, (step, ran.stderr)
        assert scene.world.bytes("m") == scene.before, step
        assert litter(scene.world) == [], step
        computed.append(json.loads(ran.stdout)["artifacts"][-1]["tensors"]["computed"])
    # A tensor whose line is in the journal is never computed again.
    assert computed == sorted(computed, reverse=True)
    assert computed[0] == 21
    assert computed[-1] == 0
    assert len(set(computed)) > 5


def test_killed_at_any_step_of_a_rebuild_the_older_output_stays_whole_until_the_new_one_is(scene):
    total = steps_of(scene, scene.edited, *FAST)
    stood = []
    for step in some(total, 25):
        scene.edited.restore()
        assert run(scene.world, *FAST, fault=kill_at(step)).code == -signal.SIGKILL
        stood.append(whole(scene.world.out / "m"))
        assert stood[-1] in (scene.before, scene.after), step
        scene.counts()
    new = [found == scene.after for found in stood]
    assert new == sorted(new)
    assert set(new) == {False, True}


def test_with_syncs_in_batches_a_killed_rebuild_is_completed_too(scene):
    words = ("build", "--jobs", "1", "--durability", "batch")
    total = steps_of(scene, scene.edited, *words)
    for step in some(total, 12):
        scene.edited.restore()
        ran = run(scene.world, *words, fault=kill_at(step))
        assert ran.code in (0, -signal.SIGKILL), ran.stderr
        assert whole(scene.world.out / "m") in (scene.before, scene.after)
        scene.counts()


def test_an_observer_sees_one_whole_output_at_every_instant(scene):
    scene.edited.restore()
    seen, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            seen.append(whole(scene.world.out / "m"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for turn in range(8):
            scene.world.edit(*(reversed(EDIT) if turn % 2 == 0 else EDIT))
            assert run(scene.world, *FAST, "--link", ("hard", "copy")[turn // 4]).code == 0
    finally:
        stop.set()
        watcher.join()
    assert len(seen) > 50
    assert all(found in (scene.before, scene.after) for found in seen)
    assert any(found == scene.before for found in seen)
    assert any(found == scene.after for found in seen)


def test_a_second_kill_while_resuming_costs_nothing_either(scene):
    scene.edited.restore()
    for step in (40, 30, 25):
        assert run(scene.world, *FAST, fault=kill_at(step)).code == -signal.SIGKILL
        assert whole(scene.world.out / "m") == scene.before
    # The journal of three builds: each took over what the ones before had finished.
    assert scene.counts()["reused"] > 14


def test_killed_at_any_step_of_a_collection_every_build_is_right_afterwards(scene):
    gc = ("cache", "gc", "--max-size", "0")
    scene.edited.restore()
    assert run(scene.world, *FAST).code == 0
    full = Snapshot(scene.world)
    total = steps_of(scene, full, *gc)
    left = set()
    for step in some(total, 12):
        full.restore()
        assert run(scene.world, *gc, fault=kill_at(step)).code == -signal.SIGKILL
        assert whole(scene.world.out / "m") == scene.after
        left.add(len(os.listdir(scene.world.cache / "artifacts")))
        verified = run(scene.world, "cache", "verify")
        assert verified.code == 0, verified.stdout
        assert run(scene.world, *gc).code == 0
        assert litter(scene.world) == []
        assert scene.counts() == {"total": 21, "computed": 0, "copied": 0, "reused": 21}
    assert left == {1, 2}


def test_killed_at_any_step_of_writing_the_lock_it_is_the_old_one_or_the_new(scene):
    scene.older.restore()
    lock = scene.world.root / "Modelfile.lock"
    old = lock.read_bytes()
    scene.world.edit("[merge.m]", '[base.c]\nsource = "b"\n[merge.m]')
    changed = Snapshot(scene.world)
    total = steps_of(scene, changed, "lock")
    new = lock.read_bytes()
    assert new != old
    found = []
    for step in range(1, total + 1):
        changed.restore()
        assert run(scene.world, "lock", fault=kill_at(step)).code == -signal.SIGKILL
        found.append(lock.read_bytes())
        assert found[-1] in (old, new)
        assert run(scene.world, "lock").code == 0
        assert lock.read_bytes() == new
    assert found[0] == old
    assert found[-1] == new


def test_killed_while_the_records_are_written_the_next_build_computes_nothing_and_knows_why(scene):
    total = steps_of(scene, scene.edited, *FAST)
    for step in range(total - 15, total + 1):
        scene.edited.restore()
        assert run(scene.world, *FAST, fault=kill_at(step)).code == -signal.SIGKILL
        assert scene.counts()["computed"] == 0, step
        told = run(scene.world, "why", "m")
        assert told.code == 0
        assert run(scene.world, *FAST).stdout == "m: nothing to do (21 tensors, build/m)\n"


def test_a_real_process_killed_from_outside_is_resumed_in_the_middle_of_many_tensors(scene):
    scene.edited.restore()
    slow = (
        "import os, sys, time; pwrite = os.pwrite\n"
        "def wait(*given):\n    time.sleep(0.1)\n    return pwrite(*given)\n"
        "os.pwrite = wait; sys.argv = ['modelbuild', *sys.argv[1:]]\n"
        "from modelbuild.__main__ import main; main()"
    )
    command = [sys.executable, "-c", slow, *FAST]
    process = subprocess.Popen(command, cwd=scene.world.root, stderr=subprocess.DEVNULL)
    journal_of(scene.world, 5)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert whole(scene.world.out / "m") == scene.before
    counts = scene.counts()
    assert 5 <= counts["reused"] < 21
    assert counts["computed"] == 21 - counts["reused"]


def journal_of(world, lines):
    """Waits until a journal in the stage has that many lines."""
    deadline = time.monotonic() + 60
    while True:
        found = list(world.cache.glob("stage/*/journal"))
        if found and len(found[0].read_bytes().split(b"\n\n")) > lines:
            return
        assert time.monotonic() < deadline, "nothing was finished in a minute"
        time.sleep(0.01)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_exits_130_and_keeps_what_is_finished(scene):
    total = steps_of(scene, scene.edited, *FAST)
    for step in some(total, 10):
        scene.edited.restore()
        ran = run(scene.world, *FAST, "--json", fault=faults.interrupt_at(step))
        assert (ran.code, "Traceback" in ran.stderr) in ((130, False), (0, False)), (step, ran.stderr)
        if ran.code == 130:
            assert ran.stderr.startswith("error: interrupted\n"), ran.stderr
            assert json.loads(ran.stdout)["error"]["exit_code"] == 130
        assert whole(scene.world.out / "m") in (scene.before, scene.after)
        scene.counts()


def test_ctrl_c_in_the_middle_says_that_building_again_goes_on_from_there(scene):
    scene.edited.restore()
    ran = run(scene.world, *FAST, fault=faults.interrupt_at(40))
    assert ran.code == 130
    assert ran.stderr == "error: interrupted\n\nhint: build again: what is finished is kept\n"
    assert scene.counts()["reused"] >= 10


def test_a_signal_from_outside_stops_all_threads_soon(scene):
    scene.edited.restore()

    def slowly(number, name, arguments):
        if name == "pwrite":
            time.sleep(0.05)

    process = Process(scene.world, "build", "--jobs", "3", fault=slowly)
    journal_or_steps(process, 30)
    process.kill(signal.SIGINT)
    assert process.wait().code == 130
    counts = scene.counts()
    assert counts["reused"] > 0
    assert counts["computed"] > 0


def journal_or_steps(process, steps):
    """Waits until a process has done that many steps."""
    deadline = time.monotonic() + 30
    while process.steps < steps:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- a full disk, a disk that fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "after"),
    [
        (("pwrite",), 0), (("pwrite",), 2), (("pwrite",), 3), (("pwrite",), 12), (("preallocate",), 0),
        (("ftruncate",), 2), (("mkdir",), 9), (("mkdir",), 10), (("mkdir",), 11), (("open",), 0), (("open",), 3),
        (("link",), 0), (("open",), 8), (("open",), 9), (("open",), 10), (("write",), 0), (("write",), 21),
        (("write",), 22), (("replace",), 0), (("replace",), 1), (("replace",), 2), (("replace",), 3),
    ],
)  # fmt: skip
def test_a_disk_that_fills_up_at_any_call_is_one_error_and_the_next_build_goes_on(scene, calls, after):
    scene.edited.restore()
    ran = run(scene.world, *FAST, "--json", fault=refuse(calls, errno.ENOSPC, after))
    assert "Traceback" not in ran.stderr
    assert ran.code in (0, 1), ran.stderr
    if ran.code == 1:
        assert ran.stderr.startswith("error: "), ran.stderr
        assert "the disk is full" in ran.stderr or "No space left on device" in ran.stderr
        assert json.loads(ran.stdout)["error"]["exit_code"] == 1
    assert whole(scene.world.out / "m") in (scene.before, scene.after)
    scene.counts()


def test_a_full_disk_is_told_with_the_bytes_needed_and_free_and_what_is_finished_is_kept(scene):
    scene.edited.restore()
    ran = run(scene.world, *FAST, fault=refuse(("pwrite",), errno.ENOSPC, after=12))
    size = len(scene.after["model.safetensors"])
    assert ran.code == 1
    first, *facts = ran.stderr.splitlines()
    assert first == "error: the disk is full: `m` does not fit"
    assert facts[0] == f"   |  it takes {size / 1000:.1f} kB ({size} bytes)"
    assert "bytes) are free in " in facts[1]
    assert facts[3].startswith("hint: free some space")
    assert whole(scene.world.out / "m") == scene.before
    assert scene.counts()["reused"] >= 8


def test_a_disk_that_is_really_full_is_told_before_the_work_and_goes_on_when_there_is_room(scene, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    if shutil.which("mount") is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    try:
        scene.older.restore()
        where = ("--cache", str(small / "cache"), "--out", str(small / "build"))
        assert run(scene.world, *FAST, *where).code == 0
        scene.world.edit(*EDIT)
        ballast = small / "ballast"
        with open(ballast, "wb") as file:
            file.write(bytes(int(os.statvfs(small).f_bavail * os.statvfs(small).f_frsize) - 40_000))
        ran = run(scene.world, *FAST, *where)
        assert (ran.code, ran.stderr.splitlines()[0]) == (1, "error: the disk is full: `m` does not fit")
        assert whole(small / "build" / "m") == scene.before
        ballast.unlink()
        assert run(scene.world, *FAST, *where).code == 0
        assert whole(small / "build" / "m") == scene.after
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_source_that_cannot_be_read_is_named_and_the_older_output_stays(scene, monkeypatch):
    scene.edited.restore()
    real = os.preadv

    def preadv(descriptor, buffers, offset):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/b/model.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        ran = run(scene.world, *FAST, "--json")
    assert ran.code == 1
    assert ran.stderr.splitlines()[0].endswith("b/model.safetensors` could not be read")
    assert "Input/output error" in ran.stderr
    (failed,) = json.loads(ran.stdout)["artifacts"]
    assert (failed["name"], failed["status"], failed["error"]["exit_code"]) == ("m", "failed", 1)
    assert whole(scene.world.out / "m") == scene.before
    assert scene.counts()["computed"] == 21


def test_a_disk_that_cannot_be_written_is_told_and_nothing_is_lost(scene):
    scene.edited.restore()
    ran = run(scene.world, *FAST, fault=refuse(("pwrite",), errno.EIO, after=10))
    assert (ran.code, "Traceback" in ran.stderr) == (1, False)
    assert "Input/output error" in ran.stderr
    assert whole(scene.world.out / "m") == scene.before
    assert scene.counts()["reused"] >= 6


# --- what killed builds leave behind ----------------------------------------------------------------------------------


def test_the_stage_of_another_plan_is_swept_after_a_day_by_any_build(scene):
    scene.older.restore()
    scene.world.edit('"a", weight = 0.5', '"a", weight = 0.9')
    assert run(scene.world, *FAST, fault=kill_at(40)).code == -signal.SIGKILL
    (stage,) = (scene.world.cache / "stage").iterdir()
    scene.world.edit('"a", weight = 0.9', '"a", weight = 0.75')
    assert run(scene.world, *FAST).code == 0
    assert list((scene.world.cache / "stage").iterdir()) == [stage]
    for path in [*stage.rglob("*"), stage]:
        os.utime(path, (time.time() - 90_000,) * 2)
    scene.world.edit('"a", weight = 0.75', '"a", weight = 0.25')
    assert run(scene.world, *FAST).code == 0
    assert list((scene.world.cache / "stage").iterdir()) == []
