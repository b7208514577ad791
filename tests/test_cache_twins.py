"""Files that two artifacts have in common stand in the cache once, and nobody writes to them."""

import os

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
    contents,
    each_kill,
    flip,
    interrupt,
    never,
    stored,
    weights,
    write,
)

from modelbuild.cache.collect import gc, listing, size, verify
from modelbuild.cache.nouns import Layout
from modelbuild.cache.store import open_store
from modelbuild.cache.twins import twins
from modelbuild.errors import BuildFailed

OTHER = {**KEYS, "d": "another-key-of-d"}
"""The keys of an artifact whose second file differs from that of the first in one tensor."""

CHANGED = {**VALUES, "d": b"DDDDDDDD"}


@pytest.fixture
def store(tmp_path):
    store = open_store(str(tmp_path / "cache"), "none")
    build(store)
    return store


def same(store, name, *keys):
    """Whether the file is one and the same in these artifacts."""
    inodes = {os.stat(os.path.join(store.path(key), name)).st_ino for key in keys}
    return len(inodes) == 1


def change(store, key="k2", computed=None):
    return build(store, key, values=CHANGED, keys=OTHER, computed=computed)


def test_a_file_with_the_same_tensors_is_linked_and_the_other_written(store):
    computed = []
    manifest = change(store, computed=computed)
    assert computed == ["c", "d"]
    assert same(store, FIRST, "k1", "k2")
    assert not same(store, SECOND, "k1", "k2")
    assert weights(store.path("k1")) == WHOLE
    assert weights(store.path("k2")) == {FIRST: WHOLE[FIRST], SECOND: HEADER + VALUES["c"] + b"DDDDDDDD"}
    assert store.manifest("k2") == manifest
    assert os.stat(os.path.join(store.path("k2"), FIRST)).st_mode & 0o222 == 0


def test_what_is_known_of_a_linked_file_stays_known(store):
    store.learn("k1", {FIRST: "5" * 64, SECOND: "6" * 64})
    manifest = change(store)
    assert [file.sha256 for file in manifest.files] == ["5" * 64, None]
    assert manifest.files[0].checksum == store.manifest("k1").files[0].checksum


@pytest.mark.parametrize(
    "layout",
    [
        Layout(LAYOUT.sizes, {**LAYOUT.headers, FIRST: b"<Header>"}, LAYOUT.places),
        Layout({**LAYOUT.sizes, FIRST: 25}, LAYOUT.headers, LAYOUT.places),
        Layout(LAYOUT.sizes, LAYOUT.headers, {**LAYOUT.places, "a": (FIRST, 16, 8), "b": (FIRST, 8, 8)}),
    ],
    ids=["header", "size", "places"],
)
def test_a_file_that_differs_in_anything_is_not_linked(store, layout):
    with store.stage("k2", "model", layout, OTHER, waiting=never) as stage:
        assert stage.finished == {}


def test_a_file_of_another_name_is_linked(store):
    names = {FIRST: "x.safetensors", SECOND: "y.safetensors"}
    layout = Layout(
        {names[file]: size for file, size in LAYOUT.sizes.items()},
        {names[file]: header for file, header in LAYOUT.headers.items()},
        {name: (names[file], *place) for name, (file, *place) in LAYOUT.places.items()},
    )
    with store.stage("k2", "model", layout, KEYS, waiting=never) as stage:
        assert set(stage.finished) == set("abcd")


def test_a_build_that_computes_anew_links_nothing(store):
    with store.stage("k2", "model", LAYOUT, KEYS, waiting=never, anew=True) as stage:
        assert stage.finished == {}


def test_damage_is_not_linked(store):
    flip(os.path.join(store.path("k1"), FIRST), 0)  # the header, which no tensor's checksum covers
    computed = []
    change(store, computed=computed)
    assert computed == ["a", "b", "c", "d"]
    assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]
    assert "was damaged" in store.notes[0]


def test_damage_of_a_shared_file_is_found_in_every_artifact(store):
    change(store)
    flip(os.path.join(store.path("k2"), FIRST), 8)
    assert store.manifest("k1") is None
    assert store.manifest("k2") is None
    build(store)
    change(store)
    assert weights(store.path("k1")) == WHOLE
    assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]
    assert same(store, FIRST, "k1", "k2")


def test_damage_that_leaves_no_trace_in_size_and_time_is_found_in_every_artifact(store):
    change(store)
    flip(os.path.join(store.path("k1"), FIRST), 8, keep_time=True)
    with store.shared("a build that reads it"):
        assert not store.verify_tensor(store.find([KEYS["a"]])[KEYS["a"]])
    assert store.manifest("k1") is None
    assert store.manifest("k2") is None
    assert len(store.notes) == 2
    computed = []
    build(store, computed=computed)
    change(store, computed=computed)
    assert computed == ["a", "b", "c", "d", "c", "d"]
    assert weights(store.path("k1")) == WHOLE
    assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]


def test_a_check_of_the_cache_names_every_artifact_that_shares_the_damage(store):
    change(store)
    build(store, "k3", keys={**KEYS, "a": "another-key-of-a", "d": "one-more-key-of-d"})
    flip(os.path.join(store.path("k2"), FIRST), 16, keep_time=True)
    problems = verify(store)
    assert len(problems) == 2
    assert all("`model-1.safetensors`: wrong bytes in `b`" in problem for problem in problems)
    assert store.manifest("k3") is not None
    assert verify(store) == []


def test_damage_of_a_file_of_one_artifact_leaves_the_others_that_share_another(store):
    change(store)
    flip(os.path.join(store.path("k1"), SECOND), 8)
    assert store.manifest("k1") is None
    assert store.manifest("k2") is not None
    assert len(store.notes) == 1


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_linked_file_that_was_damaged_meanwhile_is_not_published(store, keep_time):
    with store.stage("k2", "model", LAYOUT, OTHER, waiting=never) as stage:
        flip(os.path.join(store.path("k1"), FIRST), 8, keep_time=keep_time)
        assert store.examine("k1")
        with pytest.raises(BuildFailed, match="was damaged while"):
            finish(stage)
    assert store.manifest("k2") is None
    change(store)
    assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]


def test_a_linked_file_that_was_changed_meanwhile_and_not_yet_found_out_is_not_published(store):
    with store.stage("k2", "model", LAYOUT, OTHER, waiting=never) as stage:
        flip(os.path.join(store.path("k1"), FIRST), 0)
        with pytest.raises(BuildFailed, match="was damaged while"):
            finish(stage)
    change(store)
    assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]
    assert [key for key in store.artifacts() if "rest" not in key] == ["k2"]


def test_a_linked_file_that_was_only_touched_meanwhile_is_published(store):
    with store.stage("k2", "model", LAYOUT, OTHER, waiting=never) as stage:
        os.utime(os.path.join(store.path("k1"), FIRST), ns=(1, 1))
        manifest = finish(stage)
    assert manifest.files[0].mtime_ns == 1
    assert store.manifest("k2") == manifest


def finish(stage):
    """Write what is not finished, and publish."""
    for name in VALUES:
        if name not in stage.finished:
            write(stage, name, CHANGED, OTHER)
    return stage.publish([stored(name, CHANGED, OTHER) for name in VALUES])


def test_what_an_interrupted_build_wrote_stays_where_links_are_refused(tmp_path, monkeypatch):
    def refused(*args, **options):
        raise PermissionError("no links here")

    store = open_store(str(tmp_path / "cache"), "none")
    interrupt(store, "a", "b", key="k2")
    build(store)
    monkeypatch.setattr(os, "link", refused)
    with store.stage("k2", "model", LAYOUT, KEYS, waiting=never) as stage:
        assert set(stage.finished) == {"a", "b"}


def test_no_more_artifacts_are_looked_at_than_it_takes(store):
    def published():
        yield store.path("k1"), store.manifest("k1")
        raise AssertionError("everything was found")

    assert set(twins(LAYOUT, KEYS, published())) == {FIRST, SECOND}


def test_a_file_system_without_links_gets_a_file_of_its_own(store, monkeypatch):
    def refused(*args, **options):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    computed = []
    change(store, computed=computed)
    assert computed == ["a", "b", "c", "d"]
    assert not same(store, FIRST, "k1", "k2")


def test_a_kill_at_any_step_leaves_both_artifacts_right(tmp_path):
    def prepare(place):
        store = open_store(str(place / "cache"), "batch")
        build(store)
        store.close()
        return lambda: change(open_store(str(place / "cache"), "batch"))

    for place in each_kill(tmp_path, prepare):
        store = open_store(str(place / "cache"))
        change(store)
        assert weights(store.path("k1")) == WHOLE
        assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]
        assert same(store, FIRST, "k1", "k2")


def test_a_linked_file_that_an_interrupted_build_left_is_never_written_to(store):
    with pytest.raises(KeyboardInterrupt), store.stage("k2", "model", LAYOUT, OTHER, waiting=never):
        raise KeyboardInterrupt
    gc(store, max_age_days=0)
    assert store.artifacts() == []
    change(store)
    staged = os.path.join(store.path("k2"), FIRST)
    assert os.stat(staged).st_nlink == 1
    assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]


def test_a_stage_opened_beside_a_link_leaves_the_linked_artifact_alone(store):
    with pytest.raises(KeyboardInterrupt), store.stage("k2", "model", LAYOUT, OTHER, waiting=never):
        raise KeyboardInterrupt
    before = contents(store.path("k1"))
    with store.stage("k2", "model", LAYOUT, OTHER, waiting=never, anew=True) as stage:
        for name in VALUES:
            os.pwrite(stage.fds[LAYOUT.places[name][0]], b"other---", LAYOUT.places[name][1])
    assert contents(store.path("k1")) == before


def test_shared_files_count_once(store):
    alone = size(store)
    change(store)
    manifest = os.path.getsize(os.path.join(store.path("k2"), "manifest.json"))
    assert size(store) == alone + 24 + manifest
    assert [entry.linked for entry in listing(store)] == [0, 0]


def test_a_collection_counts_what_it_frees(store):
    change(store)
    for key, age in (("k1", 1), ("k2", 2)):
        os.utime(store.path(key), (age, age))
    before, each = size(store), os.path.getsize(os.path.join(store.path("k1"), "manifest.json")) + 24
    result = gc(store, max_size=before - 1)
    assert [entry.key for entry in result.removed] == ["k1"]
    assert (result.before, result.after) == (before, before - each)
    assert result.after == size(store)
    assert weights(store.path("k2"))[FIRST] == WHOLE[FIRST]


def test_a_collection_tells_of_a_shown_file_once_and_only_if_its_last_owner_goes(store, tmp_path):
    change(store)
    for key, age in (("k1", 1), ("k2", 2)):
        os.utime(store.path(key), (age, age))
    os.link(os.path.join(store.path("k1"), FIRST), tmp_path / "shown")
    assert [entry.linked for entry in listing(store)] == [24, 24]
    assert gc(store, max_size=size(store) - 1, dry_run=True).notes == ()
    (note,) = gc(store, max_size=0, dry_run=True).notes
    assert note.startswith("24 B of that stay")


def test_the_last_owner_of_a_file_frees_it(store):
    change(store)
    result = gc(store, max_size=0)
    assert (len(result.removed), result.after) == (2, 0)
    assert result.notes == ()
