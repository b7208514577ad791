"""iso_c and tsv: by hand on small matrices, by law, beside their formulas in float64, and what the plan decides.

mergekit has neither. The reference here is written from the papers' formulas, with numpy's decompositions in float64.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import leaf, node_of, raw, run, same_bits, values

from modelbuild.errors import BuildFailed
from modelbuild.methods import _spectrum
from modelbuild.methods._spectral import is_matrix
from modelbuild.methods.base import Compute, Request, Take
from modelbuild.methods.operations import operation
from modelbuild.methods.registry import method

SHAPES = [(12, 12), (9, 40), (40, 9), (1, 7), (7, 1), (1, 1), (2, 3)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
both = pytest.mark.parametrize("name", ["iso_c", "tsv"])


def params(name, *weights, scale=1.0, spectral=True, rank=None):
    """The parameters of a node, as the plan makes them."""
    own = (("rank", rank),) if name == "tsv" and spectral else ()
    return (("spectral", spectral), ("weights", tuple(map(float, weights))), ("lambda", scale), *own)


def merged(name, inputs, *weights, dtype="F32", **more):
    """The values that a method makes of a base and models."""
    weights = weights or (1.0,) * (len(inputs) - 1)
    if name == "tsv" and more.get("spectral", True):
        more.setdefault("rank", max(1, min(np.shape(inputs[0])[-2:]) // len(weights)))
    arrays = [("F32", raw(array)) for array in inputs]
    return values(run(name, params(name, *weights, **more), arrays, dtype, np.shape(inputs[0])), dtype)


def models(shape, count=3, seed=0, spread=0.01):
    """A base and models that differ from it a little."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape).astype(np.float32)
    return [base, *(base + spread * rng.standard_normal(shape).astype(np.float32) for _ in range(count))]


# --- the formulas, in float64 -----------------------------------------------------------------------------------------


def deltas(inputs):
    base, *others = (np.asarray(array, np.float64) for array in inputs)
    return base, [other - base for other in others]


def nearest(matrix):
    """The nearest matrix with orthonormal columns or rows."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def by_iso_c(inputs, weights, scale=1.0):
    base, found = deltas(inputs)
    left, sigma, right = np.linalg.svd(sum(w * d for w, d in zip(weights, found, strict=True)), full_matrices=False)
    return base + scale * left @ np.diag(np.full(len(sigma), sigma.mean())) @ right


def by_tsv(inputs, weights, rank, scale=1.0):
    base, found = deltas(inputs)
    parts = [np.linalg.svd(delta, full_matrices=False) for delta in found]
    left = np.hstack([u[:, :rank] for u, _, _ in parts])
    sigma = np.hstack([w * s[:rank] for w, (_, s, _) in zip(weights, parts, strict=True)])
    right = np.vstack([v[:rank] for _, _, v in parts])
    return base + scale * nearest(left) @ np.diag(sigma) @ nearest(right)


def agree(ours, theirs, base, tolerance=2e-6):
    """What was added to the base is the same, to a few roundings of float32."""
    rounding = np.spacing(np.abs(theirs).max().astype(np.float32))
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs - base).max() + rounding


@shapes
@pytest.mark.parametrize("weights", [(1, 1, 1), (0.3, -1.2, 2)], ids=["plain", "weighed"])
def test_iso_c_is_its_formula(shape, weights):
    inputs = models(shape)
    ours = merged("iso_c", inputs, *weights, scale=1.5)
    agree(ours, by_iso_c(inputs, weights, 1.5), inputs[0])


@pytest.mark.parametrize("shape", [(12, 12), (9, 40), (40, 9), (6, 3)], ids=str)
@pytest.mark.parametrize("weights", [(1, 1, 1), (0.3, -1.2, 2)], ids=["plain", "weighed"])
@pytest.mark.parametrize("share", [0.0, 0.2, 1 / 3])
def test_tsv_is_its_formula(shape, weights, share):
    inputs = models(shape)
    rank = max(1, int(share * min(shape) + 1e-9))
    ours = merged("tsv", inputs, *weights, rank=rank, scale=0.8)
    agree(ours, by_tsv(inputs, weights, rank, 0.8), inputs[0])


@pytest.mark.parametrize("shape", [(8, 8), (5, 30), (30, 5)], ids=str)
@pytest.mark.parametrize("rank", [3, 5])
def test_tsv_may_keep_more_directions_than_there_are(shape, rank):
    """Then rows are orthonormal instead of columns."""
    inputs = models(shape)
    assert rank * 3 > min(shape)
    agree(merged("tsv", inputs, rank=rank), by_tsv(inputs, (1, 1, 1), rank), inputs[0])


@both
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_the_result_is_rounded_once(name, dtype):
    inputs = models((16, 24))
    whole = merged(name, inputs)
    assert same_bits(merged(name, inputs, dtype=dtype), values(raw(whole, dtype), dtype))


def test_strips_cover_matrices_of_any_length(monkeypatch):
    monkeypatch.setattr(_spectrum, "STRIP", 7)
    for shape in ((20, 30), (30, 20), (7, 21), (22, 22)):
        inputs = models(shape)
        agree(merged("iso_c", inputs), by_iso_c(inputs, (1, 1, 1)), inputs[0])
        agree(merged("tsv", inputs, rank=5), by_tsv(inputs, (1, 1, 1), 5), inputs[0])


# --- by hand ----------------------------------------------------------------------------------------------------------

ZERO = np.zeros((2, 2))


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_iso_c_of_diagonals():
    close(merged("iso_c", [ZERO, np.diag([3, 1])]), [[2, 0], [0, 2]])
    close(merged("iso_c", [ZERO, np.diag([3, -1])]), [[2, 0], [0, -2]])
    close(merged("iso_c", [ZERO, np.diag([3, 0]), np.diag([0, 5])]), [[4, 0], [0, 4]])
    close(merged("iso_c", [ZERO, [[0, 3], [1, 0]]], scale=0.5), [[0, 1], [1, 0]])


def test_a_direction_without_a_delta_gets_none_and_counts_in_the_mean():
    close(merged("iso_c", [ZERO, np.diag([4, 0])]), [[2, 0], [0, 0]])
    close(merged("iso_c", [ZERO, [[3, 4], [0, 0]]]), [[1.5, 2], [0, 0]])


def test_iso_c_of_a_vector_is_the_sum():
    close(merged("iso_c", [np.zeros((1, 2)), [[3, 4]], [[1, 0]]]), [[4, 4]])
    close(merged("iso_c", [np.zeros((1, 1)), [[-3]]]), [[-3]])


def test_tsv_of_two_models_that_have_nothing_in_common_is_both():
    one, other = np.diag([3, 0]), np.diag([0, 5])
    close(merged("tsv", [ZERO, one, other], rank=1), [[3, 0], [0, 5]])
    close(merged("tsv", [ZERO, one, other], 1, -2, rank=1), [[3, 0], [0, -10]])


def test_tsv_keeps_the_largest():
    close(merged("tsv", [np.zeros((3, 3)), np.diag([1, 3, 2])], rank=2), np.diag([0, 3, 2]))


def test_tsv_of_equal_models_is_one_of_them():
    """Their vectors u, u become u/√2, u/√2: both sides make ½, and 3 + 3 of that are 3."""
    delta = np.diag([3, 1])
    close(merged("tsv", [ZERO, delta, delta], rank=1), [[3, 0], [0, 0]])
    close(merged("tsv", [ZERO, delta, delta], rank=2), delta)


def test_tsv_turns_directions_that_overlap_away_from_each_other():
    """At 60 degrees, they go 15 degrees apart on each side, to a right angle."""

    def direction(angle):
        return np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])

    one, other = (np.outer(direction(angle), direction(angle)) for angle in (0, 60))
    apart = np.outer(direction(-15), direction(-15)) + np.outer(direction(75), direction(75))
    close(merged("tsv", [ZERO, one, other], rank=1), apart)


@both
def test_other_tensors_are_averaged(name):
    base, one, other = np.ones(4), np.array([3, 1, 1, 5]), np.array([1, 1, -1, 1])
    close(merged(name, [base, one, other], spectral=False), [2, 1, 0, 3])
    close(merged(name, [base, one, other], 1, 2, spectral=False, scale=3), [4, 1, -5, 7])


@both
def test_a_stack_is_merged_matrix_by_matrix(name):
    inputs = models((3, 6, 10))
    stacked = merged(name, inputs)
    for expert in range(3):
        assert same_bits(stacked[expert], merged(name, [array[expert] for array in inputs]))


# --- laws -------------------------------------------------------------------------------------------------------------


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


sizes = st.integers(2, 12)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(0, 99), st.sampled_from(["iso_c", "tsv"]))
def test_turning_all_models_turns_the_result(rows, columns, seed, name):
    """Around a base of zeros: what is added depends on no coordinates."""
    _, *inputs = models((rows, columns), 2, seed, 1.0)
    base = np.zeros((rows, columns), np.float32)
    left, right = rotation(rows, seed), rotation(columns, seed + 1)
    turned = merged(name, [base, *(left @ array @ right for array in inputs)])
    expected = left @ merged(name, [base, *inputs]).astype(np.float64) @ right
    # Where two singular values are near each other, which comes first may be decided by a rounding.
    limit = 1e-3 if name == "tsv" else 1e-4
    assert np.abs(turned - expected).max() <= limit * np.abs(expected).max()


@both
def test_the_order_of_models_says_nothing_but_by_rounding(name):
    base, *others = models((14, 20))
    weights = (0.5, 1.0, -2.0)
    one = merged(name, [base, *others], *weights)
    two = merged(name, [base, *others[::-1]], *weights[::-1])
    agree(one, two, base)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(0, 99))
def test_all_singular_values_of_what_iso_c_adds_are_their_mean(rows, columns, seed):
    inputs = models((rows, columns), 2, seed, 1.0)
    base, found = deltas(inputs)
    before = np.linalg.svd(sum(found), compute_uv=False)
    after = np.linalg.svd(merged("iso_c", inputs) - base, compute_uv=False)
    np.testing.assert_allclose(after, before.mean(), rtol=1e-4)


@both
def test_models_that_are_the_base_leave_it_as_it_is_to_the_bit(name):
    base = raw([[0.1, -3e-5, -0.0], [7, 1e-30, 2e-45]])
    assert merged(name, [base, base, base]).tobytes() == base.tobytes()


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)], ids=str)
def test_one_model_whose_directions_all_stay_is_that_model(shape):
    base, model = models(shape, 1)
    agree(merged("tsv", [base, model], rank=8), model, base)


@both
def test_rows_that_no_model_changed_stay(name):
    base, *others = models((20, 8))
    for other in others:
        other[5:] = base[5:]
    found = merged(name, [base, *others])
    assert np.abs(found[5:] - base[5:]).max() < 1e-8
    assert np.abs(found[:5] - base[:5]).min() > 0


@both
@pytest.mark.parametrize("shape", [(9, 40), (3, 6, 10)], ids=str)
def test_any_cuts_give_the_same_bytes(name, shape):
    inputs = [("BF16", raw(array, "BF16")) for array in models(shape)]
    given_ = params(name, 1, 0.5, -0.4, rank=2)
    whole = run(name, given_, inputs, "BF16", shape)
    for cuts in ((1,), (7, 100), range(0, 180, 11)):
        assert np.array_equal(run(name, given_, inputs, "BF16", shape, cuts=cuts), whole)


# --- accuracy ---------------------------------------------------------------------------------------------------------


def falling(rows, columns, ratio):
    """A matrix, of float32 numbers, whose singular values fall from 1 to 1/ratio."""
    rng = np.random.default_rng(0)
    size = min(rows, columns)
    left = np.linalg.qr(rng.standard_normal((rows, size)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, size)))[0]
    return (left * np.logspace(0, -np.log10(ratio), size) @ right.T).astype(np.float32)


@pytest.mark.parametrize(("ratio", "limit"), [(1e1, 1e-13), (1e2, 1e-12), (1e3, 1e-10), (1e4, 1e-8), (1e6, 1e-4)])
@pytest.mark.parametrize("shape", [(100, 100), (80, 300), (300, 80)], ids=str)
def test_decompositions_are_nearer_to_the_truth_than_those_in_float32(ratio, limit, shape):
    matrix = falling(*shape, ratio)
    truth = nearest(matrix.astype(np.float64))
    left, _, right = torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)
    ours = torch.from_numpy(matrix.astype(np.float64))
    _spectrum.orthonormalize(ours)
    error = np.linalg.norm(ours.numpy() - truth) / np.linalg.norm(truth)
    theirs = np.linalg.norm((left @ right).numpy() - truth) / np.linalg.norm(truth)
    assert error <= limit
    assert error < theirs / 10


def test_leading_values_and_vectors_are_those_of_a_decomposition():
    for shape in ((20, 50), (50, 20)):
        matrix = falling(*shape, 1e3)
        left, sigma, right = (part.numpy() for part in _spectrum.leading(torch.from_numpy(matrix), 6))
        first, wanted, second = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        np.testing.assert_allclose(sigma[::-1], wanted[:6], rtol=1e-9)
        expected = first[:, :6] * wanted[:6] @ second[:6]
        np.testing.assert_allclose(left * sigma @ right.T, expected, atol=1e-12)


def test_values_that_float32_cannot_tell_from_rounding_count_as_zero():
    for value, rank in ((2.0**-19, 2), (2.0**-21, 1), (0.0, 1)):
        assert len(_spectrum.spectrum(torch.diag(torch.tensor([1.0, value])).double()).values) == rank
    assert len(_spectrum.spectrum(torch.zeros(3, 2, dtype=torch.float64)).values) == 0


@both
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_deltas_does_not_matter(name, size):
    _, *others = models((6, 9), 2, spread=1.0)
    zero = np.zeros((6, 9))
    one = merged(name, [zero, *others])
    scaled = merged(name, [zero, *(np.float32(size) * other for other in others)])
    np.testing.assert_allclose(scaled / size, one, rtol=1e-3, atol=1e-5)


def test_what_torch_cannot_decompose_is_an_error_of_ours(monkeypatch):
    def failing(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pytest.raises(BuildFailed, match="a matrix could not be decomposed") as caught:
        _spectrum.flatten(torch.ones(2, 3), 1.0)
    assert "a delta of [2, 3] has no singular values that torch finds" in caught.value.render()


# --- what is not a number ---------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.filterwarnings("error")
def test_a_matrix_with_what_is_no_number_becomes_nan_and_its_neighbour_does_not(name, odd, place):
    inputs = models((2, 4, 5), 2)
    sound = merged(name, inputs)
    inputs[place][0, 1, 2] = odd
    found = merged(name, inputs)
    assert np.isnan(found[0]).all()
    assert same_bits(found[1], sound[1])


@both
def test_a_weight_that_goes_beyond_float32_makes_nan_of_the_matrix(name):
    found = merged(name, models((3, 4), 1), 1e38, scale=1e38)
    assert not np.isfinite(found).any()


# --- what the plan decides --------------------------------------------------------------------------------------------


def decide(name, shape=(8, 6), weights=(1, 1), tensor="model.layers.0.mlp.up_proj.weight", **shared):
    found = method(name)
    defaults = {p.name: p.default for p in found.parameters if p.scope == "merge"} | {
        {"scale": "lambda"}.get(key, key): value for key, value in shared.items()
    }
    inputs = tuple(leaf(shape=shape, key=f"m{i}") for i in range(len(weights)))
    per_input = [{"weight": weight} for weight in weights]
    return found.step(Request(leaf(shape=shape, key="base"), inputs, defaults, per_input, tensor))


def bound(step):
    assert isinstance(step, Compute)
    assert step.bound == dict(step.params)["spectral"]
    return step.bound


@both
def test_a_model_at_weight_0_is_left_out(name):
    step = decide(name, weights=(1, 0, 2))
    assert [node.key for node in step.inputs] == ["base", "m0", "m2"]
    assert dict(step.params)["weights"] == (1, 2)
    assert decide(name, weights=(1, 0, 2)).params == decide(name, weights=(1, 2)).params
    assert decide(name, weights=(1e-60, 2), shape=(4,)).params == decide(name, weights=(2,), shape=(4,)).params


@both
def test_with_no_model_left_or_at_lambda_0_the_base_is_taken(name):
    assert decide(name, weights=(0, 0)) == decide(name, scale=0.0) == decide(name, scale=1e-60) == Take(-1)
    assert decide(name, weights=(0, 0), shape=(4,)) == Take(-1)


def test_matrices_alone_are_bound_to_a_library():
    assert is_matrix("a.weight", (4, 5))
    assert not any(is_matrix("a.weight", shape) for shape in ((), (4,), (1,), (4, 5, 6), (4, 5, 2, 2), (0, 4), (4, 0)))
    for name in ("iso_c", "tsv"):
        assert bound(decide(name))
        assert not bound(decide(name, shape=(4,)))
        assert not bound(decide(name, shape=(0, 4)))


def test_all_experts_of_a_layer_in_one_tensor_are_a_stack():
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    assert is_matrix(fused, (4, 5, 6))
    assert not is_matrix(f"{fused}_bias", (4, 5))
    assert is_matrix("model.layers.0.block_sparse_moe.experts.3.w1.weight", (4, 5))
    assert is_matrix("model.layers.0.mlp.router.weight", (4, 5))


@both
def test_what_is_a_matrix_can_be_said_otherwise(name):
    assert not bound(decide(name, spectral=False))
    assert bound(decide(name, shape=(4, 5, 6), spectral=True))
    assert not bound(decide(name, shape=(4, 5, 2, 2), spectral=True))
    assert not bound(decide(name, shape=(4,), spectral=True))


def test_tsv_keeps_the_published_share():
    def rank(*weights, **more):
        return dict(decide("tsv", weights=weights, **more).params)["rank"]

    assert rank(1, 1) == 3
    assert rank(1, 1, 0) == 3
    assert rank(1, 1, 1, 1) == 1
    assert rank(*[1] * 9) == 1
    assert rank(*[1] * 49, shape=(49, 49)) == 1
    assert rank(1, 1, density=0.99) == 5
    assert rank(1, density=1e-9) == 1
    assert rank(1, 1, density=1.0) == 6


def test_tsv_with_density_0_takes_the_base_of_matrices_and_averages_the_others():
    assert decide("tsv", density=0.0) == Take(-1)
    assert not bound(decide("tsv", shape=(6,), density=0.0))


def test_one_model_is_not_decomposed_by_tsv():
    assert decide("tsv", weights=(0, 1)) == decide("tsv", weights=(0, 1), density=1.0) == Take(1)
    assert not bound(decide("tsv", weights=(0.5,)))
    assert not bound(decide("tsv", weights=(1,), scale=2.0))
    assert bound(decide("tsv", weights=(1,), density=0.5))


def test_one_model_that_is_averaged_is_taken():
    assert decide("iso_c", weights=(0, 1), shape=(4,)) == decide("iso_c", weights=(0, 1), spectral=False) == Take(1)
    assert bound(decide("iso_c", weights=(1,)))


@both
def test_memory_is_known_from_the_shape(name):
    """4 bytes for each element, five matrices of the smaller side in float64, strips, and tsv's vectors."""
    arrays = [("F32", raw(array)) for array in models((2048, 64), 2)]
    node = node_of(name, params(name, 1, 1, rank=32), arrays, "F32")
    own = 4 * 2048 * 64 + 8 * 64 * (5 * 64 + 3 * 1024)
    vectors = 8 * 64 * (2048 + 64) + 8 * 64 * (5 * 64 + 3 * 1024)
    assert operation(name).memory(node) == own + (vectors if name == "tsv" else 0)
    plain = node_of(name, params(name, 1, 1, spectral=False), arrays, "F32")
    assert operation(name).memory(plain) == 0


def test_torch_gets_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with _spectrum.one_thread():
            assert torch.get_num_threads() == 1
            with _spectrum.one_thread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
