import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cache import VALUES, build, interrupt

from modelbuild.cache.collect import gc, listing, size
from modelbuild.cache.store import DAY, open_store


@pytest.fixture
def store(tmp_path):
    """Artifacts k0, k1, k2, of equal size, used 3, 2 and 1 days ago."""
    store = open_store(str(tmp_path / "cache"), "none")
    for number in range(3):
        build(store, f"k{number}", keys={name: f"{number}-{name}" for name in VALUES})
        used = time.time() - (3 - number) * DAY
        os.utime(store.path(f"k{number}"), (used, used))
    return store


@pytest.fixture
def each(store):
    """The bytes of one artifact."""
    return listing(store)[0].nbytes


def keys(result):
    return [entry.key for entry in result.removed]


def test_without_limits_no_artifact_goes(store):
    assert keys(gc(store)) == []
    assert store.artifacts() == ["k0", "k1", "k2"]


def test_the_least_recently_used_goes_first_and_no_more_than_needed(store, each):
    result = gc(store, max_size=2 * each)
    assert keys(result) == ["k0"]
    assert (result.before, result.after) == (3 * each, 2 * each)
    assert store.artifacts() == ["k1", "k2"]
    assert store.manifest("k1") is not None


def test_use_saves_an_artifact_even_when_the_index_is_gone(store, each):
    store.touch(["k0"])
    store.close()
    os.unlink(store.folders.index)
    assert keys(gc(store, max_size=each)) == ["k1", "k2"]


def test_what_was_not_used_for_longer_than_the_age_goes(store):
    assert keys(gc(store, max_age_days=1.5)) == ["k0", "k1"]


def test_what_a_last_build_needs_stays_and_the_limit_that_is_missed_is_named(store, each):
    store.set_root("here", {"k0", "k2"}, "/home/me/Modelfile")
    result = gc(store, max_size=each, max_age_days=0)
    assert keys(result) == ["k1"]
    assert store.artifacts() == ["k0", "k2"]
    assert len(result.notes) == 1
    assert "the last builds need" in result.notes[0]


def test_a_new_build_lets_go_of_what_the_older_one_needed(store):
    store.set_root("here", {"k0"}, "a")
    store.set_root("there", {"k1"}, "b")
    store.set_root("here", {"k2"}, "a")
    assert keys(gc(store, max_size=0)) == ["k0"]


def test_a_workspace_that_is_gone_needs_nothing(store, tmp_path):
    modelfile = tmp_path / "Modelfile"
    modelfile.touch()
    store.set_root("here", {"k0"}, "here", path=str(modelfile))
    assert "k0" not in keys(gc(store, max_size=0, dry_run=True))
    modelfile.unlink()
    assert "k0" in keys(gc(store, max_size=0))


def test_pins_stay_until_they_are_taken_off(store, each):
    store.pin("k0")
    store.pin("k0")
    result = gc(store, max_size=0)
    assert keys(result) == ["k1", "k2"]
    assert "are pinned" in result.notes[0]
    store.pin("k0", on=False)
    store.pin("k0", on=False)
    assert keys(gc(store, max_size=0)) == ["k0"]


@pytest.mark.parametrize("text", [b"", b"garbage", b"[]", b'{"keys": ["../x"], "note": "", "path": null}', b"[" * 9999])
def test_roots_that_cannot_be_read_keep_everything_and_are_named(store, text):
    path = store.folders.root_file("here")
    with open(path, "wb") as file:
        file.write(text)
    result = gc(store, max_size=0)
    assert keys(result) == []
    assert path in result.notes[0]


def test_a_dry_run_says_the_same_and_does_nothing(store, each):
    with open(os.path.join(store.folders.aside, "x"), "wb"):
        pass
    planned = gc(store, max_size=each, dry_run=True)
    assert store.artifacts() == ["k0", "k1", "k2"]
    assert os.listdir(store.folders.aside) == ["x"]
    assert gc(store, max_size=each).removed == planned.removed


def test_the_listing_says_what_everything_is_and_who_needs_it(store, each):
    store.pin("k1")
    store.set_root("here", {"k2"}, "the Modelfile here")
    assert [(e.key, e.name, e.complete, e.pinned, e.needed_by) for e in listing(store)] == [
        ("k0", "model", True, False, ()),
        ("k1", "model", True, True, ()),
        ("k2", "model", True, False, ("the Modelfile here",)),
    ]
    assert size(store) == 3 * each


def test_bytes_that_an_output_shares_are_said_to_stay(store, tmp_path):
    os.link(os.path.join(store.path("k0"), "model-1.safetensors"), tmp_path / "shown")
    result = gc(store, max_age_days=2.5)
    assert result.removed[0].linked == 24
    assert "24 B of that stay on the disk" in result.notes[0]
    assert (tmp_path / "shown").read_bytes()[:8] == b"<header>"


def test_litter_goes_old_stages_damaged_things_half_removed_things_and_locks(store):
    for key in ("old", "young"):
        interrupt(store, "a", key=key)
    for place, _, names in os.walk(store.folders.stage("old")):
        for name in (*names, "."):
            os.utime(os.path.join(place, name), (1, 1))
    os.makedirs(os.path.join(store.folders.aside, "x-1", "y"))
    os.makedirs(os.path.join(store.folders.trash, "x-1", "y"))
    assert gc(store).stages == 1
    assert os.listdir(store.folders.stages) == ["young"]
    assert os.listdir(store.folders.aside) == os.listdir(store.folders.trash) == []
    assert sorted(os.listdir(store.folders.locks)) == [".cache", "k0", "k1", "k2", "young"]


def test_links_are_removed_and_never_followed(store, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    os.symlink(precious, os.path.join(store.folders.aside, "x"))
    os.symlink(precious, os.path.join(store.folders.artifacts, "linked"))
    os.symlink(precious, os.path.join(store.path("k0"), "inside"))
    gc(store, max_size=0)
    assert (precious / "file").read_text() == "mine"
    assert store.artifacts() == []


@settings(max_examples=40, deadline=None)
@given(
    uses=st.lists(st.integers(1, 1000), min_size=1, max_size=6, unique=True),
    needed=st.sets(st.integers(0, 5)),
    pinned=st.sets(st.integers(0, 5)),
    limit=st.integers(0, 7),
    age=st.one_of(st.none(), st.integers(1, 1000)),
)
def test_collection_keeps_exactly_what_the_rules_say(tmp_path_factory, uses, needed, pinned, limit, age):
    store = open_store(str(tmp_path_factory.mktemp("cache")), "none")
    now = time.time()
    for number, days in enumerate(uses):
        build(store, f"k{number}", keys={name: f"{number}-{name}" for name in VALUES})
        os.utime(store.path(f"k{number}"), (now - days * DAY, now - days * DAY))
    store.set_root("here", {f"k{n}" for n in needed}, "here")
    for number in pinned:
        store.pin(f"k{number}")
    each = listing(store)[0].nbytes
    result = gc(store, max_size=limit * each, max_age_days=None if age is None else age - 0.5)

    free = [n for n in sorted(range(len(uses)), key=lambda n: -uses[n]) if n not in needed | pinned]
    gone = {n for n in free if age is not None and uses[n] > age - 0.5}
    for n in free:
        if len(uses) - len(gone) > limit:
            gone.add(n)
    assert {entry.key for entry in result.removed} == {f"k{n}" for n in gone}
    assert store.artifacts() == sorted(f"k{n}" for n in set(range(len(uses))) - gone)
    assert bool(result.notes) == (len(uses) - len(gone) > limit)
    store.close()
