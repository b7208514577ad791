"""lora: terms in order, added to the base in float32, rounded once; PEFT is the oracle for bfloat16 linear layers."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import leaf, node_of, raw, run, same_bits, values

from modelbuild.methods.base import Compute, Take
from modelbuild.methods.lora import Add, Lora, LowRank, Replace, lora_step

RANKS = [7, 8, 16, 32, 64, 100, 128, 191, 192, 193, 200, 256, 300, 320, 383, 384, 385, 512]


def lowrank(scale, transpose_left=False, transpose_right=False):
    return ("lowrank", float(scale), transpose_left, transpose_right)


def terms(*fields):
    return (("terms", fields),)


def normal(shape, seed, dtype="F32"):
    return dtype, raw(np.random.default_rng(seed).standard_normal(shape), dtype)


def test_a_low_rank_term_by_hand():
    base = ("F32", raw([[1, 1], [1, 1]]))
    left, right = ("F32", raw([[1], [2]])), ("F32", raw([[3, 4]]))
    assert np.array_equal(run("lora", terms(lowrank(0.5)), [base, left, right]), [[2.5, 3], [4, 5]])


def test_factors_are_transposed_where_flagged():
    base, left, right = normal((6, 10), 0), normal((6, 3), 1), normal((3, 10), 2)
    expected = run("lora", terms(lowrank(0.7)), [base, left, right])
    turned = [base, ("F32", left[1].T.copy()), ("F32", right[1].T.copy())]
    assert np.array_equal(run("lora", terms(lowrank(0.7, True, True)), turned), expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_replacement_by_hand(dtype):
    base, other = (dtype, raw([0, 1, -2, 8], dtype)), (dtype, raw([4, 1, 2, 0], dtype))
    result = run("lora", terms(("replace", 0.25)), [base, other], dtype)
    assert np.array_equal(values(result, dtype), [1, 1, -1, 6])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_an_addition_by_hand(dtype):
    base, other = (dtype, raw([0, 1, -2, 8], dtype)), (dtype, raw([4, 0, 2, -16], dtype))
    result = run("lora", terms(("add", 0.5), ("add", 0.25)), [base, other, other], dtype)
    assert np.array_equal(values(result, dtype), [3, 1, -0.5, -4])


def test_several_terms_are_added_in_order_and_then_to_the_base():
    base, left, right, other = normal((5, 7), 0, "BF16"), normal((5, 2), 1), normal((2, 7), 2), normal((5, 7), 3, "F16")
    fields = terms(lowrank(0.25), ("replace", 0.5), lowrank(-1.0))
    ours = run("lora", fields, [base, left, right, other, left, right])
    w = values(base[1], "BF16")
    nothing = ("F32", np.zeros((5, 7), np.float32))
    quarter = run("lora", terms(lowrank(0.25)), [nothing, left, right])
    once = run("lora", terms(lowrank(-1.0)), [nothing, left, right])
    assert same_bits(ours, w + ((quarter + (values(other[1], "F16") - w) * np.float32(0.5)) + once))


def test_a_tensor_of_four_dimensions_is_a_matrix_of_its_rows():
    base, left, right = normal((4, 3, 2, 2), 0), normal((4, 2), 1), normal((2, 12), 2)
    flat = ("F32", base[1].reshape(4, 12))
    ours = run("lora", terms(lowrank(1)), [base, left, right])
    assert np.array_equal(ours.reshape(4, 12), run("lora", terms(lowrank(1)), [flat, left, right]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 2999), max_size=7), st.sampled_from(["BF16", "F16", "F32"]))
def test_any_cuts_give_the_same_bytes(cuts, dtype):
    base, left, right, other = (
        normal((30, 100), 0, dtype),
        normal((30, 194), 1),
        normal((194, 100), 2),
        normal((30, 100), 3, "BF16"),
    )
    fields, inputs = terms(lowrank(0.1), ("replace", 0.3)), [base, left, right, other]
    assert np.array_equal(run("lora", fields, inputs, dtype, cuts=cuts), run("lora", fields, inputs, dtype))


def by_peft(weight, rank, dtype, scaling=2.0):
    """PEFT's merged weight of one linear layer, with the factors it used."""
    import peft

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)

        def forward(self, x):
            return self.layer(x)

    model = Model()
    model.layer.weight.data.copy_(weight)
    config = peft.LoraConfig(r=rank, lora_alpha=scaling * rank, target_modules=["layer"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    layer = adapted.base_model.model.layer
    a = layer.lora_A["default"].weight.detach().float().clone().numpy()
    b = layer.lora_B["default"].weight.detach().float().clone().numpy()
    with torch.no_grad():
        return adapted.merge_and_unload().layer.weight.detach(), a, b


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the order is that of torch on x86-64")
@pytest.mark.parametrize("rank", RANKS)
def test_a_bfloat16_linear_layer_is_peft_merge_and_unload_to_the_bit(rank):
    torch.manual_seed(rank)
    weight = (torch.randn(192, 328) * 0.02).to(torch.bfloat16)
    merged, a, b = by_peft(weight, rank, torch.bfloat16)
    base = ("BF16", weight.view(torch.int16).numpy().view(np.uint16))
    ours = run("lora", terms(lowrank(2.0)), [base, ("F32", b), ("F32", a)], "BF16")
    assert np.array_equal(ours, merged.view(torch.int16).numpy().view(np.uint16))
    assert (ours != base[1]).mean() > 0.5


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the order is that of torch on x86-64")
@pytest.mark.parametrize("rows", [1, 8])
def test_a_layer_of_few_rows_is_peft_but_for_one_weight_in_a_thousand(rows):
    torch.manual_seed(rows)
    weight = (torch.randn(rows, 8192) * 0.02).to(torch.bfloat16)
    merged, a, b = by_peft(weight, 16, torch.bfloat16)
    base = ("BF16", weight.view(torch.int16).numpy().view(np.uint16))
    ours = values(run("lora", terms(lowrank(2.0)), [base, ("F32", b), ("F32", a)], "BF16"), "BF16")
    theirs = merged.float().numpy()
    assert (ours == theirs).mean() >= 0.999
    assert abs(ours - theirs).max() <= 2**-5 * np.sqrt((theirs**2).mean())


def test_an_embedding_is_rounded_once_where_peft_rounds_twice():
    import peft

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Embedding(300, 64, dtype=torch.bfloat16)

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(0)
    model = Model()
    weight = model.layer.weight.detach().view(torch.int16).numpy().view(np.uint16).copy()
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["layer"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    layer = adapted.base_model.model.layer
    a, b = (raw(p["default"].detach().numpy()) for p in (layer.lora_embedding_A, layer.lora_embedding_B))
    with torch.no_grad():
        theirs = adapted.merge_and_unload().layer.weight.detach().view(torch.int16).numpy().view(np.uint16)

    factors, fields = [("F32", a), ("F32", b)], terms(lowrank(2.0, True, True))
    ours = run("lora", fields, [("BF16", weight), *factors], "BF16")
    delta = run("lora", fields, [("F32", np.zeros((300, 64), np.float32)), *factors])
    once, rounded = values(weight, "BF16") + delta, values(raw(delta, "BF16"), "BF16")
    assert np.array_equal(ours, raw(once, "BF16"))
    assert np.array_equal(theirs, raw(values(weight, "BF16") + rounded, "BF16"))
    assert (ours != theirs).any()


def test_nothing_left_takes_the_base():
    base, factor = leaf(key="base"), leaf(key="factor")
    assert lora_step(base, []) == Take(-1)
    assert lora_step(base, [LowRank(factor, factor, 0.0), Replace(factor, 0.0)]) == Take(-1)


def test_a_lone_replacement_at_weight_1_is_taken():
    base, other = leaf(key="base"), leaf(key="other")
    assert lora_step(base, [Replace(other, 1.0)]) == Take(0)
    assert lora_step(base, [LowRank(other, other, 0.0), Replace(other, 1.0)]) == Take(1)
    assert isinstance(lora_step(base, [Replace(other, 0.5)]), Compute)
    assert isinstance(lora_step(base, [Replace(other, 1.0), Replace(other, 1.0)]), Compute)


def test_what_is_computed_names_the_terms_and_their_nodes_in_order():
    base, a, b, r = (leaf(key=key) for key in ("base", "a", "b", "r"))
    decision = lora_step(base, [Replace(r, 0.5), LowRank(a, b, 0.0), LowRank(a, b, 0.25, transpose_right=True)])
    assert isinstance(decision, Compute)
    assert decision.params == terms(("replace", 0.5), ("lowrank", 0.25, False, True))
    assert [node.key for node in decision.inputs] == ["base", "r", "a", "b"]


def test_an_addition_is_never_an_identity_unless_its_factor_is_0():
    base, x = leaf(key="base"), leaf(key="x")
    assert lora_step(base, [Add(x, 0.0)]) == Take(-1)
    decision = lora_step(base, [Add(x, 1.0)])
    assert isinstance(decision, Compute)
    assert decision.params == terms(("add", 1.0))


def test_factors_are_whole_and_counted_and_replacements_are_streamed():
    base, left, right = normal((8, 6), 0, "BF16"), normal((8, 2), 1, "BF16"), normal((2, 6), 2)
    node = node_of("lora", terms(("replace", 0.5), lowrank(1)), [base, base, left, right], "BF16")
    assert Lora().whole(node) == (2, 3)
    assert Lora().memory(node) >= left[1].nbytes + right[1].nbytes + 4 * (16 + 12)


def test_factors_that_do_not_fit_the_tensor_are_refused():
    base, left, right = normal((8, 6), 0), normal((8, 2), 1), normal((2, 5), 2)
    with pytest.raises(ValueError, match="for a tensor of shape"):
        run("lora", terms(lowrank(1)), [base, left, right])
