"""Builds with iso_c and tsv: bound to a numerics class, the same bytes however they are made, kept because they are
costly, and what is said of all that."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pico
import pytest
from merging import MergeWorld
from quantizing import Quantizing, table

from modelbuild import stamps
from modelbuild.engine.files import StoredFiles
from modelbuild.errors import BuildFailed, LockOutOfDate, NotCached
from modelbuild.formats import numerics
from modelbuild.methods import _spectrum, iso_c
from modelbuild.methods.registry import methods
from modelbuild.modelfile.parse import parse_text
from modelbuild.versions import versions_of

MATRICES, TOTAL = 16, 21
HEAVY = {"torch", "numba", "llvmlite", "transformers", "huggingface_hub"}
MODELS = 'base = "base"\nmodels = [ { model = "one" }, { model = "two", weight = 0.5 } ]\n'
FLAT = f'[merge.flat]\nmethod = "iso_c"\nlambda = 0.7\n{MODELS}'
TASKS = f'[merge.tasks]\nmethod = "tsv"\n{MODELS}'
USER = '[merge.mix]\nmethod = "lerp"\nbase = "base"\nmodels = [ { model = "flat", t = 0.25 } ]\n'


@pytest.fixture
def world(tmp_path):
    """A base and two models tuned from it; no Modelfile yet."""
    world = MergeWorld(tmp_path / "world")
    world.root.mkdir()
    world.model("base", seed=1)
    return world.model("one", seed=2, tuned_from=1).model("two", seed=3, tuned_from=1)


@pytest.fixture
def flat(world):
    """The two models merged by iso_c; not built yet."""
    return world.merge(FLAT)


def counts(result, name="flat"):
    found = result[name].tensors
    return found.computed, found.copied, found.reused


def weights_of(world, name):
    return (world.out / name / "model.safetensors").read_bytes()


# --- bound ------------------------------------------------------------------------------------------------------------


def test_matrices_have_the_numerics_class_in_their_key_and_other_tensors_have_not(flat):
    flat.build()
    (last,) = flat.why("flat", "lm_head.weight").steps[-1:]
    assert f") by {numerics.numerics_class(('torch',), algebra=True)} → BF16 64×32" in last
    assert " by " not in flat.why("flat", "model.norm.weight").steps[-1]


def test_the_lock_and_the_card_have_the_class(flat):
    flat.build()
    found = numerics.numerics_class(("torch",), algebra=True)
    lock = (flat.root / "Modelfile.lock").read_text()
    assert f'\ntorch = "{found.removeprefix("torch ")}"\n' in lock
    assert "\niso_c = 1\n" in lock
    assert "computed by torch" in (flat.out / "flat" / "README.md").read_text()
    assert f'"{found}"' in (flat.out / "flat" / "modelbuild.json").read_text()


def test_the_class_names_who_made_the_processor(monkeypatch):
    """The code for products of matrices is chosen by that."""
    numerics.processor_maker.cache_clear()
    monkeypatch.setattr(numerics, "_fact", lambda name: {"vendor_id": "GenuineIntel", "flags": ""}[name])
    monkeypatch.setattr(numerics, "processor_family", lambda: "x86-64 AVX2")
    assert numerics.numerics_class(("torch",), algebra=True).endswith(", Intel x86-64 AVX2, 1 thread")
    assert numerics.numerics_class(("torch",)).endswith(", x86-64 AVX2, 1 thread")
    numerics.processor_maker.cache_clear()
    monkeypatch.setattr(numerics, "_fact", lambda name: "")
    assert numerics.numerics_class(("torch",), algebra=True).endswith(", x86-64 AVX2, 1 thread")
    monkeypatch.undo()
    numerics.processor_maker.cache_clear()


@pytest.fixture
def newer(monkeypatch):
    """From now on torch is of another version."""

    def change():
        real = numerics.version
        monkeypatch.setattr(numerics, "version", lambda name: "9.0.0" if name == "torch" else real(name))

    return change


def test_another_version_of_torch_decomposes_anew_and_is_told(flat, newer):
    before = numerics.library_version("torch")
    flat.build()
    newer()
    (cause,) = (cause for cause, _ in flat.why("flat").causes)
    assert cause == f"numerics torch {before} → torch 9.0.0"
    again = flat.build()
    assert counts(again) == (MATRICES, 0, TOTAL - MATRICES)
    assert again["flat"].reasons == (f"{cause} ({MATRICES} tensors)",)


def test_another_version_of_torch_is_a_difference_of_the_lock(flat, newer):
    flat.build()
    newer()
    for options in ({"locked": True}, {"frozen": True}):
        with pytest.raises(LockOutOfDate) as caught:
            flat.build(**options)
        assert "`torch`" in caught.value.render()


def test_another_version_of_torch_is_nothing_to_a_merge_that_does_without(world, newer):
    world.merge('[merge.flat]\nmethod = "task_arithmetic"\nweight = 1.0\n' + MODELS).build()
    assert "torch" not in (world.root / "Modelfile.lock").read_text()
    newer()
    assert world.build(locked=True)["flat"].status == "fresh"


def test_verify_calls_a_record_of_another_class_that(flat, newer):
    ran = flat.run("build", "--record", "--durability", "none")
    assert ran.returncode == 0, ran.stderr
    assert flat.run("verify", "flat").returncode == 0
    lock = flat.root / "Modelfile.lock"
    version = numerics.library_version("torch")
    head, outputs = lock.read_text().split("[outputs.flat]")
    key = outputs.split('"')[1]
    lock.write_text(head + "[outputs.flat]" + outputs.replace(f"torch {version}", "torch 1.0.0").replace(key, "f" * 64))
    ran = flat.run("verify", "flat")
    assert ran.returncode == 1
    assert "it was recorded in another class of numerics: `torch 1.0.0, " in ran.stderr
    assert f"here it is `torch {version}, " in ran.stderr


def test_torch_that_is_not_installed_is_told(flat, monkeypatch):
    real = numerics.library_version

    def missing(name):
        if name == "torch":
            raise numerics.MissingLibrary(name)
        return real(name)

    monkeypatch.setattr(numerics, "library_version", missing)
    assert flat.refusal() == (
        "error: `flat` needs torch, which is not installed\n  --> Modelfile:8:1\n"
        "   |  method `iso_c` is computed by it\n\nhint: pip install torch"
    )


def test_the_versions_of_a_merge_that_is_bound():
    text = '[base.b]\nsource = "b"\n[merge.m]\nmethod = "tsv"\nbase = "b"\nmodels = [{ model = "b" }]\n'
    found = versions_of(parse_text(text, "Modelfile"), ["m"], ())
    assert list(found) == ["modelbuild", "cast", "tsv", "torch"]
    assert [name for name, method in methods().items() if method.libraries({}) == ("torch",)] == ["iso_c", "tsv"]


def test_methods_says_what_computes_them(flat):
    assert "\ncomputed by torch\n" in flat.run("methods", "iso_c").stdout
    assert json.loads(flat.run("methods", "tsv", "--json").stdout)[0]["libraries"] == ["torch"]
    assert "computed by" not in flat.run("methods", "ties").stdout


def test_a_stamp_is_not_believed_when_torch_is_another(flat, monkeypatch):
    monkeypatch.chdir(flat.root)
    flat.build()
    words = ["-f", str(flat.path), "build"]
    assert stamps.answer(words) is not None
    real = stamps.facts
    monkeypatch.setattr(stamps, "facts", lambda path, *more: None if "torch" in path else real(path, *more))
    assert stamps.answer(words) is None


# --- the same bytes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Both methods on the same models, built on one thread."""
    world = MergeWorld(tmp_path_factory.mktemp("both"))
    for seed, name in enumerate(("base", "one", "two"), 1):
        world.model(name, seed=seed, tuned_from=1 if seed > 1 else None, hidden=64, vocab=200, dtype="float32")
    world.merge(FLAT + TASKS).build(jobs=1)
    return world


@pytest.mark.parametrize("seed", [0, 1, 77])
def test_neither_the_hash_seed_nor_what_libraries_are_told_of_threads_changes_a_byte(both, seed):
    other = both.copy()
    ran = other.run("build", PYTHONHASHSEED=str(seed), OMP_NUM_THREADS=str(seed + 1), MKL_NUM_THREADS="2")
    assert ran.returncode == 0, ran.stderr
    assert [other.bytes(name) for name in ("flat", "tasks")] == [both.bytes(name) for name in ("flat", "tasks")]


def test_the_thread_count_of_torch_changes_no_byte_and_stays_what_it_was(both):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        other = both.copy()
        other.build(jobs=3)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert [weights_of(other, name) for name in ("flat", "tasks")] == [
        weights_of(both, name) for name in ("flat", "tasks")
    ]


def test_computing_all_anew_finds_the_same(both):
    for name in ("flat", "tasks"):
        assert both.build(name, no_cache=True)[name].status == "fresh"


def test_another_result_of_the_same_inputs_is_reported(flat, monkeypatch):
    flat.build()
    monkeypatch.setattr(iso_c, "flatten", lambda matrix, scale: _spectrum.flatten(matrix, 2 * scale))
    with pytest.raises(BuildFailed, match="is not what an earlier build made of the same inputs"):
        flat.build(no_cache=True)


def test_memory_is_a_budget_and_what_needs_more_runs_alone(both):
    for jobs in (1, 4):
        other = both.copy()
        peak = other.build("tasks", jobs=jobs, memory="4MB").peak_tensor_bytes
        assert 1_000_000 < peak <= 4_000_000
    plan = both.copy().plan("flat", "tasks", memory="100KB")
    assert len(plan["flat"].alone) == len(plan["tasks"].alone) == MATRICES
    assert plan["flat"].alone[0].startswith("`model.embed_tokens.weight` needs ")
    assert both.copy().plan("tasks", memory="4MB")["tasks"].alone == ()
    told = both.copy().run("plan", "flat", "--memory", "100KB").stdout
    assert f"  {MATRICES - 5} more tensors run alone\n" in told


# --- nothing twice ----------------------------------------------------------------------------------------------------


def test_going_to_another_setting_and_back_computes_nothing_twice(flat):
    assert counts(flat.build()) == (TOTAL, 0, 0)
    first = flat.bytes("flat")
    again = flat.edit("weight = 0.5", 'weight = [ { match = "mlp", value = 0.25 }, { value = 0.5 } ]').build()
    assert counts(again) == (6, 0, TOTAL - 6)
    back = flat.edit('weight = [ { match = "mlp", value = 0.25 }, { value = 0.5 } ]', "weight = 0.5").build()
    assert counts(back) == (0, 0, TOTAL)
    assert flat.bytes("flat") == first


def test_what_is_decomposed_is_kept_because_it_costs_more_to_make_than_to_read(world):
    world.merge(FLAT + USER)
    planned = world.plan("mix")["flat"]
    assert (planned.kept, planned.keep_reason) == (MATRICES, "costs more to make than to read")
    told = world.run("plan", "mix").stdout
    assert f"  keeps {MATRICES} tensors in the cache, " in told
    assert world.build("mix")["flat"].written > 0
    again = world.edit("t = 0.25", "t = 0.5").build("mix")
    assert counts(again) == (TOTAL - MATRICES, 0, MATRICES)
    assert counts(again, "mix") == (TOTAL, 0, 0)
    assert weights_of(world, "mix") == weights_of(world.from_nothing("mix"), "mix")


def test_what_is_not_to_be_kept_is_made_on_the_way(world):
    world.merge(FLAT + USER)
    world.build("mix")
    other = world.copy().edit("[merge.flat]", "[merge.flat]\nkeep = false")
    assert other.plan("mix")["flat"].kept == 0
    assert other.build("mix")["flat"].written == 0
    assert weights_of(other, "mix") == weights_of(world, "mix")


def test_a_computed_input_is_made_before_it_is_looked_at(world):
    world.merge(USER.replace('"flat"', '"one"') + FLAT.replace('"one"', '"mix"'))
    planned = world.plan("flat")["mix"]
    assert (planned.kept, planned.keep_reason) == (MATRICES, "used more than once")
    world.build("flat")
    base, one, two = (world.floats(name)["lm_head.weight"] for name in ("base", "one", "two"))
    mix = pico.widen("BF16", pico.narrow("BF16", base + np.float32(0.25) * (one - base)))
    expected = isotropic(base, [mix - base, np.float32(0.5) * (two - base)], 0.7)
    assert np.abs(world.floats("flat")["lm_head.weight"] - expected).max() < 1e-3


def isotropic(base, deltas, scale=1.0):
    left, sigma, right = np.linalg.svd(sum(deltas).astype(np.float64), full_matrices=False)
    return base + scale * sigma.mean() * left @ right


def test_damage_of_what_was_kept_is_made_good(world):
    world.merge(FLAT + USER).build("mix")
    for path in world.cache.glob("artifacts/*/*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    world.edit("t = 0.25", "t = 0.5").build("mix")
    assert weights_of(world, "mix") == weights_of(world.from_nothing("mix"), "mix")


def test_a_damaged_input_is_found_before_anything_that_came_of_it_is_published(world):
    """It is read several times, and checked the last time; its file looks as it was."""
    world.merge(USER.replace('"flat"', '"one"') + FLAT.replace('"one"', '"mix"')).build("flat")
    world.edit("lambda = 0.7", "lambda = 0.8")
    wanted = weights_of(world.from_nothing("flat"), "flat")
    (path,) = (p for p in world.cache.glob("artifacts/*/*.safetensors") if is_kept(p))
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    ran = world.run("build", "flat")
    assert ran.returncode == 0, ran.stderr
    assert "1 tensor in the cache is damaged; it is made anew" in ran.stderr
    assert weights_of(world, "flat") == wanted


def is_kept(path):
    return len(pico.read_safetensors(path)) == MATRICES


def test_each_model_is_read_as_often_as_it_is_looked_at(world, monkeypatch):
    """For tsv the base with each model, then all: what the models are needed for then is only their checksums."""
    reads = Counter()
    real = StoredFiles.read

    def counting(self, node, located, buffer, offset):
        if node.source.name == "lm_head.weight":
            reads[Path(node.source.source_file.path).parent.name] += 1
        real(self, node, located, buffer, offset)

    monkeypatch.setattr(StoredFiles, "read", counting)
    world.merge(FLAT + TASKS).build("tasks")
    assert reads == {"base": 3, "one": 2, "two": 2}
    reads.clear()
    world.build("flat")
    assert reads == {"base": 2, "one": 2, "two": 2}


def test_nothing_may_be_decomposed_where_all_must_be_cached(flat):
    with pytest.raises(NotCached, match="of `flat` is not in the cache"):
        flat.build(require_cached=True)
    flat.build()
    shutil.rmtree(flat.out)
    assert flat.build(require_cached=True)["flat"].tensors.reused == TOTAL


def test_planning_and_linking_load_no_library(flat):
    def packages(*words):
        return {name.partition(".")[0] for name in flat.imports(*words)}

    assert not packages("plan") & HEAVY
    assert flat.run("build").returncode == 0
    for words in (["plan"], ["why", "flat"], ["why", "flat", "lm_head.weight"], ["lock"], ["build"]):
        assert not packages(*words) & HEAVY, words
    (flat.out / "flat" / "config.json").unlink()
    assert not packages("build") & HEAVY


# --- parameters -------------------------------------------------------------------------------------------------------


def test_a_gradient_of_weights_goes_through_the_layers_and_leaves_out_at_0(world):
    world.merge(
        '[merge.flat]\nmethod = "iso_c"\nbase = "base"\n'
        'models = [ { model = "one", weight = [0.0, 1.0] }, { model = "two", weight = [1.0, 0.0] } ]\n'
    ).build()
    found = world.floats("flat")
    for layer, name in ((0, "two"), (1, "one")):
        tensor = f"model.layers.{layer}.mlp.up_proj.weight"
        base = world.floats("base")[tensor]
        assert np.abs(found[tensor] - isotropic(base, [world.floats(name)[tensor] - base])).max() < 1e-3
    taken = world.tensors("flat")["model.layers.0.input_layernorm.weight"]
    assert taken[1].tobytes() == world.source("two")["model.layers.0.input_layernorm.weight"][1].tobytes()


def test_embeddings_can_be_averaged(world):
    rule = 'spectral = [ { match = "embed_tokens", value = false }, { match = "lm_head", value = false } ]\n'
    world.merge(FLAT + rule).build()
    base, one, two = (world.floats(name)["model.embed_tokens.weight"] for name in ("base", "one", "two"))
    average = base + np.float32(0.7) * ((one - base) + np.float32(0.5) * (two - base)) / 2
    found = world.floats("flat")
    assert np.abs(found["model.embed_tokens.weight"] - average).max() < 1e-3
    tensor = "model.layers.0.mlp.up_proj.weight"
    base, one, two = (world.floats(name)[tensor] for name in ("base", "one", "two"))
    assert np.abs(found[tensor] - isotropic(base, [one - base, (two - base) / 2], 0.7)).max() < 1e-3


def test_slices_choose_layers(world):
    part = 'models = [ { model = "base", layers = [1, 2] }, { model = "one", layers = [1, 2] }, { model = "two" } ]\n'
    world.merge(
        '[merge.flat]\nmethod = "iso_c"\nbase = "base"\n'
        f"[[merge.flat.slices]]\nlayers = [0, 1]\n{part}[[merge.flat.slices]]\nlayers = [1, 2]\n{part}"
    ).build()
    base, one, two = (world.floats(name) for name in ("base", "one", "two"))
    for layer in (0, 1):
        first, other = (f"model.layers.{number}.self_attn.q_proj.weight" for number in (1, layer))
        expected = isotropic(base[first], [one[first] - base[first], two[other] - base[first]])
        assert np.abs(world.floats("flat")[other] - expected).max() < 1e-3


def test_tsv_of_one_model_is_that_model(world):
    world.merge('[merge.tasks]\nmethod = "tsv"\nbase = "base"\nmodels = [ { model = "one" } ]\n')
    assert world.plan()["tasks"].tensors.copied == TOTAL
    world.build()
    assert {name: raw.tobytes() for name, (_, raw) in world.tensors("tasks").items()} == {
        name: raw.tobytes() for name, (_, raw) in world.source("one").items()
    }


@pytest.mark.parametrize("name", ["flat", "tasks"])
def test_a_nan_spoils_its_matrix_alone_and_is_told(world, name):
    tensor = "model.layers.1.mlp.up_proj.weight"
    world.tensor("two", tensor, lambda raw: np.where(np.arange(raw.size).reshape(raw.shape) == 9, 0x7FC0, raw))
    notes = " ".join(world.merge(FLAT + TASKS).build(name)[name].notes)
    assert f"the inputs of `{tensor}` are not all finite in a matrix" in notes
    assert f"NaN or infinite values in `{tensor}` (2048)" in notes
    assert [n for n, values in world.floats(name).items() if not np.isfinite(values).all()] == [tensor]


@pytest.mark.parametrize("kind", ["mixtral", "gpt2", "bert", "llava"])
def test_models_of_any_kind_are_merged(world, kind):
    for seed, name in enumerate(("base", "one", "two"), 1):
        world.model(name, kind, seed=seed, tuned_from=1 if seed > 1 else None)
    world.merge((FLAT + TASKS).replace('base = "base"', 'base = "base"\nonly = "*"')).build()
    for name in ("flat", "tasks"):
        found, base = world.floats(name), world.floats("base")
        assert all(np.isfinite(values).all() for values in found.values())
        assert all((values != base[tensor]).any() for tensor, values in found.items())


def test_a_merge_may_be_quantised_as_it_is_made(tmp_path):
    pytest.importorskip("bitsandbytes")
    world = Quantizing(tmp_path / "world").small("base")
    world.small("one", seed=2, tuned_from=1).small("two", seed=3, tuned_from=1)
    world.write(FLAT, table("q", "flat"))
    world.build("q")
    classes = (world.out / "q" / "modelbuild.json").read_text()
    assert '"bitsandbytes 0' in classes
    assert '"torch 2' in classes
    lock = (world.root / "Modelfile.lock").read_text()
    assert "\nbitsandbytes = " in lock
    assert "\ntorch = " in lock
    again = world.edit('type = "nf4"', 'type = "fp4"').build("q")
    assert again["flat"].tensors.computed <= TOTAL - MATRICES
