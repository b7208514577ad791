import os
import stat
import subprocess
import sys

import pytest
from tiny_cache import (
    FIRST,
    HEADER,
    KEYS,
    LAYOUT,
    SECOND,
    VALUES,
    WHOLE,
    build,
    interrupt,
    never,
    stored,
    weights,
    write,
)

from modelbuild.cache.nouns import Layout
from modelbuild.cache.store import open_store
from modelbuild.checksum import checksum
from modelbuild.errors import UsageError


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "cache"), "none")


def test_a_published_artifact_is_whole_read_only_and_found_again(store):
    computed = []
    manifest = build(store, computed=computed)
    assert computed == ["a", "b", "c", "d"]
    assert weights(store.path("k1")) == WHOLE
    assert {stat.S_IMODE(os.stat(os.path.join(store.path("k1"), name)).st_mode) for name in WHOLE} == {0o444}
    assert store.manifest("k1") == manifest
    assert manifest.complete
    assert [file.size for file in manifest.files] == [24, 24]
    assert store.notes == []
    assert os.listdir(store.folders.stages) == []


def test_a_second_build_computes_nothing(store):
    first = build(store)
    computed = []
    assert build(store, computed=computed) == first
    assert computed == []


def test_a_key_that_was_never_published_is_a_silent_miss(store):
    assert store.manifest("k2") is None
    assert store.find(["key-of-a"]) == {}
    assert store.notes == []


def test_found_tensors_can_be_read_where_they_are_said_to_lie(store):
    build(store)
    found = store.find([*KEYS.values(), "unknown"])
    assert set(found) == set(KEYS.values())
    for name, key in KEYS.items():
        place = found[key]
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            assert file.read(place.nbytes) == VALUES[name]
        assert place.checksum == checksum(VALUES[name])
        assert place.artifact == "k1"
        assert store.verify_tensor(place)


def test_a_tensor_in_many_artifacts_is_taken_from_the_one_with_most_of_what_is_wanted(store):
    build(store, "k1", keys={**KEYS, "b": "other-b", "c": "other-c"})
    build(store, "k2", keys={**KEYS, "d": "other-d"})
    found = store.find(KEYS.values())
    assert {key: place.artifact for key, place in found.items()} == {
        "key-of-a": "k2", "key-of-b": "k2", "key-of-c": "k2", "key-of-d": "k1",
    }  # fmt: skip


def test_another_process_finds_what_this_one_published(store):
    assert store.find(["key-of-a"]) == {}
    build(open_store(store.folders.root, "none"))
    assert set(store.find(["key-of-a"])) == {"key-of-a"}


def test_kept_tensors_are_an_incomplete_artifact(store):
    layout = Layout({FIRST: 16}, {FIRST: HEADER}, {"a": (FIRST, 8, 8)})
    with store.stage("kept-1", "model", layout, KEYS, waiting=never) as stage:
        write(stage, "a")
        manifest = stage.publish([stored("a")], complete=False, sha256={FIRST: "0" * 64})
    assert not manifest.complete
    assert manifest.files[0].sha256 == "0" * 64
    assert store.manifest("kept-1") == manifest
    assert set(store.find(KEYS.values())) == {"key-of-a"}


def test_a_build_that_stops_half_way_leaves_what_it_finished(store):
    interrupt(store, "a", "c")
    assert store.manifest("k1") is None
    computed = []
    build(store, computed=computed)
    assert computed == ["b", "d"]
    assert weights(store.path("k1")) == WHOLE
    assert store.notes == []


def test_a_tensor_whose_key_changed_is_not_taken_from_the_stage(store):
    interrupt(store, "a", "b")
    changed = {**KEYS, "b": "another"}
    with store.stage("k1", "model", LAYOUT, changed, waiting=never) as stage:
        assert stage.finished == {"a": checksum(VALUES["a"])}


def test_a_build_that_computes_everything_anew_takes_nothing_from_the_stage(store):
    interrupt(store, "a", "b")
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never, anew=True) as stage:
        assert stage.finished == {}
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage:
        assert set(stage.finished) == {"a", "b"}


def test_what_is_there_when_the_lock_is_had_is_said_and_nothing_is_staged(store):
    manifest = build(store)
    with store.stage("k1", "model", LAYOUT, KEYS, waiting=never) as stage:
        assert stage.published == manifest
        assert stage.fds == {}
    assert os.listdir(store.folders.stages) == []


def test_an_artifact_computed_anew_is_compared_with_and_not_put_in_the_place_of_the_first(store):
    first = build(store)
    before = os.stat(os.path.join(store.path("k1"), FIRST)).st_ino
    other = {**VALUES, "a": b"AAAAAAAA"}
    with store.stage("k1", "model", LAYOUT, KEYS, waiting=never, anew=True) as stage:
        for name in VALUES:
            write(stage, name, other)
        assert stage.publish([stored(name, other) for name in VALUES]) == first
    assert os.stat(os.path.join(store.path("k1"), FIRST)).st_ino == before
    assert weights(store.path("k1")) == WHOLE
    assert os.listdir(store.folders.stages) == []


def test_room_between_tensors_is_zeros_whatever_was_there(store):
    layout = Layout({FIRST: 40}, {FIRST: HEADER}, {"a": (FIRST, 16, 8)})
    interrupt(store, layout=layout, garbage=b"x" * 40)
    with store.stage("k1", "m", layout, KEYS, waiting=never) as stage:
        os.pwrite(stage.fds[FIRST], VALUES["a"], 16)
        tensor = stored("a")
        stage.publish([type(tensor)(tensor.key, "a", "U8", (8,), FIRST, 16, 8, tensor.checksum)])
    assert weights(store.path("k1")) == {FIRST: HEADER + bytes(8) + VALUES["a"] + bytes(16)}


def test_a_staged_file_of_the_right_size_is_never_cut(store, monkeypatch):
    interrupt(store)
    monkeypatch.setattr(os, "ftruncate", lambda *_: pytest.fail("a staged file was cut"))
    build_fds = []
    monkeypatch.setattr("modelbuild.cache.locks._write_facts", lambda *_: None)
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage:
        build_fds += stage.fds.values()
    assert len(build_fds) == 2


def opened(store, layout):
    return store.stage("k1", "m", layout, KEYS, waiting=never)


@pytest.mark.parametrize(
    "layout",
    [
        Layout({"../x": 8}, {}, {}),
        Layout({"manifest.json": 8}, {}, {}),
        Layout({".x": 8}, {}, {}),
        Layout({"x": 8}, {}, {"a": ("x", 4, 8)}),
        Layout({"x": 8}, {"x": b"12345"}, {"a": ("x", 4, 4)}),
        Layout({"x": 8}, {}, {"nameless": ("x", 0, 8)}),
    ],
)
def test_a_layout_that_no_artifact_can_have_is_refused(store, layout):
    with pytest.raises(ValueError, match=r"not a file name|outside its file|has no key"), opened(store, layout):
        pass


def test_only_the_tensors_of_the_layout_can_be_published(store):
    with store.stage("k1", "m", LAYOUT, KEYS, waiting=never) as stage, pytest.raises(ValueError, match="layout"):
        stage.publish([stored("a")])
    assert store.manifest("k1") is None


@pytest.mark.parametrize("key", ["", "..", "../k", "a/b", ".hidden", "a b", "k\n"])
def test_a_key_is_never_a_path(store, key):
    with pytest.raises(ValueError, match="is not a key"):
        store.manifest(key)


def test_a_file_whose_time_changed_is_read_once_and_then_trusted(store, monkeypatch):
    build(store)
    os.utime(os.path.join(store.path("k1"), FIRST), ns=(1, 1))
    read = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(1) or real(*arguments))
    assert store.manifest("k1") is not None
    assert len(read) == 3
    assert store.manifest("k1") is not None
    assert open_store(store.folders.root).manifest("k1") is not None
    assert len(read) == 3
    assert store.notes == []


def test_touching_sets_the_time_of_last_use_and_ignores_what_is_gone(store):
    build(store)
    os.utime(store.path("k1"), (1, 1))
    store.touch(["k1", "gone"])
    assert os.stat(store.path("k1")).st_mtime > 10**9
    assert store.manifest("k1") is not None


def test_stages_of_others_are_swept_after_a_day_and_not_while_somebody_writes(store):
    for key in ("old", "kept", "young", "busy"):
        interrupt(store, "a", key=key)
        if key != "young":
            for place, _, names in os.walk(store.folders.stage(key)):
                for name in (*names, "."):
                    os.utime(os.path.join(place, name), (1, 1))
    with store.stage("busy", "m", LAYOUT, KEYS, waiting=never):
        for place, _, names in os.walk(store.folders.stage("busy")):
            for name in (*names, "."):
                os.utime(os.path.join(place, name), (1, 1))
        assert store.sweep(keep={"kept"}) == 1
    assert sorted(os.listdir(store.folders.stages)) == ["busy", "kept", "young"]


def test_a_root_that_is_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError) as refused:
        open_store(str(tmp_path / "cache"))
    assert refused.value.exit_code == 2
    assert "a file stands in the way" in refused.value.render()
    assert "--cache DIR" in refused.value.render()


def test_a_folder_below_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UsageError, match="a file stands in the way"):
        open_store(str(tmp_path / "file" / "cache"))


def test_a_folder_of_somebody_else_that_all_may_write_is_refused(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o777)
    open_store(str(root))
    monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
    with pytest.raises(UsageError, match="anybody may write it"):
        open_store(str(root))


def test_a_cache_is_marked_as_one_for_backup_tools(tmp_path):
    open_store(str(tmp_path / "cache"))
    open_store(str(tmp_path / "cache"))
    tag = (tmp_path / "cache" / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_opening_and_reading_a_manifest_loads_neither_sqlite_nor_anything_big(store):
    build(store)
    code = (
        "import sys; from modelbuild.cache.store import open_store; "
        f"assert open_store({store.folders.root!r}).manifest('k1'); "
        "print([m for m in ('sqlite3','numpy','torch','filelock','ctypes','socket','shutil','tempfile','logging',"
        "'concurrent.futures') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("durability", ["full", "batch", "none"])
def test_every_durability_publishes_the_same(tmp_path, durability):
    store = open_store(str(tmp_path / durability), durability)
    build(store)
    assert weights(store.path("k1")) == WHOLE
    assert set(weights(store.path("k1"))) == {FIRST, SECOND}
