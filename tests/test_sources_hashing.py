"""Digests of many files at once, and the memory that saves taking them twice."""

import errno
import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from modelbuild.errors import BuildFailed, SourceChanged, SourceNotFound
from modelbuild.sources import hashing, lanes, memory
from modelbuild.sources.content import SourceFile, Stamp
from modelbuild.sources.hashing import Stretch, digests, hash_stretches
from modelbuild.sources.memory import Contents, Memory
from modelbuild.sources.safetensors import Header, TensorEntry

LATER = 10_000_000_000
"""Ten seconds in nanoseconds: files made by a test are old enough to trust by then."""


def later() -> int:
    """A clock that is ten seconds ahead."""
    return time.time_ns() + LATER


def make(folder: Path, *sizes: int) -> list[tuple[str, str]]:
    found = []
    for index, size in enumerate(sizes):
        path = folder / f"{index}.bin"
        path.write_bytes(os.urandom(size))
        found.append((path.name, str(path.resolve())))
    return found


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that hashing opened, one for each slice."""
    names: list[str] = []
    real = hashing.open_regular

    def spy(path: str, name: str) -> int:
        names.append(name)
        return real(path, name)

    monkeypatch.setattr(hashing, "open_regular", spy)
    return names


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_digests_are_those_of_the_files_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(hashing, "SLICE", 1000)
    monkeypatch.setattr(hashing, "BUFFER", 300)
    files = make(tmp_path, 0, 1, 999, 1000, 1001, 30_000, 299, 300)
    found = digests(files, Memory(tmp_path / "cache"), threads)
    assert [(file.name, file.path) for file in found] == files
    assert [file.sha256 for file in found] == [sha256(path) for _, path in files]
    assert [file.size for file in found] == [0, 1, 999, 1000, 1001, 30_000, 299, 300]


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files were hashed at a time, with all of them hashed side by side where there are several a thread."""
    sha256 = pytest.importorskip("modelbuild.kernels.sha256")
    if sha256.lanes() is None:
        pytest.skip("a processor without SHA instructions")
    seen: list[int] = []
    real = sha256.Lanes.update

    def spy(self: object, states: Sequence[object], pieces: Sequence[memoryview]) -> None:
        seen.append(len(states))
        real(self, states, pieces)

    monkeypatch.setattr(sha256.Lanes, "update", spy)
    monkeypatch.setattr(lanes, "WORTH", 1)
    return seen


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_digests_of_files_hashed_side_by_side_are_those_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_by_side: list[int], threads: int
) -> None:
    monkeypatch.setattr(hashing, "SLICE", 1000)
    monkeypatch.setattr(hashing, "BUFFER", 700)
    sizes = (0, 1, 63, 64, 65, 999, 1000, 1001, 30_000, 30_000, 29_999, 5_000, 128)
    files, told = make(tmp_path, *sizes), list[int]()
    found = digests(files, Memory(tmp_path / "cache"), threads, told.append)
    assert [file.sha256 for file in found] == [sha256(path) for _, path in files]
    assert sum(told) == sum(sizes)
    assert max(side_by_side) == 4


def test_stretches_of_one_file_are_hashed_side_by_side_too(tmp_path: Path, side_by_side: list[int]) -> None:
    ((name, path),) = make(tmp_path, 5000)
    content, stamp = Path(path).read_bytes(), Memory(tmp_path).stamp(path, os.stat(path))
    places = [(3, 700), (700, 705), (705, 4999), (4999, 4999)]
    got: dict[int, str] = {}
    hash_stretches([Stretch(name, path, stamp, *place) for place in places], 1, got.__setitem__)
    assert got == {n: hashlib.sha256(content[start:stop]).hexdigest() for n, (start, stop) in enumerate(places)}
    assert max(side_by_side) > 1


def test_short_reads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_by_side: list[int]) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: real(file, [buffers[0][:37]], offset))
    files = make(tmp_path, 1000, 1100, 1200)
    found = digests(files, Memory(tmp_path / "cache"), 1)
    assert [file.sha256 for file in found] == [sha256(path) for _, path in files]
    assert side_by_side


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_file_that_changes_beside_others_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_by_side: list[int], which: int
) -> None:
    monkeypatch.setattr(hashing, "SLICE", 640)
    files = make(tmp_path, 3000, 3000, 3000)
    edits(monkeypatch, lambda: os.truncate(files[which][1], 500), after=4)
    with pytest.raises(SourceChanged, match=f"`{which}.bin` changed"):
        digests(files, Memory(tmp_path / "cache", later), 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_stops_threads_that_hash_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_by_side: list[int], threads: int
) -> None:
    monkeypatch.setattr(hashing, "SLICE", 64)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        digests(make(tmp_path, *[1000] * 9), Memory(tmp_path / "cache"), threads, interrupt)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("sizes", "threads", "expected"),
    [
        ([lanes.WORTH] * 3, 2, True),
        ([lanes.WORTH - 1] * 3, 2, False),
        ([lanes.WORTH] * 2, 2, False),
        ([10 * lanes.WORTH, *[1000] * 9], 1, False),
        ([lanes.WORTH] * 2, 1, True),
        ([10 * lanes.WORTH], 1, False),
    ],
)
def test_side_by_side_is_for_threads_that_have_much_more_than_a_file_each(
    sizes: list[int], threads: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelbuild.kernels import sha256 as kernel

    chosen = kernel.Lanes()
    monkeypatch.setattr(kernel, "lanes", lambda: chosen)
    assert (lanes.fitting(sizes, threads) is chosen) == expected
    monkeypatch.setattr(kernel, "lanes", lambda: None)
    assert isinstance(lanes.fitting(sizes, threads), lanes.OneByOne)


def test_progress_adds_up_to_the_bytes_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SLICE", 100)
    told: list[int] = []
    digests(make(tmp_path, 250, 40), Memory(tmp_path / "cache"), 2, told.append)
    assert sum(told) == 290
    assert max(told) == 100


def test_threads_take_turns_so_that_equal_files_end_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SLICE", 100)
    order: list[str] = []
    real = hashing.open_regular
    monkeypatch.setattr(hashing, "open_regular", lambda path, name: order.append(name) or real(path, name))
    files = make(tmp_path, 300, 300)
    stretches = [Stretch(name, path, Memory(tmp_path).stamp(path, os.stat(path)), 0, 300) for name, path in files]
    hash_stretches(stretches, 1, lambda index, digest: None)
    assert sorted(order[:2]) == ["0.bin", "1.bin"]
    assert sorted(order[-2:]) == ["0.bin", "1.bin"]


def test_a_file_asked_for_twice_is_read_once(tmp_path: Path, opened: list[str]) -> None:
    ((_, path),) = make(tmp_path, 10)
    os.link(path, tmp_path / "link")
    found = digests([("a", path), ("b", path), ("c", str(tmp_path / "link"))], Memory(tmp_path / "cache"))
    assert [file.name for file in found] == ["a", "b", "c"]
    assert len({file.sha256 for file in found}) == 1
    assert len(opened) == 1


def test_a_remembered_file_is_not_opened(tmp_path: Path, opened: list[str]) -> None:
    files = make(tmp_path, 10, 20)
    first = digests(files, Memory(tmp_path / "cache", later))
    opened.clear()
    assert digests(files, Memory(tmp_path / "cache", later)) == first
    assert opened == []


def test_the_same_memory_knows_what_it_was_just_told(tmp_path: Path, opened: list[str]) -> None:
    files, known = make(tmp_path, 10), Memory(tmp_path / "cache", later)
    digests(files, known)
    digests(files, known)
    assert len(opened) == 1


def test_a_file_younger_than_two_seconds_is_hashed_again(tmp_path: Path, opened: list[str]) -> None:
    files = make(tmp_path, 10)
    digests(files, Memory(tmp_path / "cache"))
    digests(files, Memory(tmp_path / "cache"))
    assert len(opened) == 2


@pytest.mark.parametrize("edit", ["append", "rewrite", "replace", "touch", "chmod"])
def test_a_file_whose_stamp_changed_is_hashed_again(tmp_path: Path, opened: list[str], edit: str) -> None:
    ((name, path),) = make(tmp_path, 10)
    digests([(name, path)], Memory(tmp_path / "cache", later))
    opened.clear()
    if edit == "append":
        with open(path, "ab") as file:
            file.write(b"x")
    elif edit == "rewrite":
        Path(path).write_bytes(b"y" * 10)
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))
    elif edit == "replace":
        status = os.stat(path)
        (tmp_path / "new").write_bytes(b"z" * 10)
        os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(tmp_path / "new", path)
    elif edit == "touch":
        os.utime(path, ns=(0, 12345))
    else:
        time.sleep(0.02)
        os.chmod(path, 0o600)
    (found,) = digests([(name, path)], Memory(tmp_path / "cache", later))
    assert found.sha256 == sha256(path)
    assert opened == [name]


def test_inside_the_cache_a_hard_link_changes_nothing(tmp_path: Path, opened: list[str]) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    ((name, path),) = make(cache, 10)
    (first,) = digests([(name, path)], Memory(cache, later))
    opened.clear()
    time.sleep(0.02)
    os.link(path, tmp_path / "shown")
    assert digests([(name, path)], Memory(cache, later)) == [first]
    assert first.stamp.ctime_ns == 0
    assert opened == []


def edits(monkeypatch: pytest.MonkeyPatch, edit: Callable[[], object], after: int) -> None:
    """Does `edit` once, after the hashing has read `after` times."""
    real, lock, reads = os.preadv, threading.Lock(), [0]

    def spy(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = real(descriptor, buffers, offset)
        with lock:
            reads[0] += 1
            if reads[0] == after:
                edit()
        return count

    monkeypatch.setattr(os, "preadv", spy)


@pytest.mark.parametrize(("size", "fact"), [(500, "had 1000 bytes and has 500"), (1500, "had 1000 bytes and has 1500")])
def test_a_file_whose_size_changes_while_it_is_hashed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, fact: str
) -> None:
    monkeypatch.setattr(hashing, "BUFFER", 100)
    monkeypatch.setattr(hashing, "SLICE", 700)
    ((name, path),) = make(tmp_path, 1000)
    edits(monkeypatch, lambda: os.truncate(path, size), after=3)
    with pytest.raises(SourceChanged) as caught:
        digests([(name, path)], Memory(tmp_path / "cache", later), 1)
    fault = caught.value.faults[0]
    assert "`0.bin` changed" in fault.message
    assert fact in fault.facts[0] or fault.facts[0] == "it ends after 500 of 1000 bytes"
    assert Memory(tmp_path / "cache").digest(Memory(tmp_path / "cache").stamp(path, os.stat(path))) is None


def test_a_file_that_is_written_to_while_it_is_hashed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "BUFFER", 100)
    ((name, path),) = make(tmp_path, 1000)

    def edit() -> None:
        time.sleep(0.02)
        with open(path, "r+b") as file:
            file.write(b"!")

    edits(monkeypatch, edit, after=2)
    with pytest.raises(SourceChanged) as caught:
        digests([(name, path)], Memory(tmp_path / "cache"), 1)
    assert caught.value.faults[0].facts == ("it was written to",)


def test_a_file_that_is_replaced_between_two_slices_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "SLICE", 100)
    ((name, path),) = make(tmp_path, 1000)
    (tmp_path / "new").write_bytes(bytes(1000))
    edits(monkeypatch, lambda: os.replace(tmp_path / "new", path), after=1)
    with pytest.raises(SourceChanged) as caught:
        digests([(name, path)], Memory(tmp_path / "cache"), 2)
    assert "replaced" in caught.value.faults[0].facts[0]


def test_a_disk_that_fails_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(BuildFailed) as caught:
        digests(make(tmp_path, 10), Memory(tmp_path / "cache"))
    assert caught.value.faults[0].message == "`0.bin` could not be read"
    assert caught.value.faults[0].facts == ("Input/output error",)


def test_an_interrupt_stops_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SLICE", 10)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        digests(make(tmp_path, 1000, 1000, 1000), Memory(tmp_path / "cache"), 3, interrupt)
    assert threading.active_count() == before


def test_pipes_folders_links_and_missing_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(BuildFailed, match=f"`{name}` is not a file"):
            digests([(name, str(tmp_path / name))], Memory(tmp_path / "cache"))
    with pytest.raises(SourceNotFound, match="`none` cannot be opened"):
        digests([("none", str(tmp_path / "none"))], Memory(tmp_path / "cache"))


STAMP = Stamp(1, 2, 3, 4, 5)
DIGEST = "ab" * 32


def test_a_torn_line_hides_no_other(tmp_path: Path) -> None:
    Memory(tmp_path).remember(STAMP, DIGEST, later())
    stamps = tmp_path / "sources" / "stamps"
    stamps.write_bytes(stamps.read_bytes() + b"1 2 3 4 6 " + b"cd" * 20)
    other = STAMP._replace(inode=9)
    Memory(tmp_path).remember(other, "ef" * 32, later())
    known = Memory(tmp_path)
    assert known.digest(STAMP) == DIGEST
    assert known.digest(other) == "ef" * 32
    assert known.digest(STAMP._replace(ctime_ns=6)) is None


def test_no_flipped_bit_of_the_memory_makes_a_wrong_digest(tmp_path: Path) -> None:
    Memory(tmp_path).remember(STAMP, DIGEST, later())
    stamps = tmp_path / "sources" / "stamps"
    good = stamps.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        stamps.write_bytes(bad)
        assert Memory(tmp_path).digest(STAMP) in (None, DIGEST)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 1000, b"\xff\xfe\n", b"a b c\n" * 10, b" \n \n"])
def test_a_memory_of_garbage_is_an_empty_one(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "stamps").write_bytes(garbage)
    known = Memory(tmp_path)
    assert known.digest(STAMP) is None
    known.remember(STAMP, DIGEST, later())
    assert Memory(tmp_path).digest(STAMP) == DIGEST


def test_a_memory_that_cannot_be_written_only_forgets(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    files = make(tmp_path, 10)
    known = Memory(tmp_path / "cache", later)
    (file,) = digests(files, known)
    known.remember_contents(file, Contents(HEADER), later())
    assert file.sha256 == sha256(files[0][1])
    assert known.contents(file) is None


def test_the_newest_of_too_many_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STAMPS_LIMIT", 10)
    known = Memory(tmp_path)
    for inode in range(11):
        known.remember(STAMP._replace(inode=inode), DIGEST, later())
    again = Memory(tmp_path)
    kept = [inode for inode in range(11) if again.digest(STAMP._replace(inode=inode))]
    assert kept == [6, 7, 8, 9, 10]
    assert len((tmp_path / "sources" / "stamps").read_text().split("\n")) == 6
    assert os.listdir(tmp_path / "sources") == ["stamps"]


HEADER = Header((TensorEntry("w", "F32", (1, 2), 100, 8),), {"format": "pt"}, 100)


def a_file(size: int = 108) -> SourceFile:
    return SourceFile("x", "/x", size, DIGEST, STAMP)


def test_contents_come_back_as_they_were(tmp_path: Path) -> None:
    for contents in (Contents(HEADER), Contents(HEADER, ("cd" * 32,))):
        Memory(tmp_path).remember_contents(a_file(), contents, later())
        assert Memory(tmp_path).contents(a_file()) == contents


def test_contents_of_a_young_file_are_not_kept(tmp_path: Path) -> None:
    Memory(tmp_path).remember_contents(a_file(), Contents(HEADER), STAMP.mtime_ns + 1_000_000_000)
    assert Memory(tmp_path).contents(a_file()) is None


def test_contents_that_do_not_fill_the_file_are_not_believed(tmp_path: Path) -> None:
    Memory(tmp_path).remember_contents(a_file(), Contents(HEADER), later())
    assert Memory(tmp_path).contents(a_file(109)) is None


def test_damaged_contents_are_as_good_as_none(tmp_path: Path) -> None:
    Memory(tmp_path).remember_contents(a_file(), Contents(HEADER), later())
    (stored,) = (tmp_path / "sources" / "contents").glob("*/*.json")
    good = stored.read_bytes()
    for place in range(len(good)):
        stored.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert Memory(tmp_path).contents(a_file()) is None
        stored.write_bytes(good[:place])
        assert Memory(tmp_path).contents(a_file()) is None
    check = hashlib.sha256(b"[" * 100_000).hexdigest()[:16].encode()
    for text in (
        b"[" * 100_000,
        b"{}",
        b"[]",
        json.dumps({"tensors": [[1]], "metadata": {}, "data_start": 1}).encode(),
    ):
        stored.write_bytes(
            (check if text[:2] == b"[[" else hashlib.sha256(text).hexdigest()[:16].encode()) + b"\n" + text
        )
        assert Memory(tmp_path).contents(a_file()) is None


def _hash_again_and_again(folder: str, cache: str, failures: "multiprocessing.Queue[str]") -> None:
    files = [(name, os.path.join(folder, name)) for name in sorted(os.listdir(folder))]
    for _ in range(20):
        found = digests(files, Memory(cache, later), 2)
        for file in found:
            if file.sha256 != sha256(file.path):
                failures.put(file.name)
            Memory(cache).remember_contents(file, Contents(HEADER), later())


def test_two_processes_share_a_memory(tmp_path: Path, opened: list[str]) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    files = make(folder, *range(100, 120))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    failures = context.Queue()
    arguments = (str(folder), str(tmp_path / "cache"), failures)
    workers = [context.Process(target=_hash_again_and_again, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert failures.empty()
    opened.clear()
    digests(files, Memory(tmp_path / "cache", later))
    assert opened == []


def test_a_warm_memory_answers_for_twenty_files_in_five_milliseconds(tmp_path: Path) -> None:
    files = make(tmp_path, *[10] * 20)
    cache = Memory(tmp_path / "cache", later)
    for inode in range(2000):
        cache.remember(STAMP._replace(inode=inode), DIGEST, later())
    digests(files, cache)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        digests(files, Memory(tmp_path / "cache", later))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
