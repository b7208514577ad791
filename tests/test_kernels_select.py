"""Selection: exactly k are kept, the largest, of equal ones the first; without sorting, in any stretches and order."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import KINDS, ODD, magnitudes, numbers, raw, values

from modelbuild.kernels.sample import Sample
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
    selection = Selection(scores.size, ranks, dtype, None if base is None else dtype, ties=ties)
    while wanted := selection.wanted():
        if passes is not None:
            passes.append(sum(stop - start for start, stop in wanted))
        for start, stop in pieces(wanted, step)[::order]:
            selection.show(start, stop, scores[start:stop], None if base is None else base[start:stop])
        selection.advance()
    return selection.thresholds


def pieces(stretches, step):
    return [(start, min(start + step, stop)) for first, stop in stretches for start in range(first, stop, step)]


@contextmanager
def counting(really=True):
    """All scores are counted, as where the pass that looks for the ranks' would not find them."""
    with pytest.MonkeyPatch.context() as patch:
        if really:
            patch.setattr(Selection, "_probed", lambda selection: iter(()))
        yield


@pytest.fixture(params=["looked for", "counted"])
def either(request):
    with counting(request.param == "counted"):
        yield


@pytest.mark.parametrize("count", [1, 2, 7, GRAIN, 3 * GRAIN + 11])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("either")
def test_exactly_the_k_largest_are_kept(kind, count):
    scores = numbers(kind, count)
    ranks = sorted({0, 1, 2, count // 3, count // 2, count - 1, count})
    ranks = [rank for rank in ranks if rank <= count]
    for rank, threshold in zip(ranks, select(scores, ranks), strict=True):
        mask = mask_of(threshold, scores)
        assert mask.sum() == rank
        assert np.array_equal(mask, largest(scores, rank))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(ODD), st.floats(width=32)), min_size=1, max_size=60),
    st.integers(0, 60),
    st.booleans(),
)
def test_any_numbers_and_any_k(scores, k, counted):
    scores = np.array(scores, np.float32)
    with counting(counted):
        (threshold,) = select(scores, [min(k, scores.size)])
    assert np.array_equal(mask_of(threshold, scores), largest(scores, k))


@pytest.mark.usefixtures("either")
def test_by_hand():
    scores = np.array([1, -4, 2, 4, 0, -2], np.float32)
    one, three, four = select(scores, [1, 3, 4])
    assert (one.value, one.cut) == (4, 2)
    assert (three.value, three.cut) == (2, 3)
    assert four.value == 2
    assert four.cut > 6


@pytest.mark.usefixtures("either")
def test_nan_is_larger_than_infinity_and_all_nan_are_equal():
    scores = np.array([np.inf, 0, 0, 1], np.float32)
    scores.view(np.uint32)[1:3] = 0x7F80_0001, 0xFFFF_FFFF
    first, second, third = select(scores, [1, 2, 3])
    assert np.isnan(first.value)
    assert mask_of(first, scores).tolist() == [False, True, False, False]
    assert mask_of(second, scores).tolist() == [False, True, True, False]
    assert mask_of(third, scores).tolist() == [True, True, True, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, -1]), st.sampled_from(KINDS), st.integers(1, 9999), st.booleans())
def test_stretches_and_their_order_change_nothing(grains, order, kind, k, counted):
    scores = numbers(kind, 9999)
    with counting(counted):
        found = select(scores, [k], step=grains * GRAIN, order=order)
    assert found == select(scores, [k], step=5 * GRAIN)


@pytest.mark.usefixtures("either")
def test_threads_change_nothing():
    scores = numbers("few", 50_000)
    selection = Selection(scores.size, lambda nonzero: [1234, 40_000], "F32")
    with ThreadPoolExecutor(4) as pool:
        while wanted := selection.wanted():
            list(pool.map(lambda pair: selection.show(*pair, scores[slice(*pair)]), pieces(wanted, GRAIN)))
            selection.advance()
    assert selection.thresholds == select(scores, [1234, 40_000])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.usefixtures("either")
def test_scores_may_be_differences_from_a_base(dtype):
    rng = np.random.default_rng(4)
    base = raw(rng.standard_normal(7000), dtype)
    model = raw(values(base, dtype) + 1e-2 * rng.standard_normal(7000), dtype)
    scores = values(model, dtype) - values(base, dtype)
    for k in (1, 700, 3500, 6999):
        (threshold,) = select(model, [k], base, dtype)
        assert np.array_equal(mask_of(threshold, scores), largest(scores, k))


# --- how many passes --------------------------------------------------------------------------------------------------


def passes_of(scores, k, counted=False):
    passes = []
    with counting(counted):
        select(np.asarray(scores, np.float32), k, passes=passes)
    return passes


def test_one_pass_does_where_no_equal_scores_are_parted():
    assert passes_of(np.arange(9000), [4000]) == [9000]
    assert passes_of(np.ones(9000), [9000]) == [9000]


def test_one_look_at_a_block_parts_equal_scores():
    assert passes_of(np.ones(9000), [4000]) == [9000, GRAIN]
    assert passes_of(1 + np.arange(9000) % 3 * 2.0**-23, [4000]) == [9000, GRAIN]


def test_ranks_share_a_pass():
    assert passes_of(numbers("close", 9000), [100, 4000, 8000]) == [9000, GRAIN, GRAIN, GRAIN]


def test_counting_takes_two_passes_where_no_equal_scores_are_parted():
    assert passes_of(np.arange(9000), [4000], True) == [9000, 9000]
    assert passes_of(np.ones(9000), [9000], True) == [9000, 9000]


def test_counting_takes_one_more_pass_for_equal_scores_among_others():
    assert passes_of(np.ones(9000), [4000], True) == [9000, 9000, GRAIN]
    assert passes_of(1 + np.arange(9000) % 3 * 2.0**-23, [4000], True) == [9000, 9000, 9000, GRAIN]


def test_ranks_that_are_counted_share_their_passes():
    assert passes_of(numbers("close", 9000), [100, 4000, 8000], True) == [9000, 9000, 9000, GRAIN, GRAIN, GRAIN]


def test_nothing_is_to_be_seen_of_a_tensor_without_elements():
    passes = []
    assert select(np.zeros(0, np.float32), [0], passes=passes) == (NONE,)
    assert passes == []


def test_nothing_is_to_be_seen_for_rank_zero_alone():
    assert passes_of(np.ones(10), [0, 0]) == []


def test_where_rank_zero_comes_from_a_count_that_was_all():
    assert passes_of(np.ones(10), lambda nonzero: [0]) == [10]
    assert passes_of(np.ones(10), lambda nonzero: [0], True) == [10]


# --- what ranks come from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "count", "expected"),
    [(0, 10, 0), (-1, 10, 0), (1e-9, 10, 1), (0.29, 100, 28), (0.3, 10, 3), (1, 10, 10), (2, 10, 10), (0.5, 0, 0)],
)
def test_what_a_density_keeps(density, count, expected):
    assert kept(density, count) == expected


@pytest.mark.parametrize("kind", ["normal", "few", "sparse"])
@pytest.mark.usefixtures("either")
def test_quantiles_are_elements_of_the_sorted_scores(kind):
    scores = np.abs(numbers(kind, 4001))
    found = select(scores, [quantile_rank(q, scores.size) for q in (0, 0.25, 0.5, 0.75, 1)], ties=False)
    ordered = np.sort(scores)
    assert [threshold.value for threshold in found] == [ordered[i] for i in (0, 1000, 2000, 3000, 4000)]


@pytest.mark.parametrize("counted", [False, True])
def test_quantiles_do_not_part_equal_scores(counted):
    passes = []
    with counting(counted):
        (threshold,) = select(np.ones(9000, np.float32), [4000], ties=False, passes=passes)
    assert passes == [9000] * (1 + counted)
    assert mask_of(threshold, np.ones(9000)).all()


@pytest.mark.usefixtures("either")
def test_ranks_may_depend_on_how_many_scores_are_not_zero():
    scores = numbers("sparse", 8000)
    scores[17] = -0.0
    seen = []
    (threshold,) = select(scores, lambda nonzero: [seen.append(nonzero) or nonzero // 2])
    assert seen == [np.count_nonzero(scores)]
    assert mask_of(threshold, scores).sum() == seen[0] // 2


@pytest.mark.usefixtures("either")
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


@pytest.mark.usefixtures("either")
def test_a_piece_without_elements_changes_nothing():
    scores, nothing = np.ones(3 * GRAIN, np.float32), np.zeros(0, np.float32)
    selection = Selection(scores.size, [GRAIN + 5], "F32")
    while wanted := selection.wanted():
        for start, stop in wanted:
            selection.show(start, start, nothing)
            selection.show(start, stop, scores[start:stop])
            selection.show(stop, stop, nothing)
        selection.advance()
    assert selection.thresholds == (Threshold(0x3F80_0000, GRAIN + 5),)


def test_a_threshold_says_its_magnitude_as_a_number():
    assert Threshold(0x3F80_0000, 5).value == 1


# --- a sample first ---------------------------------------------------------------------------------------------------

HUGE = 1 << 18
RANKED = (1, HUGE // 100, HUGE // 3, HUGE // 2, HUGE - HUGE // 5, HUGE)


def counted(*args, **options):
    """The thresholds from counting all scores."""
    with counting():
        return select(*args, **options)


def deltas(dtype, count=HUGE):
    """A base, and a model that lies as far from it as fine-tuned ones do."""
    rng = np.random.default_rng(1)
    base = raw(0.02 * rng.standard_normal(count), dtype)
    return raw(values(base, dtype) + 3e-4 * rng.standard_normal(count), dtype), base


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", RANKED)
def test_a_sample_changes_no_threshold(kind, rank):
    scores = numbers(kind, HUGE + 777)
    expected = counted(scores, [rank], step=64 * GRAIN)
    assert select(scores, [rank], step=64 * GRAIN) == expected
    assert select(scores, [rank], step=7 * GRAIN, order=-1) == expected


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_sample_of_differences_changes_no_threshold(dtype):
    model, base = deltas(dtype)
    for ranks in ([HUGE // 2], [HUGE // 2, HUGE // 100], [HUGE // 5, 0, HUGE]):
        expected = counted(model, ranks, base, dtype, step=64 * GRAIN)
        assert select(model, ranks, base, dtype, step=64 * GRAIN) == expected


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_behind_a_sample_one_pass_does_for_all_ranks(dtype):
    passes, count = [], 8 * HUGE
    model, base = deltas(dtype, count)
    ranks = [count // 100, count // 2]
    assert select(model, ranks, base, dtype, passes=passes) == counted(model, ranks, base, dtype)
    assert passes[:2] == [32 * GRAIN, count]
    assert set(passes[2:]) <= {GRAIN}


def test_the_number_of_scores_that_are_not_zero_comes_from_the_same_pass():
    scores = np.random.default_rng(2).standard_normal(8 * HUGE).astype(np.float32)
    scores[np.random.default_rng(3).random(8 * HUGE) < 0.3] = 0
    passes, seen = [], []
    (threshold,) = select(scores, lambda nonzero: seen.append(nonzero) or [nonzero // 3], passes=passes)
    assert seen[-1] == np.count_nonzero(scores)
    assert mask_of(threshold, scores).sum() == seen[-1] // 3
    assert passes == [32 * GRAIN, 8 * HUGE]


def test_a_sample_that_points_elsewhere_costs_its_passes_and_nothing_else():
    """Small where it is looked at, large elsewhere."""
    scores = np.random.default_rng(3).standard_normal(HUGE).astype(np.float32) + 100
    for start, stop in Sample(HUGE).stretches:
        scores[start:stop] /= 1e6
    passes = []
    (threshold,) = select(scores, [HUGE // 2], passes=passes)
    assert (threshold,) == counted(scores, [HUGE // 2])
    assert passes[1:4] == [HUGE] * 3


def test_where_the_sample_cannot_tell_all_scores_are_counted_at_once():
    """Its stretches have nothing in common."""
    scores = (np.repeat(2.0 ** np.arange(8), HUGE) * np.linspace(1, 2, 8 * HUGE)).astype(np.float32)
    passes = []
    (threshold,) = select(scores, [4 * HUGE], passes=passes)
    assert mask_of(threshold, scores).sum() == 4 * HUGE
    assert passes == [32 * GRAIN, 8 * HUGE, 8 * HUGE]


def test_where_too_many_scores_are_near_they_are_not_all_kept():
    """The sample sees larger and smaller ones, and all the others lie between them."""
    rng = np.random.default_rng(5)
    scores = rng.uniform(1, 2, 8 * HUGE).astype(np.float32)
    for start, stop in Sample(8 * HUGE).stretches:
        half = (stop - start) // 2
        scores[start : start + half], scores[start + half : stop] = rng.uniform(3, 4, half), rng.uniform(0, 0.5, half)
    passes = []
    (threshold,) = select(scores, [4 * HUGE], passes=passes)
    assert mask_of(threshold, scores).sum() == 4 * HUGE
    assert passes[:4] == [32 * GRAIN, 8 * HUGE, 8 * HUGE, 8 * HUGE]


def test_a_tensor_that_is_not_large_is_not_sampled():
    assert passes_of(numbers("close", HUGE - 1), [1000])[0] == HUGE - 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.sampled_from(KINDS), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_any_ranks_of_any_numbers_are_found_behind_a_sample(seed, kind, shares):
    scores = np.random.default_rng(seed).permutation(numbers(kind, HUGE + seed))
    ranks = [int(share * scores.size) for share in shares]
    expected = counted(scores, ranks, step=64 * GRAIN)
    assert select(scores, ranks, step=64 * GRAIN) == expected
