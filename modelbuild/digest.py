"""Digests: SHA-256 says what something is, XXH3 guards bytes at rest.

Every identity is the SHA-256 of one canonical encoding of typed fields, headed by a tag with a version, so that no two
kinds of preimage can be confused. XXH3 does not resist forgery and never decides an identity.
"""

from __future__ import annotations

import hashlib
import struct
from math import isfinite
from typing import TypeAlias

_SEAL = 32
_binary64 = struct.Struct(">d").pack

Field: TypeAlias = "str | bytes | int | float | bool | tuple[Field, ...] | None"


def encode(field: Field) -> bytes:
    """The canonical bytes of a field: a type letter, a length, the payload; -0.0 is 0.0, and NaN is refused.

    Raises ValueError for a float that is not finite and TypeError for any other type.
    """
    # In the order of how often they occur: a plan encodes a million fields. A bool is an int, so it comes first.
    if isinstance(field, str):
        payload = field.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(payload), payload)
    if isinstance(field, tuple):
        parts = [encode(part) for part in field]
        return b"l%d:%b" % (len(parts), b"".join(parts))
    if isinstance(field, bool):
        return b"t" if field else b"f"
    if isinstance(field, int):
        return b"i%d;" % field
    if isinstance(field, float):
        if not isfinite(field):
            raise ValueError(f"{field} has no canonical encoding")
        return b"d" + _binary64(field + 0.0)
    if isinstance(field, bytes):
        return b"b%d:%b" % (len(field), field)
    if field is None:
        return b"n"
    raise TypeError(f"{type(field).__name__} has no canonical encoding")


def seal(text: str) -> bytes:
    """The bytes of a text with the start of its SHA-256 before it, so that damage is seen."""
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:_SEAL].encode() + b"\n" + data


def unseal(data: bytes) -> bytes:
    """The bytes of the text that was sealed. Raises ValueError for anything else."""
    check, _, text = data.partition(b"\n")
    if check != hashlib.sha256(text).hexdigest()[:_SEAL].encode():
        raise ValueError("damaged")
    return text


def identity(tag: str, *fields: Field) -> str:
    """The SHA-256, in hexadecimal, of the tag (`name/version`) and the fields."""
    return hashlib.sha256(encode((tag, *fields))).hexdigest()
