"""SIGKILL before every call that changes the disk: what was whole stays whole, and the next build completes."""

import os

import pytest
from tiny_cache import (
    FIRST,
    KEYS,
    LAYOUT,
    SECOND,
    VALUES,
    WHOLE,
    build,
    contents,
    each_kill,
    flip,
    never,
    run_and_kill,
    stored,
    weights,
    write,
)  # fmt: skip

from modelbuild.cache.collect import gc, listing, verify
from modelbuild.cache.store import open_store

OTHER_KEYS = {name: f"2-{key}" for name, key in KEYS.items()}


def whole_or_absent(store):
    """Check every artifact that is there, byte by byte."""
    for key in store.artifacts():
        assert store.manifest(key) is not None
        assert weights(store.path(key)) == WHOLE
    assert verify(store) == []
    assert store.notes == []


@pytest.mark.parametrize("durability", ["full", "batch", "none"])
def test_killed_at_any_step_of_a_build_the_next_one_completes(tmp_path, durability):
    def prepare(place):
        build(open_store(str(place / "cache"), "none"), "older", keys=OTHER_KEYS)
        return lambda: build(open_store(str(place / "cache"), durability))

    computed_after = set()
    for place in each_kill(tmp_path, prepare):
        store = open_store(str(place / "cache"), "none")
        assert weights(store.path("older")) == WHOLE
        whole_or_absent(store)
        computed: list[str] = []
        build(store, computed=computed)
        computed_after.add(len(computed))
        assert weights(store.path("k1")) == WHOLE
        assert set(store.find(KEYS.values())) == set(KEYS.values())
        store.sweep(max_age_s=0)
        assert os.listdir(store.folders.stages) == []
        assert os.listdir(store.folders.trash) == []
        store.close()
    assert {0, 4} <= computed_after


def test_with_full_durability_a_kill_costs_at_most_the_tensor_being_written(tmp_path):
    recorded = tmp_path / "recorded"

    def work(place):
        store = open_store(str(place / "cache"), "full")
        with store.stage("k1", "model", LAYOUT, KEYS, waiting=never) as stage:
            for name in VALUES:
                write(stage, name)
                with open(recorded, "a") as file:
                    file.write(name)
            stage.publish([stored(name) for name in VALUES])

    def prepare(place):
        recorded.write_text("")
        return lambda: work(place)

    for place in each_kill(tmp_path, prepare):
        store = open_store(str(place / "cache"), "none")
        computed: list[str] = []
        build(store, computed=computed)
        assert not set(recorded.read_text()) & set(computed)
        store.close()


def test_nothing_is_in_the_journal_before_its_data_was_synced(tmp_path, monkeypatch):
    events = []
    store = open_store(str(tmp_path / "cache"), "full")
    with store.stage("k1", "model", LAYOUT, KEYS, waiting=never) as stage:
        numbers = {fd: name for name, fd in stage.fds.items()}
        real_sync, real_write = os.fdatasync, os.write
        monkeypatch.setattr(os, "fdatasync", lambda fd: events.append(("sync", numbers.get(fd))) or real_sync(fd))
        monkeypatch.setattr(os, "write", lambda fd, data: events.append(("line", None)) or real_write(fd, data))
        write(stage, "a")
        write(stage, "d")
    assert events == [
        ("sync", FIRST), ("line", None), ("sync", None), ("sync", SECOND), ("line", None), ("sync", None),
    ]  # fmt: skip


def test_an_artifact_is_renamed_only_after_all_of_it_was_synced(tmp_path, monkeypatch):
    events = []
    store = open_store(str(tmp_path / "cache"), "batch")
    real_sync, real_rename = os.fsync, os.rename
    with store.stage("k1", "model", LAYOUT, KEYS, waiting=never) as stage:
        for name in VALUES:
            write(stage, name)

        def sync(fd):
            events.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).partition("json")[0])
            real_sync(fd)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "rename", lambda a, b: events.append("rename") or real_rename(a, b))
        stage.publish([stored(name) for name in VALUES])
    assert events[:4] == [FIRST, SECOND, ".manifest.", "files"]
    assert events[4:6] == ["rename", "artifacts"]


def test_killed_at_any_step_of_a_collection_every_artifact_is_whole_or_gone(tmp_path):
    def prepare(place):
        store = open_store(str(place / "cache"), "none")
        for number in range(3):
            build(store, f"k{number}", keys={name: f"{number}-{name}" for name in VALUES})
            os.utime(store.path(f"k{number}"), (number + 1, number + 1))
        store.set_root("here", {"k1"}, "the Modelfile here")
        store.close()
        return lambda: gc(open_store(str(place / "cache"), "none"), max_size=0)

    seen = set()
    for place in each_kill(tmp_path, prepare):
        store = open_store(str(place / "cache"), "none")
        whole_or_absent(store)
        seen.add(tuple(store.artifacts()))
        left = [entry.key for entry in listing(store) if not entry.stays]
        assert [entry.key for entry in gc(store, max_size=0).removed] == left
        assert store.artifacts() == ["k1"]
        assert os.listdir(store.folders.trash) == []
        store.close()
    assert {("k0", "k1", "k2"), ("k1", "k2"), ("k1",)} <= seen


def test_killed_while_damage_is_set_aside_the_next_build_completes(tmp_path):
    def prepare(place):
        store = open_store(str(place / "cache"), "none")
        build(store)
        flip(os.path.join(store.path("k1"), FIRST), 8)
        store.close()
        return lambda: open_store(str(place / "cache"), "none").manifest("k1")

    for place in each_kill(tmp_path, prepare):
        store = open_store(str(place / "cache"), "none")
        assert store.manifest("k1") is None
        assert set(store.find(KEYS.values())) <= {"key-of-b", "key-of-c", "key-of-d"}
        build(store)
        assert weights(store.path("k1")) == WHOLE
        store.close()


def test_killed_while_a_root_is_written_the_older_one_counts(tmp_path):
    def prepare(place):
        store = open_store(str(place / "cache"), "none")
        store.set_root("here", {"k1"}, "older")
        return lambda: open_store(str(place / "cache"), "batch").set_root("here", {"k2"}, "newer")

    for place in each_kill(tmp_path, prepare):
        roots = open_store(str(place / "cache"), "none").roots()
        assert (set(roots["here"].keys), roots["here"].note) in [({"k1"}, "older"), ({"k2"}, "newer")]


def test_the_harness_kills_where_it_says(tmp_path):
    assert run_and_kill(lambda: (tmp_path / "x").mkdir(), 1)
    assert contents(tmp_path) == {}
    assert not (tmp_path / "x").exists()
    assert not run_and_kill(lambda: (tmp_path / "x").mkdir(), 2)
    assert (tmp_path / "x").exists()
