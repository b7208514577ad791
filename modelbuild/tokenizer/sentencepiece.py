"""sentencepiece models: a strict reader of their pieces, and the same model with pieces added.

The file is a protobuf message (sentencepiece_model.proto): field 1, repeated, are the pieces in the order of their ids,
each with its text (1), score (2) and type (3). The other fields stay as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from modelbuild.sources.strictjson import Malformed

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""

UNIGRAM, BPE = 1, 2
"""Kinds of models."""

_PIECES, _TRAINER = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece: its text, its score (of BPE the rank, negative; of unigram a logarithm), and its type."""

    text: str
    score: float
    type: int = NORMAL


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """A model: its pieces by id, its kind, and the rest of its file as it is."""

    pieces: tuple[Piece, ...]
    kind: int
    rest: bytes

    def with_pieces(self, added: Iterable[Piece]) -> SentencePiece:
        """The model with pieces added, ids going on."""
        return replace(self, pieces=(*self.pieces, *added))


def parse(data: bytes) -> SentencePiece:
    """The model in a file's bytes. Raises Malformed for what is none."""
    pieces: list[Piece] = []
    rest: list[bytes] = []
    kind = UNIGRAM
    for number, wire, value, raw in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_bytes(wire, value)))
            continue
        rest.append(raw)
        if number == _TRAINER:
            kind = _kind(_bytes(wire, value))
    if not pieces:
        raise Malformed("holds no pieces")
    if len({piece.text for piece in pieces}) != len(pieces):
        raise Malformed("has a piece twice")
    return SentencePiece(tuple(pieces), kind, b"".join(rest))


def serialise(model: SentencePiece) -> bytes:
    """The bytes of a model's file: pieces first, then everything else as it was."""
    return b"".join(_field(_PIECES, _piece_bytes(piece)) for piece in model.pieces) + model.rest


def _kind(data: bytes) -> int:
    found = UNIGRAM
    for number, wire, value, _ in _fields(data):
        if number == 3:
            found = _integer(wire, value)
    return found


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, wire, value, _ in _fields(data):
        if number == 1:
            try:
                text = _bytes(wire, value).decode("utf-8")
            except UnicodeDecodeError:
                raise Malformed("has a piece that is not UTF-8") from None
        elif number == 2:
            if wire != _FIXED32 or not isinstance(value, bytes):
                raise Malformed("has a score that is no number")
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = _integer(wire, value)
    if not text or not NORMAL <= kind <= BYTE or score - score != 0:
        raise Malformed("has a piece without text, of no known type, or with a score that is not finite")
    return Piece(text, score, kind)


def _piece_bytes(piece: Piece) -> bytes:
    data = _field(1, piece.text.encode("utf-8")) + bytes([2 << 3 | _FIXED32]) + struct.pack("<f", piece.score)
    return data if piece.type == NORMAL else data + bytes([3 << 3 | _VARINT, piece.type])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _bytes(wire: int, value: int | bytes) -> bytes:
    if wire != _BYTES or not isinstance(value, bytes):
        raise Malformed("has a field of another type than sentencepiece gives it")
    return value


def _integer(wire: int, value: int | bytes) -> int:
    if wire != _VARINT or not isinstance(value, int):
        raise Malformed("has a field of another type than sentencepiece gives it")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes, bytes]]:
    """Each field of a message: number, wire type, value, and the bytes it is written in."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, position = _read_varint(data, position)
        else:
            if wire == _BYTES:
                length, position = _read_varint(data, position)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise Malformed("is not a sentencepiece model")
            value, position = data[position : position + length], position + length
        if not number or position > len(data):
            raise Malformed("is not a sentencepiece model")
        yield number, wire, value, data[start:position]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Malformed("is not a sentencepiece model")
