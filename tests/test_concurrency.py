"""Several builds at once over one cache, with kills and collections in between: each ends right, and says whom it
waits for. What is right never rests on a lock."""

import fcntl
import json
import os
import random
import shutil
import signal
import time

import faults
import pytest
from faults import THOROUGH, Process, litter, run, two_models
from world import World

FAST = ("build", "--durability", "none")
EDIT = ('"a", weight = 0.5', '"a", weight = 0.75')
THREE = """
    [base.a]
    source = "a"
    [base.b]
    source = "b"
    [merge.half]
    method = "linear"
    models = [{ model = "a", weight = 0.5 }, { model = "b", weight = 0.5 }]
    [merge.lean]
    method = "lerp"
    base = "half"
    t = 0.25
    models = [{ model = "b" }]
    [merge.far]
    method = "lerp"
    base = "half"
    t = [0.1, 0.9]
    models = [{ model = "a" }]
    """
TARGETS = ("half", "lean", "far")


@pytest.fixture
def three(world):
    """Three targets, two of them made from the first; and what clean builds make of them."""
    two_models(world).modelfile(THREE)
    copy = world.from_nothing(*TARGETS)
    return world, {name: copy.bytes(name) for name in TARGETS}


def slowly(seconds, call="pwrite"):
    """Some time before each write."""

    def fault(number, name, arguments):
        if name == call:
            time.sleep(seconds)

    return fault


def held(world, writes):
    """Stands still after so many writes, until `let_go`."""
    done = []

    def fault(number, name, arguments):
        if name == "pwrite":
            done.append(number)
            if len(done) > writes:
                until((world.root / "go").exists, 120)

    return fault


def let_go(world):
    (world.root / "go").touch()


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def ended_well(processes):
    for process in processes:
        ran = process.wait()
        assert ran.code == 0, ran.stderr
        assert "Traceback" not in ran.stderr


def test_of_several_builds_of_one_target_one_computes_and_the_others_take_it(world):
    two_models(world)
    clean = world.from_nothing().bytes("m")
    processes = [Process(world, *FAST, "--json", fault=slowly(0.004)) for _ in range(4)]
    computed = 0
    for ran in [process.wait() for process in processes]:
        assert ran.code == 0, ran.stderr
        written = json.loads(ran.stdout)["artifacts"][0]["bytes"]["written"]
        computed += written > 0
    assert computed == 1
    assert world.bytes("m") == clean
    assert litter(world) == []


def test_waiting_for_an_artifact_names_the_process_that_writes_it(world):
    two_models(world)
    first = Process(world, *FAST, fault=held(world, 6))
    until(lambda: first.calls.count("pwrite") > 6)
    waiting = Process(world, *FAST)
    until(lambda: waiting.told().startswith("waiting for"))
    let_go(world)
    second = waiting.wait()
    assert second.code == 0
    host = os.uname().nodename
    told = second.stderr.splitlines()[0]
    assert told.startswith(f"waiting for process {first.pid} on {host}, which has been building `m` since ")
    assert first.wait().stderr == ""


def test_a_collection_waits_for_a_build_and_names_it_and_a_build_for_a_collection(world):
    two_models(world)
    builder = Process(world, *FAST, fault=held(world, 6))
    until(lambda: builder.calls.count("pwrite") > 6)
    waiting = Process(world, "cache", "gc", "--max-size", "0")
    until(lambda: waiting.told().startswith("waiting for"))
    let_go(world)
    gc = waiting.wait()
    assert gc.code == 0
    assert gc.stderr.startswith(f"waiting for process {builder.pid} on "), gc.stderr
    assert "which has been building `m` since" in gc.stderr
    assert builder.wait().code == 0
    world.edit(*EDIT)
    assert run(world, *FAST).code == 0
    world.edit(*EDIT[::-1])
    gc = Process(world, "cache", "gc", "--max-size", "0", fault=slowly(0.5, "rename"))
    until(lambda: "rename" in gc.calls)
    second = run(world, *FAST)
    assert second.code == 0
    assert "waiting for another process, which is removing things from the cache\n" in second.stderr
    assert gc.wait().code == 0
    assert world.bytes("m") == world.from_nothing().bytes("m")


def test_a_build_that_waits_goes_on_when_the_other_one_is_killed(world):
    two_models(world)
    clean = world.from_nothing().bytes("m")
    first = Process(world, *FAST, fault=held(world, 10))
    until(lambda: first.calls.count("pwrite") > 10)
    second = Process(world, *FAST, "--json")
    until(lambda: second.told().startswith("waiting for"))
    first.kill()
    assert first.wait().code == -signal.SIGKILL
    ran = second.wait()
    assert ran.code == 0, ran.stderr
    assert ran.stderr.startswith(f"waiting for process {first.pid} ")
    tensors = json.loads(ran.stdout)["artifacts"][0]["tensors"]
    # It takes over what the other one had finished.
    assert 0 < tensors["computed"] < 21
    assert world.bytes("m") == clean


def test_different_targets_of_one_modelfile_are_built_side_by_side(three):
    world, clean = three
    ended_well([Process(world, *FAST, name, fault=slowly(0.002)) for name in (*TARGETS, *TARGETS)])
    assert {name: world.bytes(name) for name in TARGETS} == clean
    assert litter(world) == []


def test_two_modelfiles_share_a_cache_and_each_others_tensors(three, tmp_path):
    world, clean = three
    other = World(shutil.copytree(world.root, tmp_path / "other"))
    shared = ("--cache", str(tmp_path / "shared"))
    ended_well([Process(place, *FAST, *shared, *TARGETS, fault=slowly(0.002)) for place in (world, other)])
    for place in (world, other):
        assert {name: place.bytes(name) for name in TARGETS} == clean
    again = run(other, *FAST, *shared, *TARGETS, "--json")
    assert [artifact["status"] for artifact in json.loads(again.stdout)["artifacts"]] == ["fresh"] * 3
    # What one of them needs is not collected for the other.
    other.modelfile(other.text.replace("0.25", "0.3"))
    assert run(other, *FAST, *shared, *TARGETS).code == 0
    assert run(other, "cache", "gc", "--max-size", "0", *shared).code == 0
    again = run(world, *FAST, *shared, *TARGETS, "--json")
    assert [artifact["tensors"]["computed"] for artifact in json.loads(again.stdout)["artifacts"]] == [0] * 3


@pytest.mark.parametrize("seed", range(20 if THOROUGH else 3))
def test_kills_at_random_and_a_collection_going_on_all_the_time_leave_no_wrong_byte(three, seed):
    world, clean = three
    chance = random.Random(seed)
    running = []
    for _ in range(14):
        kind = chance.random()
        words = ("cache", "gc", "--max-size", "0") if kind < 0.2 else (*FAST, *chance.sample(TARGETS, 2))
        running.append(Process(world, *words, fault=slowly(0.001)))
        if len(running) < 3:
            continue
        time.sleep(chance.random() * 0.05)
        victim = running.pop(chance.randrange(3))
        if chance.random() < 0.7:
            victim.kill()
        ran = victim.wait()
        assert ran.code in (0, -signal.SIGKILL), ran.stderr
        for name in TARGETS:
            if (world.out / name).exists():
                assert world.bytes(name) == clean[name]
    for process in running:
        assert process.wait().code == 0
    ran = run(world, *FAST, *TARGETS)
    assert ran.code == 0, ran.stderr
    assert {name: world.bytes(name) for name in TARGETS} == clean
    assert run(world, "cache", "verify").code == 0
    # What was kept on the way to two of the targets has a stage that nobody will use again.
    for path in (world.cache / "stage").rglob("*"):
        os.utime(path, (1, 1))
    assert run(world, "cache", "gc").code == 0
    faults.grow_old(world)
    assert run(world, *FAST).code == 0
    assert litter(world) == []


@pytest.mark.parametrize("attempt", range(10 if THOROUGH else 3))
def test_where_locks_do_nothing_all_builds_still_end_right(three, monkeypatch, attempt):
    world, clean = three
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda descriptor, operation: None)
        ended_well([Process(world, *FAST, *TARGETS, fault=slowly(0.001 * (n % 2))) for n in range(4)])
    assert {name: world.bytes(name) for name in TARGETS} == clean
    assert run(world, *FAST, *TARGETS).code == 0
    assert {name: world.bytes(name) for name in TARGETS} == clean
    assert run(world, "cache", "verify").code == 0


def test_where_locks_do_nothing_a_rebuild_by_several_processes_ends_right(world, monkeypatch):
    two_models(world)
    assert run(world, *FAST).code == 0
    world.edit(*EDIT)
    clean = world.from_nothing().bytes("m")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda descriptor, operation: None)
        ended_well([Process(world, *FAST, fault=slowly(0.001 * n)) for n in range(4)])
    assert world.bytes("m") == clean
    assert not (world.out / ".edited").exists()


def test_a_file_system_without_locks_is_no_error(world, monkeypatch):
    two_models(world)

    def refuse(descriptor, operation):
        raise OSError(37, os.strerror(37))  # ENOLCK

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        ran = run(world, *FAST)
        assert (ran.code, ran.stderr) == (0, "")
        assert run(world, "cache", "gc").code == 0
    assert world.bytes("m") == world.from_nothing().bytes("m")


def test_builds_of_one_process_may_follow_each_other_in_threads(three):
    from concurrent.futures import ThreadPoolExecutor

    world, clean = three
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: world.build(name), TARGETS * 2))
    assert {name: world.bytes(name) for name in TARGETS} == clean
