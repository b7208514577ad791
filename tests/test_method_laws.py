"""What holds for every method whatever the numbers: order, equality, nothing, opposites, odd shapes and odd values."""

import numpy as np
import pico
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import leaf
from merging import MergeWorld
from method_tools import Refused, applied
from recipes import RECIPES

from modelbuild.methods.operations import operation
from modelbuild.methods.registry import methods
from modelbuild.plan.node import operation_node

SHAPE = (5, 24)
SHARES = (0.5, 2.0, 1.0)
VOTE = {"weight": SHARES, "density": (0.5, 0.75, 1.0)}
RANDOM = VOTE | {"rescale": False}
DELLA = VOTE | {"density": (0.5, 0.7, 0.6), "rescale": False}

SUMS = [
    ("linear", {"weight": SHARES}),
    ("linear", {"weight": SHARES, "normalize": False}),
    ("task_arithmetic", {"weight": SHARES, "lambda": 0.5}),
    ("task_arithmetic", {"weight": SHARES, "normalize": True}),
    ("ram", {"epsilon": 0.5}),
    ("ramplus_tl", {"epsilon": 0.5}),
    ("sce", {}),
    ("sce", {"select_topk": 0.5}),
]
"""Methods that add up models: in another order the same, but for the last places of sums."""

VOTES = [
    ("ties", VOTE),
    ("ties", VOTE | {"normalize": False, "lambda": 0.5}),
    ("ties", VOTE | {"consensus": "count"}),
    ("breadcrumbs", VOTE | {"gamma": (0.1, 0.2, 0.0)}),
    ("breadcrumbs_ties", VOTE | {"gamma": (0.1, 0.2, 0.0), "normalize": True}),
    ("dare_linear", RANDOM),
    ("dare_linear", VOTE | {"density": 0.5, "rescale_by": "density", "normalize": True}),
    ("dare_ties", RANDOM | {"consensus": "count"}),
    ("della_linear", DELLA),
    ("della", DELLA),
    ("della", DELLA | {"consensus": "count"}),
]
"""Methods that choose and elect: of whole numbers, whose sums are exact, the same bits in any order."""

MEANS = [
    ("multislerp", {"weight": SHARES}),
    ("karcher", {}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
]
PAIRS = [
    ("lerp", {"t": 0.3}),
    ("slerp", {"t": 0.3}),
    ("nuslerp", {"weight": (0.7, 0.3)}),
    ("nuslerp", {"weight": (0.7, 0.3), "flatten": False}),
    ("nuslerp", {"weight": (0.7, 0.3), "flatten": False, "row_wise": True}),
    ("nearswap", {"t": 0.3}),
    ("arcee_fusion", {}),
    ("passthrough", {}),
]
SPECTRA = [
    ("iso_c", {"weight": SHARES}),
    ("tsv", {"weight": SHARES, "density": 0.5}),
]
ALL = [*SUMS, *VOTES, *MEANS, *PAIRS, *SPECTRA]
laws = settings(max_examples=10, deadline=None)


def named(entries):
    return [f"{name}-{i}" for i, (name, _) in enumerate(entries)]


def each(entries):
    return pytest.mark.parametrize(("name", "says"), entries, ids=named(entries))


def count_of(name):
    """As many models as a method takes, at most three."""
    return min(3, methods()[name].inputs[1] or 3)


def numbers(count, seed=0, shape=SHAPE):
    """Arrays as those of unrelated models."""
    return list(np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32))


def whole(count, seed=0):
    """A base and models that differ from it by small whole numbers, many of them equal."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-4, 5, SHAPE).astype(np.float32)
    return base, [base + rng.integers(-6, 7, SHAPE).astype(np.float32) for _ in range(count)]


def reordered(says, order):
    return {key: tuple(value[i] for i in order) if isinstance(value, tuple) else value for key, value in says.items()}


def near(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * np.sqrt(np.mean(np.square(expected, dtype=np.float64)))


def test_every_method_is_held_to_these_laws():
    built = {name for name, found in methods().items() if found.takes == "models" and not found.mixture}
    assert {name for name, _ in ALL} == built


# --- the order of models ----------------------------------------------------------------------------------------------


@each(VOTES)
@laws
@given(st.permutations(range(3)), st.integers(0, 99))
def test_masks_and_votes_do_not_depend_on_the_order_of_models(name, says, order, seed):
    base, models = whole(3, seed)
    expected = applied(name, models, base, says, seed=seed)
    names = [f"m{i}" for i in order]
    found = applied(name, [models[i] for i in order], base, reordered(says, order), names=names, seed=seed)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_masks_belong_to_names_and_not_to_places(name):
    """The negative control: models that change places and leave their names are masked otherwise."""
    base, models = whole(3)
    swapped = reordered(RANDOM | {"density": 0.5}, [1, 0, 2])
    expected = applied(name, models, base, RANDOM | {"density": 0.5})
    assert not np.array_equal(applied(name, [models[i] for i in (1, 0, 2)], base, swapped), expected)


@each(SUMS)
@laws
@given(st.permutations(range(3)), st.integers(0, 99))
def test_sums_do_not_depend_on_the_order_of_models_but_for_two_last_places(name, says, order, seed):
    base, *models = numbers(4, seed)
    expected = applied(name, models, base, says)
    found = applied(name, [models[i] for i in order], base, reordered(says, order))
    weights = says.get("weight", (1.0,) * 3)
    terms = [base, *(abs(w) * (np.abs(m) + np.abs(base)) for w, m in zip(weights, models, strict=True))]
    # Last places of the largest that a sum on the way can be.
    assert (np.abs(found - expected) <= 2 * np.spacing(np.abs(terms).sum(axis=0))).all()


@each(MEANS)
@laws
@given(st.permutations(range(3)), st.integers(0, 99))
def test_means_do_not_depend_on_the_order_of_models(name, says, order, seed):
    base, *models = numbers(4, seed)
    found = applied(name, [models[i] for i in order], base, reordered(says, order))
    near(found, applied(name, models, base, says), 1e-6)


@each([entry for entry in PAIRS if entry[0] == "nuslerp"])
def test_nuslerp_of_two_models_is_that_of_the_two_with_their_weights_the_other_way_round(name, says):
    base, *models = numbers(3)
    for origin in (None, base):
        near(applied(name, models[::-1], origin, reordered(says, (1, 0))), applied(name, models, origin, says), 1e-6)


# --- nothing, the same, and the opposite ------------------------------------------------------------------------------


@each(ALL)
def test_models_that_changed_nothing_leave_the_base(name, says):
    base = numbers(1)[0]
    models = [base] * count_of(name)
    found = applied(name, models, base, says)
    if name in ("linear", "multislerp", "karcher"):
        total = sum(SHARES) if says.get("normalize") is False else 1.0
        near(found, total * base, 1e-6)
    else:
        assert np.array_equal(found, base)


@each([("linear", {"weight": SHARES}), ("task_arithmetic", {"weight": SHARES, "normalize": True}), ("ram", {}),
       ("sce", {}), ("ties", {"weight": SHARES}), ("breadcrumbs", {"weight": SHARES, "gamma": 0.0, "normalize": True}),
       ("dare_ties", {"weight": SHARES, "normalize": True}), ("della", {"weight": SHARES}), *MEANS,
       ("nuslerp", {"weight": (0.7, 0.3)}), ("slerp", {"t": 0.3})])  # fmt: skip
def test_equal_models_are_themselves(name, says):
    base, model = numbers(2)
    if name == "slerp":
        base = model
    models = [model] * count_of(name)
    near(applied(name, models, base, says), model, 1e-6)


@each([entry for entry in ALL if methods()[entry[0]].inputs[0] == 1])
def test_one_model_is_enough_where_a_method_takes_one(name, says):
    base, model = numbers(2)
    found = applied(name, [model], base, reordered(says, [0]))
    assert np.isfinite(found).all()
    # One model alone does not vary, so that sce has nothing to choose from.
    assert np.array_equal(found, base) == ("select_topk" in says)


OPPOSITE = {
    "linear": lambda base, d: base,
    "task_arithmetic": lambda base, d: base,
    "breadcrumbs": lambda base, d: base,
    "dare_linear": lambda base, d: base,
    "della_linear": lambda base, d: base,
    "ram": lambda base, d: base,
    "ramplus_tl": lambda base, d: base,
    "model_stock": lambda base, d: base,
    "multislerp": lambda base, d: base,
    "nuslerp": lambda base, d: base,
    "ties": lambda base, d: base + np.abs(d),
    "breadcrumbs_ties": lambda base, d: base + np.abs(d),
    "dare_ties": lambda base, d: base + np.abs(d),
    "della": lambda base, d: base + np.abs(d),
    "sce": lambda base, d: base + np.abs(d),
}
"""What comes of base + d and base − d: they cancel out, or, where signs are elected, 0 counts as positive."""


@pytest.mark.parametrize("name", OPPOSITE)
def test_opposite_changes_cancel_out_or_the_positive_ones_win(name):
    base, models = whole(1)
    delta = models[0] - base
    says = {p.name: {"weight": 1.0, "gamma": 0.0}[p.name] for p in methods()[name].parameters
            if p.name in ("weight", "gamma")}  # fmt: skip
    assert np.array_equal(applied(name, [base + delta, base - delta], base, says), OPPOSITE[name](base, delta))


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.3, 3.7, 1000.0])
@pytest.mark.parametrize("size", [1, 4, 100, 5000])
@pytest.mark.parametrize("based", [True, False])
def test_opposite_vectors_of_any_length_meet_on_a_line(factor, size, based):
    """Whether the last digits of float64 sums say so or not: an arc between them would be of any size."""
    (model,) = numbers(1, size, (size,))
    other = np.float32(-factor) * model
    base = np.zeros_like(model) if based else None
    for name, says, t in (("nuslerp", {"weight": (3, 1)}, 0.25), ("multislerp", {"weight": 1}, 0.5)):
        line = (1 - t) * model.astype(np.float64) + t * other
        found = applied(name, [model, other], base, says)
        assert np.linalg.norm(found - line) <= 1e-6 * (1 + factor) * np.linalg.norm(model)
    for tol in (1e-5, 1e-9):
        mean = applied("karcher", [model, other], None, {"tol": tol})
        assert np.linalg.norm(mean) <= (1 + 1e-6) * (1 + factor) / 2 * np.linalg.norm(model)


# --- densities and weights --------------------------------------------------------------------------------------------

UNMASKED = [
    ("dare_linear", {}, "task_arithmetic"),
    ("della_linear", {}, "task_arithmetic"),
    ("breadcrumbs", {"gamma": 0.0}, "task_arithmetic"),
    ("dare_ties", {}, "ties"),
    ("della", {}, "ties"),
    ("breadcrumbs_ties", {"gamma": 0.0}, "ties"),
]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("name", "says", "plain"), UNMASKED, ids=[name for name, _, _ in UNMASKED])
def test_at_density_1_a_mask_is_none(name, says, plain, normalize):
    base, *models = numbers(4)
    shared = {"weight": SHARES, "lambda": 0.7, "normalize": normalize}
    expected = applied(plain, models, base, shared)
    assert np.array_equal(applied(name, models, base, shared | says | {"density": 1.0}), expected)
    assert not np.array_equal(applied(name, models, base, shared | says | {"density": 0.5}), expected)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della_linear",
                                  "della"])  # fmt: skip
def test_at_density_0_the_base_is_left_and_a_model_is_not_read(name):
    base, *models = numbers(4)
    assert np.array_equal(applied(name, models, base, {"weight": 1, "density": 0.0}), base)
    broken = [np.full(SHAPE, np.nan, np.float32), *models[1:]]
    says = {"weight": SHARES, "density": (0.0, 1.0, 1.0), "normalize": False}
    found = applied(name, broken, base, says)
    assert np.array_equal(found, applied(name, models[1:], base, reordered(says, (1, 2)), names=["m1", "m2"]))


@each([entry for entry in ALL if "weight" in entry[1]])
def test_a_model_at_weight_0_is_as_if_it_were_not_there(name, says):
    base, *models = numbers(4)
    count, lone = count_of(name), name == "nuslerp"
    broken = [np.full(SHAPE, np.nan, np.float32), *models[1:count]]
    says = says | {"weight": (0.0, *says["weight"][1:])}
    if lone:
        assert np.array_equal(applied(name, broken, base, says), models[1])
        return
    rest = reordered(says, range(1, count))
    expected = applied(name, models[1:count], base, rest, names=[f"m{i}" for i in range(1, count)])
    assert np.array_equal(applied(name, broken, base, says), expected)


REFUSED = ["linear", "task_arithmetic", "multislerp", "breadcrumbs", "dare_linear", "della_linear"]
"""What divides by the sum of all weights."""


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_sum_to_0_are_refused_where_they_divide(name):
    base, *models = numbers(3)
    switch = "normalize_weights" if name == "multislerp" else "normalize"
    with pytest.raises(Refused, match="sum to 0"):
        applied(name, models, base, {"weight": (1, -1), switch: True})
    assert np.isfinite(applied(name, models, base, {"weight": (1, -1), switch: False})).all()


@pytest.mark.parametrize("name", ["ties", "breadcrumbs_ties", "dare_ties", "della"])
def test_elected_weights_that_sum_to_0_divide_by_nothing(name):
    """+2 at weight 1 and −2 at weight −1 both vote for +2; their weights sum to 0, and the sum stays as it is."""
    base = np.zeros(4, np.float32)
    models = [np.full(4, 2, np.float32), np.full(4, -2, np.float32)]
    gamma = {"gamma": 0.0} if "crumbs" in name else {}
    assert np.array_equal(applied(name, models, base, {"weight": (1, -1), "normalize": True, **gamma}), [4] * 4)


# --- odd values -------------------------------------------------------------------------------------------------------

LOCAL = {"linear", "lerp", "task_arithmetic", "passthrough", "ties", "breadcrumbs", "breadcrumbs_ties", "ram",
         "nearswap", "arcee_fusion"}  # fmt: skip
"""What does not go on to other elements: nothing of the result is a sum over the tensor."""


@pytest.mark.filterwarnings("error")
@each(ALL)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_shows_where_it_is(name, says, odd):
    """What random masks drop does not, nor what is outvoted where each model has one vote, however large it is."""
    base, *models = numbers(1 + count_of(name))
    models[-1][2, 3] = odd
    found = applied(name, models, base, says)
    dropped = name.startswith(("dare", "della")) and found[2, 3] == base[2, 3]
    dropped |= says.get("consensus") == "count"
    assert dropped or not np.isfinite(found[2, 3])
    if name in LOCAL or says.get("rescale") is False:
        assert np.isfinite(np.delete(found.reshape(-1), 2 * SHAPE[1] + 3)).all()


def test_breadcrumbs_drop_what_is_no_number_as_the_largest_of_all():
    base, model = numbers(2)
    model[2, 3] = np.nan
    assert np.isfinite(applied("breadcrumbs", [model], base, {"weight": 1, "density": 0.5, "gamma": 0.01})).all()


def test_rows_that_are_no_numbers_are_taken_over_however_many_they_are():
    base, model = numbers(2)
    model[1:4, 0] = np.nan
    assert np.isnan(applied("arcee_fusion", [model], base)[1:4, 0]).all()


# --- odd shapes -------------------------------------------------------------------------------------------------------

SHAPES = [(), (0,), (1,), (0, 4), (3, 0), (4, 1), (1, 5), (2, 3, 2), (2, 0, 3), (1, 1, 1)]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Every recipe as a merge `r0` and on, of models whose tensors have every odd shape; and a model twice."""
    world = MergeWorld(tmp_path_factory.mktemp("odd"))
    rng = np.random.default_rng(0)
    for name in ("base", "m0", "m1", "m2"):
        tensors = {f"{i}.weight": ("F32", np.asarray(rng.standard_normal(shape), np.float32).reshape(shape))
                   for i, shape in enumerate(SHAPES)}  # fmt: skip
        (world.root / name).mkdir()
        pico.write_safetensors(world.root / name / "model.safetensors", tensors)
        (world.root / name / "config.json").write_text("{}")
        world.age(name)
    texts = [recipe.toml().replace("[merge.m]", f"[merge.r{i}]") for i, recipe in enumerate(RECIPES)]
    world.merge("".join(texts)).build()
    return world


@pytest.mark.parametrize("number", range(len(RECIPES)), ids=[recipe.id for recipe in RECIPES])
def test_any_shape_is_merged(odd, number):
    recipe = RECIPES[number]
    made, sources = odd.floats(f"r{number}"), {name: odd.floats(name) for name in ("base", *recipe.names)}
    says = {key: tuple(own[key] for own in recipe.per_model) for key in recipe.per_model[0]} | recipe.shared
    for i, shape in enumerate(SHAPES):
        tensor = f"{i}.weight"
        assert made[tensor].shape == shape
        models = [sources[name][tensor] for name in recipe.names]
        base = sources["base"][tensor] if recipe.based else None
        expected = applied(recipe.method, models, base, says, tensor=tensor)
        assert np.array_equal(made[tensor], expected)
        assert np.isfinite(made[tensor]).all()


@pytest.mark.parametrize(
    ("method", "models", "ranks"),
    [("ties", 3, 3), ("breadcrumbs", 3, 6), ("breadcrumbs_ties", 2, 4), ("sce", 3, 1), ("arcee_fusion", 1, 3)],
)
def test_memory_for_thresholds_is_an_eighth_of_a_large_tensor_for_each_and_two_more(method, models, ranks):
    """As magnitudes of 4 bytes; of a smaller tensor all, of one in between 2¹⁸."""
    for count, kept in ((1 << 24, 1 << 21), (1 << 20, 1 << 18), (1000, 1000), (0, 0)):
        inputs = tuple(leaf("BF16", (count,), f"input{i}") for i in range(models + 1))
        node = operation_node(method, 1, (), inputs, "BF16", (count,))
        assert operation(method).memory(node) == 4 * kept * (ranks + 2)
