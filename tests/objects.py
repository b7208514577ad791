"""Reading the symbols of object code: ELF for 64 bits, little-endian, as the tests need it."""

import struct
import sys

import pytest

BASICS = {"memset", "memcpy", "memmove", "fmaf"}
"""What compiled code may take from the C library; fmaf where the processor cannot fuse."""

needs_elf = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")


def symbols(content):
    """Every symbol: its name, whether it is global, and whether it is defined there."""
    assert content[:6] == b"\x7fELF\x02\x01"
    (sections_at,) = struct.unpack_from("<Q", content, 0x28)
    size, count = struct.unpack_from("<HH", content, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", content, sections_at + size * i) for i in range(count)]
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind == 2:  # the table of symbols, and the section of their names
            names = content[sections[link][4] :]
            for place in range(offset + 24, offset + length, 24):
                name, info, _, section, _, _ = struct.unpack_from("<IBBHQQ", content, place)
                yield names[name : names.index(b"\0", name)].decode(), info >> 4 != 0, section != 0


def undefined(content):
    """What the object code takes from elsewhere."""
    return {name for name, _, defined in symbols(content) if name and not defined}


def offered(content):
    """What others can see of the object code."""
    return {name for name, seen, defined in symbols(content) if seen and defined}


def hidden(content):
    """What is in the object code for itself alone."""
    return {name for name, seen, defined in symbols(content) if name and not seen and defined}
