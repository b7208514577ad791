import os
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cache import FIRST, KEYS, LAYOUT, SECOND, VALUES, WHOLE, build, flip, interrupt, never, weights

from modelbuild.cache.collect import gc, verify
from modelbuild.cache.manifest import dump_manifest, parse_manifest
from modelbuild.cache.store import open_store


@pytest.fixture
def store(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    build(store)
    return store


@pytest.fixture
def blank(tmp_path):
    return open_store(str(tmp_path / "blank"), "none")


def path(store, name, key="k1"):
    return os.path.join(store.path(key), name)


def rebuild(store):
    """What a build that finds cached tensors would compute, with the artifact whole again afterwards."""
    assert store.manifest("k1") is None
    found = store.find(KEYS.values())
    for name, key in KEYS.items():
        if key in found:
            with open(found[key].path, "rb") as file:
                file.seek(found[key].offset)
                assert file.read(8) == VALUES[name]
    build(store)
    assert weights(store.path("k1")) == WHOLE
    return [name for name, key in KEYS.items() if key not in found]


@pytest.mark.parametrize(
    ("offset", "lost"), [*((n, []) for n in range(8)), *((n, ["a"]) for n in range(8, 16)), (16, ["b"]), (23, ["b"])]
)
def test_a_flipped_bit_costs_only_the_tensor_it_is_in(store, offset, lost):
    flip(path(store, FIRST), offset)
    assert rebuild(store) == lost
    assert len(store.notes) == 1
    assert f"`{FIRST}`" in store.notes[0]
    assert ("in its header" if not lost else f"wrong bytes in `{lost[0]}`") in store.notes[0]
    assert ("made anew" if not lost else "1 of 4 tensors are made anew") in store.notes[0]


@pytest.mark.parametrize(
    ("size", "lost"), [(0, ["c", "d"]), (8, ["c", "d"]), (15, ["c", "d"]), (16, ["d"]), (23, ["d"])]
)
def test_a_truncated_file_costs_the_tensors_that_are_cut(store, size, lost):
    os.truncate(path(store, SECOND), size)
    assert rebuild(store) == lost
    assert f"it has {size} bytes instead of 24" in store.notes[0]


def test_a_file_that_grew_is_damaged_though_its_tensors_are_sound(store):
    with open(path(store, FIRST), "ab") as file:
        file.write(b"more")
    assert rebuild(store) == []


def test_a_missing_file_costs_its_tensors(store):
    os.unlink(path(store, SECOND))
    assert rebuild(store) == ["c", "d"]
    assert f"`{SECOND}`: it is missing" in store.notes[0]


@pytest.mark.parametrize("other", ["link", "folder"])
def test_a_file_that_became_something_else_costs_its_tensors(store, tmp_path, other):
    target = path(store, FIRST)
    os.rename(target, tmp_path / "elsewhere")
    if other == "link":
        os.symlink(tmp_path / "elsewhere", target)
    else:
        os.mkdir(target)
    assert rebuild(store) == ["a", "b"]


def test_an_artifact_of_which_nothing_is_sound_is_set_aside(store):
    os.unlink(path(store, FIRST))
    os.unlink(path(store, SECOND))
    assert rebuild(store) == ["a", "b", "c", "d"]
    assert len(os.listdir(store.folders.aside)) == 1


@pytest.mark.parametrize("text", [b"", b"garbage", b"{}", b'{"checksum":"', b"\xff" * 500, b"[" * 100000])
def test_a_manifest_of_garbage_is_a_miss_and_set_aside(store, text):
    with open(path(store, "manifest.json"), "wb") as file:
        file.write(text)
    assert rebuild(store) == ["a", "b", "c", "d"]
    assert "set aside as aside/k1-" in store.notes[0]


def test_a_missing_manifest_is_a_miss_and_set_aside(store):
    os.unlink(path(store, "manifest.json"))
    assert rebuild(store) == ["a", "b", "c", "d"]
    assert "its manifest cannot be read" in store.notes[0]


def test_the_manifest_of_another_artifact_is_a_miss(store):
    build(store, "k2")
    with open(path(store, "manifest.json", "k2"), "rb") as file:
        text = file.read()
    with open(path(store, "manifest.json"), "wb") as file:
        file.write(text)
    assert store.manifest("k1") is None
    assert "that of another artifact" in store.notes[0]
    assert store.manifest("k2") is not None


def test_every_flipped_bit_of_a_manifest_is_seen(store):
    manifest = store.manifest("k1")
    text = dump_manifest(manifest)
    assert parse_manifest(text, "k1") == manifest
    for offset in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[offset] ^= 1 << bit
            with pytest.raises(ValueError, match=r"it|two|a "):
                parse_manifest(bytes(changed), "k1")


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_a_manifest_fail_otherwise(data):
    for text in (data, b'{"checksum":"' + data):
        with pytest.raises(ValueError, match=r"it|two|a "):
            parse_manifest(text, "k1")


def test_damage_that_keeps_size_and_time_is_found_by_reading(store):
    flip(path(store, FIRST), 8, keep_time=True)
    assert store.manifest("k1") is not None
    place = store.find(["key-of-a"])["key-of-a"]
    with store.shared("m"):
        assert not store.verify_tensor(place)
        assert store.verify_tensor(store.find(["key-of-b"])["key-of-b"])
        assert store.manifest("k1") is not None, "what is in use stays where it is until the build ends"
    assert rebuild(store) == ["a"]


def test_verify_reads_every_byte_and_names_what_is_damaged(store):
    build(store, "k2", keys={name: f"2-{key}" for name, key in KEYS.items()})
    assert verify(store) == []
    flip(path(store, SECOND), 16, keep_time=True)
    problems = verify(store)
    assert len(problems) == 1
    assert "wrong bytes in `d`" in problems[0]
    assert verify(store) == []
    assert rebuild(store) == ["d"]
    assert store.manifest("k2") is not None


def test_damage_of_what_was_salvaged_is_survived_too(store):
    flip(path(store, FIRST), 8)
    assert set(store.find(KEYS.values())) == {"key-of-b", "key-of-c", "key-of-d"}
    (rest,) = store.artifacts()
    flip(path(store, SECOND, rest), 8)
    assert rebuild(store) == ["a", "c"]


def test_the_salvaged_rest_goes_once_the_artifact_is_whole_again(store):
    flip(path(store, FIRST), 8)
    rebuild(store)
    assert len(store.artifacts()) == 2
    assert [entry.name for entry in gc(store).removed] == ["model"]
    assert store.artifacts() == ["k1"]


def test_a_file_that_cannot_be_read_is_damage_and_no_error(store, monkeypatch):
    os.utime(path(store, FIRST), (1, 1))

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        assert store.manifest("k1") is None
    assert rebuild(store) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("text", [b"garbage", b"SQLite format 3\0" + b"\xff" * 4096, b"x" * 100000])
def test_a_damaged_index_is_made_anew(store, text):
    store.close()
    with open(store.folders.index, "wb") as file:
        file.write(text)
    assert set(store.find(KEYS.values())) == set(KEYS.values())
    assert store.notes == ["the index of the cache was damaged; it was made anew from the manifests"]


def test_a_missing_index_is_made_anew(store):
    store.close()
    os.unlink(store.folders.index)
    assert set(store.find(KEYS.values())) == set(KEYS.values())
    assert store.notes == ["the index of the cache was missing; it was made anew from the manifests"]


def test_an_index_of_another_version_is_made_anew(store):
    store.close()
    with sqlite3.connect(store.folders.index) as db:
        db.execute("PRAGMA user_version = 77")
        db.execute("CREATE TABLE more (x)")
    assert set(store.find(KEYS.values())) == set(KEYS.values())
    assert store.notes == []


def test_an_index_that_lies_misleads_nobody(store):
    build(store, "k2", keys={name: f"2-{key}" for name, key in KEYS.items()})
    store.close()
    with sqlite3.connect(store.folders.index) as db:
        db.execute("UPDATE tensors SET artifact = 'k2' WHERE key = 'key-of-a'")
        db.execute("INSERT INTO artifacts VALUES ('gone', 'x')")
        db.execute("INSERT INTO tensors VALUES ('key-of-x', 'gone')")
    assert store.find(["key-of-a", "key-of-x"]) == {}
    found = store.find(KEYS.values())
    assert {place.artifact for place in found.values()} == {"k1"}
    assert all(store.verify_tensor(place) for place in found.values())


def test_an_index_that_another_process_holds_is_done_without(store, monkeypatch):
    monkeypatch.setattr("modelbuild.cache.index.PATIENCE", 0.01)
    store.close()
    holder = sqlite3.connect(store.folders.index, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert set(store.find(KEYS.values())) == set(KEYS.values())
    assert store.notes == []
    holder.execute("ROLLBACK")
    holder.close()


def finished(store):
    with store.stage("k9", "model", LAYOUT, KEYS, waiting=never) as stage:
        return set(stage.finished)


@pytest.mark.parametrize("text", [b"garbage", b"\xff\n\xff\n", b'0000000000000000 ["a"]\n', b"\0" * 1000])
def test_a_journal_of_garbage_is_as_none(blank, text):
    interrupt(blank, "a", "b", key="k9")
    with open(os.path.join(blank.folders.stage("k9"), "journal"), "wb") as file:
        file.write(text)
    assert finished(blank) == set()


def test_garbage_between_the_lines_of_a_journal_costs_only_those_lines(blank):
    interrupt(blank, "a", "b", key="k9")
    journal = os.path.join(blank.folders.stage("k9"), "journal")
    with open(journal, "rb") as file:
        first, second = [line for line in file.read().split(b"\n") if line]
    with open(journal, "wb") as file:
        file.write(first[:-5] + b"\n" + second + b"\n" + second[:20])
    assert finished(blank) == {"b"}
    assert blank.notes == [
        "damaged in the stage of an interrupted build of `model`: 1 of 2 finished tensors are made anew"
    ]


@settings(max_examples=20)
@given(st.integers(0, 23), st.sampled_from([FIRST, SECOND]))
def test_a_staged_tensor_with_a_flipped_bit_is_made_anew(tmp_path_factory, offset, name):
    store = open_store(str(tmp_path_factory.mktemp("cache")), "none")
    interrupt(store, "a", "b", "c", "d", key="k9")
    flip(os.path.join(store.folders.stage("k9"), "files", name), offset)
    hit = {FIRST: " ab", SECOND: " cd"}[name][offset // 8]
    assert finished(store) == set("abcd") - {hit}
    assert build(store, "k9").complete
    assert weights(store.path("k9")) == WHOLE


@pytest.mark.parametrize("size", [0, 5, 16, 24, 99])
def test_a_staged_file_of_the_wrong_size_is_put_right(blank, size):
    interrupt(blank, "a", "b", "c", "d", key="k9")
    os.truncate(os.path.join(blank.folders.stage("k9"), "files", FIRST), size)
    build(blank, "k9")
    assert weights(blank.path("k9")) == WHOLE
