"""The votes beside mergekit 0.1.5, put together from kernels as the methods will put them.

In float32 the bits are the same wherever no norm of a whole tensor comes in: mergekit adds those in float32. Where
random masks do, mergekit is given our random numbers. Sizes are multiples of 32 and models few, since torch otherwise
adds in other orders.
"""

import numpy as np
import pytest
import torch
from kernel_tools import magnitudes, raw, same_bits, tensors, values
from vote_tools import norms, rescalings, thresholds, vote

from modelbuild.kernels.combine import table
from modelbuild.kernels.divergence import divergences
from modelbuild.kernels.mask import band, drawn, everything, marked
from modelbuild.kernels.nearswap import nearswap
from modelbuild.kernels.ram import Active, Ram, amplification
from modelbuild.kernels.random import uniform
from modelbuild.kernels.rank import Marks
from modelbuild.kernels.scores import importance, variance
from modelbuild.kernels.select import Threshold, crumbs, kept, quantile_rank
from modelbuild.kernels.vote import Rule, Voter
from modelbuild.methods.weights import divisor

pytestmark = pytest.mark.mergekit
SHAPE = (96, 160)
COUNT = 96 * 160
WEIGHTS = (0.3, 0.9, -0.2, 0.55)


@pytest.fixture(scope="module")
def merge():
    return pytest.importorskip("mergekit.merge_methods").merge_tensors


def theirs(merge, inputs, method, wide=False, **parameters):
    given = [torch.from_numpy(np.asarray(array)) for array in inputs]
    given = [tensor.double() for tensor in given] if wide else given
    with torch.no_grad():
        return merge(given, method, parameters=parameters, base_index=0).numpy()


def rule(consensus, normalize, scale, weights):
    if consensus:
        return Rule("sum", "agreeing" if normalize else "none", scale=scale)
    return Rule(divide="all" if normalize else "none", divisor=divisor(weights), scale=scale)


def close(found, expected, tolerance=1e-6):
    assert np.abs(found - expected).max() <= tolerance * np.sqrt(np.mean(expected.astype(np.float64) ** 2))


def delta_threshold(inputs, model, *ranks):
    return thresholds(inputs[model].reshape(-1), list(ranks), inputs[0].reshape(-1))


# --- chosen by magnitude ----------------------------------------------------------------------------------------------

settings = pytest.mark.parametrize(("normalize", "scale"), [(True, 1.0), (False, 0.7), (True, -1.4)])
counts = pytest.mark.parametrize("models", [1, 2, 4])


@settings
@counts
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.2, 0.9, 1.0])
def test_ties_is_mergekits_to_the_bit(merge, models, density, normalize, scale):
    inputs, weights = tensors(models + 1, SHAPE), WEIGHTS[:models]
    masks = [band(*delta_threshold(inputs, i + 1, kept(density, COUNT))) for i in range(models)]
    voters = [Voter(mask, weight) for mask, weight in zip(masks, weights, strict=True)]
    parameters = {"weight": list(weights), "density": density, "normalize": normalize, "lambda": scale}
    assert same_bits(
        vote(inputs, voters, rule(True, normalize, scale, weights)) + 0, theirs(merge, inputs, "ties", **parameters) + 0
    )


@settings
@counts
@pytest.mark.parametrize(("density", "gamma"), [(0.4, 0.1), (0.4, 0.0), (0.95, 0.2), (1.0, 0.1)])
@pytest.mark.parametrize("consensus", [True, False])
def test_breadcrumbs_are_mergekits_to_the_bit(merge, models, density, gamma, consensus, normalize, scale):
    inputs, weights = tensors(models + 1, SHAPE), WEIGHTS[:models]
    masks = []
    for i in range(models):
        low, high = delta_threshold(inputs, i + 1, *crumbs(density, gamma, COUNT))
        masks.append(band(low, high))
    voters = [Voter(mask, weight) for mask, weight in zip(masks, weights, strict=True)]
    parameters = {"density": density, "gamma": gamma, "normalize": normalize, "lambda": scale}
    name = "breadcrumbs_ties" if consensus else "breadcrumbs"
    expected = theirs(merge, inputs, name, weight=list(weights), **parameters)
    assert same_bits(vote(inputs, voters, rule(consensus, normalize, scale, weights)) + 0, expected + 0)


def test_ties_of_bfloat16_models_differ_from_mergekits_only_among_equal_magnitudes(merge):
    narrow = tensors(2, SHAPE, spread=3e-3, dtype="BF16")
    base, model = (values(array, "BF16") for array in narrow)
    delta = (model - base).reshape(-1)
    k = kept(0.4, COUNT)
    (found,) = thresholds(narrow[1].reshape(-1), [k], narrow[0].reshape(-1), "BF16")
    ours = vote([base, model], [Voter(band(found))], Rule("sum", "agreeing")).reshape(-1)
    expected = theirs(merge, [base, model], "ties", weight=[1.0], density=0.4).reshape(-1)
    different = ours != expected
    keys = magnitudes(delta)
    assert (keys[different] == found.magnitude).all()
    assert (keys == found.magnitude).sum() > 10
    changed = (ours != base.reshape(-1)) | (delta == 0)
    assert changed[keys > found.magnitude].all()
    assert (ours == base.reshape(-1))[keys < found.magnitude].all()
    equal = np.flatnonzero(keys == found.magnitude)
    assert np.array_equal(np.flatnonzero(changed & (keys == found.magnitude)), equal[equal < found.cut])
    assert (keys > found.magnitude).sum() + (equal < found.cut).sum() == k


def test_rescaled_ties_keep_their_first_norm(merge):
    inputs = tensors(3, SHAPE)
    masks = [band(*delta_threshold(inputs, i, kept(0.3, COUNT))) for i in (1, 2)]
    voters = [
        Voter(mask, weight, factor)
        for mask, weight, factor in zip(masks, (0.4, 0.8), rescalings(inputs, masks), strict=True)
    ]
    expected = theirs(merge, inputs, "ties", wide=True, weight=[0.4, 0.8], density=0.3, rescale=True)
    close(vote(inputs, voters, Rule("sum", "agreeing")), expected)


# --- chosen at random -------------------------------------------------------------------------------------------------


@pytest.fixture
def our_numbers(monkeypatch):
    """mergekit's next random masks are drawn with the numbers of these keys, one after the other."""
    keys = []

    def bernoulli(probabilities, **_):
        numbers = uniform(keys.pop(0), 0, probabilities.numel()).reshape(probabilities.shape)
        return torch.from_numpy(numbers < probabilities.to(torch.float32).numpy()).to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return keys


@settings
@counts
@pytest.mark.parametrize("consensus", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_with_our_random_numbers_is_mergekits(merge, our_numbers, models, consensus, rescale, normalize, scale):
    inputs, weights, keys = tensors(models + 1, SHAPE), WEIGHTS[:models], range(7, 7 + models)
    masks = [drawn(key, 0.35) for key in keys]
    factors = rescalings(inputs, masks) if rescale else [1.0] * models
    voters = [Voter(*each) for each in zip(masks, weights, factors, strict=True)]
    found = vote(inputs, voters, rule(consensus, normalize, scale, weights))
    our_numbers += keys
    name, parameters = "dare_ties" if consensus else "dare_linear", {"lambda": scale, "normalize": normalize}
    expected = theirs(
        merge, inputs, name, wide=rescale, weight=list(weights), density=0.35, rescale=rescale, **parameters
    )
    if rescale:
        close(found, expected)
    else:
        assert same_bits(found + 0, expected + 0)


@counts
@pytest.mark.parametrize("consensus", [True, False])
def test_della_with_our_random_numbers_is_mergekits_to_the_bit_before_rescaling(merge, our_numbers, models, consensus):
    inputs, weights, keys = tensors(models + 1, SHAPE), WEIGHTS[:models], range(7, 7 + models)
    voters = []
    for i, key in enumerate(keys):
        marks = Marks(COUNT, SHAPE[1], ("F32", "F32"), key, 0.4, 0.25)
        marks.draw(0, COUNT, inputs[0].reshape(-1), inputs[i + 1].reshape(-1))
        voters.append(Voter(marked(marks.words), weights[i]))
    our_numbers += keys
    name = "della" if consensus else "della_linear"
    expected = theirs(
        merge, inputs, name, weight=list(weights), density=0.4, epsilon=0.25, rescale=False, normalize=consensus
    )
    assert same_bits(vote(inputs, voters, rule(consensus, consensus, 1.0, weights)) + 0, expected + 0)


def test_dare_keeps_as_much_as_mergekit_does(merge):
    base, model = np.zeros(COUNT, np.float32), np.ones(COUNT, np.float32)
    torch.manual_seed(0)
    expected = theirs(merge, [base, model], "dare_linear", weight=[1.0], density=0.3, rescale=False)
    found = vote([base, model], [Voter(drawn(5, 0.3))], Rule())
    spread = 5 * np.sqrt(0.3 * 0.7 * COUNT)
    assert abs(found.sum() - 0.3 * COUNT) < spread
    assert abs(found.sum() - expected.sum()) < 2 * spread


# --- sce --------------------------------------------------------------------------------------------------------------


def sce(inputs, topk):
    """The whole of it: select by variance, weigh by energy, elect without weights."""
    models, dtypes = len(inputs) - 1, ["F32"] * len(inputs)
    scores = np.empty(COUNT, np.float32)
    variance(dtypes, [array.reshape(-1) for array in inputs], scores)
    mask = everything()
    if topk < 1:
        (found,) = thresholds(scores, lambda nonzero: [int(nonzero * topk)])
        mask = band(found)
    energies = norms(inputs, [mask] * models, scores=scores)[:, 2] / COUNT
    weights = energies / energies.sum() if abs(energies.sum()) >= 1e-6 else np.full(models, 1 / models)
    voters = [Voter(mask, weight) for weight in weights]
    return vote(inputs, voters, Rule("sum", "floored", late=True), scores=scores)


@pytest.mark.parametrize("topk", [1.0, 0.7, 0.1, 0.0, 1e-9])
@pytest.mark.parametrize("spread", [1e-4, 0.1, 1.0])
@pytest.mark.parametrize("models", [2, 3])
def test_sce_is_mergekits(merge, models, spread, topk):
    inputs = tensors(models + 1, SHAPE, spread=spread)
    for i in range(1, models + 1):
        inputs[i].reshape(-1)[: 2000 * i] = inputs[0].reshape(-1)[: 2000 * i]
    expected = theirs(merge, inputs, "sce", wide=True, select_topk=topk)
    found = sce(inputs, topk)
    # A variance that is just above or below the threshold, or a sum that is all but 0, may be on the other side.
    away = np.abs(found - expected) > 1e-6 * np.sqrt(np.mean(expected**2))
    assert away.mean() < 2e-4


def test_variances_are_numpys():
    inputs = tensors(4, (3000,), spread=1.0)
    found = np.empty(3000, np.float32)
    variance(["F32"] * 4, inputs, found)
    deltas = np.stack([model - inputs[0] for model in inputs[1:]]).astype(np.float64)
    np.testing.assert_allclose(found, deltas.var(axis=0), rtol=1e-7)
    variance(["F32"] * 2, inputs[:2], found)
    assert not found.any()


# --- ram, nearswap ----------------------------------------------------------------------------------------------------


def ram(inputs, epsilon, factors):
    out = np.empty(COUNT, np.float32)
    Ram(["F32"] * len(inputs), "F32", factors, epsilon).run([array.reshape(-1) for array in inputs], out)
    return out.reshape(inputs[0].shape)


@counts
def test_ram_is_mergekits_to_the_bit(merge, models):
    inputs = tensors(models + 1, SHAPE)
    expected = theirs(merge, inputs, "ram", epsilon=5e-3)
    assert same_bits(ram(inputs, 5e-3, [1.0] * models) + 0, expected + 0)


@counts
@pytest.mark.parametrize(("r", "alpha"), [(0.1, 0.2), (0.5, 3.0), (0.0, 1.0)])
def test_ramplus_is_mergekits_to_the_bit(merge, models, r, alpha):
    inputs, epsilon = tensors(models + 1, SHAPE), 8e-3
    active = Active(["F32"] * (models + 1), epsilon)
    for start in range(0, COUNT, 5000):
        active.measure([array.reshape(-1)[start : start + 5000] for array in inputs])
    factors = [amplification(shared, own, r, alpha, epsilon) for shared, own in active.result().tolist()]
    expected = theirs(merge, inputs, "ramplus_tl", r=r, alpha=alpha, epsilon=epsilon)
    assert same_bits(ram(inputs, epsilon, factors) + 0, expected + 0)


@pytest.mark.parametrize("t", [0.0, 1e-7, 1e-4, 5e-3, 1.0])
def test_nearswap_is_mergekits_to_the_bit(merge, t):
    base, model = tensors(2, SHAPE)
    model.reshape(-1)[:500] = base.reshape(-1)[:500]
    found = np.empty(COUNT, np.float32)
    nearswap(("F32", "F32"), "F32", t, base.reshape(-1), model.reshape(-1), found)
    assert same_bits(found, theirs(merge, [base, model], "nearswap", t=t).reshape(-1))


# --- arcee_fusion -----------------------------------------------------------------------------------------------------


def fused(base, model):
    """The whole of it, and the importances and the threshold that they are held to."""
    dtypes = ("F32", "F32")
    a, b = base.reshape(-1), model.reshape(-1)
    rows = table(divergences(dtypes, base.shape[-1], a, b))
    scores = np.empty(a.size, np.float32)
    importance(dtypes, 0, a, b, rows, base.shape[-1], scores)
    quarters = thresholds(scores, [quantile_rank(q, a.size) for q in (0.25, 0.5, 0.75)], ties=False)
    first, median, third = (np.float32(found.value) for found in quarters)
    least = median + np.float32(1.5) * (third - first)
    mask = band(Threshold(int(least.view(np.uint32)), a.size))
    return vote([base, model], [Voter(mask)], Rule(), scores=scores), scores.reshape(base.shape), least


@pytest.mark.parametrize("shape", [(40, 200), (1, 3000), (700, 3), (2500,)])
@pytest.mark.parametrize("spread", [1e-3, 0.3])
def test_arcee_fusion_is_mergekits(merge, shape, spread):
    base, model = tensors(2, shape, spread=spread)
    found, scores, least = fused(base, model)
    expected = theirs(merge, [base, model], "arcee_fusion", wide=True)
    on_the_edge = np.abs(scores - least) <= 1e-5 * least
    assert on_the_edge.mean() < 0.01
    different = np.abs(found - expected) > 1e-6 * np.sqrt(np.mean(expected**2))
    assert not (different & ~on_the_edge).any()
    changed = found != base
    assert 0.01 < changed.mean() < 0.5
    assert np.array_equal(changed, (scores >= least) & (model != base))


def test_equal_models_are_fused_to_themselves():
    base, _ = tensors(2)
    assert same_bits(fused(base, base.copy())[0], base)


def test_a_narrow_model_is_fused_like_its_float32_self():
    narrow = tensors(2, (30, 100), spread=0.1, dtype="BF16")
    wide = [values(array, "BF16").reshape(-1) for array in narrow]
    flat = [array.reshape(-1) for array in narrow]
    assert same_bits(divergences(("BF16", "BF16"), 100, *flat), divergences(("F32", "F32"), 100, *wide))
    assert same_bits(divergences(("F32", "BF16"), 100, wide[0], flat[1]), divergences(("F32", "F32"), 100, *wide))
    assert same_bits(values(raw(wide[0], "BF16"), "BF16"), wide[0])
