import errno
import os
import shutil
import subprocess

import pytest
from tiny_cache import KEYS, LAYOUT, VALUES, WHOLE, build, interrupt, never, stored, weights, write

from modelbuild.cache import disk
from modelbuild.cache.nouns import Layout
from modelbuild.cache.store import open_store
from modelbuild.errors import BuildFailed


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "cache"), "none")


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_build_that_cannot_fit_is_refused_before_anything_is_written(store, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda _: 30)
    with pytest.raises(BuildFailed) as failed:
        build(store)
    text = failed.value.render()
    assert failed.value.exit_code == 1
    assert "error: the disk is full: `model` does not fit" in text
    assert "it takes 48 B (48 bytes)" in text
    assert "30 B (30 bytes) are free in" in text
    assert "hint: free some space" in text
    staged = os.path.join(store.folders.stage("k1"), "files")
    assert [os.path.getsize(os.path.join(staged, name)) for name in os.listdir(staged)] == [0, 0]


@pytest.mark.parametrize("call", ["modelbuild.cache.disk.preallocate", "os.ftruncate"])
def test_a_disk_that_is_full_when_room_is_made_keeps_what_was_finished(store, monkeypatch, call):
    if call == "modelbuild.cache.disk.preallocate":
        interrupt(store, "a", "d")
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        patch.setattr("modelbuild.cache.locks._write_facts", lambda *_: None)
        with pytest.raises(BuildFailed, match="disk is full"), store.stage("k1", "m", LAYOUT, KEYS, waiting=never):
            pass
    computed = []
    build(store, computed=computed)
    assert computed == (["b", "c"] if call == "modelbuild.cache.disk.preallocate" else ["a", "b", "c", "d"])
    assert weights(store.path("k1")) == WHOLE


def test_a_disk_that_fills_up_while_tensors_are_written_keeps_what_was_finished(store, monkeypatch):
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, at: full() if bytes(data) == VALUES["c"] else real(fd, data, at))
        with pytest.raises(BuildFailed, match="disk is full"):
            build(store)
    computed = []
    build(store, computed=computed)
    assert computed == ["c", "d"]


def test_a_disk_without_room_for_the_journal_stops_nothing(store, monkeypatch):
    with store.stage("k1", "model", LAYOUT, KEYS, waiting=never) as stage, monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for name in VALUES:
            write(stage, name)
        patch.undo()
        stage.publish([stored(name) for name in VALUES])
    assert weights(store.path("k1")) == WHOLE


def test_a_disk_that_is_full_at_publication_leaves_the_stage_for_the_next_build(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_new", full)
        with pytest.raises(BuildFailed, match="disk is full"):
            build(store)
    assert store.manifest("k1") is None
    computed = []
    build(store, computed=computed)
    assert computed == []
    assert weights(store.path("k1")) == WHOLE


def test_data_that_cannot_be_synced_is_never_said_to_be_finished(tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "cache"), "full")

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(BuildFailed) as failed:
            build(store)
    assert "`model` could not be written to the cache" in failed.value.render()
    assert "Input/output error" in failed.value.render()
    assert store.manifest("k1") is None
    with store.stage("k1", "model", LAYOUT, KEYS, waiting=never) as stage:
        assert stage.finished == {}


def test_a_background_sync_that_fails_stops_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr("modelbuild.cache.journal.INTERVAL", 0.001)
    store = open_store(str(tmp_path / "cache"), "batch")

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    def forever():
        with store.stage("k1", "model", LAYOUT, KEYS, waiting=never) as stage:
            monkeypatch.setattr(os, "fdatasync", fail)
            while True:
                write(stage, "a")

    with pytest.raises(BuildFailed, match="could not be written"):
        forever()


def test_on_a_disk_that_is_really_too_small_the_error_comes_before_the_work(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting takes root")
    try:
        store = open_store(str(place / "cache"), "none")
        build(store, "small")
        large = Layout({"big.safetensors": 10**6}, {}, {"a": ("big.safetensors", 0, 8)})
        with pytest.raises(BuildFailed, match="disk is full"), store.stage("k2", "big", large, KEYS, waiting=never):
            pass
        with pytest.raises(OSError, match="No space left"), open(place / "file", "wb") as file:
            disk.preallocate(file.fileno(), 10**6)
        assert weights(store.path("small")) == WHOLE
        store.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)
