"""Writing past the page cache: the same bytes as through it, whatever the place, the length and the system say."""

import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild.engine import direct as directs
from modelbuild.engine.direct import ALIGNED, LEAST
from modelbuild.engine.stretch import Arena
from modelbuild.engine.writer import Writer

SIZE = 6 * LEAST


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def direct():
    """A writer that counts the bytes that go past the page cache."""
    writer = Writer(direct=True)
    if not writer.direct:
        pytest.skip("this system has no direct writes")
    writer.past = 0
    past_cache = writer._past_cache

    def counting(descriptor, twin, data, offset):
        done = past_cache(descriptor, twin, data, offset)
        writer.past += done
        return done

    writer._past_cache = counting
    yield writer
    writer.close()


def data(count, seed=0):
    """Random bytes in aligned memory, as a worker's slot has them."""
    slot = Arena(-(-count // 4), 1, 0).slots[0][:count]
    slot[:] = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    return slot.data


def test_slots_of_workers_start_where_direct_writes_want_them():
    assert [slot.ctypes.data % ALIGNED for slot in Arena(1000, 5, 0).slots] == [0] * 5


def test_whole_blocks_go_past_the_page_cache_and_the_rest_through_it(file, direct):
    written = data(LEAST + ALIGNED + 17)
    direct.write(file, written, 2 * ALIGNED)
    assert direct.past == LEAST + ALIGNED
    assert os.pread(file, len(written), 2 * ALIGNED) == bytes(written)


@pytest.mark.parametrize(("count", "offset"), [(LEAST, 8), (LEAST - 1, 0), (0, 0), (100, ALIGNED)])
def test_odd_places_and_small_pieces_go_through_the_page_cache(file, direct, count, offset):
    written = data(count)
    direct.write(file, written, offset)
    assert direct.past == 0
    assert os.pread(file, count, offset) == bytes(written)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2 * LEAST), st.integers(0, 3 * LEAST), st.booleans()), max_size=6))
def test_any_writes_give_the_bytes_that_plain_writes_give(file, direct, pieces):
    os.ftruncate(file, 0)
    os.ftruncate(file, SIZE)
    expected = bytearray(SIZE)
    for seed, (count, offset, aligned) in enumerate(pieces):
        place = offset - offset % ALIGNED if aligned else offset
        written = data(count, seed)
        direct.write(file, written, place)
        expected[place : place + count] = written
    assert os.pread(file, SIZE + 1, 0) == bytes(expected)


def test_a_system_that_refuses_direct_writes_is_asked_once(file, direct, monkeypatch):
    asked = []
    plain = os.pwrite

    def refusing(fd, data, offset):
        if fd != file:
            asked.append(fd)
            raise OSError(errno.EINVAL, "no direct writes here")
        return plain(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    written = data(2 * LEAST)
    direct.write(file, written[:LEAST], 0)
    direct.write(file, written[LEAST:], LEAST)
    assert len(asked) == 1
    assert os.pread(file, 2 * LEAST, 0) == bytes(written)


def test_a_file_system_that_cannot_open_for_direct_writes_is_written_through_the_page_cache(file, direct, monkeypatch):
    plain = os.open

    def refusing(path, flags, *rest, **more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct files here")
        return plain(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    written = data(LEAST)
    direct.write(file, written, 0)
    assert os.pread(file, LEAST, 0) == bytes(written)


def test_short_writes_are_carried_on(file, direct, monkeypatch):
    plain = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: plain(fd, data[: min(len(data), ALIGNED)], offset))
    written = data(LEAST + 5)
    direct.write(file, written, 0)
    assert os.pread(file, LEAST + 5, 0) == bytes(written)


def test_a_full_disk_is_an_error_and_not_a_reason_to_try_otherwise(file, direct, monkeypatch):
    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        direct.write(file, data(LEAST), 0)


def test_closing_leaves_the_descriptors_of_others_open(file, direct):
    direct.write(file, data(LEAST), 0)
    before = set(os.listdir("/proc/self/fd"))
    direct.close()
    assert len(before - set(os.listdir("/proc/self/fd"))) == 1
    os.fstat(file)


def test_a_build_that_need_not_survive_a_power_cut_does_not_wait_for_the_disk(world, monkeypatch):
    made = []
    remember = Writer.__init__

    def remembering(self, direct):
        made.append(direct)
        remember(self, direct)

    monkeypatch.setattr(Writer, "__init__", remembering)
    monkeypatch.setattr(directs, "LEAST", ALIGNED)
    world.model("a", seed=1).model("b", seed=2).modelfile("""
        [base.a]
        source = "a"
        [base.b]
        source = "b"
        [merge.half]
        method = "linear"
        models = [ { model = "a", weight = 1 }, { model = "b", weight = 1 } ]
    """)
    world.build(durability="none")
    through = {path.name: path.read_bytes() for path in (world.root / "build/half").glob("*.safetensors")}
    world.build(durability="batch", out=str(world.root / "other"), cache=str(world.root / "fresh"))
    past = {path.name: path.read_bytes() for path in (world.root / "other/half").glob("*.safetensors")}
    assert made == [False, True]
    assert through == past
