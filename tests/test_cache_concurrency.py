import os
import re
import signal
import socket
import threading
import time
import traceback

import pytest
from tiny_cache import FIRST, KEYS, LAYOUT, VALUES, WHOLE, build, flip, never, stored, weights, write

from modelbuild.cache import check, locks
from modelbuild.cache.collect import gc
from modelbuild.cache.store import open_store
from modelbuild.errors import BuildFailed


def in_process(work):
    """Run the work in a process of its own; its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended_well(pids):
    return all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in pids)


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def slow_build(root, log):
    """Build, and write down what was computed, one letter each."""
    computed = []

    class Slow(list):
        def append(self, name):
            computed.append(name)
            time.sleep(0.005)

    build(open_store(root, "none"), computed=Slow(), waiting=lambda _: None)
    with open(log, "a") as file:
        file.write("".join(computed))


def test_of_four_processes_one_builds_and_the_others_wait(tmp_path):
    root, log = str(tmp_path / "cache"), tmp_path / "log"
    assert ended_well([in_process(lambda: slow_build(root, log)) for _ in range(4)])
    assert log.read_text() == "abcd"
    store = open_store(root)
    assert weights(store.path("k1")) == WHOLE
    assert store.manifest("k1") is not None


@pytest.mark.parametrize("attempt", range(10))
def test_four_processes_for_which_locks_do_nothing_still_build_right(tmp_path, monkeypatch, attempt):
    monkeypatch.setattr(locks, "take", lambda fd, operation: True)
    root, log = str(tmp_path / "cache"), tmp_path / "log"
    assert ended_well([in_process(lambda: slow_build(root, log)) for _ in range(4)])
    store = open_store(root)
    assert store.manifest("k1") is not None
    assert weights(store.path("k1")) == WHOLE
    assert store.notes == []
    assert store.artifacts() == ["k1"]
    store.sweep(max_age_s=0)
    assert os.listdir(store.folders.stages) == []


def test_killed_builders_for_which_locks_do_nothing_hand_over(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "take", lambda fd, operation: True)
    root, log = str(tmp_path / "cache"), tmp_path / "log"
    pids = [in_process(lambda: slow_build(root, log)) for _ in range(4)]
    time.sleep(0.01)
    for pid in pids[:3]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert ended_well(pids[3:])
    assert weights(open_store(root).path("k1")) == WHOLE


def test_two_stages_of_one_artifact_write_the_same_files_and_both_publish(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "take", lambda fd, operation: True)
    first, second = (open_store(str(tmp_path / "cache"), "none") for _ in range(2))
    with (
        first.stage("k1", "m", LAYOUT, KEYS, waiting=never) as one,
        second.stage("k1", "m", LAYOUT, KEYS, waiting=never) as two,
    ):
        for name in VALUES:
            write(one, name)
            write(two, name)
        manifest = one.publish([stored(name) for name in VALUES])
        write(two, "a")
        assert two.publish([stored(name) for name in VALUES]) == manifest
    assert weights(first.path("k1")) == WHOLE
    assert open_store(first.folders.root).manifest("k1") == manifest
    assert os.listdir(first.folders.stages) == []


def test_a_stage_that_was_removed_under_a_build_publishes_nothing(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage:
        for name in VALUES:
            write(stage, name)
        os.rename(store.folders.stage("k1"), tmp_path / "elsewhere")
        with pytest.raises(BuildFailed, match="was removed while it was built"):
            stage.publish([stored(name) for name in VALUES])
    assert store.manifest("k1") is None


def test_a_staged_file_that_was_replaced_under_a_build_is_not_published(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage:
        for name in VALUES:
            write(stage, name)
        for name in LAYOUT.sizes:
            path = os.path.join(store.folders.stage("k1"), "files", name)
            os.unlink(path)
            with open(path, "wb") as file:
                file.write(bytes(24))
        with pytest.raises(BuildFailed):
            stage.publish([stored(name) for name in VALUES])
    assert store.manifest("k1") is None


def test_an_artifact_published_between_two_looks_at_it_is_not_taken_for_damage(tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "cache"), "none")
    other = open_store(store.folders.root, "none")

    def and_then_publish(look):
        def late(path, *arguments, **options):
            try:
                return look(path, *arguments, **options)
            except FileNotFoundError:
                monkeypatch.undo()
                build(other)
                raise

        return late

    monkeypatch.setattr(os, "lstat", and_then_publish(os.lstat))
    monkeypatch.setattr("builtins.open", and_then_publish(open))
    assert store.manifest("k1") is None
    assert store.manifest("k1") is not None
    assert store.notes == []


def test_an_artifact_made_anew_by_another_process_is_not_set_aside_for_its_predecessors_damage(tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "cache"), "none")
    build(store)
    flip(os.path.join(store.path("k1"), FIRST), 9)
    real = check.examine

    def slow(*arguments):
        health = real(*arguments)
        monkeypatch.undo()
        other = open_store(store.folders.root, "none")
        assert other.manifest("k1") is None
        build(other)
        return health

    monkeypatch.setattr(check, "examine", slow)
    assert store.manifest("k1") is None
    assert store.manifest("k1") is not None
    assert weights(store.path("k1")) == WHOLE


def test_who_waits_is_told_once_for_whom(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    messages = []
    with store.stage("k1", "chronolima", LAYOUT, KEYS, waiting=never):
        waiter = threading.Thread(target=lambda: build(open_store(store.folders.root), waiting=messages.append))
        waiter.start()
        until(lambda: messages)
    waiter.join()
    (message,) = messages
    process = rf"process {os.getpid()} on {re.escape(socket.gethostname())}"
    expected = rf"waiting for {process}, which has been building `chronolima` since \d\d:\d\d:\d\d"
    assert re.fullmatch(expected, message)
    assert weights(store.path("k1")) == WHOLE


def test_a_lock_file_of_garbage_still_lets_people_wait(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    messages = []
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never):
        with open(store.folders.lock("k1"), "wb") as file:
            file.write(b"\xff garbage")
        waiter = threading.Thread(target=lambda: build(open_store(store.folders.root), waiting=messages.append))
        waiter.start()
        until(lambda: messages)
    waiter.join()
    assert messages == ["waiting for another process"]


def test_a_killed_process_holds_no_lock(tmp_path):
    root, ready = str(tmp_path / "cache"), tmp_path / "ready"

    def hold():
        store = open_store(root)
        with store.shared("m"), store.stage("k1", "m", LAYOUT, KEYS, waiting=never):
            ready.touch()
            time.sleep(60)

    pid = in_process(hold)
    until(ready.exists)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    store = open_store(root, "none")
    build(store)
    assert gc(store, waiting=never).removed == ()
    assert locks.builders(store.folders.locks) == []


def test_a_lock_file_that_is_removed_while_somebody_waits_is_not_the_lock_he_gets(tmp_path):
    path = str(tmp_path / "lock")
    order = []

    def wait():
        with locks.exclusive(path, "second", lambda _: order.append("waits")):
            order.append("second")

    with locks.exclusive(path, "first", never):
        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: order)
        os.unlink(path)
    waiter.join()
    assert order == ["waits", "second"]
    assert os.path.exists(path)


def test_collection_waits_for_every_build_and_says_for_whom(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    build(store)
    messages = []
    collector = threading.Thread(target=lambda: gc(open_store(store.folders.root), 0, waiting=messages.append))
    with store.shared("chronolima"), open_store(store.folders.root).shared("airo"), store.shared("again"):
        collector.start()
        until(lambda: messages)
        assert store.manifest("k1") is not None
    collector.join()
    (message,) = messages
    assert "`chronolima`" in message
    assert "`airo`" in message
    assert store.manifest("k1") is None


def test_a_build_waits_for_collection(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    messages = []

    def enter():
        with open_store(store.folders.root).shared("m", messages.append):
            pass

    with store.alone():
        builder = threading.Thread(target=enter)
        builder.start()
        until(lambda: messages)
    builder.join()
    assert messages == ["waiting for another process, which is removing things from the cache"]


def test_collecting_inside_a_build_is_refused_instead_of_waiting_for_itself(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    with store.shared("m"), pytest.raises(RuntimeError, match="during a build"):
        gc(store)


def test_a_file_system_without_locks_grants_every_lock(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    store = open_store(str(tmp_path / "cache"), "none")
    with store.shared("m"):
        build(store)
    assert gc(store, waiting=never).removed == ()
    assert weights(store.path("k1")) == WHOLE


def test_many_threads_record_and_nothing_is_lost(tmp_path):
    store = open_store(str(tmp_path / "cache"), "batch")
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage:
        threads = [threading.Thread(target=write, args=(stage, name)) for name in VALUES for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage:
        assert set(stage.finished) == set(VALUES)


def test_the_journal_is_written_in_the_background_within_its_interval(tmp_path, monkeypatch):
    monkeypatch.setattr("modelbuild.cache.journal.INTERVAL", 0.01)
    store = open_store(str(tmp_path / "cache"), "batch")
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage:
        journal = os.path.join(store.folders.stage("k1"), "journal")
        write(stage, "a")
        until(lambda: os.path.getsize(journal) > 0)


def test_processes_that_use_one_index_at_once_find_everything(tmp_path):
    root = str(tmp_path / "cache")
    build(open_store(root, "none"))
    os.unlink(os.path.join(root, "index.sqlite"))

    def look():
        store = open_store(root)
        assert set(store.find(KEYS.values())) == set(KEYS.values())
        assert all("damaged" not in note for note in store.notes)

    assert ended_well([in_process(look) for _ in range(6)])
