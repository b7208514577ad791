"""Selection: exactly k are kept, the largest, of equal ones the first; without sorting, in any stretches and order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import KINDS, ODD, magnitudes, numbers, raw, values

from modelbuild.kernels.select import ALL, NONE, Selection, Threshold, bucket_of, kept, quantile_rank
from modelbuild.kernels.vectors import GRAIN


def largest(scores, k):
    """The mask of the k largest, by sorting: of equal ones the first."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-magnitudes(scores), kind="stable")[:k]] = True
    return mask


def mask_of(threshold, scores):
    found = magnitudes(scores)
    return (found > threshold.magnitude) | ((found == threshold.magnitude) & (np.arange(len(found)) < threshold.cut))


def select(scores, ranks, base=None, dtype="F32", step=GRAIN, order=1, ties=True, passes=None):
    """The thresholds of ranks, from showing the scores in stretches; the passes are counted in `passes`."""
    chosen = ranks if callable(ranks) else lambda nonzero: ranks
    selection = Selection(scores.size, chosen, dtype, None if base is None else dtype, ties=ties)
    while (wanted := selection.wanted()) is not None:
        if passes is not None:
            passes.append(wanted)
        for start in list(range(*wanted, step))[::order]:
            stop = min(start + step, wanted[1])
            selection.show(start, stop, scores[start:stop], None if base is None else base[start:stop])
        selection.advance()
    return selection.thresholds


@pytest.mark.parametrize("count", [1, 2, 7, GRAIN, 3 * GRAIN + 11])
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_k_largest_are_kept(kind, count):
    scores = numbers(kind, count)
    ranks = sorted({0, 1, 2, count // 3, count // 2, count - 1, count})
    ranks = [rank for rank in ranks if rank <= count]
    for rank, threshold in zip(ranks, select(scores, ranks), strict=True):
        mask = mask_of(threshold, scores)
        assert mask.sum() == rank
        assert np.array_equal(mask, largest(scores, rank))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(ODD), st.floats(width=32)), min_size=1, max_size=60), st.integers(0, 60))
def test_any_numbers_and_any_k(scores, k):
    scores = np.array(scores, np.float32)
    (threshold,) = select(scores, [min(k, scores.size)])
    assert np.array_equal(mask_of(threshold, scores), largest(scores, k))


def test_by_hand():
    scores = np.array([1, -4, 2, 4, 0, -2], np.float32)
    one, three, four = select(scores, [1, 3, 4])
    assert (one.value, one.cut) == (4, 2)
    assert (three.value, three.cut) == (2, 3)
    assert four.value == 2
    assert four.cut > 6


def test_nan_is_larger_than_infinity_and_all_nan_are_equal():
    scores = np.array([np.inf, 0, 0, 1], np.float32)
    scores.view(np.uint32)[1:3] = 0x7F80_0001, 0xFFFF_FFFF
    first, second, third = select(scores, [1, 2, 3])
    assert np.isnan(first.value)
    assert mask_of(first, scores).tolist() == [False, True, False, False]
    assert mask_of(second, scores).tolist() == [False, True, True, False]
    assert mask_of(third, scores).tolist() == [True, True, True, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, -1]), st.sampled_from(KINDS), st.integers(1, 9999))
def test_stretches_and_their_order_change_nothing(grains, order, kind, k):
    scores = numbers(kind, 9999)
    assert select(scores, [k], step=grains * GRAIN, order=order) == select(scores, [k], step=5 * GRAIN)


def test_threads_change_nothing():
    scores = numbers("few", 50_000)
    selection = Selection(scores.size, lambda nonzero: [1234, 40_000], "F32")
    with ThreadPoolExecutor(4) as pool:
        while (wanted := selection.wanted()) is not None:
            starts = range(*wanted, GRAIN)
            stops = [min(start + GRAIN, wanted[1]) for start in starts]
            list(pool.map(lambda pair: selection.show(*pair, scores[slice(*pair)]), zip(starts, stops, strict=True)))
            selection.advance()
    assert selection.thresholds == select(scores, [1234, 40_000])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_scores_may_be_differences_from_a_base(dtype):
    rng = np.random.default_rng(4)
    base = raw(rng.standard_normal(7000), dtype)
    model = raw(values(base, dtype) + 1e-2 * rng.standard_normal(7000), dtype)
    deltas = values(model, dtype) - values(base, dtype)
    for k in (1, 700, 3500, 6999):
        (threshold,) = select(model, [k], base, dtype)
        assert np.array_equal(mask_of(threshold, deltas), largest(deltas, k))


# --- how many passes --------------------------------------------------------------------------------------------------


def passes_of(scores, k):
    passes = []
    select(np.asarray(scores, np.float32), [k], passes=passes)
    return [stop - start for start, stop in passes]


def test_two_passes_do_where_no_equal_scores_are_parted():
    assert passes_of(np.arange(9000), 4000) == [9000, 9000]
    assert passes_of(np.ones(9000), 9000) == [9000, 9000]


def test_one_look_at_a_block_parts_equal_scores_that_have_their_bucket_for_themselves():
    assert passes_of(np.ones(9000), 4000) == [9000, 9000, GRAIN]


def test_one_more_pass_counts_equal_scores_among_others():
    assert passes_of(1 + np.arange(9000) % 3 * 2.0**-23, 4000) == [9000, 9000, 9000, GRAIN]


def test_ranks_share_their_passes():
    passes = []
    select(numbers("close", 9000), [100, 4000, 8000], passes=passes)
    assert [stop - start for start, stop in passes] == [9000, 9000, 9000, GRAIN, GRAIN, GRAIN]


def test_nothing_is_to_be_seen_of_a_tensor_without_elements():
    passes = []
    assert select(np.zeros(0, np.float32), [0], passes=passes) == (NONE,)
    assert passes == []


def test_after_rank_zero_alone_the_first_pass_is_the_last():
    passes = []
    assert select(np.ones(10, np.float32), [0], passes=passes) == (NONE,)
    assert passes == [(0, 10)]


# --- what ranks come from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "count", "expected"),
    [(0, 10, 0), (-1, 10, 0), (1e-9, 10, 1), (0.29, 100, 28), (0.3, 10, 3), (1, 10, 10), (2, 10, 10), (0.5, 0, 0)],
)
def test_what_a_density_keeps(density, count, expected):
    assert kept(density, count) == expected


@pytest.mark.parametrize("kind", ["normal", "few", "sparse"])
def test_quantiles_are_elements_of_the_sorted_scores(kind):
    scores = np.abs(numbers(kind, 4001))
    found = select(scores, [quantile_rank(q, scores.size) for q in (0, 0.25, 0.5, 0.75, 1)], ties=False)
    ordered = np.sort(scores)
    assert [threshold.value for threshold in found] == [ordered[i] for i in (0, 1000, 2000, 3000, 4000)]


def test_quantiles_do_not_part_equal_scores():
    passes = []
    (threshold,) = select(np.ones(9000, np.float32), [4000], ties=False, passes=passes)
    assert passes == [(0, 9000)] * 2
    assert mask_of(threshold, np.ones(9000)).all()


def test_ranks_may_depend_on_how_many_scores_are_not_zero():
    scores = numbers("sparse", 8000)
    scores[17] = -0.0
    seen = []
    (threshold,) = select(scores, lambda nonzero: [seen.append(nonzero) or nonzero // 2])
    assert seen == [np.count_nonzero(scores)]
    assert mask_of(threshold, scores).sum() == seen[0] // 2


def test_scores_that_are_tiny_are_not_zero():
    seen = []
    select(np.array([1e-45, 0, -0.0, 1e-40], np.float32), lambda nonzero: [seen.append(nonzero) or 1])
    assert seen == [2]


def test_thresholds_that_keep_everything_and_nothing():
    scores = numbers("odd", 100)
    assert mask_of(ALL, scores).all()
    assert not mask_of(NONE, scores).any()


@pytest.mark.parametrize("rank", range(1, 7))
def test_the_bucket_of_a_rank(rank):
    # From the top: two in the last entry, none, three, one.
    expected = [(3, 0), (3, 0), (1, 2), (1, 2), (1, 2), (0, 5)][rank - 1]
    assert bucket_of(np.array([1, 3, 0, 2]), rank) == expected


def test_stretches_that_cut_a_block_are_refused():
    selection = Selection(5000, lambda nonzero: [7], "F32")
    with pytest.raises(ValueError, match="whole blocks"):
        selection.show(0, 100, np.zeros(100, np.float32))
    with pytest.raises(ValueError, match="a stretch of"):
        selection.show(0, GRAIN, np.zeros(100, np.float32))


def test_a_threshold_says_its_magnitude_as_a_number():
    assert Threshold(0x3F80_0000, 5).value == 1


# --- a sample first ---------------------------------------------------------------------------------------------------

HUGE = 1 << 18
RANKED = (1, HUGE // 100, HUGE // 3, HUGE // 2, HUGE - HUGE // 5, HUGE)


def sampled(scores, ranks, base=None, dtype="F32", passes=None, order=1):
    """The thresholds of ranks that are known beforehand."""
    selection = Selection(scores.size, ranks, dtype, None if base is None else dtype)
    while (wanted := selection.wanted()) is not None:
        if passes is not None:
            passes.append(wanted[1] - wanted[0])
        for start in list(range(*wanted, 7 * GRAIN))[::order]:
            stop = min(start + 7 * GRAIN, wanted[1])
            selection.show(start, stop, scores[start:stop], None if base is None else base[start:stop])
        selection.advance()
    return selection.thresholds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", RANKED)
def test_a_sample_changes_no_threshold(kind, rank):
    scores = numbers(kind, HUGE + 777)
    assert sampled(scores, [rank]) == select(scores, [rank], step=64 * GRAIN)
    assert sampled(scores, [rank], order=-1) == sampled(scores, [rank])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_sample_of_differences_changes_no_threshold(dtype):
    rng = np.random.default_rng(1)
    base = raw(0.02 * rng.standard_normal(HUGE), dtype)
    model = raw(values(base, dtype) + 3e-4 * rng.standard_normal(HUGE), dtype)
    for ranks in ([HUGE // 2], [HUGE // 2, HUGE // 100], [HUGE // 5, 0, HUGE]):
        expected = select(model, ranks, base, dtype, step=64 * GRAIN)
        assert sampled(model, ranks, base, dtype) == expected


def test_one_pass_does_behind_a_sample():
    scores, passes = np.random.default_rng(2).standard_normal(16 * HUGE).astype(np.float32), []
    (threshold,) = sampled(scores, [8 * HUGE], passes=passes)
    assert mask_of(threshold, scores).sum() == 8 * HUGE
    assert passes == [HUGE // 8] * 8 + [16 * HUGE]


def test_a_sample_that_points_elsewhere_costs_its_passes_and_nothing_else():
    """Small where it is looked at, large elsewhere."""
    scores = np.random.default_rng(3).standard_normal(HUGE).astype(np.float32) + 100
    for start in range(0, HUGE, HUGE // 8):
        scores[start : start + GRAIN] /= 1e6
    passes = []
    (threshold,) = sampled(scores, [HUGE // 2], passes=passes)
    assert (threshold,) == select(scores, [HUGE // 2], step=64 * GRAIN)
    assert passes[8:11] == [HUGE] * 3


def test_a_tensor_that_is_not_large_is_not_sampled():
    passes = []
    sampled(numbers("close", HUGE - 1), [1000], passes=passes)
    assert passes[0] == HUGE - 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.sampled_from(KINDS), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_any_ranks_of_any_numbers_are_found_behind_a_sample(seed, kind, shares):
    scores = np.random.default_rng(seed).permutation(numbers(kind, HUGE + seed))
    ranks = [int(share * scores.size) for share in shares]
    assert sampled(scores, ranks) == select(scores, ranks, step=64 * GRAIN)
