"""Reading files of the cache: from the page cache what it has, past it what it has not, always the same bytes."""

import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild.cache.nouns import Located
from modelbuild.engine.direct import ALIGNED, LEAST, Direct, fitting
from modelbuild.engine.files import StoredFiles
from modelbuild.engine.jobs import Damaged
from modelbuild.engine.stretch import Arena
from modelbuild.plan.node import Node

SIZE = 4 * LEAST + 100
WHOLE = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()
NODE = Node("key", "source", 1, (), (), "U8", (SIZE,))


@pytest.fixture
def located(tmp_path):
    (tmp_path / "file").write_bytes(WHOLE)
    return Located(NODE.key, str(tmp_path / "file"), 0, SIZE, "", "artifact")


@pytest.fixture
def files():
    files = StoredFiles(None)
    if not files._able:
        pytest.skip("this system has no direct reads")
    yield files
    files.close()


class Calls:
    """What `os.preadv` was asked for, while the page cache answers as it is told."""

    def __init__(self, monkeypatch, at_hand):
        self.past, self.plain = [], []
        self._read, self._at_hand = os.preadv, at_hand
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, fd, buffers, position, flags=0):
        if flags & os.RWF_NOWAIT:
            return self._at_hand(self._read, fd, buffers, position)
        (self.past if "O_DIRECT" in _flags(fd) else self.plain).append((position, len(buffers[0])))
        return self._read(fd, buffers, position)


def _flags(fd):
    with open(f"/proc/self/fdinfo/{fd}") as file:
        flags = int(next(line for line in file if line.startswith("flags"))[6:], 8)
    return "O_DIRECT" if flags & os.O_DIRECT else ""


def nothing(read, fd, buffers, position):
    raise BlockingIOError(errno.EAGAIN, "not at hand")


def everything(read, fd, buffers, position):
    return read(fd, buffers, position)


def one_page(read, fd, buffers, position):
    """The page cache has the first page alone."""
    if position >= ALIGNED:
        raise BlockingIOError(errno.EAGAIN, "not at hand")
    return read(fd, [buffers[0][: ALIGNED - position]], position)


def nothing_as_linux_5_10_says_it(read, fd, buffers, position):
    return 0


def unknown(read, fd, buffers, position):
    raise OSError(errno.EOPNOTSUPP, "no such reads here")


def read(files, located, offset, count):
    buffer = Arena(-(-count // 4), 1, 0).slots[0][:count]
    files.read(NODE, located, buffer.data, offset)
    return buffer.tobytes()


@pytest.mark.parametrize("at_hand", [nothing, nothing_as_linux_5_10_says_it, unknown])
def test_what_is_not_at_hand_is_read_past_the_page_cache(files, located, monkeypatch, at_hand):
    calls = Calls(monkeypatch, at_hand)
    assert read(files, located, ALIGNED, 2 * LEAST + 5) == WHOLE[ALIGNED : ALIGNED + 2 * LEAST + 5]
    assert calls.past == [(ALIGNED, 2 * LEAST)]
    assert calls.plain == [(ALIGNED + 2 * LEAST, 5)]


def test_what_is_at_hand_is_not_read_from_the_disk(files, located, monkeypatch):
    calls = Calls(monkeypatch, everything)
    assert read(files, located, 0, 2 * LEAST) == WHOLE[: 2 * LEAST]
    assert (calls.past, calls.plain) == ([], [])


def test_what_is_partly_at_hand_comes_from_both(files, located, monkeypatch):
    calls = Calls(monkeypatch, one_page)
    assert read(files, located, 0, 2 * LEAST) == WHOLE[: 2 * LEAST]
    assert calls.past == [(ALIGNED, 2 * LEAST - ALIGNED)]


@pytest.mark.parametrize(("offset", "count"), [(1, 2 * LEAST), (0, LEAST - 1), (0, 0), (ALIGNED, 10)])
def test_odd_places_and_small_pieces_are_read_plainly(files, located, monkeypatch, offset, count):
    calls = Calls(monkeypatch, nothing)
    assert read(files, located, offset, count) == WHOLE[offset : offset + count]
    assert calls.past == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, SIZE), st.integers(0, SIZE), st.booleans())
def test_any_stretch_is_the_bytes_of_the_file(files, located, offset, count, aligned):
    begin = offset - offset % ALIGNED if aligned else offset
    count = min(count, SIZE - begin)
    assert read(files, located, begin, count) == WHOLE[begin : begin + count]


def test_a_disk_that_refuses_direct_reads_is_asked_once(files, located, monkeypatch):
    plain, asked = os.preadv, []

    def refusing(fd, buffers, position, flags=0):
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not at hand")
        if _flags(fd):
            asked.append(position)
            raise OSError(errno.EINVAL, "no direct reads here")
        return plain(fd, buffers, position)

    monkeypatch.setattr(os, "preadv", refusing)
    assert read(files, located, 0, 2 * LEAST) == WHOLE[: 2 * LEAST]
    assert read(files, located, 0, 2 * LEAST) == WHOLE[: 2 * LEAST]
    assert asked == [0]


@pytest.mark.parametrize("size", [0, LEAST, LEAST + 7])
@pytest.mark.parametrize("at_hand", [nothing, everything])
def test_a_file_that_ends_early_is_damage(files, located, monkeypatch, size, at_hand):
    os.truncate(located.path, size)
    Calls(monkeypatch, at_hand)
    with pytest.raises(Damaged):
        read(files, located, 0, 2 * LEAST)


def test_a_failing_disk_is_an_error_and_not_a_reason_to_read_otherwise(files, located, monkeypatch):
    def failing(fd, buffers, position, flags=0):
        raise OSError(errno.EAGAIN if flags else errno.EIO, "input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(OSError, match="input/output error"):
        read(files, located, 0, 2 * LEAST)


def test_only_whole_blocks_of_some_size_fit():
    assert [fitting(n, 0) for n in (0, LEAST - 1, LEAST, LEAST + 1, LEAST + ALIGNED)] == [
        0, 0, LEAST, LEAST, LEAST + ALIGNED,
    ]  # fmt: skip
    assert fitting(LEAST, 1) == 0


def test_closing_lets_go_of_all_files(located):
    before = len(os.listdir("/proc/self/fd"))
    files = StoredFiles(None)
    read(files, located, 0, 2 * LEAST)
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_system_without_direct_files_gives_none(located, monkeypatch):
    plain = os.open

    def refusing(path, flags, *rest, **more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct files here")
        return plain(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    direct = Direct(os.O_RDONLY)
    with open(located.path, "rb") as file:
        assert direct.twin(file.fileno()) is None
    direct.close()
