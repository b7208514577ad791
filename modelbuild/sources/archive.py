"""The members of a zip file as torch.save writes it, read strictly: stored, whole, one behind the other.

A zip file ends in a record that places its directory; the directory names the members and places their local headers,
behind which their bytes lie. Files of 4 GiB and more say their sizes in zip64 fields. Refused is whatever could make
two readers see two different files: compressed or encrypted members, members that overlap or lie outside, names that
are there twice or differ between directory and local header, a directory that does not end where the file does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from modelbuild.sources.strictjson import Malformed, show

DIRECTORY_LIMIT = 64 * 2**20
"""Bytes that the directory may have."""

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_WIDE, _SHORT = 2**32 - 1, 2**16 - 1
_HARMLESS = 0x080E
"""Flags that change nothing for stored members: sizes behind the data, names in UTF-8, two hints for compression."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive: its `size` bytes lie at `offset`; `crc` is their CRC-32, 0 where it was not computed."""

    name: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the directory says of a member; `header` is where its local header lies."""

    name: bytes
    header: int
    size: int
    crc: int


def read_members(descriptor: int, size: int) -> dict[str, Member]:
    """The members of the zip file of `size` bytes, by name, in the order of their bytes; Malformed for a bad one."""
    start, count, nbytes = _directory(descriptor, size)
    entries = sorted(_entries(read_exactly(descriptor, nbytes, start), count), key=lambda entry: entry.header)
    members: dict[str, Member] = {}
    end = 0
    for entry in entries:
        member = _member(descriptor, entry, start)
        if member.name in members:
            raise Malformed(f"holds {show(member.name)} twice")
        if entry.header < end:
            raise Malformed(f"places {show(member.name)} inside the member before it")
        members[member.name] = member
        end = member.offset + member.size
    return members


def read_exactly(descriptor: int, count: int, offset: int) -> bytes:
    """The `count` bytes at `offset`; Malformed where the file ends before."""
    parts = []
    while count > 0:
        part = os.pread(descriptor, count, offset)
        if not part:
            raise Malformed(f"is cut short: it ends at byte {offset}")
        parts.append(part)
        offset, count = offset + len(part), count - len(part)
    return b"".join(parts)


def _directory(descriptor: int, size: int) -> tuple[int, int, int]:
    """Where the directory starts, how many members it names, and its bytes."""
    if size < _END.size:
        raise Malformed("is cut short: it has no room for a directory")
    end = size - _END.size
    mark, disk, first, here, count, nbytes, start, comment = _END.unpack(read_exactly(descriptor, _END.size, end))
    if mark != b"PK\x05\x06" or comment:
        raise Malformed("is cut short, or has bytes behind its end: its last bytes are not those of a zip file")
    if (disk, first) not in ((0, 0), (_SHORT, _SHORT)) or here != count:
        raise Malformed("is one part of several")
    wide = _wide_directory(descriptor, end)
    if wide is not None:
        if any(a not in (b, limit) for a, b, limit in zip((start, count, nbytes), wide[:3], _LIMITS, strict=True)):
            raise Malformed("says two different things about its directory")
        (start, count, nbytes), end = wide[:3], wide[3]
    if nbytes > DIRECTORY_LIMIT:
        raise Malformed(f"announces a directory of {nbytes} bytes; the limit is {DIRECTORY_LIMIT}")
    if start + nbytes != end:
        raise Malformed("does not have its directory at its end")
    return start, count, nbytes


_LIMITS = (_WIDE, _SHORT, _WIDE)


def _wide_directory(descriptor: int, end: int) -> tuple[int, int, int, int] | None:
    """Start, members and bytes of the directory as zip64 says them, and where it has to end; None without zip64."""
    if end < _LOCATOR.size + _END64.size:
        return None
    place = end - _LOCATOR.size
    mark, disk, start, disks = _LOCATOR.unpack(read_exactly(descriptor, _LOCATOR.size, place))
    if mark != b"PK\x06\x07":
        return None
    if disk or disks > 1 or start + _END64.size != place:
        raise Malformed("places its zip64 record elsewhere than before its end")
    found = _END64.unpack(read_exactly(descriptor, _END64.size, start))
    mark, length, _, _, disk, first, here, count, nbytes, begins = found
    if mark != b"PK\x06\x06" or length != _END64.size - 12 or disk or first or here != count:
        raise Malformed("has a damaged zip64 record")
    return begins, count, nbytes, start


def _entries(data: bytes, count: int) -> Iterator[_Entry]:
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > len(data):
            raise Malformed("has a directory that is cut short")
        fields = _ENTRY.unpack_from(data, position)
        mark, flags, method, crc, packed, size = fields[0], fields[3], fields[4], *fields[7:10]
        name_length, extra_length, comment_length, disk = fields[10:14]
        header = fields[16]
        body = data[position + _ENTRY.size :][: name_length + extra_length + comment_length]
        name = body[:name_length]
        if mark != b"PK\x01\x02" or len(body) != name_length + extra_length + comment_length:
            raise Malformed("has a damaged directory")
        size, packed, header = _wide_sizes(body[name_length:][:extra_length], size, packed, header)
        _check_stored(name, flags, method, disk, size == packed)
        yield _Entry(name, header, size, crc)
        position += _ENTRY.size + len(body)
    if position != len(data):
        raise Malformed("has bytes behind its directory")


def _check_stored(name: bytes, flags: int, method: int, disk: int, same: bool) -> None:
    if method or not same:
        raise Malformed(f"holds {_shown(name)} compressed, which torch.save never does")
    if flags & ~_HARMLESS or disk not in (0, _SHORT):
        raise Malformed(f"holds {_shown(name)} encrypted, patched or in another file")


def _wide_sizes(extra: bytes, *fields: int) -> list[int]:
    """Sizes and offset, those that do not fit in 32 bits taken from the zip64 field."""
    found = list(fields)
    wide = [index for index, value in enumerate(fields) if value == _WIDE]
    position = 0
    while wide and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            if length < 8 * len(wide) or position + 4 + length > len(extra):
                break
            for index, value in zip(wide, struct.unpack_from(f"<{len(wide)}Q", extra, position + 4), strict=True):
                found[index] = value
            return found
        position += 4 + length
    if wide:
        raise Malformed("leaves out the zip64 sizes of a member")
    return found


def _member(descriptor: int, entry: _Entry, limit: int) -> Member:
    """The member behind its local header, which must say the same; all of it lies before `limit`."""
    if entry.header + _LOCAL.size > limit:
        raise Malformed(f"places {_shown(entry.name)} outside the file")
    fields = _LOCAL.unpack(read_exactly(descriptor, _LOCAL.size, entry.header))
    mark, method, size, name_length, extra_length = fields[0], fields[3], fields[8], fields[9], fields[10]
    offset = entry.header + _LOCAL.size + name_length + extra_length
    if mark != b"PK\x03\x04" or method or size not in (0, _WIDE, entry.size) or offset + entry.size > limit:
        raise Malformed(f"places {_shown(entry.name)} where it is not")
    if read_exactly(descriptor, name_length, entry.header + _LOCAL.size) != entry.name:
        raise Malformed(f"calls {_shown(entry.name)} by two names")
    try:
        name = entry.name.decode()
    except UnicodeDecodeError:
        raise Malformed(f"has a member with an odd name: {_shown(entry.name)}") from None
    return Member(name, offset, entry.size, entry.crc)


def _shown(name: bytes) -> str:
    return show(name.decode(errors="replace"))
