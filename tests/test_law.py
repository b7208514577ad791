"""The law: whatever was edited in whatever order, an incremental build equals a build from nothing, byte for byte.

What can be edited is a table of fields with a few values each, so that sequences come back to what was there before.
LAW_EXAMPLES=200 runs that many sequences in place of a handful.
"""

import dataclasses
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import World

from modelbuild import stamps
from modelbuild.cache.collect import gc
from modelbuild.cache.store import open_store
from modelbuild.errors import ModelbuildError
from modelbuild.plan import graph, merge, node

SIZE = {"layers": 3, "hidden": 16, "vocab": 24}

Q0 = "layers.0.self_attn.q_proj"
SOURCES = {
    "one": [{"seed": 1}, {"seed": 1, "reseed": {Q0: 9}}, {"seed": 4, "shards": 2}],
    "two": [{"seed": 2}, {"seed": 2, "reseed": {"norm": 9}}, {"seed": 2, "config": {"bos_token_id": 3}}],
    "three": [{"seed": 3, "dtype": "float32"}, {"seed": 3, "dtype": "float16"}],
    "ada": [{"seed": 5}, {"seed": 5, "reseed": {Q0: 9}}, {"seed": 5, "rank": 4, "alpha": 4}],
    "bea": [{"seed": 6, "targets": ("down_proj",)}, {"seed": 6, "targets": ("o_proj",), "rslora": True}],
}
VALUES = [
    "0.25", "0.5", "0.0", "1.0", "[0.2, 0.8]", "{ points = [[0, 0.9], [2, 0.1]], rest = 0.3 }",
    '{ points = [[1, 0.5]], shape = "step" }',
    '[ { match = "self_attn", value = 0.5 }, { match = "mlp", value = [0.1, 0.4] }, { value = 0.0 } ]',
    '[ { match = "layers.1.*.q_proj", value = 0.75 }, { value = 0.25 } ]',
]  # fmt: skip
FIELDS = {
    **{name: list(range(len(choices))) for name, choices in SOURCES.items()},
    "weight of ada": ["0.25", "1.0", "0.0", "-0.5", "[0.2, 0.8]"],
    "with bea": [False, True],
    "method": ["lerp", "linear", "task_arithmetic"],
    "value": VALUES,
    "value of two": VALUES,
    "normalize": ["", "normalize = false"],
    "dtype of mix": ["", 'dtype = "float32"', 'dtype = "float16"'],
    "dtype": ["", 'dtype = "bfloat16"', 'dtype = "float32"'],
    "only": ["", 'only = ["self_attn"]', 'only = ["layers.0", "lm_head"]'],
    "copy": ["", 'copy = ["norm"]', 'copy = ["embed_tokens", "layers.1.mlp"]'],
    "config": ["", "config = { max_position_embeddings = 128 }"],
    "keep": ["", "keep = true", "keep = false"],
    "keep of mix": ["", "keep = true", "keep = false"],
    "shard_size": ["", 'shard_size = "4KB"', 'shard_size = "9KB"'],
    "shards": ["", 'shards = "modules"', 'shards = "order"'],
    "layers": [((0, 3),), ((0, 2), (1, 3)), ((0, 1), (0, 1), (2, 3))],
    "scale": ["", ", scale = 0.5"],
    "top": ["mix", "two"],
    "spare": [None, "spare", "renamed"],
    "order": [0, 1, 2],
    "fault": [
        "",
        "base = 'nobody'",
        "[merge.broken]\nmethod = 'lerp'",
    ],
    "mishap": [None, "collected", "index gone", "damaged", "cut short", "output gone", "output edited"],
    "targets": [(), ("stack", "mix"), ("adapted",)],
}


def bases():
    return [f'[base.{name}]\nsource = "{name}"' for name in ("one", "two", "three")]


def adapters():
    return [f'[adapter.{name}]\nsource = "{name}"' for name in ("ada", "bea")]


def adapted(state):
    second = ', { adapter = "bea", weight = 0.75 }' if state["with bea"] else ""
    entries = f'{{ adapter = "ada", weight = {state["weight of ada"]} }}{second}'
    return f'[merge.adapted]\nmethod = "lora"\nbase = "one"\nadapters = [ {entries} ]\n{state["keep"]}'


def mix(state):
    lines = ["[merge.mix]", f'method = "{state["method"]}"']
    lines += [state[field] for field in ("dtype of mix", "only", "copy", "config", "keep of mix")]
    if state["method"] == "lerp":
        return "\n".join([*lines, 'base = "adapted"', f'models = [ {{ model = "two", t = {state["value"]} }} ]'])
    two = f'{{ model = "two", weight = {state["value of two"]} }}'
    three = f'{{ model = "three", weight = {state["value"]} }}'
    if state["method"] == "task_arithmetic":
        return "\n".join([*lines, 'base = "adapted"', f"models = [ {two}, {three} ]"])
    own = '{ model = "adapted", weight = 1.5 }'
    return "\n".join([*lines, state["normalize"], f"models = [ {own}, {two}, {three} ]"])


def stack(state):
    slices = [
        f'[[merge.stack.slices]]\nlayers = [{first}, {last}]\nmodels = [ {{ model = "{model}"{state["scale"]} }} ]'
        for (first, last), model in zip(state["layers"], ("mix", state["top"], "mix"), strict=False)
    ]
    return "\n".join([*slices, '[merge.stack]\nmethod = "passthrough"'])


def spare(state):
    def entry(name):
        return f'{{ model = "{name}", weight = 0.5 }}'

    return f'[merge.{state["spare"]}]\nmethod = "linear"\nmodels = [ {entry("adapted")}, {entry("three")} ]'


def modelfile(state):
    """The Modelfile that a state describes."""
    tables = [*bases(), *adapters(), adapted(state), mix(state), stack(state)]
    tables += [spare(state)] if state["spare"] else []
    random.Random(state["order"]).shuffle(tables)
    head = "\n".join(["[settings]", state["dtype"], state["shard_size"], state["shards"]])
    return "\n\n".join([f"# order {state['order']}", head, *tables, state["fault"]])


def write_source(world, name, choice):
    options = SOURCES[name][choice]
    if name in ("ada", "bea"):
        world.lora(name, "one", **options)
    else:
        world.model(name, **SIZE, **options)


def mishap(world, what):
    """What may become of a cache and of outputs between two builds."""
    weights = sorted(world.cache.rglob("*.safetensors"))
    if what == "collected":
        store = open_store(str(world.cache))
        gc(store, max_size=0)
        store.close()
    elif what == "index gone":
        for path in world.cache.glob("*.sqlite*"):
            path.unlink()
    elif what == "output gone":
        shutil.rmtree(world.out, ignore_errors=True)
    elif what == "output edited":
        for path in world.out.rglob("config.json"):
            path.write_text("{}")
    elif what in ("damaged", "cut short"):
        for path in weights:
            path.chmod(0o644)
            data = path.read_bytes()
            path.write_bytes(data[:-1] if what == "cut short" else data[:-1] + bytes([data[-1] ^ 1]))


def outcome(world, targets):
    """The bytes of every target, or what the build that failed says. A stamp is believed as the command does."""
    try:
        if stamps.answer(words(world, targets)) is None:
            world.build(*targets)
    except ModelbuildError as error:
        return [(fault.message, fault.facts) for fault in error.faults]
    names = targets or [path.name for path in world.out.iterdir() if f".{path.name}]" in world.text]
    return {name: world.bytes(name) for name in names}


def words(world, targets):
    return ["-f", str(world.path), "build", *targets]


def law(world, edits):
    """Applies edits, (field, value) each, one after the other; AssertionError where a build breaks the law."""
    state = {field: choices[0] for field, choices in FIELDS.items()}
    for name in SOURCES:
        write_source(world, name, 0)
    for field, value in [("order", 0), *edits]:
        if field in SOURCES and state[field] != value:
            write_source(world, field, value)
        state[field] = value
        world.modelfile(modelfile(state))
        if field == "mishap":
            mishap(world, value)
        copy = world.copy()
        wanted = outcome(copy, state["targets"])
        shutil.rmtree(copy.root)
        assert isinstance(wanted, list) == bool(state["fault"]), wanted
        assert_same(outcome(world, state["targets"]), wanted)
        if not state["fault"]:
            assert stamps.answer(words(world, state["targets"])) is not None
            assert_same({name: world.bytes(name) for name in wanted}, wanted)


def assert_same(found, wanted):
    """Raises AssertionError naming the first file that differs; two failures are the same if they say the same."""
    if isinstance(wanted, list) or isinstance(found, list):
        assert found == wanted
        return
    for name, files in wanted.items():
        assert sorted(found[name]) == sorted(files), f"{name} differs from a build from nothing"
        for file, data in files.items():
            assert found[name][file] == data, f"{name}/{file} differs from a build from nothing"


edit = st.sampled_from(sorted(FIELDS)).flatmap(lambda field: st.tuples(st.just(field), st.sampled_from(FIELDS[field])))
examples = settings(
    max_examples=int(os.environ.get("LAW_EXAMPLES", "6")),
    deadline=None,
    database=None,
    derandomize="LAW_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


@examples
@given(st.lists(edit, min_size=5, max_size=12))
def test_an_incremental_build_equals_a_build_from_nothing(edits):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        root.mkdir()
        law(World(root), edits)


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "order"])
def test_every_value_of_a_field_and_back_again_equals_a_build_from_nothing(world, field):
    law(world, [(field, value) for value in [*FIELDS[field][1:], FIELDS[field][0]]])


# --- the negative control: the law catches a key that forgets something -----------------------------------------------


def forgetting_params(name):
    """`operation_node`, but two nodes that differ in the parameter `name` only have the same key."""

    def forgetful(operation, version, params, *rest, **options):
        made = node.operation_node(operation, version, params, *rest, **options)
        kept = tuple(pair for pair in params if pair[0] != name)
        return dataclasses.replace(made, key=node.operation_node(operation, version, kept, *rest, **options).key)

    return forgetful


def forgetting_inputs(operation, version, params, inputs, dtype, shape, numerics=None):
    """`operation_node`, but what the second input is does not matter."""
    made = node.operation_node(operation, version, params, inputs, dtype, shape, numerics)
    key = node.operation_node(operation, version, params, inputs[:1], dtype, shape, numerics).key
    return dataclasses.replace(made, key=key)


CONTROLS = {
    "t": (forgetting_params("t"), [("value", "0.5")]),
    "an input": (forgetting_inputs, [("two", 1)]),
    "t of some tensors": (forgetting_params("t"), [("value", "0.25"), ("value", "1.0"), ("value", VALUES[-1])]),
}


@pytest.mark.parametrize("forgotten", CONTROLS)
def test_a_key_that_forgets_something_breaks_the_law(world, monkeypatch, forgotten):
    forgetful, edits = CONTROLS[forgotten]
    law(world.copy(), edits)
    monkeypatch.setattr(merge, "operation_node", forgetful)
    with pytest.raises(AssertionError, match="differs from a build from nothing"):
        law(world, edits)


def test_a_source_key_that_forgets_the_file_breaks_the_law(world, monkeypatch):
    def forgetful(tensor):
        return dataclasses.replace(node.source_node(tensor), key=node.identity("source/1", tensor.name))

    law(world.copy(), [("one", 1)])
    monkeypatch.setattr(graph, "source_node", forgetful)
    with pytest.raises(AssertionError, match="differs from a build from nothing"):
        law(world, [("one", 1)])
