"""The lock: one text for one meaning, read strictly, written whole."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.errors import BuildFailed, LockOutOfDate, Where
from modelbuild.sources import lock as lock_module
from modelbuild.sources.content import SourceAdapter, SourceFile, SourceModel, Stamp
from modelbuild.sources.lock import (
    Lock,
    LockedFile,
    LockedOutput,
    LockedSource,
    check_writable,
    differences,
    from_sources,
    render,
    write,
)
from modelbuild.sources.lockfile import parse, read

A, B, C = "a" * 64, "b" * 64, "c" * 64
LOCK = Lock(
    {
        "limarp": LockedSource("hf:lemonilia/limarp", (LockedFile("adapter_config.json", 7, C),), "0123abc"),
        "chronos": LockedSource(
            "local:models/chronos", (LockedFile("model.safetensors", 12, A), LockedFile("config.json", 3, B))
        ),
    },
    {"modelbuild": "0.1.0", "lerp": 1, "gguf 0.19": "Q4_K"},
    {"merged": LockedOutput("ff00", (LockedFile("1_Pooling/config.json", 0, A),))},
)
TEXT = f"""\
# Written by modelbuild. Keep it with the Modelfile; do not edit it by hand.
lock = 1

[sources.chronos]
origin = "local:models/chronos"
files = [
  {{ name = "config.json", size = 3, sha256 = "{B}" }},
  {{ name = "model.safetensors", size = 12, sha256 = "{A}" }},
]

[sources.limarp]
origin = "hf:lemonilia/limarp"
commit = "0123abc"
files = [
  {{ name = "adapter_config.json", size = 7, sha256 = "{C}" }},
]

[methods]
"gguf 0.19" = "Q4_K"
lerp = 1
modelbuild = "0.1.0"

[outputs.merged]
key = "ff00"
files = [
  {{ name = "1_Pooling/config.json", size = 0, sha256 = "{A}" }},
]
"""


def back(text: str) -> Lock:
    return parse(text.encode(), "Modelfile.lock")


def refusal(text: str | bytes) -> LockOutOfDate:
    with pytest.raises(LockOutOfDate) as caught:
        parse(text if isinstance(text, bytes) else text.encode(), "Modelfile.lock")
    assert caught.value.exit_code == 3
    return caught.value


def test_a_lock_is_text_sorted_by_name() -> None:
    assert render(LOCK) == TEXT


def test_the_text_is_read_back() -> None:
    assert render(back(TEXT)) == TEXT
    assert back(TEXT).sources["limarp"] == LOCK.sources["limarp"]
    assert back(TEXT).methods == LOCK.methods
    assert back(TEXT).outputs == LOCK.outputs


def test_files_are_read_back_in_the_order_of_their_names() -> None:
    assert [file.name for file in back(TEXT).sources["chronos"].files] == ["config.json", "model.safetensors"]


def test_an_output_that_is_bound_to_a_library_says_to_which() -> None:
    bound = Lock(outputs={"q": LockedOutput("ff", (), ("torch 2.13.0, 1 thread", "bitsandbytes 0.50.2"))})
    assert 'key = "ff"\nnumerics = ["bitsandbytes 0.50.2", "torch 2.13.0, 1 thread"]\nfiles = [\n]\n' in render(bound)
    assert back(render(bound)).outputs["q"].numerics == ("bitsandbytes 0.50.2", "torch 2.13.0, 1 thread")


def test_a_folder_that_takes_no_lock_is_told_apart_and_nothing_stays(tmp_path: Path) -> None:
    check_writable(tmp_path / "Modelfile.lock")
    assert os.listdir(tmp_path) == []
    (tmp_path / "Modelfile.lock").symlink_to("nowhere/lock")
    with pytest.raises(BuildFailed) as caught:
        check_writable(tmp_path / "Modelfile.lock")
    assert caught.value.faults[0].message == "the lock could not be written"
    with pytest.raises(BuildFailed) as again:
        write(tmp_path / "Modelfile.lock", LOCK)
    assert again.value.render() == caught.value.render()
    assert os.listdir(tmp_path) == ["Modelfile.lock"]


def test_an_empty_lock_is_one_line_and_its_heading() -> None:
    assert render(Lock()).splitlines()[1:] == ["lock = 1"]
    assert back(render(Lock())) == Lock()


def test_line_ends_of_another_system_mean_the_same() -> None:
    assert back(TEXT.replace("\n", "\r\n")) == back(TEXT)


def in_order(words: set[str]) -> tuple[str, ...]:
    return tuple(sorted(words))


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
FILES = st.lists(
    st.builds(LockedFile, WORDS, st.integers(0, 2**62), st.text("0123456789abcdef", min_size=64, max_size=64)),
    max_size=4,
    unique_by=lambda file: file.name,
).map(lambda files: tuple(sorted(files, key=lambda file: file.name)))
LOCKS = st.builds(
    Lock,
    st.dictionaries(WORDS, st.builds(LockedSource, WORDS, FILES, st.none() | WORDS), max_size=3),
    st.dictionaries(WORDS, st.integers(-5, 2**62) | WORDS, max_size=3),
    st.dictionaries(WORDS, st.builds(LockedOutput, WORDS, FILES, st.sets(WORDS, max_size=3).map(in_order)), max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(LOCKS)
def test_every_lock_is_read_back_as_it_was(lock: Lock) -> None:
    text = render(lock)
    assert back(text) == lock
    assert render(back(text)) == text


def shuffled(data: st.DataObject, lock: Lock) -> Lock:
    """The same lock, its tables and files in another order."""
    tables = [dict(data.draw(st.permutations(list(t.items())))) for t in (lock.sources, lock.methods, lock.outputs)]
    for table in (tables[0], tables[2]):
        for name, entry in table.items():
            table[name] = replace(entry, files=tuple(data.draw(st.permutations(entry.files))))
    return Lock(*tables)


@settings(max_examples=100, deadline=None)
@given(LOCKS, st.data())
def test_the_same_lock_is_the_same_text_in_whatever_order_it_was_made(lock: Lock, data: st.DataObject) -> None:
    assert render(shuffled(data, lock)) == render(lock)


@settings(max_examples=100, deadline=None)
@given(LOCKS, st.data())
def test_the_order_of_tables_in_the_text_means_nothing(lock: Lock, data: st.DataObject) -> None:
    # A string never holds a line end as it is, so a line that starts with a bracket starts a table.
    head, *tables = render(lock).split("\n[")
    again = "\n[".join([head, *(f"{table.rstrip()}\n" for table in data.draw(st.permutations(tables)))])
    assert back(again) == lock
    assert differences(lock, back(again)) == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_refused_or_read_as_what_it_says(data: st.DataObject) -> None:
    raw = bytearray(TEXT.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        lock = parse(bytes(raw), "Modelfile.lock")
    except LockOutOfDate:
        return
    assert back(render(lock)) == lock


@pytest.mark.parametrize(
    ("old", "new", "line", "fact"),
    [
        ("size = 12", "size = -12", 8, "expected a number of bytes"),
        ("size = 12", "size = true", 8, "expected a number of bytes"),
        ("size = 12", "size = 12.0", 8, "expected a number of bytes"),
        (f'"{B}"', '"b"', 7, "expected a SHA-256, 64 hexadecimal digits"),
        (f'"{B}"', f'"{"B" * 64}"', 7, "expected a SHA-256, 64 hexadecimal digits"),
        (f'"{B}"', "1", 7, "expected a SHA-256, 64 hexadecimal digits"),
        ('"config.json", size = 3', '"model.safetensors", size = 3', 8, "`model.safetensors` is listed twice"),
        ('origin = "hf:lemonilia/limarp"', "origin = 3", 12, "expected a string"),
        ('origin = "hf:lemonilia/limarp"', 'origin = ""', 12, "expected a string"),
        ('origin = "hf:lemonilia/limarp"\n', "", 11, "`origin` is missing"),
        ('commit = "0123abc"', 'comit = "0123abc"', 13, "`comit` is not a key of a lock of format 1"),
        ('commit = "0123abc"', "commit = []", 13, "expected a string"),
        ("lerp = 1\n", "lerp = 1.5\n", 20, "expected a version, a number or a string"),
        ("lerp = 1\n", "lerp = true\n", 20, "expected a version, a number or a string"),
        ('key = "ff00"', "key = {}", 24, "expected a string"),
        ('key = "ff00"', 'key = "ff00"\nnumerics = "x"', 25, "expected a list of strings"),
        ('key = "ff00"', 'key = "ff00"\nnumerics = []', 25, "expected a list of strings"),
        ('key = "ff00"', 'key = "ff00"\nnumerics = ["x", 1]', 25, "expected a list of strings"),
        ('key = "ff00"', 'key = "ff00"\nnumerics = ["x", "x"]', 25, "expected each string once"),
        ("lock = 1", "lock = 0", 2, "expected `lock = 1`"),
        ("lock = 1", 'lock = "1"', 2, "expected `lock = 1`"),
        ("lock = 1", "lock = 1\nnotes = 1", 3, "`notes` is not a key of a lock of format 1"),
        ("lock = 1", "lock = 1\nmethod = 1", 3, "`method` is not a key of a lock of format 1"),
        ('sha256 = "' + C, 'xet = "1", sha256 = "' + C, 15, "`xet` is not a key of a lock of format 1"),
    ],
)
def test_what_no_lock_says_is_refused_with_its_line(old: str, new: str, line: int, fact: str) -> None:
    assert old in TEXT
    error = refusal(TEXT.replace(old, new, 1))
    (fault,) = error.faults
    assert fault.message == "the lock was edited or damaged"
    assert fault.facts == (fact,)
    assert fault.where is not None
    assert (fault.where.file, fault.where.line) == ("Modelfile.lock", line)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("lock = 1\nsources = 3\n", "expected a table"),
        ("lock = 1\n[sources]\nx = 3\n", "expected a table"),
        ("lock = 1\n[sources.x]\norigin = 'a'\nfiles = 3\n", "expected a list of files"),
        ("lock = 1\n[sources.x]\norigin = 'a'\nfiles = ['a']\n", "expected a table"),
        ("", "expected `lock = 1`"),
        ("x = 1", "expected `lock = 1`"),
    ],
)
def test_shapes_that_no_lock_has_are_refused(text: str, fact: str) -> None:
    assert refusal(text).faults[0].facts == (fact,)


def test_a_lock_that_is_no_toml_is_refused_with_its_place() -> None:
    fault = refusal("lock = 1\n[sources\n").faults[0]
    assert fault.message == "the lock is damaged"
    assert fault.where == Where("Modelfile.lock", 2, 9)


def test_a_lock_with_both_sides_of_a_merge_says_so() -> None:
    merged = TEXT.replace("lerp = 1\n", "<<<<<<< ours\nlerp = 1\n=======\nlerp = 2\n>>>>>>> theirs\n")
    fault = refusal(merged).faults[0]
    assert fault.message == "the lock holds two versions that were not merged"
    assert fault.where is not None
    assert fault.where.line == 20


@pytest.mark.parametrize("data", [b"\xff\xfe", b"lock = 1 # \xc3", b"a = " + b"[" * 100_000, b"\0" * 100])
def test_garbage_is_refused(data: bytes) -> None:
    assert refusal(data).faults[0].message == "the lock is damaged"


def test_a_newer_format_is_named_with_the_release_that_wrote_it() -> None:
    newer = 'lock = 2\nfuture = []\n[methods]\nmodelbuild = "3.0.1"\n'
    assert refusal(newer).render() == (
        "error: the lock is from a newer modelbuild\n  --> Modelfile.lock:1:8\n"
        "   |  it has format 2, written by modelbuild 3.0.1\n   |  this modelbuild knows format 1\n\n"
        "hint: use that release, or a newer one"
    )
    assert refusal("lock = 7\n").faults[0].facts[0] == "it has format 7"


def test_no_lock_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "Modelfile.lock") is None


def test_a_lock_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "Modelfile.lock").mkdir()
    with pytest.raises(LockOutOfDate, match="cannot be read"):
        read(tmp_path / "Modelfile.lock")


def test_a_lock_is_written_once_and_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile.lock"
    assert write(path, LOCK) is True
    assert path.read_text() == TEXT
    before = os.stat(path)
    assert write(path, LOCK) is False
    assert os.stat(path) == before
    assert write(path, Lock()) is True
    assert read(path) == Lock()
    assert os.listdir(tmp_path) == ["Modelfile.lock"]


def test_a_lock_that_is_not_understood_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile.lock"
    for text in ("lock = 2\n", "garbage", TEXT + "[future]\n"):
        path.write_text(text)
        with pytest.raises(LockOutOfDate):
            write(path, LOCK)
        assert path.read_text() == text


def test_a_lock_behind_a_link_is_written_where_the_link_points(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "Modelfile.lock").symlink_to("shared/lock")
    write(tmp_path / "Modelfile.lock", LOCK)
    assert (tmp_path / "Modelfile.lock").is_symlink()
    assert (tmp_path / "shared" / "lock").read_text() == TEXT


def test_a_full_disk_leaves_the_older_lock_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Modelfile.lock"
    write(path, LOCK)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BuildFailed) as caught:
        write(path, Lock())
    assert "No space left on device" in caught.value.faults[0].facts[0]
    assert path.read_text() == TEXT
    assert os.listdir(tmp_path) == ["Modelfile.lock"]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in ("Modelfile.lock.1.tmp", "Modelfile.lock.2.tmp", "Modelfile.tmp"))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    write(tmp_path / "Modelfile.lock", LOCK)
    assert sorted(os.listdir(tmp_path)) == ["Modelfile.lock", "Modelfile.lock.2.tmp", "Modelfile.tmp"]


def test_a_lock_is_made_of_resolved_sources() -> None:
    stamp = Stamp(1, 2, 3, 4, 5)
    weights, config = (SourceFile(n, f"/x/{n}", 3, A, stamp) for n in ("model.safetensors", "config.json"))
    model = SourceModel("chronos", "local:models/chronos", None, {}, (weights, config))
    adapter = SourceAdapter("limarp", "hf:l/l", "123", {}, (config,))
    output = {"merged": LockedOutput("ff", ())}
    lock = from_sources([model, adapter], {"modelbuild": "0.1.0", "lora": 1}, output)
    files = (LockedFile("config.json", 3, A), LockedFile("model.safetensors", 3, A))
    assert lock.sources["chronos"] == LockedSource("local:models/chronos", files)
    assert lock.sources["limarp"] == LockedSource("hf:l/l", files[:1], "123")
    assert lock.methods == {"modelbuild": "0.1.0", "lora": 1}
    assert lock.outputs == output
    assert "/x/" not in render(lock)


def test_differences_say_what_would_change() -> None:
    new = Lock(
        {
            "chronos": LockedSource(
                "local:models/other", (LockedFile("model.safetensors", 12, C), LockedFile("merges.txt", 1, A)), "9"
            ),
            "airo": LockedSource("hf:a/b", ()),
        },
        {"modelbuild": "0.2.0", "lerp": 1, "lora": 2},
    )
    assert differences(LOCK, new) == [
        "source `airo` is not in the lock",
        "source `chronos`: `local:models/chronos` → `local:models/other`",
        "source `chronos`: commit none → 9",
        "source `chronos`: `config.json` is gone",
        "source `chronos`: `merges.txt` is new",
        "source `chronos`: `model.safetensors` changed, aaaaaaaaaaaa → cccccccccccc",
        "source `limarp` is no longer used",
        "`gguf 0.19` is no longer used",
        "`lora` is not in the lock",
        "`modelbuild` 0.1.0 → 0.2.0",
    ]


def test_a_lock_does_not_differ_from_itself_nor_by_its_outputs() -> None:
    assert differences(LOCK, LOCK) == []
    assert differences(back(TEXT), Lock(back(TEXT).sources, LOCK.methods)) == []
    assert differences(None, LOCK) == ["there is no lock yet"]


@settings(max_examples=100, deadline=None)
@given(LOCKS, LOCKS)
def test_there_are_differences_exactly_where_sources_or_methods_differ(one: Lock, two: Lock) -> None:
    same = one.sources == two.sources and one.methods == two.methods
    assert (differences(one, two) == []) == same


def test_the_format_of_the_lock_is_the_first() -> None:
    assert lock_module.FORMAT == 1
