"""Votes: by hand, beside a plain loop over the formula, and by law."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import numbers, raw, same_bits, tensors, values
from vote_tools import norms, vote

from modelbuild.kernels.mask import band, drawn, everything, marked
from modelbuild.kernels.norms import rescaling
from modelbuild.kernels.select import NONE
from modelbuild.kernels.vectors import GRAIN
from modelbuild.kernels.vote import Rule, Vote, Voter

F = np.float32
TIES = Rule("sum", "agreeing")
RULES = [
    Rule(),
    Rule(divide="all", divisor=1.7, scale=0.5),
    Rule("sum"),
    TIES,
    Rule("count", "agreeing", scale=-1.3),
    Rule("count"),
    Rule("sum", "floored", late=True),
]


def whole(weight=1.0, rescaling=1.0):
    return Voter(everything(), weight, rescaling)


def by_the_formula(inputs, voters, rule):
    """The formula of kernels/vote.py, one element after the other, in numpy's float32."""
    base, *models = inputs
    out = np.zeros_like(base)
    for place in range(base.size):
        rows = []
        for model, voter in zip(models, voters, strict=True):
            value = model[place] - base[place]
            value = value * F(voter.rescaling) if voter.rescaling != 1 else value
            rows.append(value if rule.late else value * F(voter.weight))
        elected = F(0)
        for value in rows:
            elected = elected + (np.sign(value) if rule.consensus == "count" else value)
        total = share = F(0)
        for value, voter in zip(rows, voters, strict=True):
            agrees = rule.consensus == "none" or (value > 0 if elected >= 0 else value < 0)
            counted = value * F(voter.weight) if rule.late and rule.consensus != "none" else value
            total, share = (total + counted, share + F(voter.weight)) if agrees else (total, share)
        divisor = {
            "none": F(1), "agreeing": share or F(1), "floored": max(share, F(1e-6)), "all": F(rule.divisor)
        }[rule.divide]  # fmt: skip
        total = total / divisor
        total = total * F(rule.scale) if rule.scale != 1 else total
        out[place] = base[place] + (elected if np.isnan(elected) else total)
    return out


# --- by hand ----------------------------------------------------------------------------------------------------------

BASE = raw([10, 10, 10, 10])
ONE, TWO, THREE = raw([12, 8, 13, 10]), raw([14, 9, 6, 10]), raw([7, 13, 10, 10])
"""Deltas (2, -2, 3, 0), (4, -1, -4, 0), (-3, 3, 0, 0)."""


def test_agreeing_deltas_are_averaged():
    # Sums 3, 0, -1, 0: positive, positive, negative, positive.
    assert vote([BASE, ONE, TWO, THREE], [whole()] * 3, TIES).tolist() == [13, 13, 6, 10]


def test_without_division_agreeing_deltas_are_added():
    assert vote([BASE, ONE, TWO, THREE], [whole()] * 3, Rule("sum")).tolist() == [16, 13, 6, 10]


def test_signs_may_be_counted_instead():
    # Signs 1, -1, 0, 0: of 3 and -4 there is one each, and nobody else: the positive one wins.
    assert vote([BASE, ONE, TWO, THREE], [whole()] * 3, Rule("count", "agreeing")).tolist() == [13, 8.5, 13, 10]


def test_weights_count_in_the_election_and_in_the_mean():
    voters = [whole(1), whole(3), whole(4)]
    # Weighted: (2, -2, 3, 0), (12, -3, -12, 0), (-12, 12, 0, 0); sums 2, 7, -9, 0.
    assert vote([BASE, ONE, TWO, THREE], voters, TIES).tolist() == [13.5, 13, 6, 10]


def test_late_weights_count_in_the_mean_alone():
    voters = [whole(1), whole(3), whole(4)]
    # Elected by 3, 0, -1, 0.
    late = Rule("sum", "floored", late=True)
    assert vote([BASE, ONE, TWO, THREE], voters, late).tolist() == [13.5, 13, 6, 10]
    assert vote([BASE, ONE, THREE], [whole(1), whole(9)], late).tolist() == [7, 13, 13, 10]


def test_without_consensus_everything_is_added():
    assert vote([BASE, ONE, TWO, THREE], [whole()] * 3, Rule()).tolist() == [13, 10, 9, 10]
    rule = Rule(divide="all", divisor=2, scale=4)
    assert vote([BASE, ONE, TWO, THREE], [whole()] * 3, rule).tolist() == [16, 10, 8, 10]


def test_rescaling_comes_before_weights():
    assert vote([BASE, ONE], [whole(0.5, 4)], Rule()).tolist() == [14, 6, 16, 10]


def test_what_a_mask_leaves_out_neither_votes_nor_counts():
    # Of the second model, the first two elements are left out.
    voters = [whole(), Voter(marked(np.array([0b1100], np.uint64))), whole()]
    assert vote([BASE, ONE, TWO, THREE], voters, TIES).tolist() == [7, 13, 6, 10]


def test_weights_that_sum_to_zero_divide_by_one():
    voters = [whole(1), whole(-1)]
    # Weighted (2, -2) and (3, -3): both positive at the first element, where the weights add to 0.
    assert vote([raw([0, 0]), raw([2, -2]), raw([-3, 3])], voters, TIES).tolist() == [5, -5]


def test_a_floored_share_divides_by_the_floor():
    assert vote([raw([0]), raw([1])], [whole(0)], Rule("sum", "floored", late=True)).tolist() == [0]
    tiny = vote([raw([0]), raw([1])], [whole(1e-7)], Rule("sum", "floored", late=True))
    assert tiny[0] == pytest.approx(0.1)


# --- by the formula ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["normal", "few", "tiny", "sparse"])
@pytest.mark.parametrize("models", [1, 2, 3, 6])
def test_results_are_those_of_the_formula_to_the_bit(rule, kind, models):
    inputs = [numbers(kind, 300, seed) for seed in range(models + 1)]
    voters = [whole(0.2 + 0.3 * i, 1.0 if i % 2 else 1.1) for i in range(models)]
    assert same_bits(vote(inputs, voters, rule), by_the_formula(inputs, voters, rule))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=2, max_size=5),
    st.sampled_from(RULES),
)
def test_any_numbers_give_what_the_formula_does(rows, rule):
    inputs = [raw(row) for row in rows]
    voters = [whole((-0.5, 1.0, 0.25, 2.0)[i]) for i in range(len(rows) - 1)]
    assert same_bits(vote(inputs, voters, rule) + 0, by_the_formula(inputs, voters, rule) + 0)


# --- by law -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5999), max_size=5), st.sampled_from(RULES), st.sampled_from(["F32", "BF16"]))
def test_cuts_change_no_bit(cuts, rule, dtype):
    inputs = tensors(4, (6000,), dtype=dtype)
    voters = [Voter(drawn(i, 0.6), 0.5 + i, 1.5) for i in range(3)]
    assert np.array_equal(vote(inputs, voters, rule, dtype, cuts=cuts), vote(inputs, voters, rule, dtype))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)), st.sampled_from(RULES))
def test_the_order_of_models_matters_only_to_the_last_places_of_sums(order, rule):
    base, *models = tensors(5, (400,), spread=1.0)
    voters = [Voter(drawn(i, 0.7), 0.3 + 0.2 * i) for i in range(4)]
    one = vote([base, *models], voters, rule)
    two = vote([base, *(models[i] for i in order)], [voters[i] for i in order], rule)
    largest = np.abs(np.stack([base, *models])).max(axis=0) * 8
    # A sum that is 0 but for rounding may elect otherwise.
    assert (np.abs(one - two) <= 2 * np.spacing(largest)).mean() > 0.99


@pytest.mark.parametrize("rule", [TIES, Rule("count", "agreeing"), Rule("sum", "floored", late=True)])
def test_equal_models_are_themselves(rule):
    base, model = tensors(2)
    found = vote([base, *[model] * 4], [whole(0.25)] * 4, rule)
    assert np.array_equal(found, base + (model - base))


@pytest.mark.parametrize("rule", RULES)
def test_what_no_model_changed_stays(rule):
    base = raw([0.0, 1e-45, -3e38, 0.1, 7])
    assert same_bits(vote([base] * 4, [whole(0.3)] * 3, rule), base)
    assert same_bits(vote([base], [], rule), base)


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_that_keeps_nothing_leaves_the_base(rule):
    base, *models = tensors(3)
    assert same_bits(vote([base, *models], [Voter(band(NONE))] * 2, rule), base)


@pytest.mark.parametrize("rule", RULES)
def test_nan_goes_through_wherever_it_is_and_nowhere_else(rule):
    inputs = [raw([1, 2, 3, 4]), raw([2, np.nan, 2, 7]), raw([3, 3, 3, -3]), raw([1, 1, 1, np.nan])]
    found = vote(inputs, [whole()] * 3, rule)
    assert np.isnan(found).tolist() == [False, True, False, True]
    assert np.isnan(vote([raw([np.nan, 1]), raw([1, 1])], [whole()], rule)).tolist() == [True, False]


def test_an_infinite_delta_wins_its_election():
    for rule in (TIES, Rule("sum")):
        assert vote([raw([0, 0]), raw([np.inf, -np.inf]), raw([-1, 5])], [whole()] * 2, rule).tolist() == [
            np.inf,
            -np.inf,
        ]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_inputs_of_any_dtype_are_widened_and_the_result_is_rounded_once(dtype):
    narrow = tensors(4, (3000,), dtype=dtype)
    wide = [values(array, dtype) for array in narrow]
    voters = [whole(0.3), whole(0.5), whole(0.9)]
    assert np.array_equal(vote(narrow, voters, TIES, dtype), raw(vote(wide, voters, TIES), dtype))
    assert same_bits(vote(narrow, voters, TIES, dtype, out_dtype="F32"), vote(wide, voters, TIES))


@pytest.mark.parametrize("count", [0, 1])
def test_tensors_of_no_and_of_one_element(count):
    inputs = [np.full(count, value, np.float32) for value in (1, 3, 2)]
    assert vote(inputs, [whole()] * 2, TIES).tolist() == [2.5] * count


def test_models_without_dtypes_are_refused():
    with pytest.raises(ValueError, match="2 models and a base, but 2 dtypes"):
        Vote(["F32"] * 2, "F32", [whole()] * 2, TIES)


@pytest.mark.parametrize("settings_", [{"divide": "agreeing"}, {"divide": "floored"}, {"late": True}])
def test_rules_that_make_no_sense_are_refused(settings_):
    with pytest.raises(ValueError, match="without consensus"):
        Rule(**settings_)


# --- norms ------------------------------------------------------------------------------------------------------------


def test_norms_by_hand():
    found = norms([BASE, ONE, THREE], [everything(), marked(np.array([0b0001], np.uint64))])
    assert found.tolist() == [[7, 7, 17], [6, 3, 9]]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_norms_are_those_of_the_masked_deltas(dtype):
    inputs = tensors(3, (7, 1000), dtype=dtype)
    masks = [drawn(1, 0.3), drawn(2, 0.9)]
    zero = np.zeros(7000, np.float32)
    for i, found in enumerate(norms(inputs, masks, dtype)):
        delta = values(inputs[i + 1], dtype).reshape(-1) - values(inputs[0], dtype).reshape(-1)
        kept = vote([zero, delta], [Voter(masks[i])], Rule()).astype(np.float64)
        expected = [np.abs(delta.astype(np.float64)).sum(), np.abs(kept).sum(), (kept**2).sum()]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, -1]))
def test_stretches_and_their_order_change_no_bit_of_norms(grains, order):
    inputs = tensors(3, (9001,))
    masks = [drawn(1, 0.3), everything()]
    once = norms(inputs, masks, step=5 * GRAIN)
    assert np.array_equal(norms(inputs, masks, step=grains * GRAIN, order=order), once)


def test_norms_of_nothing():
    assert norms([raw([])] * 3, [everything()] * 2).tolist() == [[0, 0, 0]] * 2


def test_norms_are_measured_by_whole_blocks():
    with pytest.raises(ValueError, match="whole blocks"):
        norms([np.zeros(5000, np.float32)] * 2, [everything()], step=1000)


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(6, 3, 2), (6, 6, 1), (1e-8, 3, 1), (3, 1e-8, 1), (0, 0, 1), (2e-7, 1e-7, 2)]
)
def test_a_delta_is_rescaled_unless_it_is_all_but_nothing(before, after, expected):
    assert rescaling(before, after) == expected
