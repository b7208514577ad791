"""The header reader: what it accepts, the safetensors library accepts with the same content."""

import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.errors import BuildFailed, SourceNotFound
from modelbuild.sources.safetensors import Header, TensorEntry, parse_header, read_header
from modelbuild.sources.strictjson import Malformed


def blob(header: object, data: bytes = b"", *, pad: int = 0, length: int | None = None) -> bytes:
    """A safetensors file with this header: an object, or the header's own text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * pad
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, dtype: str = "F32", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def read(tmp_path: Path, data: bytes) -> Header:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    return read_header(path, len(data))


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(BuildFailed) as caught:
        read(tmp_path, data)
    (fault,) = caught.value.faults
    assert "x.safetensors" in fault.message
    (fact,) = fault.facts
    return fact


def test_a_header_gives_each_tensor_with_its_absolute_place(tmp_path: Path) -> None:
    raw = {"__metadata__": {"format": "pt"}, "b": entry(0, 8), "a": entry(8, 10, "BF16", [1, 1])}
    data = blob(raw, bytes(10))
    header = read(tmp_path, data)
    start = len(data) - 10
    assert header.tensors == (TensorEntry("b", "F32", (2,), start, 8), TensorEntry("a", "BF16", (1, 1), start + 8, 2))
    assert header.metadata == {"format": "pt"}
    assert header.data_start == start
    assert header.size == len(data)


def test_tensors_come_in_the_order_of_their_bytes_not_of_the_header(tmp_path: Path) -> None:
    header = read(tmp_path, blob({"second": entry(4, 8), "first": entry(0, 4)}, bytes(8)))
    assert [tensor.name for tensor in header.tensors] == ["first", "second"]


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    raw = {"scalar": entry(0, 4, shape=[]), "none": entry(4, 4, shape=[3, 0]), "also": entry(0, 0, shape=[0])}
    header = read(tmp_path, blob(raw, bytes(4)))
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {"scalar": (), "none": (3, 0), "also": (0,)}


def test_spaces_behind_the_header_are_padding(tmp_path: Path) -> None:
    header = read(tmp_path, blob({"a": entry(0, 4)}, bytes(4), pad=4000))
    assert header.data_start > 4000
    assert header.tensors[0].start == header.data_start


def test_an_open_descriptor_is_read_and_left_open(tmp_path: Path) -> None:
    data = blob({"a": entry(0, 4)}, bytes(4))
    (tmp_path / "x").write_bytes(data)
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    assert read_header(descriptor, len(data), name="x").size == len(data)
    assert os.fstat(descriptor).st_size == len(data)
    os.close(descriptor)


def test_a_name_that_looks_like_a_path_is_only_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, blob({"../../etc/x": entry(0, 4)}, bytes(4))).tensors[0].name == "../../etc/x"


def test_a_missing_file_is_a_source_not_found(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="cannot be opened"):
        read_header(tmp_path / "none.safetensors", 100)


OVER = 2**61
DUPLICATE = (
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}'
)
MINUS_ZERO = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}'
TWO_DTYPES = b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "it has 0 bytes"),
        (b"\x02\0\0\0", "it has 4 bytes"),
        (blob({"a": entry(0, 4)}, bytes(4), length=200_000_000), "200000000 bytes; the limit is 100000000"),
        (blob({"a": entry(0, 4)}, bytes(4), length=2**63), "the limit"),
        (blob({"a": entry(0, 4)}, b"", length=1000), "it announces a header of 1000 bytes, but has only"),
        (blob(b' {"a":1}'), "does not start with {"),
        (blob(b"[]" + b" " * 8), "does not start with {"),
        (blob(b'{"a\xff":1}  '), "it is not UTF-8 at byte 3"),
        (blob(b'{"a": 1  } x'), "it is not JSON: Extra data"),
        (blob(b'{"a": 1,       '), "it is not JSON"),
        (blob(b'{"a": NaN}     '), "it holds NaN"),
        (blob(DUPLICATE, bytes(4)), "it has the key `a` twice"),
        (blob(TWO_DTYPES, bytes(4)), "it has the key `dtype` twice"),
        (blob(MINUS_ZERO, bytes(4)), "it holds the integer -0"),
        (blob(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"), "it nests deeper"),
        (blob(b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"), "it nests deeper"),
        (blob(b'{"a":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001), "it nests deeper"),
        (blob(b'{"\\ud800":1}  '), "it holds half of a surrogate pair"),
        (blob({"a": 1, "b": 2}), "describes `a` with other keys"),
        (blob({"a": {**entry(0, 4), "more": 1}}, bytes(4)), "describes `a` with other keys"),
        (blob({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "describes `a` with other keys"),
        (blob({"": entry(0, 4)}, bytes(4)), "it has a tensor named ``"),
        (blob({"a\0b": entry(0, 4)}, bytes(4)), "it has a tensor named `a\\x00b`"),
        (blob({"a\nb": entry(0, 4)}, bytes(4)), "it has a tensor named `a\\nb`"),
        (blob({"a" * 2000: entry(0, 4)}, bytes(4)), "longer than 1024"),
        (blob({"a": entry(0, 4, "F33")}, bytes(4)), "it gives `a` the unknown dtype `F33`"),
        (blob({"a": {**entry(0, 4), "dtype": ["F32"]}}, bytes(4)), "the unknown dtype"),
        (blob({"a": entry(0, 4, shape=[-1])}, bytes(4)), "a shape that is not a list of sizes"),
        (blob({"a": entry(0, 4, shape=[True])}, bytes(4)), "a shape that is not a list of sizes"),
        (blob({"a": entry(0, 4, shape=[1.0])}, bytes(4)), "a shape that is not a list of sizes"),
        (blob({"a": entry(0, 4, shape="1")}, bytes(4)), "a shape that is not a list of sizes"),
        (blob({"a": entry(0, 4, shape=[1] * 65)}, bytes(4)), "a shape that is not a list of sizes"),
        (blob({"a": entry(0, 4, shape=[OVER, OVER, 0])}, bytes(4)), "overflows"),
        (blob({"a": entry(0, 4, shape=[2**32, 2**32])}, bytes(4)), "overflows"),
        (blob({"a": entry(0, 4, shape=[0, 2**64])}, bytes(4)), "overflows"),
        (blob({"a": entry(0, 4, shape=[2])}, bytes(4)), "it gives `a` 4 bytes, which is not the size of F32 `[2]`"),
        (blob({"a": {**entry(0, 4), "data_offsets": [4, 0]}}, bytes(4)), "not a start and an end"),
        (blob({"a": {**entry(0, 4), "data_offsets": [0, 2, 4]}}, bytes(4)), "not a start and an end"),
        (blob({"a": {**entry(0, 4), "data_offsets": [False, 4]}}, bytes(4)), "not a start and an end"),
        (blob({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), "it places `b` so that it overlaps"),
        (blob({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "it places `b` so that it overlaps"),
        (blob({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "it places `b` so that it leaves 4 bytes unused"),
        (blob({"a": entry(4, 8)}, bytes(8)), "it places `a` so that it leaves 4 bytes unused"),
        (blob({"a": entry(0, 4)}, bytes(5)), "it has bytes behind its tensors"),
        (blob({"a": entry(0, 8)}, bytes(4)), "it is cut short"),
        (blob({"__metadata__": {"a": 1}, "a": entry(0, 4)}, bytes(4)), "not an object of strings"),
        (blob({"__metadata__": None, "a": entry(0, 4)}, bytes(4)), "not an object of strings"),
        (blob(b'{"a": ' + b"9" * 10_000 + b"}"), "it holds an integer of 10000 digits"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, data: bytes, fact: str) -> None:
    assert fact in refused(tmp_path, data)


def test_a_file_that_shrinks_under_the_reader_is_refused(tmp_path: Path) -> None:
    data = blob({"a": entry(0, 4)}, bytes(4))
    (tmp_path / "x").write_bytes(data[:20])
    with pytest.raises(BuildFailed) as caught:
        read_header(tmp_path / "x", len(data))
    assert caught.value.faults[0].facts == ("it ends after 20 bytes, inside its header",)


def theirs(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """What the safetensors library finds in the file, None where it refuses it."""
    try:
        return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in safetensors.deserialize(data)}
    except safetensors.SafetensorError:
        return None


def ours(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """What our reader finds in the file, None where it refuses it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > len(data) - 8 or data[8:9] != b"{":
        return None
    try:
        header = parse_header(data[8 : 8 + length], len(data))
    except Malformed:
        return None
    return {t.name: (t.dtype, list(t.shape), data[t.start : t.start + t.nbytes]) for t in header.tensors}


SIZES = st.one_of(st.integers(0, 5), st.sampled_from([2**31, 2**32, 2**60, 2**63, 2**64, -1, True, 1.0, "1", None]))
NAMES = st.one_of(st.sampled_from(["a", "b", "w.weight", "__metadata__"]), st.text(max_size=4))
DTYPES = st.sampled_from(["F32", "BF16", "F16", "U8", "BOOL", "I64", "F8_E4M3", "F8_E8M0", "F4", "C64", "f32", ""])
ENTRIES = st.one_of(
    st.fixed_dictionaries({
        "dtype": DTYPES, "shape": st.lists(SIZES, max_size=3), "data_offsets": st.lists(SIZES, min_size=2, max_size=2)
    }),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]), SIZES, max_size=4),
    st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
)  # fmt: skip


@settings(max_examples=1000, deadline=None)
@given(st.dictionaries(NAMES, ENTRIES, max_size=3), st.binary(max_size=24), st.integers(0, 3))
def test_the_library_accepts_what_we_accept_with_the_same_content(
    raw: dict[str, object], data: bytes, pad: int
) -> None:
    file = blob(raw, data, pad=pad)
    if (found := ours(file)) is not None:
        assert theirs(file) == found


@st.composite
def valid_files(draw: st.DrawFn) -> bytes:
    """A file as a writer would make it, tensors in any order in the header."""
    raw: dict[str, object] = {}
    end = 0
    for name in draw(st.lists(st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=6), unique=True)):
        dtype, size = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        count = 1
        for dimension in shape:
            count *= dimension
        raw[name] = entry(end, end + count * size, dtype, shape)
        end += count * size
    items = draw(st.permutations(list(raw.items())))
    if draw(st.booleans()):
        items = [("__metadata__", {"format": "pt"}), *items]
    data = draw(st.binary(min_size=end, max_size=end)) if end < 60 else bytes(range(256)) * (end // 256 + 1)
    return blob(dict(items), data[:end], pad=draw(st.integers(0, 9)))


@settings(max_examples=300, deadline=None)
@given(valid_files())
def test_every_proper_file_is_accepted_by_both_with_the_same_content(file: bytes) -> None:
    found = ours(file)
    assert found is not None
    assert found == theirs(file)


@settings(max_examples=1000, deadline=None)
@given(valid_files(), st.data())
def test_a_proper_file_with_damage_is_never_read_differently_from_the_library(file: bytes, data: st.DataObject) -> None:
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["byte", "cut", "insert", "digit"]))
        at = data.draw(st.integers(0, max(0, min(len(damaged), 300) - 1)))
        if kind == "byte" and damaged:
            damaged[at] = data.draw(st.sampled_from([*b'0159-"{}[]:, .e\\', 0, 255]))
        elif kind == "digit" and damaged:
            digits = [place for place in range(8, len(damaged)) if chr(damaged[place]).isdigit()]
            if digits:
                damaged[data.draw(st.sampled_from(digits))] = data.draw(st.sampled_from(list(b"0123456789")))
        elif kind == "cut":
            del damaged[len(damaged) - data.draw(st.integers(0, min(4, len(damaged)))) :]
        else:
            damaged[at:at] = data.draw(st.sampled_from([b" ", b"0", b"-", b'"', b"\0"]))
    if (found := ours(bytes(damaged))) is not None:
        assert theirs(bytes(damaged)) == found


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_in_another_way(data: bytes) -> None:
    with TemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(BuildFailed):
            assert read_header(file.fileno(), len(data), name="fuzz").size == len(data)


@pytest.mark.parametrize(
    "file",
    [
        blob(DUPLICATE, bytes(4)),
        blob({"a": {**entry(0, 4), "more": 1}}, bytes(4)),
        blob({"a\nb": entry(0, 4)}, bytes(4)),
        blob({"a" * 2000: entry(0, 4)}, bytes(4)),
        blob({"__metadata__": None, "a": entry(0, 4)}, bytes(4)),
        blob({"a": entry(0, 4, shape=[1] * 65)}, bytes(4)),
        blob({"": entry(0, 4)}, bytes(4)),
        blob({"a": entry(0, 0, shape=[2**61, 0])}),
        blob(b" " + json.dumps({"a": entry(0, 4)}).encode(), bytes(4)),
        blob({"a": entry(0, 1, "F4", [2])}, bytes(1)),
        blob({"a": entry(0, 3, "F6_E2M3", [4])}, bytes(3)),
        blob({"a": entry(0, 3, "F6_E3M2", [4])}, bytes(3)),
        blob({"a": entry(0, 8, "C64", [1])}, bytes(8)),
        blob({"a": entry(0, 1, "F8_E4M3FNUZ", [1])}, bytes(1)),
        blob({"a": entry(0, 1, "F8_E5M2FNUZ", [1])}, bytes(1)),
    ],
)
def test_the_listed_exceptions_are_what_the_library_accepts_and_we_refuse(file: bytes) -> None:
    assert theirs(file) is not None
    assert ours(file) is None


def test_the_header_of_ninety_thousand_tensors_is_read(tmp_path: Path) -> None:
    raw = {f"model.layers.{n // 100}.experts.{n % 100}.w": entry(4 * n, 4 * n + 4) for n in range(90_000)}
    header = read(tmp_path, blob(raw, bytes(360_000)))
    assert len(header.tensors) == 90_000
    assert header.tensors[-1].start + 4 == header.size
