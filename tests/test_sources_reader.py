"""Readers give the bytes that were identified, or say that they are no longer there."""

import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelbuild.errors import BuildFailed, SourceChanged, SourceNotFound
from modelbuild.sources.content import SourceFile
from modelbuild.sources.hashing import digests
from modelbuild.sources.memory import Memory
from modelbuild.sources.reader import LocalReader, Reader

DATA = bytes(range(256)) * 4


@pytest.fixture
def file(tmp_path: Path) -> SourceFile:
    path = tmp_path / "w.safetensors"
    path.write_bytes(DATA)
    return digests([("w.safetensors", str(path.resolve()))], Memory(tmp_path / "cache"))[0]


def edit(file: SourceFile) -> None:
    time.sleep(0.02)
    with open(file.path, "r+b") as opened:
        opened.write(b"!")


def test_a_buffer_is_filled_from_the_offset(file: SourceFile) -> None:
    reader: Reader = LocalReader()
    buffer = bytearray(5)
    reader.read_into(buffer, file, 254)
    assert buffer == DATA[254:259]
    reader.read_into(bytearray(0), file, 1024)
    reader.check()
    reader.close()


def test_any_writable_buffer_will_do(file: SourceFile) -> None:
    numpy = pytest.importorskip("numpy")
    with LocalReader() as reader:
        array = numpy.zeros((2, 4), dtype=numpy.uint16)
        reader.read_into(array, file, 8)
        assert array.tobytes() == DATA[8:24]
        part = bytearray(10)
        reader.read_into(memoryview(part)[3:5], file, 1)
        assert part == b"\0\0\0\1\2\0\0\0\0\0"


def test_short_reads_are_continued(file: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.preadv, []

    def short(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append(offset)
        return real(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", short)
    buffer = bytearray(20)
    with LocalReader() as reader:
        reader.read_into(buffer, file, 3)
    assert buffer == DATA[3:23]
    assert calls == [3, 10, 17]


def test_a_file_is_opened_once_and_closed_at_the_end(file: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = os.open, []

    def spy(path: str, flags: int) -> int:
        opened.append(real(path, flags))
        return opened[-1]

    monkeypatch.setattr(os, "open", spy)
    with LocalReader() as reader:
        threads = [threading.Thread(target=reader.read_into, args=(bytearray(9), file, n)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(opened) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_a_closed_reader_opens_again(file: SourceFile) -> None:
    with LocalReader() as reader:
        reader.read_into(bytearray(1), file, 0)
        reader.close()
        reader.read_into(bytearray(1), file, 0)


def test_many_threads_read_at_once(file: SourceFile) -> None:
    wrong: list[int] = []

    def work(start: int) -> None:
        buffer = bytearray(50)
        for offset in range(start, 900, 7):
            reader.read_into(buffer, file, offset)
            if buffer != DATA[offset : offset + 50]:
                wrong.append(offset)

    with LocalReader() as reader:
        threads = [threading.Thread(target=work, args=(start,)) for start in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_file_edited_before_it_is_opened_is_an_error(file: SourceFile) -> None:
    edit(file)
    with LocalReader() as reader, pytest.raises(SourceChanged) as caught:
        reader.read_into(bytearray(1), file, 0)
    fault = caught.value.faults[0]
    assert fault.message == f"`{file.path}` changed while it was being read"
    assert fault.facts == ("it was written to",)


@pytest.mark.parametrize("change", ["edit", "truncate", "append", "replace", "delete", "touch"])
def test_a_file_changed_while_it_is_open_is_found_by_the_check(file: SourceFile, tmp_path: Path, change: str) -> None:
    facts = {
        "edit": "it was written to",
        "truncate": "it had 1024 bytes and has 100",
        "append": "it had 1024 bytes and has 1025",
        "replace": "another file has taken its place",
        "delete": "it was deleted or renamed",
        "touch": "it was written to",
    }
    with LocalReader() as reader:
        reader.read_into(bytearray(1), file, 0)
        reader.check()
        if change == "edit":
            edit(file)
        elif change == "truncate":
            os.truncate(file.path, 100)
        elif change == "append":
            with open(file.path, "ab") as opened:
                opened.write(b"x")
        elif change == "replace":
            (tmp_path / "new").write_bytes(DATA)
            os.replace(tmp_path / "new", file.path)
        elif change == "delete":
            os.unlink(file.path)
        else:
            os.utime(file.path)
        with pytest.raises(SourceChanged) as caught:
            reader.check()
    assert caught.value.faults[0].facts == (facts[change],)


def test_a_file_truncated_while_it_is_open_ends_early(file: SourceFile) -> None:
    with LocalReader() as reader:
        reader.read_into(bytearray(10), file, 0)
        os.truncate(file.path, 100)
        with pytest.raises(SourceChanged) as caught:
            reader.read_into(bytearray(20), file, 90)
    assert caught.value.faults[0].facts == ("it ends after 100 of 1024 bytes",)


def test_files_that_nobody_read_are_not_checked(file: SourceFile) -> None:
    with LocalReader() as reader:
        edit(file)
        reader.check()


def test_a_disk_that_fails_is_told_with_the_place(file: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with LocalReader() as reader, pytest.raises(BuildFailed) as caught:
        reader.read_into(bytearray(8), file, 16)
    assert caught.value.faults[0].facts == ("bytes 16 to 24", "Input/output error")


def test_a_link_in_the_place_of_a_file_is_not_followed(file: SourceFile, tmp_path: Path) -> None:
    os.rename(file.path, tmp_path / "moved")
    os.symlink(tmp_path / "moved", file.path)
    with LocalReader() as reader, pytest.raises(BuildFailed):
        reader.read_into(bytearray(1), file, 0)


def test_a_missing_file_is_a_source_not_found(file: SourceFile) -> None:
    os.unlink(file.path)
    with LocalReader() as reader, pytest.raises(SourceNotFound):
        reader.read_into(bytearray(1), file, 0)


def test_a_hard_link_made_inside_the_cache_is_no_change(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "w").write_bytes(DATA)
    (cached,) = digests([("w", str((cache / "w").resolve()))], Memory(cache))
    with LocalReader() as reader:
        reader.read_into(bytearray(1), cached, 0)
        time.sleep(0.02)
        os.link(cache / "w", tmp_path / "shown")
        reader.check()
    with LocalReader() as reader:
        reader.read_into(bytearray(1), cached, 0)


def test_more_files_than_the_soft_limit_are_read(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 60
    files = []
    for index in range(40):
        path = (tmp_path / f"{index}").resolve()
        path.write_bytes(bytes([index]))
        files.append((path.name, str(path)))
    found = digests(files, Memory(tmp_path / "cache"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, used + 20), hard))
    try:
        with LocalReader() as reader:
            for file in found:
                buffer = bytearray(1)
                reader.read_into(buffer, file, 0)
                assert buffer[0] == int(file.name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
