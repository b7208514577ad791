"""How many tensors a build computes, copies and reuses, and what `why` and `plan` say about them.

The small world: four layers of nine tensors each, seven of them matrices, and embeddings, final norm and head: 39.
"""

import json
import re
import shutil

import pytest
from safetensors import safe_open

from modelbuild.errors import BuildFailed, NotCached
from modelbuild.kernels import combine
from modelbuild.result import Counts

LAYERS = 4
TOTAL = 9 * LAYERS + 3
ATTENTION = 4 * LAYERS
MLP = 3 * LAYERS
OTHERS = TOTAL - ATTENTION - MLP
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

BLEND = """
    [base.red]
    source = "red"

    [base.blue]
    source = "blue"

    [merge.violet]
    method = "lerp"
    base = "red"
    models = [ { model = "blue", t = [
        { match = "self_attn", value = 0.25 },
        { match = "mlp", value = 0.5 },
        { value = 0.75 },
    ] } ]
"""

ADAPTED = """
    [base.red]
    source = "red"

    [adapter.style]
    source = "style"

    [merge.styled]
    method = "lora"
    base = "red"
    adapters = [ { adapter = "style", weight = 0.5 } ]
"""


@pytest.fixture
def blend(world):
    """Red and blue models, and violet: a lerp at three values of t."""
    for seed, name in enumerate(("red", "blue"), 1):
        world.model(name, seed=seed, layers=LAYERS, hidden=16, vocab=32)
    return world.modelfile(BLEND)


@pytest.fixture
def adapted(world):
    """A red model with an adapter of its attention matrices."""
    world.model("red", seed=1, layers=LAYERS, hidden=16, vocab=32)
    return world.lora("style", "red", seed=5, targets=EVERY[:4]).modelfile(ADAPTED)


def counts(result, name="violet"):
    """Computed, copied and reused tensors of an artifact."""
    found = result[name].tensors
    return found.computed, found.copied, found.reused


def raw_bytes(tensors):
    """The bytes of tensors, by name."""
    return {name: raw.tobytes() for name, (_, raw) in tensors.items()}


# --- the example of the contract --------------------------------------------------------------------------------------


@pytest.fixture
def chronolima(world):
    """A published merge at small scale: the names of Llama 2 13B, a LoRA on all matrices, a gradient lerp."""
    for seed, name in enumerate(("chronos", "airoboros"), 1):
        world.model(name, seed=seed, layers=40, hidden=8, vocab=16)
    return world.lora("limarp", "chronos", seed=3, rank=2, targets=EVERY).modelfile(
        """
        [settings]
        default = ["chronolima-airo"]
        [base.chronos]
        source = "chronos"
        [base.airoboros]
        source = "airoboros"
        [adapter.limarp]
        source = "limarp"
        [merge.chronolima]
        method = "lora"
        base = "chronos"
        adapters = [ { adapter = "limarp", weight = 0.25 } ]
        [merge.chronolima-airo]
        method = "lerp"
        base = "chronolima"
        models = [ { model = "airoboros", t = { points = [[0, 0.9], [24, 0.0]], rest = 0.0 } } ]
        """
    )


def test_the_example_of_the_contract_counts_as_the_contract_says(chronolima):
    result = chronolima.build()
    assert [artifact.name for artifact in result.artifacts] == ["chronolima", "chronolima-airo"]
    assert result["chronolima"].tensors == Counts(total=363, computed=280, copied=83, reused=0)
    assert result["chronolima-airo"].tensors == Counts(total=363, computed=216, copied=35, reused=112)
    assert result["chronolima"].status == "streamed"
    assert result["chronolima-airo"].status == "built"


def test_json_has_the_fields_of_the_contract(chronolima):
    document = json.loads(chronolima.run("build", "--json").stdout)
    first, second = document["artifacts"]
    assert first["tensors"] == {"total": 363, "computed": 280, "copied": 83, "reused": 0}
    assert second["tensors"] == {"total": 363, "computed": 216, "copied": 35, "reused": 112}
    assert (first["name"], first["kind"], first["status"], first["path"]) == ("chronolima", "merge", "streamed", None)
    assert (second["status"], second["path"]) == ("built", "build/chronolima-airo")
    assert first["bytes"]["written"] == 0
    weights = (chronolima.out / "chronolima-airo" / "model.safetensors").stat().st_size
    assert 0 < second["bytes"]["written"] <= weights
    assert document["seconds"] >= second["seconds"] >= 0
    assert all(len(artifact["key"]) == 64 for artifact in document["artifacts"])


def test_a_change_in_the_streamed_artifact_is_followed_to_its_parameter(chronolima):
    chronolima.build()
    again = chronolima.edit("weight = 0.25", "weight = 0.5").build()
    assert again["chronolima"].tensors == Counts(total=363, computed=280, copied=0, reused=0)
    assert again["chronolima-airo"].tensors.computed == 24 * 7
    assert again["chronolima-airo"].reasons == ("weight of `limarp` 0.25 → 0.5 (168 tensors)",)


# --- what is computed, and why ----------------------------------------------------------------------------------------


def test_one_match_computes_exactly_its_tensors(blend):
    assert counts(blend.build()) == (TOTAL, 0, 0)
    blend.edit('"self_attn", value = 0.25', '"self_attn", value = 0.375')
    (cause, tensors), *others = blend.why("violet").causes
    assert cause == "t of `blue` 0.25 → 0.375"
    assert len(tensors) == ATTENTION
    assert all("self_attn" in tensor for tensor in tensors)
    assert not others
    again = blend.build()
    assert counts(again) == (ATTENTION, 0, TOTAL - ATTENTION)
    assert again["violet"].reasons == (f"t of `blue` 0.25 → 0.375 ({ATTENTION} tensors)",)


def test_why_one_tensor_names_its_own_cause_and_how_it_comes_about(blend):
    blend.build()
    blend.edit('"self_attn", value = 0.25', '"self_attn", value = 0.375')
    changed = blend.why("violet", "model.layers.2.self_attn.q_proj.weight")
    assert (changed.state, [cause for cause, _ in changed.causes]) == ("changed", ["t of `blue` 0.25 → 0.375"])
    assert [step.split(" ")[0] for step in changed.steps] == ["read", "read", "lerp"]
    same = blend.why("violet", "model.layers.2.mlp.up_proj.weight")
    assert (same.state, same.causes) == ("same", ())


def test_two_edits_at_once_are_two_causes(blend):
    blend.build()
    blend.edit("value = 0.25", "value = 0.375").edit("value = 0.5", "value = 0.625")
    causes = {cause: len(tensors) for cause, tensors in blend.why("violet").causes}
    assert causes == {"t of `blue` 0.25 → 0.375": ATTENTION, "t of `blue` 0.5 → 0.625": MLP}


@pytest.mark.parametrize("edit", ["comment", "order", "unrelated", "spelling"])
def test_what_means_the_same_computes_nothing(blend, edit):
    blend.build()
    if edit == "comment":
        blend.modelfile("# violets are blue\n" + blend.text)
    elif edit == "order":
        blend.modelfile("\n\n".join(reversed(blend.text.strip().split("\n\n"))))
    elif edit == "unrelated":
        blend.modelfile(blend.text + '\n[merge.other]\nmethod = "passthrough"\nmodels = [ { model = "blue" } ]\n')
    else:
        blend.edit("value = 0.25", "value = 2.5e-1")
    again = blend.build("violet")
    assert counts(again) == (0, 0, TOTAL)
    assert again["violet"].status == "fresh"
    why = blend.why("violet")
    assert (why.state, why.causes) == ("same", ((f"built for the first time ({TOTAL} tensors)", ()),))


def test_going_back_to_an_earlier_setting_computes_nothing(blend):
    first = blend.build()
    there = blend.edit("0.25", "0.375").build()
    assert counts(there) == (ATTENTION, 0, TOTAL - ATTENTION)
    back = blend.edit("0.375", "0.25").build()
    assert counts(back) == (0, 0, TOTAL)
    assert back["violet"].status == "built"
    assert back["violet"].key == first["violet"].key
    assert back["violet"].written == 0
    once_more = blend.edit("0.25", "0.375").build()
    assert counts(once_more) == (0, 0, TOTAL)


def test_going_back_is_named_as_what_it_is(blend):
    blend.build()
    blend.edit("0.25", "0.375").build()
    blend.edit("0.375", "0.25")
    why = blend.why("violet")
    assert (why.state, [cause for cause, _ in why.causes]) == ("cached", ["t of `blue` 0.375 → 0.25"])


def test_a_retrained_adapter_with_three_changed_modules_computes_three_tensors(adapted):
    assert counts(adapted.build(), "styled") == (ATTENTION, TOTAL - ATTENTION, 0)
    changed = {f"layers.{layer}.self_attn.v_proj": 9 for layer in (0, 1, 3)}
    adapted.lora("style", "red", seed=5, targets=EVERY[:4], reseed=changed)
    ((cause, tensors),) = adapted.why("styled").causes
    assert re.fullmatch(r"`style`: adapter_model.safetensors changed, sha256 \w{12} → \w{12}", cause)
    assert tensors == tuple(f"model.{module}.weight" for module in changed)
    assert counts(adapted.build(), "styled") == (3, 0, TOTAL - 3)


def test_a_base_that_changed_computes_and_copies_all_that_is_its(adapted):
    adapted.build()
    before = adapted.root / "red" / "model.safetensors"
    old = before.read_bytes()
    adapted.model("red", seed=2, layers=LAYERS, hidden=16, vocab=32)
    assert before.read_bytes() != old
    causes = adapted.why("styled").causes
    assert len(causes) == 1
    assert causes[0][0].startswith("`red`: model.safetensors changed, sha256 ")
    assert counts(adapted.build(), "styled") == (ATTENTION, TOTAL - ATTENTION, 0)


def test_at_weight_zero_the_base_is_copied_and_why_names_the_weight(adapted):
    adapted.build()
    adapted.edit("weight = 0.5", "weight = 0.0")
    assert [cause for cause, _ in adapted.why("styled").causes] == ["weight of `style` 0.5 → 0"]
    assert counts(adapted.build(), "styled") == (0, ATTENTION, TOTAL - ATTENTION)


def test_a_build_with_nothing_to_do_is_fresh(blend):
    built = blend.build()
    again = blend.build()
    assert again["violet"].status == "fresh"
    assert counts(again) == (0, 0, TOTAL)
    assert again["violet"].key == built["violet"].key
    assert (again["violet"].read, again["violet"].written) == (0, 0)


def test_a_deleted_output_is_linked_again(blend):
    blend.build()
    before = blend.bytes("violet")
    shutil.rmtree(blend.out / "violet")
    again = blend.build()
    assert (again["violet"].status, counts(again)) == ("built", (0, 0, TOTAL))
    assert again["violet"].written == 0
    assert blend.bytes("violet") == before


def test_a_deleted_cache_computes_everything_again_to_the_same_bytes(blend):
    blend.build()
    before = blend.bytes("violet")
    shutil.rmtree(blend.cache)
    assert counts(blend.build()) == (TOTAL, 0, 0)
    assert blend.bytes("violet") == before


def test_another_shard_size_copies_ranges_and_computes_nothing(blend):
    blend.build()
    before = raw_bytes(blend.tensors("violet"))
    blend.modelfile('[settings]\nshard_size = "10KB"\n' + blend.text)
    again = blend.build()
    assert counts(again) == (0, 0, TOTAL)
    assert len(list((blend.out / "violet").glob("*.safetensors"))) > 1
    assert raw_bytes(blend.tensors("violet")) == before


MODULES = '[settings]\nshards = "modules"\n'


def inodes(blend):
    """Of each file of weights its tensors and its inode."""
    found = {}
    for path in sorted((blend.out / "violet").glob("*.safetensors")):
        with safe_open(path, "np") as file:
            found[frozenset(file.keys())] = path.stat().st_ino
    return found


def test_modules_in_files_of_their_own_are_linked_when_only_others_change(blend):
    blend.modelfile(MODULES + blend.text).build()
    before = inodes(blend)
    modules = [{name.split(".")[3] for name in names if ".layers." in name} for names in before]
    assert {"self_attn"} in modules
    assert {"mlp"} in modules
    blend.edit('"self_attn", value = 0.25', '"self_attn", value = 0.3')
    planned = blend.plan()
    again = blend.build()
    changed = [names for names, inode in inodes(blend).items() if inode != before[names]]
    assert len(changed) == 1
    assert all("self_attn" in name for name in changed[0])
    sizes = {name: raw.nbytes for name, (_, raw) in blend.tensors("violet").items()}
    assert again["violet"].written == sum(sizes[name] for name in changed[0])
    assert counts(again) == (ATTENTION, 0, TOTAL - ATTENTION)
    assert (planned.read, planned.write) == (again["violet"].read, again["violet"].written)
    assert planned.read == 2 * planned.write


def test_what_two_targets_share_is_planned_and_counted_once(blend):
    """The attention differs; the mlp is made for the first, and what both take from the base is copied for it."""
    second = BLEND[BLEND.index("[merge.violet]") :].replace("violet", "wine").replace("0.25", "0.3")
    blend.modelfile(MODULES + (BLEND + second).replace("value = 0.75", "value = 0.0"))
    planned, result = blend.plan(), blend.build()
    assert [counts(result, name) for name in ("violet", "wine")] == [
        (ATTENTION + MLP, OTHERS, 0),
        (ATTENTION, OTHERS, MLP),
    ]
    attention = sum(raw.nbytes for name, (_, raw) in blend.tensors("wine").items() if "self_attn" in name)
    assert (result["wine"].read, result["wine"].written) == (2 * attention, attention)
    for name in ("violet", "wine"):
        assert planned[name].tensors == result[name].tensors
        assert (planned[name].read, planned[name].write) == (result[name].read, result[name].written)


def test_linked_modules_are_the_bytes_of_a_build_from_nothing(blend):
    blend.modelfile(MODULES + blend.text).build()
    blend.edit('"self_attn", value = 0.25', '"self_attn", value = 0.3').build()
    linked = blend.bytes("violet")
    shutil.rmtree(blend.cache)
    shutil.rmtree(blend.out)
    blend.build()
    assert blend.bytes("violet") == linked


def test_how_weights_are_cut_does_not_change_what_they_are(blend):
    blend.build()
    before = raw_bytes(blend.tensors("violet"))
    assert len(inodes(blend)) == 1
    again = blend.modelfile(MODULES + blend.text).build()
    assert counts(again) == (0, 0, TOTAL)
    assert len(inodes(blend)) > 2
    assert raw_bytes(blend.tensors("violet")) == before
    assert json.loads((blend.out / "violet/modelbuild.json").read_text())["settings"]["shards"] == "modules"
    assert 'shards = "modules"' in (blend.out / "violet/README.md").read_text()


# --- intermediates ----------------------------------------------------------------------------------------------------

SHARED = """
    [settings]
    default = ["left", "right"]

    [base.red]
    source = "red"

    [base.blue]
    source = "blue"

    [adapter.style]
    source = "style"

    [merge.styled]
    method = "lora"
    base = "red"
    adapters = [ { adapter = "style", weight = 0.5 } ]

    [merge.left]
    method = "lerp"
    base = "styled"
    models = [ { model = "blue", t = 0.25 } ]

    [merge.right]
    method = "lerp"
    base = "styled"
    models = [ { model = "blue", t = 0.75 } ]
"""


@pytest.fixture
def shared(blend):
    """Two targets that both blend the styled model."""
    return blend.lora("style", "red", seed=5, targets=EVERY[:4]).modelfile(SHARED)


def test_an_intermediate_that_two_targets_use_is_computed_once_and_kept(shared):
    planned = shared.plan()["styled"]
    assert (planned.kept, planned.keep_reason) == (ATTENTION, "used more than once")
    result = shared.build()
    assert counts(result, "styled") == (ATTENTION, TOTAL - ATTENTION, 0)
    assert result["styled"].status == "streamed"
    assert result["styled"].written == sum(
        raw.nbytes for name, (_, raw) in shared.tensors("left").items() if "self_attn" in name
    )
    assert counts(result, "left") == counts(result, "right") == (TOTAL, 0, 0)


def test_a_kept_intermediate_is_reused_when_only_its_user_changes(shared):
    shared.build()
    again = shared.edit("t = 0.25", "t = 0.375").build()
    assert counts(again, "styled") == (0, TOTAL - ATTENTION, ATTENTION)
    assert counts(again, "left") == (TOTAL, 0, 0)
    assert again["right"].status == "fresh"


def test_a_streamed_intermediate_is_computed_again_when_its_user_changes(shared):
    shared.edit('["left", "right"]', '["left"]').build()
    again = shared.edit("t = 0.25", "t = 0.375").build()
    assert counts(again, "styled") == (ATTENTION, TOTAL - ATTENTION, 0)


@pytest.mark.parametrize(
    ("keep", "targets", "kept"), [("true", '["left"]', True), ("false", '["left", "right"]', False)]
)
def test_keep_decides_whether_an_intermediate_stays(shared, keep, targets, kept):
    shared.edit('["left", "right"]', targets).edit("[merge.styled]", f"[merge.styled]\nkeep = {keep}")
    planned = shared.plan()["styled"]
    assert (planned.kept, planned.keep_reason) == ((ATTENTION, "`keep = true`") if kept else (0, None))
    first = shared.build()
    assert (first["styled"].written > 0) == kept
    again = shared.edit("t = 0.25", "t = 0.375").build()
    assert counts(again, "styled")[0] == (0 if kept else ATTENTION)


@pytest.mark.parametrize(("ranks", "kept"), [((191,), 0), ((192,), 4), ((96, 96), 4)])
def test_wide_adapters_are_kept_because_they_cost_more_to_make_than_to_read(shared, ranks, kept):
    for seed, name in enumerate(("red", "blue"), 1):
        shared.model(name, seed=seed, layers=1, hidden=192, vocab=8)
    names = [f"style{rank}-{number}" for number, rank in enumerate(ranks)]
    for name, rank in zip(names, ranks, strict=True):
        shared.lora(name, "red", seed=5, rank=rank, targets=EVERY[:4])
    tables = "".join(f'\n[adapter.{name}]\nsource = "{name}"\n' for name in names)
    entries = ", ".join(f'{{ adapter = "{name}", weight = 0.5 }}' for name in names)
    shared.edit('["left", "right"]', '["left"]').edit('{ adapter = "style", weight = 0.5 }', entries)
    planned = shared.modelfile(shared.text + tables).plan()["styled"]
    assert (planned.kept, planned.keep_reason) == (kept, "costs more to make than to read" if kept else None)


def test_layers_that_a_stack_repeats_are_computed_once(adapted):
    adapted.modelfile(
        ADAPTED
        + """
    [[merge.tall.slices]]
    layers = [0, 3]
    models = [ { model = "styled" } ]

    [[merge.tall.slices]]
    layers = [1, 4]
    models = [ { model = "styled" } ]

    [merge.tall]
    method = "passthrough"
"""
    )
    result = adapted.build()
    assert counts(result, "styled") == (ATTENTION, TOTAL - ATTENTION, 0)
    # Six layers of nine tensors; four of each nine are the styled model's, five the red model's.
    assert result["tall"].tensors == Counts(total=57, computed=0, copied=6 * 5 + 3, reused=6 * 4)
    tensors = adapted.tensors("tall")
    lowered = {0: 0, 1: 1, 2: 2, 3: 1, 4: 2, 5: 3}
    adapted.build("styled")
    styled = adapted.tensors("styled")
    for layer, source in lowered.items():
        name = "model.layers.{}.self_attn.q_proj.weight"
        assert tensors[name.format(layer)][1].tobytes() == styled[name.format(source)][1].tobytes()


# --- options ----------------------------------------------------------------------------------------------------------


def test_require_cached_stops_at_the_first_tensor_to_compute(blend):
    with pytest.raises(NotCached, match=r"`model.embed_tokens.weight` of `violet` is not in the cache"):
        blend.build(require_cached=True)
    assert not (blend.out / "violet").exists()
    ran = blend.run("build", "--require-cached")
    assert ran.returncode == 6
    assert "hint: `modelbuild why violet model.embed_tokens.weight` says what changed" in ran.stderr


def test_require_cached_is_content_with_a_cache_that_has_all(blend):
    blend.build()
    shutil.rmtree(blend.out)
    assert blend.build(require_cached=True)["violet"].status == "built"
    blend.modelfile('[settings]\nshard_size = "10KB"\n' + blend.text)
    assert counts(blend.build(require_cached=True)) == (0, 0, TOTAL)


def test_no_cache_computes_everything_and_compares(blend):
    blend.build()
    before = blend.bytes("violet")
    again = blend.build(no_cache=True)
    assert counts(again) == (TOTAL, 0, 0)
    assert blend.bytes("violet") == before


def test_no_cache_reports_a_result_that_differs_and_leaves_the_output_alone(blend, monkeypatch):
    blend.build()
    before = blend.bytes("violet")
    honest = combine.lerp

    def one_bit_off(node):
        kernel = honest(node)

        def run(begin, end, inputs, out, scratch):
            kernel(begin, end, inputs, out, scratch)
            if node.shape == (32, 16) and begin == 0:
                out[0] ^= 1

        return run

    monkeypatch.setattr(combine, "lerp", one_bit_off)
    with pytest.raises(BuildFailed, match="`violet` is not what an earlier build made of the same inputs") as failed:
        blend.build(no_cache=True)
    facts = failed.value.faults[0].facts
    assert facts[0] == "`model.embed_tokens.weight` differs"
    assert facts[5:] == ("and 5 more",)
    assert blend.bytes("violet") == before


# --- plan says what build does ----------------------------------------------------------------------------------------

EDITS = {
    "nothing": lambda world: world,
    "t": lambda world: world.edit("t = 0.25", "t = 0.375"),
    "t back": lambda world: world.edit("t = 0.375", "t = 0.25"),
    "weight": lambda world: world.edit("weight = 0.5", "weight = 0.75"),
    "adapter": lambda world: world.lora("style", "red", seed=5, targets=EVERY[:4], reseed={"layers.1.": 8}),
    "output": lambda world: shutil.rmtree(world.out / "left"),
    "shards": lambda world: world.edit("[settings]", '[settings]\nshard_size = "10KB"'),
    "dtype": lambda world: world.edit("[merge.right]", '[merge.right]\ndtype = "float32"'),
    "target": lambda world: world.edit('["left", "right"]', '["left", "right", "styled"]'),
    "cache": lambda world: shutil.rmtree(world.cache),
}
STATUS = {"build": "built", "link": "built", "fresh": "fresh", "stream": "streamed"}


def test_plan_lists_exactly_what_build_then_does(shared):
    for edit, change in EDITS.items():
        change(shared)
        planned = json.loads(json.dumps(shared.plan().as_json()))["artifacts"]
        built = json.loads(json.dumps(shared.build().as_json()))["artifacts"]
        told = [(a["name"], a["kind"], STATUS[a["status"]], a["tensors"], a["reasons"]) for a in planned]
        done = [(a["name"], a["kind"], a["status"], a["tensors"], a["reasons"]) for a in built]
        assert told == done, edit
        assert [a["bytes"]["read"] for a in planned] == [a["bytes"]["read"] for a in built], edit
        for before, after in zip(planned, built, strict=True):
            assert before["bytes"]["write"] >= after["bytes"]["written"], (edit, before["name"])


def test_plan_writes_nothing(shared):
    shared.plan()
    assert not shared.out.exists()
    assert not (shared.root / "Modelfile.lock").exists()
