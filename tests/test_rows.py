"""Rows of several tensors as one: the map says what it was made of, and the kernel makes that, rounded once."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import leaf, raw, values

from modelbuild.kernels.rows import Gather, to_odd
from modelbuild.plan.node import inputs_of
from modelbuild.plan.rows import PADDING, RowMap, Run, row_map, rows_node

CODES = ("BF16", "F16", "F32")


class Array:
    """An input in memory that counts how often it is read."""

    def __init__(self, array):
        self.raw = array.reshape(-1)
        self.reads = 0

    def read(self, start, out):
        self.reads += 1
        out[:] = self.raw[start : start + len(out)]


def made(taken, inputs, cuts=()):
    """The raw result of a map on (dtype, raw array) inputs, in the stretches between cuts; and the inputs."""
    leaves = tuple(leaf(code, array.shape, f"leaf{i}") for i, (code, array) in enumerate(inputs))
    node = rows_node(row_map(taken), leaves)
    if node is leaves[0]:
        return node, inputs[0][1], []
    arrays = [Array(array) for _, array in inputs]
    kernel = Gather(node, arrays)
    out = np.full(node.count, 7, np.float32 if node.dtype == "F32" else np.uint16)
    bounds = sorted({0, node.count, *(cut % (node.count + 1) for cut in cuts)})
    for start, stop in pairwise(bounds):
        kernel(start, stop, (), out[start:stop], np.empty(0, np.float32))
    return node, out.reshape(node.shape), arrays


def random_rows(rows, width, seed, code="F32"):
    return code, raw(np.random.default_rng(seed).standard_normal((rows, width)), code)


# --- maps -------------------------------------------------------------------------------------------------------------

ROWS = st.tuples(st.integers(0, 2), st.integers(0, 4))
TAKEN = st.lists(st.one_of(st.just(()), st.just(PADDING), st.lists(ROWS, min_size=1, max_size=3).map(tuple)))


def expanded(table):
    """What each row is made of, from the runs."""
    return [
        run.taken if run.is_padding else tuple((source, row + i) for source, row in run.taken)
        for run in table.runs
        for i in range(run.count)
    ]


@given(TAKEN)
def test_a_map_says_of_every_row_what_it_was_made_of(taken):
    table = row_map(taken)
    assert expanded(table) == taken
    assert table.rows == len(taken)
    assert table.padding == taken.count(PADDING)
    assert [run.start for run in table.runs] == [sum(r.count for r in table.runs[:i]) for i in range(len(table.runs))]


@given(TAKEN, TAKEN)
def test_maps_have_the_same_digest_only_if_they_are_the_same(one, other):
    assert (row_map(one).digest == row_map(other).digest) == (one == other)


def test_consecutive_rows_are_one_run():
    taken = [((0, 3),), ((0, 4),), ((0, 5),), (), (), ((1, 0), (2, 7)), ((1, 1), (2, 8)), PADDING, PADDING]
    assert row_map(taken).runs == (
        Run(0, 3, ((0, 3),)), Run(3, 2, ()), Run(5, 2, ((1, 0), (2, 7))), Run(7, 2, PADDING)
    )  # fmt: skip


def test_a_map_that_changes_nothing_is_no_node():
    x = leaf(shape=(3, 2))
    assert rows_node(row_map([((0, 0),), ((0, 1),), ((0, 2),)]), (x,)) is x
    assert rows_node(row_map([((0, 0),), ((0, 1),)]), (x,)).shape == (2, 2)
    assert rows_node(row_map([((0, 0),), ((0, 2),), ((0, 1),)]), (x,)).shape == (3, 2)


def test_the_key_has_the_digest_of_the_map_and_nodes_share_the_map_itself():
    table = row_map([((0, 1),), ((0, 0),)])
    one, other = (rows_node(table, (leaf(shape=(2, 2), key=key),)) for key in "ab")
    assert one.params == (("map", table.digest),)
    assert one.rows is other.rows is table
    assert one.key != other.key
    assert rows_node(row_map([((0, 1),), ((0, 1),)]), one.inputs).key != one.key


def test_the_inputs_of_a_node_are_those_of_its_rows_too():
    first, second = leaf(shape=(2, 2), key="x"), leaf(shape=(2, 2), key="y")
    node = rows_node(row_map([((1, 0),)]), (first, second))
    assert [used.key for used in inputs_of(node)] == ["x", "y"]
    assert node.inputs == (first, second)


def test_renumbering_changes_numbers_alone():
    table = row_map([((5, 1), (2, 3)), PADDING, ()]).renumbered({5: 0, 2: 1})
    assert expanded(table) == [((0, 1), (1, 3)), PADDING, ()]


def test_a_map_without_rows_makes_nothing():
    assert RowMap(()).rows == 0
    assert row_map([]) == RowMap(())


# --- what comes of them -----------------------------------------------------------------------------------------------


def test_rows_are_taken_as_they_are_bit_for_bit():
    bits = np.array([[0x7FC1, 0x8000], [0xFFFF, 0x0001], [0x3F80, 0x7F80]], np.uint16)
    _, out, _ = made([((0, 2),), ((0, 0),), ((0, 1),), ((0, 0),)], [("BF16", bits)])
    assert np.array_equal(out, bits[[2, 0, 1, 0]])


def test_consecutive_rows_are_read_at_once():
    _, _, (x,) = made([((0, 1),), ((0, 2),), ((0, 3),), ((0, 0),)], [random_rows(4, 3, 0)])
    assert x.reads == 2


def test_zeros_means_and_padding_of_numbers_one_can_add_up():
    a, b = ("F32", raw([[1.0, 2.0], [3.0, 4.0]])), ("F32", raw([[5.0, 8.0], [7.0, 6.0]]))
    _, out, _ = made([((0, 0),), ((0, 1), (1, 0)), (), PADDING], [a, b])
    assert out.tolist() == [[1, 2], [4, 6], [0, 0], [np.float32(5) / np.float32(3), np.float32(8) / np.float32(3)]]


def test_padding_without_any_other_row_is_zero():
    _, out, _ = made([PADDING, PADDING], [random_rows(3, 2, 0)])
    assert out.tolist() == [[0, 0], [0, 0]]


def test_a_bias_is_a_tensor_of_rows_of_one():
    _, out, _ = made([((0, 2),), (), ((0, 0),), PADDING], [("F32", raw([1.0, 2.0, 4.0]))])
    assert out.tolist() == [4, 0, 1, np.float32(5) / np.float32(3)]


def test_inputs_of_two_dtypes_make_float32_exactly():
    a, b = random_rows(2, 3, 0, "BF16"), random_rows(2, 3, 1, "F16")
    node, out, _ = made([((0, 1),), ((1, 0),)], [a, b])
    assert node.dtype == "F32"
    assert np.array_equal(out, np.stack([values(a[1], "BF16")[1], values(b[1], "F16")[0]]))


@settings(deadline=None)
@given(st.data())
def test_any_map_in_any_stretches_is_the_definition(data):
    width, count = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    code = data.draw(st.sampled_from(CODES))
    inputs = [random_rows(5, width, seed, code) for seed in range(count)]
    entry = st.tuples(st.integers(0, count - 1), st.integers(0, 4))
    entries = st.one_of(st.just(()), st.just(PADDING), st.lists(entry, min_size=1, max_size=3).map(tuple))
    taken = data.draw(st.lists(entries, min_size=1, max_size=12))
    _, out, _ = made(taken, inputs, data.draw(st.lists(st.integers(0, 200), max_size=6)))
    wide = [values(array, code).astype(np.float64) for _, array in inputs]
    for row, parts in enumerate(taken):
        if parts == PADDING:
            continue
        mean = sum((wide[source][index] for source, index in parts), np.zeros(width)) / max(1, len(parts))
        expected = raw(to_odd(mean) if code != "F32" else mean.astype(np.float32), code)
        assert np.array_equal(out[row], expected)
    kept = [row for row, parts in enumerate(taken) if parts != PADDING]
    total = np.zeros(width)
    for row in kept:
        total = total + values(out[row], code)
    for row in set(range(len(taken))) - set(kept):
        mean = total / max(1, len(kept))
        assert np.array_equal(out[row], raw(to_odd(mean) if code != "F32" else mean.astype(np.float32), code))


def test_the_mean_row_of_many_rows_is_their_sum_in_order_whatever_the_blocks(monkeypatch):
    inputs = [random_rows(300, 7, 3)]
    taken = [((0, i),) for i in range(300)] + [PADDING]
    expected = np.zeros(7)
    for row in inputs[0][1]:
        expected = expected + row
    for block in (1, 50, 10**6):
        monkeypatch.setattr("modelbuild.kernels.rows.BLOCK", block)
        _, out, _ = made(taken, inputs)
        assert np.array_equal(out[-1], (expected / 300).astype(np.float32))


def nearest_bf16(value):
    """The bfloat16 nearest to an exact value, ties to even, found among the neighbours of its float32."""
    bits = int(np.float32(float(value)).view(np.uint32)) >> 16
    around = [bits + step for step in (-1, 0, 1) if 0 <= bits + step < 0x7F80]
    exact = {b: abs(Fraction(float(np.uint32(b << 16).view(np.float32))) - value) for b in around}
    return min(around, key=lambda b: (exact[b], b & 1))


@settings(deadline=None)
@given(st.lists(st.integers(2**20, 2**24 - 1), min_size=2, max_size=5), st.integers(2, 7))
def test_a_mean_is_rounded_once(numbers, power):
    """float64 holds the sum and, close to a tie of bfloat16, more than float32 does of the mean."""
    wide = np.float64(sum(numbers)) / 2.0**power + 2.0**-40
    assert int(raw(to_odd(np.array([wide])), "BF16")[0]) == nearest_bf16(Fraction(float(wide)))


def test_rounding_to_float32_first_would_round_twice():
    """1 + 2⁻⁸ is a tie of bfloat16, and what float32 makes of a number just above it."""
    value = np.array([1 + 2.0**-8 + 2.0**-40])
    assert raw(value.astype(np.float32), "BF16")[0] == 0x3F80
    assert raw(to_odd(value), "BF16")[0] == 0x3F81


def test_what_float32_cannot_hold_becomes_infinite_and_nan_stays():
    wide = np.array([1e300, -1e300, np.nan, np.inf])
    assert np.array_equal(to_odd(wide), np.array([np.inf, -np.inf, np.nan, np.inf], np.float32), equal_nan=True)


@pytest.mark.parametrize("code", CODES)
def test_the_mean_of_a_row_with_itself_is_that_row(code):
    row = random_rows(1, 9, 5, code)
    _, out, _ = made([((0, 0), (1, 0))], [row, row])
    assert np.array_equal(out, row[1])
