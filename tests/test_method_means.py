"""slerp, nuslerp, multislerp, karcher and model_stock from Gram matrices, by hand, by law, and beside mergekit.

mergekit runs in float64; ours is the float32 result of measuring, solving and combining. Held to 1e-6 of the result's
rms.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import combine, matrix, measured, raw, tensors, values

from modelbuild.kernels.gram import ColumnGram
from modelbuild.methods._arcs import nuslerp, share, slerp
from modelbuild.methods._means import karcher, model_stock, multislerp
from modelbuild.methods._span import Span

SHAPE = (24, 520)


@pytest.fixture(scope="module")
def merge():
    return pytest.importorskip("mergekit.merge_methods").merge_tensors


def mixed(solve, inputs, *args, base=False, columns=None, by_column=False, **settings_):
    """The whole way: the Gram matrices of float32 inputs, the coefficients, the combination."""
    if by_column:
        gram = ColumnGram(["F32"] * len(inputs), inputs[0].size, columns, anchored=not base)
        grams = measured(gram, inputs, inputs[0].size, 2048)
    else:
        grams = matrix(inputs, columns, anchored=not base)
    coefficients = solve(Span(grams, not base), *args, **settings_)
    return combine(inputs, coefficients, columns, anchored=not base, by_column=by_column)


def by_mergekit(merge, inputs, method, base=None, **parameters):
    wide = [torch.from_numpy(np.asarray(array)).double() for array in inputs]
    return merge(wide, method, parameters=parameters, base_index=base).numpy()


def agree(ours, theirs, tolerance=1e-6):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * math.sqrt(np.mean(theirs**2))


def span(*vectors, anchored=False):
    """The span of a few short vectors (with `anchored`: of models)."""
    rows = np.array(vectors, np.float64)
    if anchored:
        rows[1:] -= rows[0]
    return Span((rows @ rows.T)[None], anchored)


def point(coefficients, *vectors, anchored=False):
    """Where coefficients lead, in float64."""
    rows = np.array(vectors, np.float64)
    if anchored:
        rows[1:] -= rows[0]
    return (rows[0] if anchored else 0) + coefficients[0] @ rows


# --- by hand ----------------------------------------------------------------------------------------------------------

ALONG, ACROSS = (1.0, 0.0), (0.0, 1.0)


def test_half_way_along_a_right_angle():
    half = math.sqrt(0.5)
    for solve in (slerp, nuslerp):
        for anchored in (True, False):
            found = solve(span(ALONG, ACROSS, anchored=anchored), 0.5)
            assert point(found, ALONG, ACROSS, anchored=anchored) == pytest.approx((half, half))
    assert multislerp(span(ALONG, ACROSS), [1, 1])[0] == pytest.approx((half, half))
    assert karcher(span(ALONG, ACROSS))[0] == pytest.approx((half, half))


def test_a_third_of_the_way_along_a_right_angle():
    found = slerp(span(ALONG, ACROSS), 1 / 3)
    assert found[0] == pytest.approx((math.cos(math.pi / 6), math.sin(math.pi / 6)))


def test_slerp_mixes_vectors_of_any_length_as_they_are():
    assert slerp(span((2.0, 0.0), (0.0, 5.0)), 0.5)[0] == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


def test_the_mean_of_three_axes():
    axes = np.eye(3)
    third = 1 / math.sqrt(3)
    assert karcher(span(*axes))[0] == pytest.approx([third] * 3)
    assert multislerp(span(*axes), [2, 2, 2])[0] == pytest.approx([third] * 3)


def test_lengths_are_averaged_by_karcher_and_multislerp():
    short, long = (2.0, 0.0), (0.0, 6.0)
    assert np.linalg.norm(point(karcher(span(short, long)), short, long)) == pytest.approx(4)
    assert np.linalg.norm(point(multislerp(span(short, long), [3, 1]), short, long)) == pytest.approx(3)


def test_model_stock_by_hand():
    # Differences at right angles: cos 0, so the base; the same difference: cos 1, so the mean.
    assert model_stock(span(ALONG, ACROSS)).tolist() == [[0, 0]]
    assert model_stock(span(ALONG, ALONG)).tolist() == [[0.5, 0.5]]
    # 60 degrees: t = 2·½ / (1 + ½) = 2/3, half of it for each.
    assert model_stock(span(ALONG, (0.5, math.sqrt(0.75))))[0] == pytest.approx([1 / 3, 1 / 3])


def test_nuslerps_t():
    assert share(1, 3) == 0.75
    assert share(0.5, -0.5) == 0.5
    assert share(2, 0) == 0


# --- beside mergekit --------------------------------------------------------------------------------------------------

pairs = pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0, 30.0])
"""Models that are all but equal (slerp is a line), alike, at 45 degrees, and at right angles."""


@pytest.mark.mergekit
@pairs
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0, -0.2, 1.4])
def test_slerp_is_mergekits(merge, spread, t):
    inputs = tensors(2, SHAPE, spread=spread)
    agree(mixed(slerp, inputs, t), by_mergekit(merge, inputs, "slerp", base=0, t=t))


@pytest.mark.mergekit
@pairs
@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("by", ["tensor", "row", "column"])
def test_nuslerp_is_mergekits(merge, spread, base, by):
    inputs = tensors(3 if base else 2, SHAPE, spread=spread)
    theirs = by_mergekit(
        merge,
        inputs,
        "nuslerp",
        base=0 if base else None,
        weight=[0.6, 0.4],
        nuslerp_flatten=by == "tensor",
        nuslerp_row_wise=by == "column",
    )
    columns = None if by == "tensor" else SHAPE[1]
    ours = mixed(nuslerp, inputs, share(0.6, 0.4), base=base, columns=columns, by_column=by == "column")
    agree(ours, theirs)


@pytest.mark.mergekit
@pairs
@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_multislerp_is_mergekits(merge, spread, base, normalize, count):
    inputs = tensors(count + base, SHAPE, spread=spread)
    weights = [0.2 + 0.3 * i for i in range(count)]
    theirs = by_mergekit(
        merge,
        inputs,
        "multislerp",
        base=0 if base else None,
        weight=weights,
        normalize_weights=normalize,
    )
    agree(mixed(multislerp, inputs, weights, normalize, base=base), theirs)


@pytest.mark.mergekit
@pairs
@pytest.mark.parametrize("count", [2, 3, 6])
def test_karcher_is_mergekits(merge, spread, count):
    inputs = tensors(count, SHAPE, spread=spread)
    # mergekit's angles come from the cosine: with a tolerance of 1e-5 it may stop a step sooner or later.
    for tol in (1e-5, 1e-9):
        agree(mixed(karcher, inputs, 30, tol), by_mergekit(merge, inputs, "karcher", max_iter=30, tol=tol))


@pytest.mark.mergekit
@pairs
@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_model_stock_is_mergekits(merge, spread, filter_wise, count):
    inputs = tensors(count + 1, SHAPE, spread=spread)
    theirs = by_mergekit(merge, inputs, "model_stock", base=0, filter_wise=filter_wise)
    agree(mixed(model_stock, inputs, base=True, columns=SHAPE[1] if filter_wise else None), theirs)


@pytest.mark.mergekit
@pytest.mark.parametrize("name", ["nuslerp", "karcher", "model_stock"])
def test_bfloat16_models_come_out_closer_to_the_truth_than_mergekits_own_run(merge, name):
    count = {"nuslerp": 2, "karcher": 2, "model_stock": 3}[name]
    narrow = tensors(count, SHAPE, spread=3e-4, dtype="BF16")
    wide = [values(array, "BF16") for array in narrow]
    parameters = {"weight": [0.6, 0.4]} if name == "nuslerp" else {}
    base = 0 if name == "model_stock" else None
    truth = by_mergekit(merge, wide, name, base=base, **parameters)
    halves = [torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) for array in narrow]
    theirs = merge(halves, name, parameters=parameters, base_index=base).float().numpy()
    solve, args = {"nuslerp": (nuslerp, [0.4]), "karcher": (karcher, []), "model_stock": (model_stock, [])}[name]
    ours = values(raw(mixed(solve, wide, *args, base=base == 0), "BF16"), "BF16")
    assert np.abs(ours - truth).mean() < np.abs(theirs - truth).mean()


# --- where mergekit is left on purpose, and the odd cases -------------------------------------------------------------


def opposite(angle):
    """Two unit vectors of 2000 numbers whose angle is π less `angle`, in float32."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal(2000)
    other = rng.standard_normal(2000)
    one /= np.linalg.norm(one)
    other -= (other @ one) * one
    other /= np.linalg.norm(other)
    return raw(one), raw(-math.cos(angle) * one + math.sin(angle) * other)


@pytest.mark.mergekit
def test_nearly_opposite_deltas_are_interpolated_on_the_sphere_where_mergekits_float32_draws_a_line(merge):
    one, other = opposite(1e-4)
    nothing = np.zeros_like(one)
    inputs = [nothing, one, other]
    ours = mixed(nuslerp, inputs, 0.5, base=True)
    single = [torch.from_numpy(array) for array in inputs]
    theirs = merge(single, "nuslerp", parameters={"weight": [1, 1]}, base_index=0).numpy()
    assert np.linalg.norm(theirs) < 1e-3
    assert np.linalg.norm(ours) == pytest.approx(1, rel=1e-3)
    agree(ours, by_mergekit(merge, inputs, "nuslerp", base=0, weight=[1, 1]), 2e-3)


def test_exactly_opposite_vectors_meet_on_a_line():
    for solve in (slerp, nuslerp):
        assert solve(span(ALONG, (-1.0, 0.0)), 0.25)[0] == pytest.approx([0.75, 0.25])
    assert multislerp(span(ALONG, (-1.0, 0.0)), [1, 1])[0] == pytest.approx([0.5, 0.5])


def test_balanced_vectors_have_their_weighted_sum_for_a_mean():
    # mergekit refuses more than two of them.
    around = [(math.cos(a), math.sin(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert multislerp(span(*around), [1, 1, 1])[0] == pytest.approx([1 / 3] * 3)
    assert np.isfinite(karcher(span(*around))).all()


def test_all_zero_deltas_leave_the_base():
    base, *_ = tensors(1)
    same = [base] * 4
    for solve, args, count in (
        (nuslerp, [0.3], 3), (multislerp, [[1, 2, 3]], 4), (karcher, [], 4), (model_stock, [], 4)
    ):  # fmt: skip
        assert np.array_equal(mixed(solve, same[:count], *args, base=True), base)


def test_one_zero_delta_is_at_right_angles_as_in_mergekit(merge):
    base, model = tensors(2)
    inputs = [base, base, model]
    theirs = by_mergekit(merge, inputs, "nuslerp", base=0, weight=[1, 1])
    agree(mixed(nuslerp, inputs, 0.5, base=True), theirs)


@pytest.mark.parametrize("solve", [karcher, lambda span: multislerp(span, [0.3] * span.size)])
def test_one_model_is_itself(solve):
    (model,) = tensors(1)
    assert np.array_equal(mixed(solve, [model]), model)


@pytest.mark.parametrize("count", [2, 5])
def test_equal_models_are_their_mean(count):
    inputs = tensors(1) * count
    for solve, args in ((karcher, []), (multislerp, [[1] * count])):
        agree(mixed(solve, inputs, *args), inputs[0].astype(np.float64))
    if count == 2:
        for solve in (slerp, nuslerp):
            assert np.array_equal(mixed(solve, inputs, 0.3), inputs[0])


@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("solve", [slerp, nuslerp])
def test_the_ends_of_an_arc_are_the_models(solve, t):
    inputs = tensors(2, spread=1.0)
    agree(mixed(solve, inputs, t), inputs[int(t)].astype(np.float64), 2e-7)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 5))
def test_means_do_not_depend_on_the_order_of_models(order, seed):
    models = tensors(4, (3, 50), seed, spread=1.0)
    weights = [0.1, 0.2, 0.3, 0.4]
    shuffled = [models[i] for i in order]
    agree(mixed(karcher, shuffled), mixed(karcher, models).astype(np.float64))
    again = mixed(multislerp, shuffled, [weights[i] for i in order])
    agree(again, mixed(multislerp, models, weights).astype(np.float64))
    base = models[0] * 0
    agree(mixed(model_stock, [base, *shuffled], base=True), mixed(model_stock, [base, *models], base=True) * 1.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, math.pi - 1e-3), st.floats(0, 1))
def test_a_point_of_an_arc_lies_on_it(angle, t):
    other = (math.cos(angle), math.sin(angle))
    found = point(nuslerp(span(ALONG, other), t), ALONG, other)
    assert found == pytest.approx((math.cos(t * angle), math.sin(t * angle)), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 9))
def test_karchers_mean_is_where_the_logarithms_balance(count, seed):
    rng = np.random.default_rng(seed)
    units = rng.standard_normal((count, 8)) + 2
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    mean = point(karcher(span(*units), 100, 1e-12), *units)
    cosines = units @ mean
    arcs = np.arccos(np.clip(cosines, -1, 1))
    logarithms = (units - cosines[:, None] * mean) * (arcs / np.maximum(np.sin(arcs), 1e-12))[:, None]
    assert np.linalg.norm(mean) == pytest.approx(1)
    assert np.abs(logarithms.sum(0)).max() < 1e-9


def test_rows_are_solved_each_for_itself():
    rng = np.random.default_rng(3)
    grams = [span(*rng.standard_normal((3, 5))).gram for _ in range(7)]
    together = model_stock(Span(np.concatenate(grams), False))
    assert all(np.array_equal(together[i : i + 1], model_stock(Span(gram, False))) for i, gram in enumerate(grams))


def test_a_tensor_without_rows():
    empty = Span(np.zeros((0, 2, 2)), True)
    assert nuslerp(empty, 0.3).shape == model_stock(empty).shape == (0, 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_no_number_spreads_and_raises_nothing(odd):
    broken = Span(np.array([[[1.0, odd], [odd, 1.0]]]), True)
    for found in (slerp(broken, 0.5), nuslerp(broken, 0.5), multislerp(broken, [1, 1]), karcher(broken)):
        assert np.isnan(found).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=4), st.booleans())
def test_the_lowest_cosine_is_that_of_the_vectors(rows, anchored):
    rows = np.array(rows)
    lengths = np.linalg.norm(rows, axis=1)
    if (lengths < 1e-2).any():
        return
    cosines = (rows @ rows.T) / np.outer(lengths, lengths)
    lowest = min(cosines[np.triu_indices(len(rows), 1)])
    assert span(*rows, anchored=anchored).lowest_cosine() == pytest.approx(lowest, abs=1e-9)


def test_without_vectors_to_compare_the_lowest_cosine_is_one():
    assert span(ALONG).lowest_cosine() == span(ALONG, (0, 0)).lowest_cosine() == 1
    assert span(ALONG, (-2, 0), ACROSS).lowest_cosine() == -1
