"""Every method on four numbers, worked by hand, through a whole build: what each parameter and switch comes to.

Each entry has a base and models, and what comes of them for what a merge says. A parameter that is a tuple is one of
each model. Where a square root is needed it stands in the expected numbers; the rest is exact, unless it says so.
"""

import json
from dataclasses import dataclass

import numpy as np
import pico
import pytest
from merging import MergeWorld
from method_tools import merge_text

from modelbuild.methods.registry import methods

NAME = "x.weight"
ONES, ZEROS = [1, 1, 1, 1], [0, 0, 0, 0]
TWO, THREE, FIVE = 2**0.5, 3**0.5, 5**0.5


@dataclass(frozen=True)
class Worked:
    """A method on a few numbers: the base (None: without one), the models, and pairs of words and expected numbers."""

    method: str
    base: list | None
    models: list
    cases: tuple
    exact: bool = True


def put(world, name, tensor):
    """A model of one tensor."""
    (world.root / name).mkdir()
    pico.write_safetensors(world.root / name / "model.safetensors", {NAME: ("F32", np.asarray(tensor, np.float32))})
    (world.root / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    world.age(name)


WORKED = []


def about(method, base, models, *cases, exact=True):
    """Adds an entry."""
    WORKED.append(Worked(method, base, models, cases, exact))


# --- sums -------------------------------------------------------------------------------------------------------------

about(
    "linear", None, [[1, 2, 3, 4], [5, 6, 7, 8]],
    # (1·1 + 3·5) / 4 = 4, (1·2 + 3·6) / 4 = 5, ...
    ({"weight": (1, 3)}, [4, 5, 6, 7]),
    ({"weight": (1, 3), "normalize": False}, [16, 20, 24, 28]),
    # 2·x − y, divided by 2 − 1.
    ({"weight": (2, -1)}, [-3, -2, -1, 0]),
)  # fmt: skip

about(
    "lerp", [1, 2, 3, 4], [[5, 6, 7, 8]],
    # A quarter of the way of 4 each; and half as far again beyond the model.
    ({"t": 0.25}, [2, 3, 4, 5]),
    ({"t": 1.5}, [7, 8, 9, 10]),
)  # fmt: skip

about(
    "task_arithmetic", ONES, [[3, 1, 1, 5], [1, 5, 1, -3]],
    # The differences are [2, 0, 0, 4] and [0, 4, 0, -4]; half of the one, a quarter of the other: [1, 1, 0, 1].
    ({"weight": (0.5, 0.25)}, [2, 2, 1, 2]),
    ({"weight": (0.5, 0.25), "lambda": 2.0}, [3, 3, 1, 3]),
    # [2, 12, 0, -8] / 4 = [0.5, 3, 0, -2]
    ({"weight": (1, 3), "normalize": True}, [1.5, 4, 1, -1]),
)  # fmt: skip

about("passthrough", None, [[1, -2, 3, 0.5]], ({}, [1, -2, 3, 0.5]), ({"scale": -2.0}, [-2, 4, -6, -1]))

# --- on the sphere ----------------------------------------------------------------------------------------------------

about(
    "slerp", [4, 0, 0, 0], [[0, 2, 0, 0]],
    # A right angle: a third of the way is 30°, so sin 60°·[4, 0] + sin 30°·[0, 2].
    ({"t": 1 / 3}, [2 * THREE, 1, 0, 0]),
    # Backwards: sin 120° and sin −30°.
    ({"t": -1 / 3}, [2 * THREE, -1, 0, 0]), exact=False,
)  # fmt: skip
# On one line slerp is a line.
about("slerp", [4, 0, 0, 0], [[-4, 0, 0, 0]], ({"t": 0.25}, [2, 0, 0, 0]))

about(
    "nuslerp", None, [[4, 0, 0, 0], [0, 2, 0, 0]],
    # t = 1/(2 + 1): a third of the way along a right angle, as above; and weights that sum to 0 are halves.
    ({"weight": (2, 1)}, [2 * THREE, 1, 0, 0]),
    ({"weight": (1, -1)}, [2 * TWO, TWO, 0, 0]), exact=False,
)  # fmt: skip
about("nuslerp", ONES, [[5, 1, 1, 1], [1, 3, 1, 1]], ({"weight": (2, 1)}, [1 + 2 * THREE, 2, 1, 1]), exact=False)
# By row: a right angle in the first, the same in the second.
about(
    "nuslerp", None, [[[4, 0], [1, 1]], [[0, 4], [1, 1]]],
    ({"weight": 1, "flatten": False}, [[2 * TWO, 2 * TWO], [1, 1]]),
    # As one vector: cos θ = 2/18, so cos² θ/2 = 5/9, and half the sum over cos θ/2 is [4, 4, 2, 2]/2 · 3/√5.
    ({"weight": 1}, [[6 / FIVE, 6 / FIVE], [3 / FIVE, 3 / FIVE]]), exact=False,
)  # fmt: skip
# By column: the same numbers the other way round; then of the differences from a base.
about(
    "nuslerp", None, [[[4, 1], [0, 1]], [[0, 1], [4, 1]]],
    ({"weight": 1, "flatten": False, "row_wise": True}, [[2 * TWO, 1], [2 * TWO, 1]]), exact=False,
)  # fmt: skip
about(
    "nuslerp", [[1, 1], [1, 1]], [[[5, 2], [1, 2]], [[1, 2], [5, 2]]],
    ({"weight": 1, "flatten": False, "row_wise": True}, [[1 + 2 * TWO, 2], [1 + 2 * TWO, 2]]), exact=False,
)  # fmt: skip
about(
    "nuslerp", [[1, 1], [1, 1]], [[[5, 1], [2, 2]], [[1, 5], [2, 2]]],
    ({"weight": 1, "flatten": False}, [[1 + 2 * TWO, 1 + 2 * TWO], [2, 2]]), exact=False,
)  # fmt: skip

about(
    "multislerp", None, [[7, 0, 0, 0], [0, 14, 0, 0]],
    # The mean direction of weights 3 and 4 is [3/5, 4/5]; the mean length 3/7·7 + 4/7·14 = 11, or 3·7 + 4·14 = 77.
    ({"weight": (3, 4)}, [6.6, 8.8, 0, 0]),
    ({"weight": (3, 4), "normalize_weights": False}, [46.2, 61.6, 0, 0]),
    exact=False,
)  # fmt: skip
about("multislerp", ONES, [[8, 1, 1, 1], [1, 8, 1, 1]], ({"weight": (3, 4)}, [5.2, 6.6, 1, 1]), exact=False)
about(
    "multislerp", None, [[4, 0, 0, 0], [-2, 0, 0, 0]],
    # Opposite directions have no mean: then it is the weighted sum.
    ({"weight": 1}, [1, 0, 0, 0]),
    # The mean of 4/4.5 and −2/2.5 is 0.27, which counts as none beside an eps of 0.5; else it would be 2.5 long.
    ({"weight": (2, 2), "eps": 0.5}, [1, 0, 0, 0]), exact=False,
)  # fmt: skip

about(
    "karcher", None, [[2, 0, 0, 0], [0, 6, 0, 0]],
    # Halfway along a right angle, at the mean length 4; it starts there, so one step is enough.
    ({}, [2 * TWO, 2 * TWO, 0, 0]),
    ({"max_iter": 1}, [2 * TWO, 2 * TWO, 0, 0]),
    # What is no longer than tol has no direction, but its length counts: the other's, at length 4.
    ({"tol": 2.5}, [0, 4, 0, 0]), exact=False,
)  # fmt: skip

about(
    "model_stock", ONES, [[6, 1, 1, 1], [4, 5, 1, 1]],
    # The differences [5, 0] and [3, 4] have the cosine 3/5: t = 2·0.6/1.6 = 3/4 of the way to their mean [4, 2].
    ({}, [4, 2.5, 1, 1]), exact=False,
)  # fmt: skip
about(
    "model_stock", [[1, 1], [1, 1]], [[[6, 1], [2, 1]], [[4, 5], [1, 2]]],
    # Row by row: the first as above, in the second a right angle, so the base.
    ({"filter_wise": True}, [[4, 2.5], [1, 1]]),
    # As one: [5, 0, 1, 0] and [3, 4, 0, 1] have the cosine 15/26, t = 30/41 of the way to [4, 2, 1/2, 1/2].
    ({}, [[1 + 120 / 41, 1 + 60 / 41], [1 + 15 / 41, 1 + 15 / 41]]), exact=False,
)  # fmt: skip

# --- votes ------------------------------------------------------------------------------------------------------------

about(
    "ties", ONES, [[5, 0, 3, 4], [3, 7, 2, -4]],
    # The differences are [4, -1, 2, 3] and [2, 6, 1, -5], of which three are kept: [4, 0, 2, 3] and [2, 6, 0, -5].
    # Their sum [6, 6, 2, -2] elects + + + −, with which agree 4 and 2, 6, 2, −5: in the mean [3, 6, 2, -5].
    ({"weight": 1, "density": 0.75}, [4, 7, 3, -4]),
    ({"weight": 1, "density": 0.75, "normalize": False}, [7, 7, 3, -4]),
    ({"weight": 1, "density": 0.75, "lambda": 0.5}, [2.5, 4, 2, -1.5]),
    # [4, 0, 2, 3] + 3·[2, 6, 0, -5] elects + + + −: (4 + 6)/4, 18/3, 2/1, −15/3.
    ({"weight": (1, 3), "density": 0.75}, [3.5, 7, 3, -4]),
    # All of the first, of the second 6 alone, with which −1 does not agree.
    ({"weight": 1, "density": (1.0, 0.25)}, [5, 7, 3, 4]),
    # int(0.74·4) is 2, and at least one is kept.
    ({"weight": (1, 0), "density": 0.74}, [5, 1, 1, 4]),
    ({"weight": (1, 0), "density": 0.01}, [5, 1, 1, 1]),
)  # fmt: skip
# [4, 1, -1, 2] and [1, 0, -6, -1] both have 8 for a norm, of which one number each holds 4 and 6: times 2 and 4/3.
about(
    "ties", ONES, [[5, 2, 0, 3], [2, 1, -5, 0]],
    ({"weight": 1, "density": 0.25, "rescale": True}, [9, 1, -7, 1]),
)  # fmt: skip
# Of equal magnitudes those of the lowest index are kept.
about("ties", ZEROS, [[2, -2, 2, -2]], ({"weight": 1, "density": 0.5}, [2, -2, 0, 0]))
ELECTION = [[5, 1, 2, 1], [-1, -1, -2, 1], [-1, -3, 0, -1]]
# By their sum [3, -3, 0, 1] the signs are + − + +; by their counts 1 − 2, 1 − 2, 1 − 1, 2 − 1 they are − − + +.
# What agrees, in the mean: 5 or (−1 − 1)/2; (−1 − 3)/2; 2; (1 + 1)/2.
BY_SUM, BY_COUNT = [5, -2, 2, 1], [-1, -2, 2, 1]
for name in ("ties", "dare_ties", "della", "breadcrumbs_ties"):
    about(
        name, ZEROS, ELECTION,
        ({"weight": 1, "normalize": True} | ({"gamma": 0.0} if "crumbs" in name else {}), BY_SUM),
        ({"weight": 1, "normalize": True, "consensus": "count"} | ({"gamma": 0.0} if "crumbs" in name else {}),
         BY_COUNT),
    )  # fmt: skip

about(
    "breadcrumbs", ONES, [[5, 0, 3, 4]],
    # [4, -1, 2, 3] without the largest, of the others the two largest: [0, 0, 2, 3].
    ({"weight": 1, "density": 0.5, "gamma": 0.25}, [1, 1, 3, 4]),
    ({"weight": 2, "density": 0.5, "gamma": 0.25, "lambda": -0.5}, [1, 1, -1, -2]),
    ({"weight": 2, "density": 0.5, "gamma": 0.25, "normalize": True}, [1, 1, 3, 4]),
    # Only int(0.01·4) = 0 of the largest are dropped by default.
    ({"weight": 1, "density": 0.5}, [5, 1, 1, 4]),
    # Three are to be kept, so no more than one of the largest can be dropped.
    ({"weight": 1, "density": 0.75, "gamma": 0.5}, [1, 0, 3, 4]),
    # The norm 10 of all is 5 of what is left: times 2.
    ({"weight": 1, "density": 0.5, "gamma": 0.25, "rescale": True}, [1, 1, 5, 7]),
)  # fmt: skip
about(
    "breadcrumbs_ties", ONES, [[5, 0, 3, 4], [3, 7, 2, -4]],
    # [4, -1, 2, 3] and [2, 6, 1, -5] without their largest, two each: [0, 0, 2, 3] and [2, 0, 0, -5].
    ({"weight": 1, "density": 0.5, "gamma": 0.25}, [3, 1, 3, -4]),
    ({"weight": (3, 1), "density": 0.5, "gamma": 0.25, "lambda": 2.0}, [5, 1, 13, 19]),
    ({"weight": (3, 1), "density": 0.5, "gamma": 0.25, "normalize": True}, [3, 1, 3, 4]),
    # 10/5 of the first, 14/7 of the second.
    ({"weight": 1, "density": 0.5, "gamma": 0.25, "rescale": True}, [5, 1, 5, -9]),
)  # fmt: skip

DRAWN = {"dare": [[0.2710, 0.6676, 0.9174, 0.0599], [0.8542, 0.2442, 0.9407, 0.8198]],
         "della": [[0.6420, 0.2069, 0.4793, 0.1794], [0.6322, 0.1332, 0.8856, 0.6126]]}  # fmt: skip
"""The random numbers of `m0` and `m1` with seed 1: an element is kept where its number is below its probability."""

PLAIN = {"seed": 1, "weight": 1, "density": 0.5, "rescale": False}
about(
    "dare_linear", ONES, [[5, 3, 2, 7], [3, 5, 2, 1]],
    # [4, 2, 1, 6] and [2, 4, 1, 0], of which the numbers below 0.5 keep the first and last, and the second.
    (PLAIN, [5, 5, 1, 7]),
    (PLAIN | {"weight": (1, 2)}, [5, 9, 1, 7]),
    (PLAIN | {"weight": (1, 3), "normalize": True}, [2, 4, 1, 2.5]),
    (PLAIN | {"lambda": 0.5}, [3, 3, 1, 4]),
    # Above 0.6676 the second of the first model too, above 0.8198 the last of the second, which is 0.
    (PLAIN | {"density": (0.7, 0.83)}, [5, 7, 1, 7]),
    # Times 1/0.5.
    (PLAIN | {"rescale": True, "rescale_by": "density"}, [9, 9, 1, 13]),
    # Norms before and after: 13 and 10, 7 and 4.
    (PLAIN | {"rescale": True, "weight": (10, 4)}, [53, 29, 1, 79]),
)  # fmt: skip
about(
    "dare_ties", ONES, [[5, 3, 2, 7], [3, 5, 2, -1]],
    # The same masks: [4, 0, 0, 6] and [0, 4, 0, 0].
    (PLAIN, [5, 5, 1, 7]),
    (PLAIN | {"weight": (1, 3), "normalize": True}, [5, 5, 1, 7]),
    # With the last of the second, [0, 4, 0, -2]: the sum 6 − 2 is positive, so it does not agree; 6 − 8 is not.
    (PLAIN | {"density": (0.5, 0.83)}, [5, 5, 1, 7]),
    (PLAIN | {"density": (0.5, 0.83), "weight": (1, 4), "lambda": 0.5}, [3, 9, 1, -3]),
    (PLAIN | {"rescale": True, "rescale_by": "density"}, [9, 9, 1, 13]),
    # 13/10 and 9/4.
    (PLAIN | {"rescale": True, "weight": (10, 4)}, [53, 37, 1, 79]),
)  # fmt: skip
SPREAD = {"seed": 1, "weight": 1, "density": 0.5, "epsilon": 0.3, "rescale": False}
about(
    "della_linear", ONES, [[2, 5, 3, 4], [9, 3, 5, 1]],
    # [1, 4, 2, 3] rank 0, 3, 1, 2: chances .2, .8, .4, .6, and below are the numbers of the second and the last.
    # [8, 2, 4, 0] rank 3, 1, 2, 0: chances .8, .4, .6, .2, and below are those of the first and second.
    (SPREAD, [9, 7, 1, 4]),
    (SPREAD | {"weight": (1, 3), "normalize": True}, [7, 3.5, 1, 1.75]),
    (SPREAD | {"lambda": 2.0}, [17, 13, 1, 7]),
    # A third of the spread: .4, .6, .47, .53 and .6, .47, .53, .4, so that .6322 is no longer below.
    (SPREAD | {"epsilon": 0.1}, [1, 7, 1, 4]),
    # .65, .95, .75, .85 keep all of the first, as .85, .55, .75, .45 keep the first two of the second.
    (SPREAD | {"density": (0.8, 0.65), "epsilon": (0.15, 0.2)}, [10, 7, 3, 4]),
    (SPREAD | {"rescale": True, "rescale_by": "density"}, [17, 13, 1, 7]),
    # 10/7 and 14/10.
    (SPREAD | {"rescale": True, "weight": (7, 5)}, [57, 55, 1, 31]),
)  # fmt: skip
about(
    "della", ONES, [[2, 5, 3, 4], [9, -1, 5, 1]],
    # The same masks: [0, 4, 0, 3] and [8, -2, 0, 0]; 4 wins against −2.
    (SPREAD, [9, 5, 1, 4]),
    (SPREAD | {"normalize": False, "weight": 2}, [17, 9, 1, 7]),
    (SPREAD | {"normalize": False, "lambda": 0.5}, [5, 3, 1, 2.5]),
    (SPREAD | {"rescale": True, "rescale_by": "density"}, [17, 9, 1, 7]),
    # 10/7 and 14/10, and the mean divides by the weights again.
    (SPREAD | {"rescale": True, "weight": (7, 5)}, [12.2, 1 + 40 / 7, 1, 1 + 30 / 7]),
)  # fmt: skip
# Two rows have ranks of their own: [1, 4] and [3, 2] have the chances .2, .8 and .8, .2, and kept is the second.
about("della", [[1, 1], [1, 1]], [[[2, 5], [4, 3]]], (SPREAD, [[1, 5], [4, 3]]))

# --- the others -------------------------------------------------------------------------------------------------------

about(
    "sce", ZEROS, [[3, 1, 0, 2], [1, 1, 0, -2]],
    # Variances are [1, 0, 0, 4], energies 14/4 and 6/4: weights 0.7 and 0.3. Sums [4, 2, 0, 0] elect all +, so −2
    # does not count: (0.7·3 + 0.3·1)/1, 1, 0, 0.7·2/0.7.
    ({}, [2.4, 1, 0, 2]),
    # Of the two that vary one is kept, the last: energies are 4/4 each, and 2 is elected over −2.
    ({"select_topk": 0.5}, [0, 0, 0, 2]), exact=False,
)  # fmt: skip

about(
    "ram", ONES, [[3, 1, 5, 1.125], [1, 1, 3, 1]],
    # [2, 0, 4, 0.125] and [0, 0, 2, 0]: alone as it is, together in the mean.
    ({}, [3, 1, 4, 1.125]),
    ({"epsilon": 0.25}, [3, 1, 4, 1]),
    # 2 is not more than 2.
    ({"epsilon": 2.0}, [1, 1, 5, 1]),
)  # fmt: skip
about(
    "ramplus_tl", ONES, [[3, 1, 5, 1.125], [1, 1, 3, 1]],
    # One of the first model's numbers is shared, two are its own: 1/2, but at most 0.2; so 1 + 0.1·0.2.
    ({}, [1 + 2 * 1.02, 1, 4, 1 + 0.125 * 1.02]),
    ({"r": 0.5, "alpha": 1.0}, [3.5, 1, 4, 1.15625]),
    ({"r": 0.5, "alpha": 0.25}, [3.25, 1, 4, 1.140625]),
    # Now one is its own: 1/1.
    ({"r": 0.5, "alpha": 1.0, "epsilon": 0.25}, [4, 1, 4, 1]), exact=False,
)  # fmt: skip

about(
    "nearswap", ZEROS, [[0.5, 2, 4, -8]],
    # Nearer than t is the model's; the others go as far as t.
    ({"t": 1.0}, [0.5, 1, 1, -1]),
    ({"t": 4.0}, [0.5, 2, 4, -4]),
)  # fmt: skip

about(
    "arcee_fusion", ZEROS, [[1, -2, 3, 10]],
    # In one row importance is the size of the difference: first quartile 1, median 2, third 3, so from 5 on.
    ({}, [0, 0, 0, 10]),
)  # fmt: skip
# 1.5·(1 − 1) above the median 1: everything. And a row that is the base's has no importance, nor a threshold.
about("arcee_fusion", ZEROS, [[1, -1, 1, 10]], ({}, [1, -1, 1, 10]))
about("arcee_fusion", [[0, 0], [0, 0]], [[[0, 0], [0, 8]]], ({}, [[0, 0], [0, 8]]))

# --- singular values --------------------------------------------------------------------------------------------------

about(
    "iso_c", [[1, 1], [1, 1]], [[[4, 1], [1, 1]], [[1, 1], [1, 2]]],
    # The differences add up to diag(3, 1), whose singular values are 2 in the mean.
    ({}, [[3, 1], [1, 3]]),
    ({"lambda": 0.5}, [[2, 1], [1, 2]]),
    # diag(3, 5): 4 in the mean.
    ({"weight": (1, 5)}, [[5, 1], [1, 5]]),
    # diag(3, 1) / 2
    ({"spectral": False}, [[2.5, 1], [1, 1.5]]), exact=False,
)  # fmt: skip

about(
    "tsv", [[1, 1], [1, 1]], [[[5, 1], [1, 2]], [[2, 1], [1, 3]]],
    # Of diag(4, 1) the first direction leads, of diag(1, 2) the second; they are at right angles as they are.
    ({}, [[5, 1], [1, 3]]),
    ({"lambda": 0.5}, [[3, 1], [1, 2]]),
    ({"weight": (1, 3)}, [[5, 1], [1, 7]]),
    # diag(5, 3) / 2
    ({"spectral": False}, [[3.5, 1], [1, 2.5]]), exact=False,
)  # fmt: skip
about("tsv", [[1, 1], [1, 1]], [[[5, 1], [1, 2]]], ({"density": 0.5}, [[5, 1], [1, 1]]), exact=False)


@pytest.mark.parametrize("worked", WORKED, ids=[f"{worked.method}-{i}" for i, worked in enumerate(WORKED)])
def test_four_numbers_by_hand(worked, tmp_path):
    world = MergeWorld(tmp_path)
    sources = {f"m{i}": tensor for i, tensor in enumerate(worked.models)}
    for name, tensor in sources.items() if worked.base is None else [("base", worked.base), *sources.items()]:
        put(world, name, tensor)
    base = None if worked.base is None else "base"
    texts = [merge_text(worked.method, sources, says, base, f"c{i}") for i, (says, _) in enumerate(worked.cases)]
    world.merge("\n".join(texts)).build()
    tolerance = 0 if worked.exact else 1e-6
    for i, (says, expected) in enumerate(worked.cases):
        found = pico.widen(*world.tensors(f"c{i}")[NAME])
        assert found.shape == np.shape(expected)
        np.testing.assert_allclose(found, np.float32(expected), rtol=tolerance, atol=tolerance, err_msg=str(says))


LORA = {
    # W + 0.5·s·B·A with s = alpha/r = 4/2: B·A is [[1, 2], [3, 8]].
    'adapters = [{ adapter = "a", weight = 0.5 }]': [[2, 2], [3, 9]],
    # The weight is 1 if nothing else is said.
    'adapters = [{ adapter = "a" }]': [[3, 4], [6, 17]],
    # rsLoRA of rank 1 and alpha 3: s = 3/√1, and B·A is [[1, 0], [-1, 0]].
    'adapters = [{ adapter = "b", weight = -1 }]': [[-2, 0], [3, 1]],
    'weight = 0.5\nadapters = [{ adapter = "a" }, { adapter = "b", weight = 1 }]': [[5, 2], [0, 9]],
}


def test_adapters_by_hand(tmp_path):
    world = MergeWorld(tmp_path)
    put(world, "base", [[1, 0], [0, 1]])
    factors = {"a": ([[1, 0], [3, 2]], [[1, 2], [0, 1]], {"r": 2, "lora_alpha": 4}),
               "b": ([[1], [-1]], [[1, 0]], {"r": 1, "lora_alpha": 3, "use_rslora": True})}  # fmt: skip
    for name, (left, right, config) in factors.items():
        (world.root / name).mkdir()
        tensors = {f"base_model.model.x.lora_{part}.weight": ("F32", np.float32(values))
                   for part, values in (("A", right), ("B", left))}  # fmt: skip
        pico.write_safetensors(world.root / name / "adapter_model.safetensors", tensors)
        config |= {"peft_type": "LORA", "target_modules": ["x"], "base_model_name_or_path": "base"}
        (world.root / name / "adapter_config.json").write_text(json.dumps(config))
        world.age(name)
    texts = [f'[merge.c{i}]\nmethod = "lora"\nbase = "base"\n{says}\n' for i, says in enumerate(LORA)]
    world.merge("".join(texts)).build()
    for i, expected in enumerate(LORA.values()):
        assert pico.widen(*world.tensors(f"c{i}")[NAME]).tolist() == expected


def test_every_parameter_of_every_method_is_worked_by_hand():
    """As something else than what it is by default, where it has a default."""
    # A mixture has tensors of its own: test_moe.py works its numbers.
    built = {name: found for name, found in methods().items() if found.takes == "models" and not found.mixture}
    assert {worked.method for worked in WORKED} == set(built)
    declared = {(name, parameter.name): parameter for name, found in built.items() for parameter in found.parameters}
    said = [(worked.method, key, value) for worked in WORKED for says, _ in worked.cases for key, value in says.items()]
    other = {
        (name, key) for name, key, value in said if (name, key) in declared and value != declared[name, key].default
    }
    assert set(declared) - other == set()
