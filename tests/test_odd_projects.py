"""What people do to a project that nobody thought of: names, places, sizes and shapes at the edge."""

import shutil

import numpy as np
import pico
import pytest
from merging import MergeWorld, fma, rounded, same, widened

from modelbuild.errors import ModelbuildError
from modelbuild.plan.explain import Explainer

LERP = """
    [base.red]
    source = "{red}"

    [base.blue]
    source = "{blue}"

    [merge.{name}]
    method = "lerp"
    base = "red"
    models = [ {{ model = "blue", t = {t} }} ]
"""


def lerp(red="red", blue="blue", name="violet", t=0.5):
    return LERP.format(red=red, blue=blue, name=name, t=t)


@pytest.fixture
def pair(world):
    """Two models."""
    return world.model("red", seed=1).model("blue", seed=2)


def refusal(world, *targets, **options):
    """What the user reads, and the exit code."""
    with pytest.raises(ModelbuildError) as caught:
        world.build(*targets, **options)
    return caught.value.render().replace(str(world.root), "ROOT"), caught.value.exit_code


# --- names and places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two words", "ünïcode 模型", "it's [1] {2} \\\\ #", "-f", "a.b.c"])
def test_a_source_may_have_any_name(pair, name):
    (pair.root / "red").rename(pair.root / name.replace("\\\\", "\\"))
    pair.modelfile(lerp(red=name)).build()
    wanted = pair.bytes("violet")["model.safetensors"]
    (pair.root / name.replace("\\\\", "\\")).rename(pair.root / "red")
    pair.modelfile(lerp()).build()
    assert pair.bytes("violet")["model.safetensors"] == wanted


def test_a_source_may_be_a_link_to_a_folder_and_follows_it(pair):
    pair.model("green", seed=3)
    (pair.root / "now").symlink_to("red")
    pair.modelfile(lerp(red="now")).build()
    first = pair.bytes("violet")
    (pair.root / "now").unlink()
    (pair.root / "now").symlink_to("green")
    assert pair.build()["violet"].tensors.computed == 21
    assert pair.bytes("violet") != first


def test_an_earlier_output_may_be_a_source_of_another_artifact(pair):
    pair.modelfile(lerp()).build()
    pair.modelfile(lerp(red="build/violet", name="bluer")).build()
    assert pair.build()["bluer"].status == "fresh"


@pytest.fixture
def unharmed(pair):
    """The pair; afterwards, all files that were there must be there as they were."""
    pair.modelfile(lerp())
    before = {path: path.read_bytes() for path in pair.root.rglob("*") if path.is_file()}
    yield pair
    assert {path: path.read_bytes() for path in before} == before


def test_an_output_does_not_take_the_place_of_its_source(unharmed):
    unharmed.path.with_name("Own").write_text(
        '[base.x]\nsource = "red"\n[merge.red]\nmethod = "linear"\nmodels = [{ model = "x", weight = 1 }]\n'
    )
    unharmed.path = unharmed.path.with_name("Own")
    text, code = refusal(unharmed, out=str(unharmed.root))
    assert code == 2
    assert text == (
        "error: the output of `red` would take the place of its source `x`\n"
        "  --> ROOT/Own:3:8\n"
        "   |  ROOT/red\n\n"
        "hint: give the artifact another name, or its output another place with `--out`"
    )
    assert unharmed.build()["red"].status == "built"


def test_an_output_does_not_take_the_place_of_a_link_to_its_source_or_of_what_holds_it(unharmed):
    (unharmed.root / "deep").mkdir()
    shutil.copytree(unharmed.root / "red", unharmed.root / "deep" / "red")
    (unharmed.root / "link").symlink_to("red")
    for source, name in (("link", "link"), ("deep/red", "deep"), ("deep/red/model.safetensors", "deep")):
        unharmed.modelfile(f'[base.x]\nsource = "{source}"\n[merge.{name}]\nmethod = "passthrough"\n'
                           'models = [{ model = "x" }]\n')  # fmt: skip
        text, code = refusal(unharmed, out=str(unharmed.root))
        assert code == 2
        assert f"the output of `{name}` would take the place of its source `x`" in text
    unharmed.modelfile(lerp())


def test_an_output_that_was_a_source_of_itself_is_refused_and_does_not_drift(unharmed):
    unharmed.build()
    wanted = unharmed.bytes("violet")
    unharmed.modelfile(lerp(red="build/violet"))
    for look in (unharmed.build, unharmed.plan):
        with pytest.raises(ModelbuildError, match="would take the place of its source `red`"):
            look()
    assert unharmed.bytes("violet") == wanted
    unharmed.modelfile(lerp())


def test_an_output_does_not_take_the_place_of_the_project(unharmed):
    unharmed.modelfile(lerp(name=unharmed.root.name))
    text, code = refusal(unharmed, out=str(unharmed.root.parent))
    assert code == 2
    assert f"the output of `{unharmed.root.name}` would take the place of the Modelfile" in text
    assert not (unharmed.root.parent / ".edited").exists()
    unharmed.modelfile(lerp())


def test_an_output_and_the_cache_keep_out_of_each_others_way(unharmed):
    unharmed.build()
    before = unharmed.bytes("violet")
    text, _ = refusal(unharmed, cache=str(unharmed.out / "violet"))
    assert "would take the place of the cache" in text
    text, _ = refusal(unharmed, out=str(unharmed.cache))
    assert "would lie among the cache's own folders" in text
    assert unharmed.bytes("violet") == before


# --- two Modelfiles, one name -----------------------------------------------------------------------------------------


def test_two_modelfiles_may_take_turns_at_one_output_and_nothing_is_called_edited(pair):
    first, second = lerp(t=0.25), lerp(t=0.75)
    one, two = pair.path, pair.root / "Second"
    one.write_text(first)
    two.write_text(second)
    seen = {}
    for path in (one, two, one, two, one):
        pair.path = path
        result = pair.build()["violet"]
        assert (result.status, result.notes) == ("built", ())
        assert seen.setdefault(path, pair.bytes("violet")) == pair.bytes("violet")
    assert seen[one] != seen[two]
    assert not (pair.out / ".edited").exists()


def test_an_edit_of_what_another_modelfile_built_is_kept(pair):
    pair.modelfile(lerp(t=0.25)).build()
    two = pair.root / "Second"
    two.write_text(lerp(t=0.75))
    one, pair.path = pair.path, two
    pair.build()
    (pair.out / "violet" / "README.md").write_text("mine")
    pair.path = one
    pair.build()
    assert (pair.out / ".edited" / "violet" / "README.md").read_text() == "mine"


def test_an_edit_of_modelbuild_json_alone_is_kept(pair):
    pair.modelfile(lerp()).build()
    path = pair.out / "violet" / "modelbuild.json"
    path.write_text(path.read_text() + "\n")
    assert len(pair.build()["violet"].notes) == 1
    assert (pair.out / ".edited" / "violet" / "modelbuild.json").exists()


# --- many of them -----------------------------------------------------------------------------------------------------


def chain(length):
    """`m0` to `mN`, each a little of another model than the one before it."""
    merges = [
        f'[merge.m{n}]\nmethod = "lerp"\nbase = "{f"m{n - 1}" if n else "red"}"\n'
        f'models = [{{ model = "{("blue", "green")[n % 2]}", t = 0.1 }}]\n'
        for n in range(length)
    ]
    return "".join(f'[base.{name}]\nsource = "{name}"\n' for name in ("red", "blue", "green")) + "".join(merges)


@pytest.fixture
def three(pair):
    return pair.model("green", seed=3)


def test_a_chain_of_sixty_merges_rounds_at_every_step(three):
    three.modelfile(chain(60)).build()
    red, *others = (pico.read_tensors(three.root / name) for name in ("red", "blue", "green"))
    for name, tensor in three.tensors("m59").items():
        value = red[name]
        for n in range(60):
            start, end = widened(value), widened(others[n % 2][name])
            value = rounded(fma(np.float32(0.1), end - start, start))
        assert same(tensor, value), name


def test_a_change_at_the_start_of_a_long_chain_is_explained_in_steps_that_grow_with_its_length(three, monkeypatch):
    three.modelfile(chain(300)).build()
    three.modelfile(three.text.replace("t = 0.1", "t = 0.2", 1))
    steps, step = [], Explainer._step
    monkeypatch.setattr(Explainer, "_step", lambda *given: steps.append(1) or step(*given))
    assert three.build()["m299"].reasons == ("t of `blue` 0.1 → 0.2 (21 tensors)",)
    # Each step of each of the 21 tensors once, and not once for each way that leads to it.
    assert 300 <= len(steps) <= 21 * 300


def diamonds(count):
    """Each artifact is made from the two before it: twice as many ways lead to the first with every second one."""
    ends = '[base.red]\nsource = "red"\n[base.blue]\nsource = "blue"\n'
    first = [
        f'[merge.m{n}]\nmethod = "lerp"\nbase = "{name}"\nmodels = [{{ model = "blue", t = 0.1 }}]\n'
        for n, name in enumerate(("red", "m0"))
    ]
    rest = [
        f'[merge.m{n}]\nmethod = "linear"\nmodels = [{{ model = "m{n - 1}", weight = 1 }}, '
        f'{{ model = "m{n - 2}", weight = 1 }}]\n'
        for n in range(2, count)
    ]
    return ends + "".join([*first, *rest])


def test_many_ways_to_one_change_are_told_once(pair):
    pair.modelfile(diamonds(60)).build()
    pair.modelfile(pair.text.replace("t = 0.1", "t = 0.2", 1))
    assert pair.why("m59").causes[0][0] == "t of `blue` 0.1 → 0.2"
    assert pair.build()["m59"].reasons == ("t of `blue` 0.1 → 0.2 (21 tensors)",)


def test_a_merge_of_thirty_models_is_their_weighted_mean(world):
    for n in range(30):
        world.model(f"w{n}", seed=n)
    models = ", ".join(f'{{ model = "w{n}", weight = {n + 1} }}' for n in range(30))
    sources = "".join(f'[base.w{n}]\nsource = "w{n}"\n' for n in range(30))
    world.modelfile(f'{sources}[merge.all]\nmethod = "linear"\nmodels = [{models}]\n').build()
    inputs = [pico.read_tensors(world.root / f"w{n}") for n in range(30)]
    for name, tensor in world.tensors("all").items():
        total = np.zeros(tensor[1].shape, np.float32)
        for n, found in enumerate(inputs):
            total = fma(np.float32(n + 1), widened(found[name]), total)
        assert same(tensor, rounded(total / np.float32(465))), name


# --- strange contents -------------------------------------------------------------------------------------------------


def test_a_model_without_tensors_is_refused_and_not_built_in_silence(pair):
    pico.write_safetensors(pair.root / "red" / "model.safetensors", {})
    text, code = refusal(pair.modelfile(lerp()))
    assert code == 1
    assert text.startswith("error: `red` has no tensors\n")
    assert not pair.out.exists()


WEIGHTS = """
    [base.red]
    source = "red"

    [base.blue]
    source = "blue"

    [merge.violet]
    method = "{method}"
    {base}normalize = true
    models = [ {{ model = "blue", weight = {weights[0]} }}, {{ model = "green", weight = {weights[1]} }} ]

    [base.green]
    source = "green"
"""


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weights_whose_sum_is_infinite_are_refused(three, method):
    base = 'base = "red"\n    ' if method == "task_arithmetic" else ""
    text, code = refusal(three.modelfile(WEIGHTS.format(method=method, base=base, weights=("3e38", "3e38"))))
    assert code == 1
    assert "`model.embed_tokens.weight`: its weights sum to more than float32 holds" in text
    three.modelfile(WEIGHTS.format(method=method, base=base, weights=("3e38", "-2e38"))).build()


def test_a_model_at_minus_zero_is_not_read(three):
    three.tensor("green", "model.norm.weight", lambda raw: np.full_like(raw, 0x7FC0))
    three.modelfile(WEIGHTS.format(method="linear", base="", weights=("2.0", "-0.0"))).build()
    assert three.tensors("violet").keys() == pico.read_tensors(three.root / "blue").keys()
    for name, tensor in pico.read_tensors(three.root / "blue").items():
        assert same(three.tensors("violet")[name], tensor)


def test_an_adapter_on_a_quantised_base_is_refused_with_a_few_tensors_and_a_hint(tmp_path):
    (tmp_path / "world").mkdir()
    world = MergeWorld(tmp_path / "world").model("red", seed=1, layers=4).lora("style", "red", seed=2)
    world.model("packed", seed=1, layers=4)
    for name, (_, raw) in pico.read_tensors(world.root / "packed").items():
        if "proj" in name:
            packed = pico.read_tensors(world.root / "packed") | {name: ("U8", np.zeros(raw.shape, np.uint8))}
            pico.write_safetensors(world.root / "packed" / "model.safetensors", packed)
    text = world.refusal('[merge.m]\nmethod = "lora"\nbase = "packed"\nadapters = [{ adapter = "style" }]\n')
    assert text.count("error: ") == 3
    assert "   |  `model.layers.0.self_attn.q_proj.weight` is U8\n" in text
    assert "   |  and 5 more that do not fit\n" in text
    assert "hint: the base is quantised: name the model that it was made from" in text
