"""SHA-256 side by side is SHA-256: every vector, length and split comes out as NIST and hashlib have it."""

import hashlib
import re

import objects
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.kernels import compile as compiling
from modelbuild.kernels import diskcache, native, sha256

found = sha256.lanes()
needs_sha = pytest.mark.skipif(found is None, reason="a processor without SHA instructions")


def digests(messages, pieces=()):
    """The digests of messages of any lengths, taken side by side in pieces of so many blocks, then each for itself."""
    states = [found.begin() for _ in messages]
    position, blocks = 0, min(map(len, messages)) // sha256.BLOCK
    for piece in (*pieces, blocks):
        end = min(position + piece * sha256.BLOCK, blocks * sha256.BLOCK)
        found.update(states, [memoryview(bytearray(message[position:end])) for message in messages])
        position = end
    finished = []
    for state, message in zip(states, messages, strict=True):
        whole = len(message) - len(message) % sha256.BLOCK
        if position < whole:
            found.update([state], [memoryview(bytearray(message[position:whole]))])
        finished.append(found.finish(state, message[whole:], len(message)))
    return finished


# --- the function -----------------------------------------------------------------------------------------------------

NIST = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    b"a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    b"\xbd": "68325720aabd7c82f30f554b313d0570c95accbb7dc4b5aae11204c08ffe732b",
    bytes(1_000_000): "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025",
}
"""Examples and test vectors that NIST published with FIPS 180-4."""


@needs_sha
def test_the_vectors_of_nist_come_out_alone_and_beside_any_other():
    for message, digest in NIST.items():
        assert digests([message]) == [digest]
    for lanes in range(2, sha256.LANES + 1):
        for first in range(len(NIST)):
            messages = [list(NIST)[(first + lane) % len(NIST)] for lane in range(lanes)]
            assert digests(messages) == [NIST[message] for message in messages]


@needs_sha
@pytest.mark.parametrize("lanes", range(1, sha256.LANES + 1))
def test_every_length_around_the_ends_of_blocks_is_padded_rightly(lanes):
    for length in (*range(200), *range(16380, 16390)):
        messages = [bytes((length + lane + place) % 256 for place in range(length)) for lane in range(lanes)]
        assert digests(messages) == [hashlib.sha256(message).hexdigest() for message in messages]


@needs_sha
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.binary(max_size=1500), min_size=1, max_size=sha256.LANES),
    st.lists(st.integers(0, 9), max_size=5),
)
def test_any_messages_in_any_pieces_come_out_as_hashlib_has_them(messages, pieces):
    assert digests(messages, pieces) == [hashlib.sha256(message).hexdigest() for message in messages]


@needs_sha
def test_messages_and_states_may_lie_at_any_address():
    data = bytearray(range(256)) * 3
    for shift in range(1, 17):
        views = [memoryview(data)[shift * lane : shift * lane + 128] for lane in range(sha256.LANES)]
        states = [found.begin() for _ in views]
        found.update(states, views)
        ended = [found.finish(state, b"", 128) for state in states]
        assert ended == [hashlib.sha256(view).hexdigest() for view in views]


@needs_sha
def test_a_number_of_messages_that_there_is_no_loop_for_does_nothing():
    import ctypes

    state = found.begin()
    table = (ctypes.c_int64 * 2)(ctypes.addressof(state), 0)
    for lanes in (-1, 0, sha256.LANES + 1):
        sha256.blocks(ctypes.addressof(table), lanes, 1)
    assert bytes(state) == bytes(found.begin())


def test_the_constants_are_those_of_the_standard():
    assert sha256.fractions(8, 2)[0] == 0x6A09E667
    assert sha256.fractions(8, 2)[-1] == 0x5BE0CD19
    assert sha256.fractions(64, 3)[0] == 0x428A2F98
    assert sha256.fractions(64, 3)[-1] == 0xC67178F2


# --- its code ---------------------------------------------------------------------------------------------------------


@needs_sha
@objects.needs_elf
def test_its_code_stands_on_nothing_and_comes_from_disk_the_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELBUILD_KERNEL_CACHE", str(tmp_path))
    code = compiling._translate(sha256.blocks)
    assert objects.undefined(code.object) <= objects.BASICS
    assert objects.offered(code.object) == {"modelbuild.sha256.blocks"}
    path = diskcache.folder() / "sha256.blocks.kernel"
    diskcache.write(path, code)
    assert diskcache.read(path) == code
    assert compiling._translate(sha256.blocks) == code, "the same whoever writes it"


@needs_sha
def test_writing_it_is_no_reason_to_announce_a_compiler(monkeypatch):
    heard = []
    monkeypatch.setattr(compiling, "_announced", False)
    monkeypatch.setattr(compiling, "_listeners", [heard.append])
    compiling._translate(sha256.blocks)
    assert heard == []


@needs_sha
def test_side_by_side_uses_the_instructions_for_it():
    text = sha256.blocks.function("x")
    assert len(re.findall(r"call .*sha256rnds2", text)) == 32 * sum(range(1, sha256.LANES + 1))


# --- where it is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["", "+avx2,+fma", "-sha,+avx2", "+sha512"])
def test_a_processor_without_the_instructions_gets_no_such_code(monkeypatch, features):
    monkeypatch.setattr(native, "processor", lambda: ("x86_64-unknown-linux-gnu", "generic", features))
    monkeypatch.setattr(sha256, "blocks", None)
    assert sha256.lanes.__wrapped__() is None


@needs_sha
def test_code_that_errs_or_cannot_be_loaded_is_not_used(monkeypatch):
    def lost(*_):
        raise RuntimeError("object code without modelbuild.sha256.blocks")

    for wrong in (lambda *_: None, lost):
        monkeypatch.setattr(sha256, "blocks", wrong)
        assert sha256.lanes.__wrapped__() is None


@needs_sha
def test_code_that_errs_for_one_number_of_messages_alone_is_not_used(monkeypatch):
    real = sha256.blocks
    for bad in range(1, sha256.LANES + 1):
        monkeypatch.setattr(
            sha256, "blocks", lambda table, lanes, count, bad=bad: lanes == bad or real(table, lanes, count)
        )
        assert sha256.lanes.__wrapped__() is None
