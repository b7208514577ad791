"""slerp, nuslerp, multislerp, karcher and model_stock: four numbers by hand, identities, and what is refused."""

import numpy as np
import pico
import pytest
from kernel_tools import leaf, raw, request, run, same_bits, values

from modelbuild.methods.base import Compute, Refuse, Take
from modelbuild.methods.registry import method

ACROSS = np.float32([3, 0, 0, 0])
UP = np.float32([0, 3, 0, 0])
HALF = np.float32(np.sqrt(0.5) * 3)


def merged(name, params, *inputs, dtype="F32", shape=None):
    """The values that an operation makes of float32 inputs."""
    return values(run(name, params, [("F32", raw(x)) for x in inputs], dtype, shape), dtype)


def step(name, shared=None, per_input=(), base=None, count=None):
    """What a method decides for parameters laid over its defaults."""
    found = method(name)
    defaults = {p.name: p.default for p in found.parameters if p.scope == "merge"}
    return found.step(request(defaults | (shared or {}), per_input, base, count))


def weigh(*weights):
    return [{"weight": weight} for weight in weights]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_slerp_halfway_along_a_right_angle_stays_on_the_circle():
    np.testing.assert_allclose(merged("slerp", (("t", 0.5),), ACROSS, UP), [HALF, HALF, 0, 0], rtol=1e-6)


def test_slerp_of_vectors_on_one_line_is_a_line():
    np.testing.assert_allclose(merged("slerp", (("t", 0.25),), ACROSS, -ACROSS), ACROSS / 2, rtol=1e-6)
    np.testing.assert_allclose(merged("slerp", (("t", 0.25),), ACROSS, 5 * ACROSS), 2 * ACROSS, rtol=1e-6)


def test_nuslerp_with_a_base_turns_the_differences():
    base = np.float32([1, 1, 1, 1])
    params = (("t", 0.5), ("by", "tensor"), ("base", True))
    found = merged("nuslerp", params, base, base + ACROSS, base + UP)
    np.testing.assert_allclose(found, [1 + HALF, 1 + HALF, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(("by", "turned"), [("row", [[HALF, HALF], [0, 0]]), ("column", [[3 / 2, 3 / 2], [0, 0]])])
def test_nuslerp_by_row_and_by_column(by, turned):
    """Each row is a right angle; in each column one model is zero, which counts as one, and the lines are halved."""
    params = (("t", 0.5), ("by", by), ("base", False))
    found = merged("nuslerp", params, ACROSS.reshape(2, 2), UP.reshape(2, 2))
    expected = np.array(turned) * (1 if by == "row" else np.sqrt(2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_multislerp_of_three_right_angles_points_between_them():
    third = np.float32([0, 0, 3, 0])
    params = (("weights", (1.0, 1.0, 1.0)), ("normalize", True), ("eps", 1e-8), ("base", False))
    np.testing.assert_allclose(merged("multislerp", params, ACROSS, UP, third), [3**0.5] * 3 + [0], rtol=1e-6)


def test_multislerp_of_one_model_that_is_not_normalised_is_its_multiple():
    params = (("weights", (0.5,)), ("normalize", False), ("eps", 1e-8), ("base", True))
    np.testing.assert_allclose(merged("multislerp", params, UP, UP + ACROSS), UP + ACROSS / 2, rtol=1e-6)


def test_karcher_of_a_right_angle_is_halfway_at_the_mean_length():
    params = (("max_iter", 10), ("tol", 1e-5))
    np.testing.assert_allclose(merged("karcher", params, ACROSS, UP / 3), [2**0.5, 2**0.5, 0, 0], rtol=1e-5)


def test_model_stock_of_right_angles_is_the_base_and_of_equal_models_is_the_model():
    base = np.float32([1, 1, 1, 1])
    params = (("filter_wise", False),)
    assert same_bits(merged("model_stock", params, base, base + ACROSS, base + UP), base)
    np.testing.assert_allclose(merged("model_stock", params, base, base + UP, base + UP), base + UP, rtol=1e-6)


def test_model_stock_by_row_has_a_share_for_each_row():
    base = np.zeros((2, 2), np.float32)
    first, second = np.float32([[1, 0], [1, 1]]), np.float32([[0, 1], [1, 1]])
    found = merged("model_stock", (("filter_wise", True),), base, first, second)
    np.testing.assert_allclose(found, [[0, 0], [1, 1]], rtol=1e-6)


# --- odd shapes and values --------------------------------------------------------------------------------------------

CASES = {
    "slerp": (("t", 0.3),),
    "nuslerp": (("t", 0.3), ("by", "row"), ("base", False)),
    "multislerp": (("weights", (0.3, 0.7)), ("normalize", True), ("eps", 1e-8), ("base", False)),
    "karcher": (("max_iter", 10), ("tol", 1e-5)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 1), (0, 4), (2, 0), (2, 2, 3)])
def test_any_shape_goes_through_and_equal_models_give_the_model(name, shape):
    model = np.full(shape, 2.5, np.float32)
    found = merged(name, CASES[name], model, model, shape=shape)
    assert found.size == model.size
    np.testing.assert_allclose(found.reshape(shape), model, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_zeros_stay_zeros(name):
    assert same_bits(merged(name, CASES[name], 0 * UP, 0 * UP), 0 * UP)


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_a_number_shows_in_the_result(name):
    broken = np.float32([np.nan, 1, 1, 1])
    assert np.isnan(merged(name, CASES[name], UP, broken)).any()


def test_nearly_opposite_inputs_are_told(world):
    world.model("a", seed=1, layers=1).model("b", seed=1, layers=1)
    for name in [key for key in pico.read_tensors(world.root / "b") if "q_proj" in key]:
        world.tensor("b", name, lambda bits: bits ^ 0x8000)
    world.modelfile("""
        [base.a]
        source = "a"
        [base.b]
        source = "b"
        [merge.m]
        method = "slerp"
        base = "a"
        t = 0.5
        models = [ { model = "b" } ]
    """)
    notes = " ".join(world.build()["m"].notes)
    assert "q_proj.weight` are nearly opposite" in notes
    assert "k_proj" not in notes


# --- what the plan decides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "index"), [(0.0, -1), (-0.0, -1), (1e-60, -1), (1.0, 0)])
def test_slerp_takes_an_end_of_the_arc_as_it_is(t, index):
    assert step("slerp", {"t": t}, [{}], leaf(key="base")) == Take(index)


def test_nuslerp_shares_by_weight_and_takes_what_is_alone():
    assert step("nuslerp", {}, weigh(1, 0)) == Take(0)
    assert step("nuslerp", {}, weigh(0, 2)) == Take(1)
    assert dict(step("nuslerp", {}, weigh(1, 3)).params) == {"t": 0.75, "by": "tensor", "base": False}
    assert dict(step("nuslerp", {}, weigh(1, -1)).params)["t"] == 0.5


@pytest.mark.parametrize(
    ("flatten", "row_wise", "by"), [(True, True, "tensor"), (False, False, "row"), (False, True, "column")]
)
def test_nuslerps_axes(flatten, row_wise, by):
    found = step("nuslerp", {"flatten": flatten, "row_wise": row_wise}, weigh(1, 1), leaf(key="base"))
    assert dict(found.params)["by"] == by
    assert [node.key for node in found.inputs] == ["base", "input0", "input1"]


def test_multislerp_leaves_out_models_at_weight_0():
    assert step("multislerp", {}, weigh(0, 0.2)) == Take(1)
    assert isinstance(step("multislerp", {}, weigh(0, 0)), Refuse)
    assert isinstance(step("multislerp", {}, weigh(1, -1)), Refuse)
    found = step("multislerp", {"normalize_weights": False}, weigh(0.2, 0), leaf(key="base"))
    assert isinstance(found, Compute)
    assert [node.key for node in found.inputs] == ["base", "input0"]


def test_karcher_takes_a_lone_model():
    assert step("karcher", {}, [{}]) == Take(0)
    assert [node.key for node in step("karcher", {}, [{}, {}], leaf(key="base")).inputs] == ["input0", "input1"]


def test_model_stock_reads_the_base_and_all_models():
    found = step("model_stock", {}, [{}, {}], leaf(key="base"))
    assert [node.key for node in found.inputs] == ["base", "input0", "input1"]
