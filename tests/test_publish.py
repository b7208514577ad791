import os
import stat

import pytest
from tiny_cache import FIRST, SECOND, WHOLE, contents, flip
from tiny_output import SIDE, Made, names, with_provenance

from modelbuild.artifact import links
from modelbuild.artifact.edits import Change, OutputRecord, check_output
from modelbuild.artifact.publish import recover, take_place, write_output
from modelbuild.errors import BuildFailed


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def test_an_output_has_its_weights_and_side_files_and_nothing_else(made):
    record = made.write()
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}
    assert names(made.folder.parent) == ["m"]
    assert (record.name, record.key, record.notes) == ("m", "k", ())
    assert check_output(str(made.folder), record) == []


def test_side_files_are_writable_copies_even_of_read_only_files(made, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"tokens")
    (tmp_path / "tokenizer.json").chmod(0o444)
    made.write({"tokenizer.json": str(tmp_path / "tokenizer.json")})
    copied = made.folder / "tokenizer.json"
    assert copied.read_bytes() == b"tokens"
    assert copied.stat().st_mode & stat.S_IWUSR
    assert copied.stat().st_ino != (tmp_path / "tokenizer.json").stat().st_ino


@pytest.mark.parametrize("durability", ["full", "batch", "none"])
def test_every_durability_writes_the_same(made, durability):
    made.write(durability=durability)
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}


def test_an_output_without_weights_has_its_side_files(made):
    record = made.write(weights=False)
    assert contents(made.folder) == with_provenance(SIDE)
    assert not any(file.is_weight for file in record.files.values())


@pytest.mark.parametrize(("link", "shared"), [("hard", True), ("copy", False)])
def test_weights_are_linked_or_copied_as_asked(made, link, shared):
    record = made.write(link=link)
    cached = os.stat(os.path.join(made.weights.folder, FIRST))
    shown = (made.folder / FIRST).stat()
    assert (shown.st_ino == cached.st_ino) == shared
    assert bool(shown.st_mode & stat.S_IWUSR) == (not shared)
    assert record.notes == ()


def test_a_link_that_is_not_possible_is_a_copy_and_said(made, monkeypatch):
    monkeypatch.setattr(links, "reflink", lambda *_: False)
    monkeypatch.setattr(links, "hardlink", lambda *_: False)
    for link in ("ref", "hard"):
        record = made.write(link=link)
        assert record.notes == (f"weight files are copied: --link {link} is not possible here",)
    assert made.write(link=None).notes == ()
    assert contents(made.folder)[FIRST] == WHOLE[FIRST]


def test_without_a_wish_reflinks_are_tried_then_hardlinks_then_copies(made, monkeypatch):
    tried = []
    monkeypatch.setattr(links, "reflink", lambda *_: tried.append("ref"))
    monkeypatch.setattr(links, "hardlink", lambda *_: tried.append("hard"))
    made.write()
    assert tried == ["ref", "hard", "ref", "hard"]


def test_a_file_system_that_cannot_reflink_is_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.ioctl", unsupported)
    assert not links.reflink(str(tmp_path / "a"), str(tmp_path / "b"))
    assert names(tmp_path) == ["a"]


def test_a_reflink_goes_through_one_call_with_both_files(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    calls = []
    monkeypatch.setattr("fcntl.ioctl", lambda new, request, old: calls.append(request))
    assert links.reflink(str(tmp_path / "a"), str(tmp_path / "b"))
    assert calls == [0x40049409]


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
@pytest.mark.parametrize("kernel", [True, False])
def test_a_copy_is_a_copy_with_or_without_the_kernels_help(tmp_path, monkeypatch, size, kernel):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    if not kernel:
        monkeypatch.setattr(os, "copy_file_range", unsupported)
    (tmp_path / "a").write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    links.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    with pytest.raises(FileExistsError):
        links.copy(str(tmp_path / "a"), str(tmp_path / "b"))


def test_a_new_output_takes_the_old_ones_place(made):
    first = made.write()
    second = made.write({**SIDE, "README.md": b"another card"}, key="k2", previous=first)
    assert contents(made.folder)["README.md"] == b"another card"
    assert names(made.folder.parent) == ["m"]
    assert second.notes == ()
    assert check_output(str(made.folder), second) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_folders_trade_places_with_or_without_the_kernels_help(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(links, "exchange", lambda *_: False)
    new, old = tmp_path / ".m.new-0123456789ab", tmp_path / "m"
    for folder in (new, old):
        folder.mkdir()
        (folder / folder.name).touch()
    displaced = take_place(str(new), str(old))
    assert names(old) == [".m.new-0123456789ab"]
    assert names(displaced) == ["m"]


def test_without_exchange_an_output_is_replaced_all_the_same(made, monkeypatch):
    monkeypatch.setattr(links, "exchange", lambda *_: False)
    first = made.write()
    made.write({"config.json": b"2"}, previous=first)
    assert contents(made.folder)["config.json"] == b"2"
    assert names(made.folder.parent) == ["m"]


def test_a_second_rename_that_fails_puts_the_old_output_back(made, monkeypatch):
    monkeypatch.setattr(links, "exchange", lambda *_: False)
    first = made.write()
    real = os.rename

    def rename(source, target):
        if ".new-" in source and target == str(made.folder):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(BuildFailed):
        made.write({"config.json": b"2"}, previous=first)
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a//b", ".", "a\\b"])
def test_no_file_is_written_outside_the_output(made, name):
    with pytest.raises(ValueError, match="is not the name of a file"):
        made.write(unlisted={name: b"x"})
    assert not made.folder.exists()


@pytest.mark.parametrize("target", ["build/..", "build/.hidden", "/", "."])
def test_no_output_is_written_outside_the_folder_of_outputs(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is not the name of an output"):
        write_output(target, None, {}, key="k", edited_root="build/.edited")


def test_a_side_file_cannot_take_the_name_of_a_weight_file(made):
    with pytest.raises(ValueError, match="same name"):
        made.write({FIRST: b"x"})


def test_an_output_may_be_named_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_output("m", None, {"a": b"1"}, key="k", edited_root=".edited", durability="none")
    write_output("build/n/", None, {"a": b"1"}, key="k", edited_root="build/.edited", durability="none")
    assert contents(tmp_path) == {"m/a": b"1", "build/n/a": b"1"}


def test_a_full_disk_leaves_the_older_output_and_nothing_else(made, monkeypatch):
    first = made.write()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(links, "show", full)
    with pytest.raises(BuildFailed, match="the disk is full: `m` does not fit"):
        made.write({"config.json": b"2"}, previous=first)
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}
    assert names(made.folder.parent) == ["m"]


def test_a_source_that_cannot_be_read_is_named_and_leaves_the_older_output(made, tmp_path):
    made.write()
    with pytest.raises(BuildFailed) as failed:
        made.write(unlisted={"tokenizer.json": str(tmp_path / "gone")})
    assert "gone" in failed.value.render()
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}


def test_ctrl_c_leaves_the_older_output_and_nothing_else(made, monkeypatch):
    made.write()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(links, "show", stop)
    with pytest.raises(KeyboardInterrupt):
        made.write({"config.json": b"2"})
    assert contents(made.folder) == {**WHOLE, **with_provenance(SIDE)}
    assert names(made.folder.parent) == ["m"]


def test_the_record_survives_being_written_down(made):
    record = made.write()
    assert OutputRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "text",
    [
        "", "garbage", "[]", "null", "{}", "[" * 99999,
        '{"format": "modelbuild output 1", "name": "m", "key": "k", "files": {"../x": [1, 2, "sha256:x", false, 3]}}',
        '{"format": "modelbuild output 1", "name": "m", "key": "k", "files": {"x": [1, 2]}}',
        '{"format": "modelbuild output 1", "name": "m", "key": "k", "files": {"x": ["1", 2, "x", false, 3]}}',
        '{"format": "modelbuild output 2", "name": "m", "key": "k", "files": {}}',
    ],
)  # fmt: skip
def test_a_record_of_garbage_is_no_record(text):
    assert OutputRecord.from_json(text) is None


def change(made, record, **options):
    return [(c.name, c.kind) for c in check_output(str(made.folder), record, **options)]


def test_every_kind_of_change_is_named(made):
    record = made.write(link="copy")
    (made.folder / "README.md").write_text("mine")
    (made.folder / "config.json").unlink()
    (made.folder / "notes").mkdir()
    (made.folder / "notes" / "today.txt").write_text("new")
    flip(made.folder / FIRST, 9)
    (made.folder / SECOND).unlink()
    assert change(made, record, manifest=made.weights.manifest) == [
        ("README.md", "edited"), ("config.json", "missing"), (FIRST, "weights"), (SECOND, "weights"),
        ("notes/today.txt", "extra"),
    ]  # fmt: skip
    assert check_output(str(made.folder), record)[0] == Change("README.md", "edited")


def test_an_output_that_is_gone_misses_everything(made):
    record = made.write()
    made.folder.rename(made.folder.parent / "elsewhere")
    assert {kind for _, kind in change(made, record)} == {"missing", "weights"}


def test_what_was_only_touched_is_read_and_is_no_change(made):
    record = made.write(link="copy")
    for path in (made.folder / "README.md", made.folder / FIRST):
        os.utime(path, (1, 1))
    assert change(made, record) == [(FIRST, "weights")]
    assert change(made, record, manifest=made.weights.manifest) == []


def test_an_unchanged_output_is_not_read(made, monkeypatch):
    record = made.write()
    monkeypatch.setattr("modelbuild.artifact.edits.file_sha256", lambda _: pytest.fail("it was read"))
    assert change(made, record) == []


def test_a_file_replaced_by_another_of_the_same_size_and_time_is_seen(made):
    record = made.write()
    path = made.folder / "README.md"
    facts = path.stat()
    other = made.folder / "other"
    other.write_bytes(b"CARD")
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(path)
    assert change(made, record) == [("README.md", "edited")]


def test_recovering_where_nothing_is_does_nothing(tmp_path):
    assert recover(str(tmp_path / "build")) == []
