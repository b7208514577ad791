"""Random masks belong to a seed, a method, an output tensor's name and a model's name: nothing else moves them.

Models of ones at weights 1, 2, 4 … over a base of zeros: the bits of each number of the output are the models' masks.
"""

import json

import numpy as np
import pico
import pytest
from merging import MergeWorld

SIZE = (24, 40)
NAMES = ("x.weight", "y.weight")
SPREAD = {"della": "epsilon = 0.2\n", "della_linear": "epsilon = 0.2\n"}
METHODS = ["dare_linear", "dare_ties", "della", "della_linear"]


def put(world, name, value, names=NAMES, **tensors):
    """A model whose tensors are all one value, which differ in nothing but where `tensors` says so."""
    (world.root / name).mkdir(exist_ok=True)
    raw = {key: ("F32", tensors.get(key, np.full(SIZE, value, np.float32))) for key in names}
    pico.write_safetensors(world.root / name / "model.safetensors", raw)
    (world.root / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    world.age(name)


def entry(name, place, density=0.5):
    return f'{{ model = "{name}", weight = {2**place}, density = {density} }}'


def merged(method, *entries, more=""):
    """A merge of models at weights 1, 2, 4 …, neither rescaled nor divided."""
    return (
        f'[merge.m]\nmethod = "{method}"\nbase = "base"\nrescale = false\nnormalize = false\n{SPREAD.get(method, "")}'
        f"{more}models = [ {', '.join(entries)} ]\n"
    )


def masks(world, text, count=2, name="m"):
    """The masks of a build's models, by tensor."""
    world.merge(text).build()
    made = {tensor: values.astype(np.int64) for tensor, values in world.floats(name).items()}
    return {tensor: [(bits >> place & 1).astype(bool) for place in range(count)] for tensor, bits in made.items()}


@pytest.fixture
def world(tmp_path):
    world = MergeWorld(tmp_path)
    put(world, "base", 0)
    for name in ("a", "b", "c"):
        put(world, name, 1)
    return world


@pytest.fixture(params=METHODS)
def first(request, world):
    """A method, and the masks of models a and b in its merge."""
    text = merged(request.param, entry("a", 0), entry("b", 1))
    return request.param, masks(world, text)


def alike(one, other):
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def test_masks_keep_about_the_density_and_differ_by_model_tensor_and_seed(first, world):
    """The negative control of all that follows: what a mask depends on does change it."""
    method, before = first
    found = [mask for tensor in NAMES for mask in before[tensor]]
    assert all(0.4 < mask.mean() < 0.6 for mask in found)
    found += masks(world, merged(method, entry("c", 0), entry("b", 1)))["x.weight"][:1]
    found += masks(world, merged(method, entry("a", 0), entry("b", 1), more="seed = 1\n"))["x.weight"]
    for i, one in enumerate(found):
        assert all(0.4 < (one != other).mean() < 0.6 for other in found[:i])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_another_model_leaves_the_masks_of_those_that_were_there(first, world, place):
    method, before = first
    names = ["a", "b"]
    names.insert(place, "c")
    found = masks(world, merged(method, *[entry(name, i) for i, name in enumerate(names)]), 3)
    for tensor in NAMES:
        mine = [mask for name, mask in zip(names, found[tensor], strict=True) if name != "c"]
        assert alike(mine, before[tensor])


def test_another_density_leaves_the_other_models_mask_and_only_adds_to_its_own(first, world):
    method, before = first
    found = masks(world, merged(method, entry("a", 0), entry("b", 1, 0.7)))
    for tensor in NAMES:
        assert np.array_equal(found[tensor][0], before[tensor][0])
        assert (found[tensor][1] >= before[tensor][1]).all()
        assert found[tensor][1].sum() > before[tensor][1].sum()


def test_another_density_of_one_tensor_leaves_the_other_tensors_masks(first, world):
    method, before = first
    graded = '[{ match = "x.", value = 0.7 }, { value = 0.5 }]'
    found = masks(world, merged(method, entry("a", 0, graded), entry("b", 1)))
    assert alike(found["y.weight"], before["y.weight"])
    assert np.array_equal(found["x.weight"][1], before["x.weight"][1])
    assert not np.array_equal(found["x.weight"][0], before["x.weight"][0])


def test_a_tensor_that_is_renamed_added_or_left_out_leaves_the_others_masks(first, world):
    method, before = first
    text = merged(method, entry("a", 0), entry("b", 1))
    for names in (("x.weight", "z.weight"), ("x.weight",), ("a.weight", *NAMES, "z.weight")):
        for name, value in (("base", 0), ("a", 1), ("b", 1)):
            put(world, name, value, names)
        found = masks(world, text)
        assert sorted(found) == sorted(names)
        assert all(alike(found[name], before[name]) for name in names if name in before)
    assert not alike(found["a.weight"], before["x.weight"])


def test_the_order_of_models_the_merges_name_and_another_merge_move_no_mask(first, world):
    method, before = first
    text = merged(method, entry("a", 0), entry("b", 1))
    other = text.replace("[merge.m]", "[merge.other]").replace("models = [ ", "models = [ " + entry("c", 2) + ", ")
    found = masks(world, other + merged(method, entry("b", 1), entry("a", 0)))
    assert all(alike(found[tensor], before[tensor]) for tensor in NAMES)
    assert all(alike(masks(world, other, name="other")[tensor], before[tensor]) for tensor in NAMES)


def test_dtype_shards_and_scale_move_no_mask(first, world):
    method, before = first
    text = merged(method, entry("a", 0), entry("b", 1), more='dtype = "bfloat16"\nlambda = 1\n')
    found = masks(world, '[settings]\nshard_size = "1KB"\n' + text)
    assert len(list((world.out / "m").glob("*.safetensors"))) > 1
    assert all(alike(found[tensor], before[tensor]) for tensor in NAMES)


def test_values_move_no_mask_of_dare_and_those_of_other_tensors_none_of_della(first, world):
    method, before = first
    rng = np.random.default_rng(0)
    put(world, "a", 1, **{"x.weight": rng.integers(1, 3, SIZE).astype(np.float32)})
    world.merge(merged(method, entry("a", 0), entry("b", 1))).build()
    made = world.floats("m")
    assert alike([(made["y.weight"].astype(int) >> i & 1).astype(bool) for i in (0, 1)], before["y.weight"])
    # 0, 1 or 2 of the one, 0 or 2 of the other: it shows whether the first was kept where the second was not.
    alone = ~before["x.weight"][1]
    kept = (made["x.weight"] > 0)[alone]
    assert np.array_equal(kept, before["x.weight"][0][alone]) == method.startswith("dare")


@pytest.mark.parametrize("pair", [("dare_linear", "dare_ties"), ("della_linear", "della")])
def test_a_method_and_its_election_share_their_masks(world, pair):
    found = [masks(world, merged(method, entry("a", 0), entry("b", 1))) for method in pair]
    assert all(alike(found[0][tensor], found[1][tensor]) for tensor in NAMES)
