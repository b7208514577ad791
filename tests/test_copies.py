"""Tensors whose bytes do not lie in order: gathered in pieces, kept in the cache, checked, made again if damaged."""

import hashlib
import os
import stat
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pickled import save

from modelbuild.errors import BuildFailed, SourceChanged
from modelbuild.sources import copies, gather
from modelbuild.sources.content import SourceFile
from modelbuild.sources.gather import gather as gathered
from modelbuild.sources.headers import at_rest, look_into
from modelbuild.sources.memory import Memory
from modelbuild.sources.reader import LocalReader
from modelbuild.sources.safetensors import TensorEntry, read_header
from modelbuild.sources.stamps import stamp_of

TENSORS = {
    "plain": torch.arange(12.0),
    "turned": torch.arange(12.0).view(3, 4).t(),
    "every other": torch.arange(12, dtype=torch.int16)[::2],
}


def later():
    """A clock far from any file that a test makes."""
    return 4_000_000_000_000_000_000


@pytest.fixture
def file(tmp_path):
    """A file of torch.save in which two of three tensors do not lie in order."""
    path = save(tmp_path / "file.bin", TENSORS)
    return source(path)


def source(path):
    status = os.stat(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return SourceFile(path.name, str(path), status.st_size, digest, stamp_of(status))


def rest(file, memory):
    return at_rest(look_into(file, memory, "f"), file, memory, "f")


def values(tensors):
    """The bytes of each tensor."""
    found = {}
    with LocalReader() as reader:
        for name, tensor in tensors.items():
            found[name] = bytearray(tensor.nbytes)
            reader.read_into(found[name], tensor.file, tensor.offset)
    return {name: bytes(data) for name, data in found.items()}


EXPECTED = {name: tensor.contiguous().numpy().tobytes() for name, tensor in TENSORS.items()}


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path / "cache", later)


@pytest.fixture
def copy(file, memory, tmp_path):
    """Where the copy lies, made already."""
    assert values(rest(file, memory)) == EXPECTED
    (path,) = tmp_path.glob("cache/sources/copies/*/*.safetensors")
    return path


# --- gathering --------------------------------------------------------------------------------------------------------


@st.composite
def strided(draw):
    """A tensor that views a flat one, and the size of pieces it is gathered in."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    strides = draw(st.lists(st.integers(0, 40), min_size=len(shape), max_size=len(shape)))
    dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
    start = draw(st.integers(0, 9))
    last = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    flat = torch.arange(last + 1).to(dtype)
    return flat, flat.as_strided(shape, strides, start), draw(st.integers(1, 300))


@given(strided())
def test_whatever_the_strides_and_pieces_the_bytes_are_those_in_order(tmp_path_factory, made):
    flat, view, piece = made
    folder = tmp_path_factory.mktemp("g")
    (folder / "in").write_bytes(b"head" + flat.numpy().tobytes())
    item = flat.element_size()
    nbytes = view.numel() * item
    entry = TensorEntry("t", "", tuple(view.shape), 4 + view.storage_offset() * item, nbytes, tuple(view.stride()))
    descriptor = os.open(folder / "out", os.O_RDWR | os.O_CREAT)
    with LocalReader() as reader:
        gathered(reader, source(folder / "in"), entry, item, descriptor, 7, piece)
    os.close(descriptor)
    assert (folder / "out").read_bytes() == bytes(7) + view.contiguous().numpy().tobytes()


def test_pieces_are_bounded(tmp_path):
    """A transposed tensor of 4 MB, in pieces of 64 KB."""
    flat = torch.arange(1000 * 1000, dtype=torch.int32)
    (tmp_path / "in").write_bytes(flat.numpy().tobytes())
    read = []

    class Counting(LocalReader):
        def read_into(self, buffer, file, offset):
            read.append(len(buffer))
            super().read_into(buffer, file, offset)

    entry = TensorEntry("t", "I32", (1000, 1000), 0, 4_000_000, (1, 1000))
    descriptor = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with Counting() as reader:
        gathered(reader, source(tmp_path / "in"), entry, 4, descriptor, 0, 65536)
    os.close(descriptor)
    assert max(read) <= 65536
    assert sum(read) <= 4_000_000
    assert (tmp_path / "out").read_bytes() == flat.view(1000, 1000).t().contiguous().numpy().tobytes()


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_only_what_lies_out_of_order_is_copied_and_still_known_by_its_file(file, memory, copy):
    found = rest(file, memory)
    assert found["plain"].file is found["plain"].source_file is file
    for name in ("turned", "every other"):
        assert found[name].file.path == str(copy)
        assert found[name].source_file is file
    header = read_header(copy, copy.stat().st_size)
    assert sorted(tensor.name for tensor in header.tensors) == ["every other", "turned"]
    assert header.metadata["source"] == file.sha256
    assert header.metadata["data"] == hashlib.sha256(copy.read_bytes()[header.data_start :]).hexdigest()
    assert not copy.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def test_the_copy_is_the_same_wherever_it_is_made(file, memory, copy, tmp_path, monkeypatch):
    before = copy.read_bytes()
    copy.unlink()
    monkeypatch.setattr(gather, "PIECE", 8)
    assert values(rest(file, memory)) == EXPECTED
    assert copy.read_bytes() == before


def made_again(file, memory, copy):
    """Whether the tensors are right now, and the copy is another file than before."""
    before = copy.stat().st_ino if copy.exists() else None
    assert values(rest(file, memory)) == EXPECTED
    return copy.stat().st_ino != before


def test_a_copy_that_is_whole_is_used_again_without_reading_it(file, memory, copy, monkeypatch):
    assert values(rest(file, memory)) == EXPECTED
    monkeypatch.setattr(copies, "_check", None)
    assert not made_again(file, memory, copy)
    monkeypatch.undo()
    # Another process knows neither stamps nor contents that were too young to keep; it looks.
    assert not made_again(file, Memory(copy.parents[3], later), copy)


def rewrite(path, data):
    """Other bytes in the same file, which gets another mtime."""
    before = path.stat()
    path.chmod(0o600)
    with open(path, "r+b") as opened:
        opened.truncate(0)
        opened.write(data)
    os.utime(path, (before.st_atime + 1, before.st_mtime - 7))


@pytest.mark.parametrize("position", [0, 9, 60, -1, -30])
def test_a_copy_with_a_flipped_bit_is_made_again(file, memory, copy, position):
    data = bytearray(copy.read_bytes())
    data[position] ^= 1
    rewrite(copy, data)
    assert made_again(file, memory, copy)


@pytest.mark.parametrize(
    "change", [lambda d: b"", lambda d: d[:-1], lambda d: d + b"x", lambda d: d[:20], lambda d: b"z"]
)
def test_a_copy_that_is_cut_or_longer_is_made_again(file, memory, copy, change):
    rewrite(copy, change(copy.read_bytes()))
    assert made_again(file, memory, copy)


def test_a_copy_that_is_deleted_is_made_again(file, memory, copy):
    copy.unlink()
    assert made_again(file, memory, copy)


def test_the_copy_of_another_file_is_not_believed(file, memory, copy, tmp_path):
    other = source(save(tmp_path / "other.bin", {name: tensor + 1 for name, tensor in TENSORS.items()}))
    rest(other, memory)
    (wrong,) = (path for path in tmp_path.glob("cache/sources/copies/*/*.safetensors") if path != copy)
    rewrite(copy, wrong.read_bytes())
    assert made_again(file, memory, copy)


def test_a_kill_while_the_copy_is_written_leaves_nothing_that_is_used(file, memory, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(copies.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        rest(file, memory)
    monkeypatch.undo()
    assert not list(tmp_path.glob("cache/sources/copies/*/*.safetensors*.tmp"))
    assert not list(tmp_path.glob("cache/sources/copies/*/*.safetensors"))
    assert values(rest(file, memory)) == EXPECTED


def test_several_at_once_make_one_copy(file, tmp_path):
    found, start = [], threading.Barrier(4)

    def work():
        start.wait()
        found.append(values(rest(file, Memory(tmp_path / "cache", later))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [EXPECTED] * 4
    assert len(list(tmp_path.glob("cache/sources/copies/*/*.safetensors"))) == 1


def test_a_source_that_changed_is_not_copied(file, memory, tmp_path):
    header = look_into(file, memory, "f")
    os.utime(tmp_path / "file.bin", (1, 1))
    with pytest.raises(SourceChanged):
        at_rest(header, file, memory, "f")
    assert not list(tmp_path.glob("cache/sources/copies/*/*.safetensors"))


def test_a_few_numbers_expanded_to_many_are_refused(tmp_path, memory):
    small = source(save(tmp_path / "s.bin", {"w": torch.ones(1).expand(2**40)}))
    with pytest.raises(BuildFailed) as caught:
        rest(small, memory)
    assert caught.value.render() == (
        "error: `f` holds tensors that are views of far fewer numbers\n"
        f"   |  `w` would have {2**42} bytes, and the file has {small.size}"
    )
