"""Masks: what they keep is decided by index and score alone, so a stretch cut anywhere is masked the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import KINDS, magnitudes, numbers, same_bits
from vote_tools import thresholds, vote

from modelbuild.kernels.magnitude import NAN
from modelbuild.kernels.mask import band, drawn, everything, marked
from modelbuild.kernels.random import uniform
from modelbuild.kernels.select import ALL, NONE, Threshold, crumbs
from modelbuild.kernels.vote import Rule, Voter

COUNT = 5000


def masked(values, mask, scores=None, cuts=()):
    """What a mask leaves of values: a vote of one over a base of zeros."""
    return vote([np.zeros_like(values), values], [Voter(mask)], Rule(), scores=scores, cuts=cuts)


def by_sorting(scores, low, high):
    """The mask of the scores of ranks from behind `high` up to `low`."""
    order = np.argsort(-magnitudes(scores), kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[order[high:low]] = True
    return mask


def expected(values, mask):
    return np.where(mask, values, np.float32(0))


def test_everything_is_left_as_it_is():
    values = numbers("normal", COUNT)
    assert same_bits(masked(values, everything()), values)
    assert same_bits(masked(values, band(ALL)), values)


def test_nothing_is_left():
    for kind in ("normal", "odd"):
        assert not masked(numbers(kind, 100), band(NONE)).any()
        assert not masked(numbers(kind, 100), drawn(3, 0.0)).any()
        assert not masked(numbers(kind, 100), marked(np.zeros(2, np.uint64))).any()


@pytest.mark.parametrize(("low", "high"), [(2000, 0), (5000, 4000), (3000, 2999), (2500, 100), (1, 0), (4999, 1)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "odd"])
def test_a_band_keeps_exactly_its_ranks(kind, low, high):
    values = numbers(kind, COUNT)
    inner, outer = thresholds(values, [high, low])
    kept = by_sorting(values, low, high)
    assert kept.sum() == low - high
    assert same_bits(masked(values, band(outer, inner)) + 0, expected(values, kept) + 0)


def test_a_band_may_go_by_other_scores():
    values, scores = numbers("normal", COUNT), numbers("few", COUNT, 1)
    inner, outer = thresholds(scores, [300, 1700])
    result = masked(values, band(outer, inner), scores)
    assert same_bits(result, expected(values, by_sorting(scores, 1700, 300)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, COUNT - 1), max_size=6), st.sampled_from(["band", "scores", "drawn", "marked"]))
def test_cuts_change_no_bit(cuts, kind):
    values, scores = numbers("few", COUNT), numbers("close", COUNT)
    words = np.random.default_rng(0).integers(0, 2**64, -(-COUNT // 64), np.uint64)
    mask = {
        "band": band(Threshold(0x3F80_0000, 3333), Threshold(0x4040_0000, 777)),
        "scores": band(*thresholds(scores, [2600, 1200])),
        "drawn": drawn(17, 0.3),
        "marked": marked(words),
    }[kind]
    given_scores = scores if kind == "scores" else None
    whole = masked(values, mask, given_scores)
    assert 0 < np.count_nonzero(whole) < np.count_nonzero(values)
    assert same_bits(masked(values, mask, given_scores, cuts), whole)


def test_equal_scores_before_the_cut_are_kept():
    values = np.array([1, 2, -1, 1, 3, 1], np.float32)
    assert masked(values, band(Threshold(0x3F80_0000, 3))).tolist() == [1, 2, -1, 0, 3, 0]
    assert masked(values, band(ALL, Threshold(0x3F80_0000, 3))).tolist() == [0, 0, 0, 1, 0, 1]


CUTS = st.one_of(st.sampled_from([0, 1, 2047, 2048, 2049, 4095, 4096, 4097, COUNT, 2**62]), st.integers(0, COUNT))
THRESHOLDS = st.builds(Threshold, st.sampled_from([0, 0x3F80_0000, 0x4000_0000, 0x4040_0000, NAN]), CUTS)


@settings(max_examples=100, deadline=None)
@given(THRESHOLDS, THRESHOLDS, st.lists(CUTS, max_size=2))
def test_a_band_lies_between_any_two_thresholds(low, high, cuts):
    """Wherever their cuts are: at the ends of the blocks of 2048 that are masked together, both in one, in none."""
    values = numbers("few", COUNT)
    values[::97] = np.nan
    found, places = magnitudes(values), np.arange(COUNT)
    above, under = (
        (found > edge.magnitude) | ((found == edge.magnitude) & (places < edge.cut)) for edge in (low, high)
    )
    assert same_bits(masked(values, band(low, high), cuts=cuts) + 0, expected(values, above & ~under) + 0)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1])
def test_a_random_mask_is_where_the_numbers_are_below_the_probability(key, p):
    values = numbers("rising", COUNT) + 1
    assert same_bits(masked(values, drawn(key, p)), expected(values, uniform(key, 0, COUNT) < np.float32(p)))


def test_a_marked_mask_is_its_bits():
    values = numbers("rising", COUNT) + 1
    words = np.random.default_rng(0).integers(0, 2**64, -(-COUNT // 64), np.uint64)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:COUNT].astype(bool)
    assert same_bits(masked(values, marked(words)), expected(values, bits))


def test_one_models_mask_does_not_touch_another():
    base = np.zeros(COUNT, np.float32)
    one, two = numbers("normal", COUNT), numbers("normal", COUNT, 1)
    alone = masked(one, drawn(1, 0.5))
    together = vote([base, one, two], [Voter(drawn(1, 0.5)), Voter(drawn(2, 0.5), weight=0.0)], Rule())
    assert same_bits(together, alone)


def test_what_is_left_out_is_zero_whatever_it_was():
    values = np.array([np.nan, -np.inf, -1, 2], np.float32)
    assert masked(values, marked(np.array([0b1100], np.uint64))).tolist() == [0, 0, -1, 2]


@pytest.mark.parametrize(
    ("density", "gamma", "count", "low", "high"),
    [
        (0.5, 0.1, 100, 60, 10),
        (0.5, 0.0, 100, 50, 0),
        (0.9, 0.1, 100, 100, 10),
        (0.9, 0.3, 100, 100, 10),  # fewer large ones are dropped: 90 are to be kept
        (1.0, 0.3, 100, 100, 0),
        (0.0, 0.1, 100, 10, 10),
        (0.5, 0.01, 10, 5, 0),
        (1e-9, 0.1, 10, 2, 1),
    ],
)
def test_where_the_crumbs_lie(density, gamma, count, low, high):
    assert crumbs(density, gamma, count) == (low, high)
