import os

import pytest
from tiny_cache import FIRST, WHOLE, contents, flip
from tiny_output import NEW, SIDE, Made, names, with_provenance

from modelbuild.artifact import links


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


@pytest.mark.parametrize("known", [True, False], ids=["record", "no record"])
def test_an_edited_file_is_moved_aside_and_named(made, known):
    record = made.write()
    (made.folder / "README.md").write_text("mine")
    written = made.write(NEW, previous=record if known else None)
    assert contents(made.edited) == {"m/README.md": b"mine"}
    assert contents(made.folder) == {**WHOLE, **with_provenance(NEW)}
    folder = made.folder
    assert written.notes == (f"{folder / 'README.md'} was edited; it is now {made.edited / 'm' / 'README.md'}",)


@pytest.mark.parametrize("known", [True, False], ids=["record", "no record"])
def test_an_added_file_is_moved_aside_with_its_folder(made, known):
    record = made.write()
    (made.folder / "runs" / "1").mkdir(parents=True)
    (made.folder / "runs" / "1" / "log.txt").write_text("loss")
    written = made.write(NEW, previous=record if known else None)
    assert contents(made.edited) == {"m/runs/1/log.txt": b"loss"}
    assert "was added; it is now" in written.notes[0]
    assert not (made.folder / "runs").exists()


def test_an_edited_file_in_a_folder_of_the_output_is_kept_too(made):
    record = made.write()
    (made.folder / "1_Pooling" / "config.json").write_text("mine")
    made.write(NEW, previous=record)
    assert contents(made.edited) == {"m/1_Pooling/config.json": b"mine"}


def test_an_unchanged_output_leaves_nothing_aside(made):
    record = made.write()
    made.write(NEW, previous=record)
    made.write(SIDE, previous=None)
    assert not made.edited.exists()


def test_several_edits_of_one_file_are_all_kept(made):
    record = made.write()
    for number, text in enumerate((b"first", b"second", b"third", b"second")):
        (made.folder / "README.md").write_bytes(text)
        record = made.write({**NEW, "README.md": b"card %d" % number}, previous=record)
    kept = {"m/README.md": b"first", "m/README.2.md": b"second", "m/README.3.md": b"third"}
    assert contents(made.edited) == kept


def test_an_edit_that_the_new_output_has_too_is_no_loss(made):
    record = made.write()
    (made.folder / "README.md").write_bytes(NEW["README.md"])
    assert made.write(NEW, previous=record).notes == ()
    assert not made.edited.exists()


def test_a_deleted_side_file_comes_back(made):
    record = made.write()
    (made.folder / "README.md").unlink()
    assert made.write(previous=record).notes == ()
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}


def test_a_changed_weight_file_is_made_anew_and_named(made):
    record = made.write(link="copy")
    flip(made.folder / FIRST, 9)
    written = made.write(NEW, previous=record)
    assert written.notes == (f"{made.folder / FIRST} was changed or removed; it is made anew",)
    assert contents(made.folder)[FIRST] == WHOLE[FIRST]
    assert not made.edited.exists()


@pytest.mark.parametrize("thing", ["folder", "file", "link", "broken provenance"])
def test_what_is_no_output_of_ours_is_moved_aside_whole(made, tmp_path, thing):
    made.folder.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    if thing == "link":
        made.folder.symlink_to(elsewhere)
    elif thing == "file":
        made.folder.write_text("mine")
    else:
        made.folder.mkdir()
        (made.folder / "model.safetensors").write_text("mine")
        if thing == "broken provenance":
            (made.folder / "modelbuild.json").write_text("{")
    written = made.write()
    assert written.notes == (f"{made.folder} was not written by modelbuild; it is now {made.edited / 'm'}",)
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}
    assert not made.folder.is_symlink()
    assert (elsewhere / "precious").read_text() == "mine"
    assert (made.edited / "m").is_symlink() == (thing == "link")
    assert os.path.lexists(made.edited / "m")


def test_a_second_unknown_folder_is_set_beside_the_first(made):
    for number in range(2):
        if made.folder.exists():
            made.folder.rename(made.folder.parent / "away")
        made.folder.mkdir(parents=True)
        (made.folder / "mine").write_text(str(number))
        made.write()
    assert contents(made.edited) == {"m/mine": b"0", "m.2/mine": b"1"}


def test_the_record_of_another_output_is_not_believed(made):
    record = made.write()
    (made.folder / "README.md").write_text("mine")
    other = type(record)("n", record.key, {})
    made.write(NEW, previous=other)
    assert contents(made.edited) == {"m/README.md": b"mine"}


def test_a_link_that_somebody_put_into_an_output_is_kept_as_a_link(made, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("mine")
    record = made.write()
    (made.folder / "data").symlink_to(tmp_path / "data")
    made.write(NEW, previous=record)
    assert (made.edited / "m" / "data").is_symlink()
    assert (tmp_path / "data" / "x").read_text() == "mine"


def test_edits_are_kept_where_files_cannot_have_two_names(made, monkeypatch):
    record = made.write()
    (made.folder / "README.md").write_text("mine")
    monkeypatch.setattr(links, "hardlink", lambda *_: False)
    written = made.write(NEW, previous=record)
    assert contents(made.edited) == {"m/README.md": b"mine"}
    assert len(written.notes) == 1


def test_an_edit_made_while_the_new_output_takes_its_place_is_kept(made, monkeypatch):
    record = made.write()
    real = links.exchange

    def late(new, old):
        (made.folder / "README.md").write_text("mine")
        return real(new, old)

    monkeypatch.setattr(links, "exchange", late)
    written = made.write(NEW, previous=record)
    assert contents(made.edited) == {"m/README.md": b"mine"}
    assert len(written.notes) == 1


def test_an_output_that_another_process_put_there_meanwhile_is_no_edit(made, monkeypatch):
    record = made.write()
    real = links.exchange

    def overtaken(new, old):
        monkeypatch.setattr(links, "exchange", real)
        made.write({**SIDE, "README.md": b"by another"}, previous=record)
        return real(new, old)

    monkeypatch.setattr(links, "exchange", overtaken)
    assert made.write(NEW, previous=record).notes == ()
    assert not made.edited.exists()
    assert names(made.folder.parent) == ["m"]
    assert contents(made.folder)["README.md"] == b"new card"
