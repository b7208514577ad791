"""SIGKILL before every call that changes the disk: at every instant one whole output stands, and no edit is lost."""

import os

import pytest
from tiny_cache import WHOLE, build, contents, each_kill
from tiny_output import NEW, SIDE, Made, with_provenance

from modelbuild.artifact import links
from modelbuild.artifact.edits import check_output
from modelbuild.artifact.publish import recover
from modelbuild.cache.store import open_store

OLD_OUTPUT = {**WHOLE, **with_provenance(SIDE)}
NEW_OUTPUT = {**WHOLE, **with_provenance(NEW)}


def write(place, side, previous=None, durability="batch", link="hard"):
    return Made(place).write(side, previous=previous, durability=durability, link=link)


def settled(place):
    """What is in the folder of outputs, besides what was set aside."""
    return sorted(name for name in os.listdir(place / "build") if name != ".edited")


@pytest.mark.parametrize("durability", ["batch", "none"])
@pytest.mark.parametrize("link", ["hard", "copy"])
def test_killed_at_any_step_the_old_or_the_new_output_stands_whole(tmp_path, durability, link):
    def prepare(place):
        record = write(place, SIDE, durability="none")
        return lambda: write(place, NEW, record, durability, link)

    seen = []
    for place in each_kill(tmp_path, prepare):
        now = contents(place / "build" / "m")
        assert now in (OLD_OUTPUT, NEW_OUTPUT)
        seen.append(now == NEW_OUTPUT)
        record = write(place, NEW, durability="none")
        assert contents(place / "build" / "m") == NEW_OUTPUT
        assert check_output(str(place / "build" / "m"), record) == []
        assert settled(place) == ["m"]
        assert record.notes == ()
    assert seen == sorted(seen)
    assert {True, False} == set(seen)


@pytest.mark.parametrize("known", [True, False], ids=["record", "no record"])
def test_killed_at_any_step_no_edit_is_lost(tmp_path, known):
    def prepare(place):
        record = write(place, SIDE, durability="none")
        (place / "build" / "m" / "README.md").write_bytes(b"mine")
        (place / "build" / "m" / "extra").write_bytes(b"mine too")
        return lambda: write(place, NEW, record if known else None)

    for place in each_kill(tmp_path, prepare):
        outputs = contents(place / "build" / "m")
        assert outputs in (NEW_OUTPUT, {**OLD_OUTPUT, "README.md": b"mine", "extra": b"mine too"})
        write(place, NEW, durability="none")
        assert contents(place / "build" / "m") == NEW_OUTPUT
        assert contents(place / "build" / ".edited") == {"m/README.md": b"mine", "m/extra": b"mine too"}
        assert settled(place) == ["m"]


def test_without_exchange_the_next_start_completes_what_a_kill_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "exchange", lambda *_: False)

    def prepare(place):
        record = write(place, SIDE, durability="none")
        return lambda: write(place, NEW, record)

    between = 0
    for place in each_kill(tmp_path, prepare):
        between += not (place / "build" / "m").exists()
        recover(str(place / "build"))
        assert contents(place / "build" / "m") in (OLD_OUTPUT, NEW_OUTPUT)
        assert settled(place) == ["m"]
    assert between == 1


def test_the_first_output_appears_whole_or_not_at_all(tmp_path):
    def prepare(place):
        build(open_store(str(place / "cache"), "none"))
        (place / "build").mkdir()
        return lambda: write(place, SIDE)

    for place in each_kill(tmp_path, prepare):
        assert contents(place / "build" / "m") in ({}, OLD_OUTPUT)
        recover(str(place / "build"))
        assert settled(place) in ([], ["m"])


def test_killed_while_recovering_the_next_recovery_completes(tmp_path, monkeypatch):
    def prepare(place):
        old, new = place / "build" / ".m.old-0123456789ab", place / "build" / ".m.new-0123456789ab"
        for folder, text in ((old, b"old"), (new, b"new"), (place / "build" / ".n.new-0123456789ab", b"half")):
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(text)
        return lambda: recover(str(place / "build"))

    for place in each_kill(tmp_path, prepare):
        recover(str(place / "build"))
        assert contents(place / "build") == {"m/file": b"new"}
        assert settled(place) == ["m"]


def test_an_old_output_without_its_successor_is_put_back(tmp_path):
    (tmp_path / ".m.old-0123456789ab").mkdir()
    (tmp_path / ".m.old-0123456789ab" / "file").write_bytes(b"old")
    assert recover(str(tmp_path)) == ["m"]
    assert contents(tmp_path) == {"m/file": b"old"}


def test_recovery_leaves_alone_what_another_process_is_assembling(tmp_path, monkeypatch):
    build(open_store(str(tmp_path / "cache"), "none"))
    real = links.show

    def show(*arguments):
        assert recover(str(tmp_path / "build")) == []
        return real(*arguments)

    monkeypatch.setattr(links, "show", show)
    write(tmp_path, SIDE)
    assert contents(tmp_path / "build" / "m") == OLD_OUTPUT


def test_recovery_touches_no_other_hidden_folder(tmp_path):
    for name in (".edited", ".git", ".m.new-xyz", "m.new-0123456789ab"):
        (tmp_path / name).mkdir()
    recover(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".edited", ".git", ".m.new-xyz", "m.new-0123456789ab"]
