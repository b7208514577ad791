"""The zip files of torch.save: what the strict reader accepts is what everybody sees in them, and nothing else."""

import io
import os
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pickled import FOREVER, Tensor, forged, save

from modelbuild.sources import archive
from modelbuild.sources.archive import Member, read_members
from modelbuild.sources.strictjson import Malformed

WIDE, SHORT = 2**32 - 1, 2**16 - 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.bin"


def members(path, data=None):
    if data is not None:
        path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_members(descriptor, path.stat().st_size)
    finally:
        os.close(descriptor)


def refused(path, data=None):
    with pytest.raises(Malformed) as caught:
        members(path, data)
    return str(caught.value)


def local(name, content, **change):
    """A member as it lies in the file; `change` overrides fields."""
    f = {"flags": 0, "method": 0, "size": len(content), "name": name, "extra": b"", "mark": b"PK\x03\x04", **change}
    sizes = (f.get("packed", f["size"]), f["size"])
    head = (f["mark"], 20, f["flags"], f["method"], 0, 33, 0, *sizes, len(f["name"]), len(f["extra"]))
    return struct.pack("<4s5H3L2H", *head) + f["name"] + f["extra"] + content


def entry(name, header, size, **change):
    """A member as the directory tells of it; `change` overrides fields."""
    f = {"flags": 0, "method": 0, "packed": size, "extra": b"", "mark": b"PK\x01\x02", "disk": 0, "comment": b""}
    f |= change
    lengths = (len(name), len(f["extra"]), len(f["comment"]), f["disk"])
    head = (f["mark"], 20, 20, f["flags"], f["method"], 0, 33, f.get("crc", 0), f["packed"], size, *lengths)
    return struct.pack("<4s6H3L5H2L", *head, 0, 0, header) + name + f["extra"] + f["comment"]


def end(count, nbytes, start, **change):
    """The end of a zip file."""
    f = {"mark": b"PK\x05\x06", "disk": 0, "here": count, "comment": b"", **change}
    lengths = (f["disk"], f["disk"], f["here"], count, nbytes, start, len(f["comment"]))
    return struct.pack("<4s4H2LH", f["mark"], *lengths) + f["comment"]


def end64(count, nbytes, start, place, **change):
    """The zip64 record that lies at `place`, and its locator."""
    f = {"mark": b"PK\x06\x06", "length": 44, "at": place, "disks": 1, "here": count, **change}
    record = struct.pack("<4sQ2H2L4Q", f["mark"], f["length"], 45, 45, 0, 0, f["here"], count, nbytes, start)
    return record + struct.pack("<4sLQL", b"PK\x06\x07", 0, f["at"], f["disks"])


ONE, TWO = local(b"a", b"12345"), local(b"b", b"678")
ENTRIES = entry(b"a", 0, 5) + entry(b"b", len(ONE), 3)


def whole(body=ONE + TWO, entries=ENTRIES, count=2, **change):
    return body + entries + end(count, change.pop("nbytes", len(entries)), change.pop("start", len(body)), **change)


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_members_are_found_where_they_lie(path):
    assert members(path, whole()) == {"a": Member("a", 31, 5, 0), "b": Member("b", len(ONE) + 31, 3, 0)}
    data = path.read_bytes()
    assert [data[m.offset : m.offset + m.size] for m in members(path).values()] == [b"12345", b"678"]


def test_members_come_in_the_order_of_their_bytes(path):
    swapped = entry(b"b", len(ONE), 3) + entry(b"a", 0, 5)
    assert list(members(path, whole(entries=swapped))) == ["a", "b"]


def test_padding_and_data_descriptors_may_lie_between_members(path):
    one = local(b"a", b"12345", flags=0x0808, size=0, extra=b"FB\x03\x00ZZZ") + b"PK\x07\x08" + bytes(12)
    entries = entry(b"a", 0, 5, flags=0x0808) + entry(b"b", len(one), 3)
    found = members(path, whole(one + TWO, entries))
    assert found["a"].offset == 30 + 1 + 7
    assert found["b"].offset == len(one) + 31


@given(
    st.dictionaries(st.text("abc/._", min_size=1, max_size=6), st.binary(max_size=40), max_size=6),
    st.booleans(),
)
def test_stored_files_are_read_as_the_standard_library_reads_them(tmp_path_factory, contents, wide):
    path = tmp_path_factory.mktemp("zip") / "x"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in contents.items():
            with written.open(zipfile.ZipInfo(name, FOREVER), "w", force_zip64=wide) as member:
                member.write(content)
    data = file.getvalue()
    found = members(path, data)
    assert {name: data[m.offset : m.offset + m.size] for name, m in found.items()} == contents
    with zipfile.ZipFile(file) as read:
        assert {name: m.crc for name, m in found.items()} == {i.filename: i.CRC for i in read.infolist()}


def test_what_torch_writes_is_accepted_whole(path):
    tensors = {f"t{n}": torch.arange(n, dtype=torch.float16) for n in range(40)}
    save(path, tensors)
    found = members(path)
    with zipfile.ZipFile(path) as read:
        assert sorted(found) == sorted(read.namelist())
    data = path.read_bytes()
    for n in range(40):
        member = found[f"file/data/{n}"]
        assert data[member.offset : member.offset + member.size] == tensors[f"t{n}"].numpy().tobytes()


def test_files_of_more_than_four_gibibytes_are_read_by_their_zip64_fields(path):
    """The bytes are a hole in the file. torch reads the same places."""
    size = 5 * 2**30
    pickle = forged({"w": Tensor(size // 4, (size // 4,)), "v": Tensor(2, (2,), key="1")})
    first = local(b"archive/data.pkl", pickle) + local(b"archive/version", b"3\n")
    header = len(first)
    big = local(b"archive/data/0", b"", size=WIDE, extra=struct.pack("<2H2Q", 1, 16, size, size))
    after = header + len(big) + size
    small = local(b"archive/data/1", bytes(8))
    start = after + len(small)
    header_of_version = len(local(b"archive/data.pkl", pickle))
    entries = entry(b"archive/data.pkl", 0, len(pickle)) + entry(b"archive/version", header_of_version, 2)
    entries += entry(b"archive/data/0", header, WIDE, extra=struct.pack("<2H2Q", 1, 16, size, size))
    entries += entry(b"archive/data/1", WIDE, 8, extra=struct.pack("<2HQ", 1, 8, after))
    place = start + len(entries)
    with open(path, "wb") as file:
        file.write(first + big)
        file.seek(after)
        file.write(small + entries + end64(4, len(entries), start, place) + end(4, len(entries), WIDE))
    found = members(path)
    assert found["archive/data/0"] == Member("archive/data/0", header + len(big), size, 0)
    assert found["archive/data/1"] == Member("archive/data/1", after + 44, 8, 0)
    loaded = torch.load(path, map_location="meta", weights_only=True)
    places = {name: tensor.untyped_storage()._checkpoint_offset for name, tensor in loaded.items()}
    assert places == {"w": found["archive/data/0"].offset, "v": found["archive/data/1"].offset}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "cut short"),
        (whole()[:-1], "cut short"),
        (whole() + b"x", "bytes behind its end"),
        (whole(comment=b"hi"), "bytes behind its end"),
        (whole(mark=b"PK\x05\x07"), "not those of a zip file"),
        (whole(disk=1), "one part of several"),
        (whole(here=1), "one part of several"),
        (whole(start=3), "directory at its end"),
        (whole(nbytes=46), "directory at its end"),
        (whole(count=3), "directory that is cut short"),
        (whole(count=1), "bytes behind its directory"),
        (whole(nbytes=WIDE), "the limit is"),
        (whole(entries=entry(b"a", 0, 5, mark=b"PK\x01\x01"), count=1), "damaged directory"),
        (whole(entries=entry(b"a", 0, 5, method=8), count=1), "`a` compressed"),
        (whole(entries=entry(b"a", 0, 5, packed=4), count=1), "`a` compressed"),
        (whole(entries=entry(b"a", 0, 5, flags=1), count=1), "`a` encrypted"),
        (whole(entries=entry(b"a", 0, 5, disk=2), count=1), "in another file"),
        (whole(entries=entry(b"a", 9999, 5), count=1), "`a` outside the file"),
        (whole(entries=entry(b"a", 1, 5), count=1), "`a` where it is not"),
        (whole(entries=entry(b"a", 0, 50), count=1), "`a` where it is not"),
        (whole(entries=entry(b"a", 0, 4), count=1), "`a` where it is not"),
        (whole(entries=entry(b"c", 0, 5), count=1), "`c` by two names"),
        (whole(local(b"a", b"12345", method=8), entry(b"a", 0, 5), 1), "`a` where it is not"),
        (whole(entries=entry(b"a", 0, 5) * 2), "`a` twice"),
        (whole(local(b"\xff", b"1"), entry(b"\xff", 0, 1), 1), "an odd name"),
        (whole(entries=entry(b"a", 0, WIDE, packed=WIDE), count=1), "leaves out the zip64 sizes"),
        (whole(entries=entry(b"a", 0, WIDE, packed=WIDE, extra=struct.pack("<2HQ", 1, 8, 5)), count=1), "leaves out"),
        (whole(entries=entry(b"a", 0, WIDE, packed=WIDE, extra=struct.pack("<2H", 1, 16)), count=1), "leaves out"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(path, data, told):
    assert told in refused(path, data)


def test_members_that_overlap_are_refused(path):
    inner = local(b"b", b"678")
    outer = local(b"a", b"12" + inner + b"9")
    entries = entry(b"a", 0, len(inner) + 3) + entry(b"b", 31 + 2, 3)
    assert "`b` inside the member before it" in refused(path, whole(outer, entries))


def test_a_member_that_reaches_into_the_directory_is_refused(path):
    body = local(b"a", b"", size=40)
    assert "`a` where it is not" in refused(path, whole(body, entry(b"a", 0, 40), 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"at": 3}, "elsewhere than before its end"),
        ({"disks": 2}, "elsewhere than before its end"),
        ({"mark": b"PK\x06\x05"}, "damaged zip64 record"),
        ({"length": 45}, "damaged zip64 record"),
        ({"here": 1}, "damaged zip64 record"),
        ({}, None),
    ],
)
def test_zip64_records_are_held_to_the_same(path, change, told):
    body, place = ONE + TWO, len(ONE + TWO + ENTRIES)
    record = end64(2, len(ENTRIES), len(body), place, **change)
    data = body + ENTRIES + record + end(2, len(ENTRIES), len(body))
    if told is None:
        assert list(members(path, data)) == ["a", "b"]
        # What the short record says must be the same, or a sign that it does not fit.
        assert "two different things" in refused(path, body + ENTRIES + record + end(1, len(ENTRIES), len(body)))
        big = end(SHORT, WIDE, WIDE)
        assert list(members(path, body + ENTRIES + record + big)) == ["a", "b"]
    else:
        assert told in refused(path, data)


def test_every_cut_of_a_file_of_torch_is_refused(path, tmp_path):
    data = save(tmp_path / "whole.bin", {"w": torch.arange(9.0), "v": torch.ones(3)}).read_bytes()
    for length in range(len(data)):
        refused(path, data[:length])


@given(st.integers(0), st.binary(min_size=1, max_size=8))
def test_bytes_written_over_a_file_are_refused_or_leave_members_inside_it(tmp_path_factory, position, other):
    path = tmp_path_factory.mktemp("zip") / "x"
    data = bytearray(whole())
    position %= len(data)
    data[position : position + len(other)] = other
    try:
        found = members(path, bytes(data))
    except Malformed:
        return
    ends = [0, *(member.offset + member.size for member in found.values())]
    assert all(member.offset >= before for member, before in zip(found.values(), ends, strict=False))
    assert max(ends) <= len(data)


def test_the_directory_is_read_at_once_and_bounded(path, monkeypatch):
    monkeypatch.setattr(archive, "DIRECTORY_LIMIT", len(ENTRIES) - 1)
    assert "the limit is" in refused(path, whole())
    monkeypatch.setattr(archive, "DIRECTORY_LIMIT", len(ENTRIES))
    assert list(members(path)) == ["a", "b"]
