"""The recipe says what the Modelfile says, in one canonical order, without the folders of a machine."""

import json

import pytest

from modelbuild.artifact.recipe import artifact_data, closure, public_source, recipe, value_data
from modelbuild.modelfile.spec import (
    Adapter,
    Base,
    Choice,
    Choices,
    Constant,
    Extract,
    Gradient,
    Input,
    Merge,
    Points,
    Quantize,
    Settings,
    Slice,
    Spec,
)


def spec_of(*artifacts):
    return Spec("Modelfile", Settings(), {artifact.name: artifact for artifact in artifacts}, {}, {})


BASE = Base("base", "models/base")
TUNED = Base("tuned", "models/tuned")
LORA = Adapter("lora", source="adapters/lora")
FOLDED = Merge("folded", "lora", base="base", adapters=(Input("lora", (), None, {"weight": Constant(0.25)}),))
BLEND = Merge(
    "blend",
    "lerp",
    base="folded",
    models=(Input("tuned", (), None, {"t": Points(((0, 0.9), (24, 0.0)))}),),
    config={"max_position_embeddings": 4096},
)
WHOLE = spec_of(BLEND, TUNED, FOLDED, BASE, LORA, Base("other", "models/other"))


def test_the_closure_lists_what_a_thing_is_made_from_before_it():
    assert closure(WHOLE, "blend") == ("base", "lora", "folded", "tuned", "blend")
    assert closure(WHOLE, "base") == ("base",)


def test_the_closure_does_not_depend_on_the_order_of_tables():
    assert closure(spec_of(*reversed(WHOLE.artifacts.values())), "blend") == closure(WHOLE, "blend")


def test_a_shared_input_is_listed_once_and_before_both():
    top = Merge("top", "linear", models=(Input("folded", ()), Input("base", ()), Input("folded", ())))
    assert closure(spec_of(top, BASE, LORA, FOLDED), "top") == ("base", "lora", "folded", "top")


def test_a_long_chain_needs_no_stack():
    chain = [BASE, *(Merge(f"m{n}", "linear", models=(Input(f"m{n - 1}" if n else "base", ()),)) for n in range(5000))]
    assert len(closure(spec_of(*chain), "m4999")) == 5001


def test_the_recipe_speaks_the_words_of_the_modelfile():
    assert recipe(WHOLE, "blend") == [
        {"kind": "base", "name": "base", "source": "models/base"},
        {"kind": "adapter", "name": "lora", "source": "adapters/lora"},
        {
            "kind": "merge",
            "name": "folded",
            "method": "lora",
            "base": "base",
            "adapters": [{"adapter": "lora", "weight": 0.25}],
        },
        {"kind": "base", "name": "tuned", "source": "models/tuned"},
        {
            "kind": "merge",
            "name": "blend",
            "method": "lerp",
            "base": "folded",
            "models": [
                {"model": "tuned", "t": {"points": [[0, 0.9], [24, 0.0]], "rest": 0.0, "shape": "linear"}},
            ],
            "config": {"max_position_embeddings": 4096},
        },
    ]


def test_every_form_of_a_value_is_data():
    choices = Choices((Choice("mlp", Gradient((0.3, 0.1))), Choice(None, Constant(0))))
    assert value_data(choices) == [{"match": "mlp", "value": [0.3, 0.1]}, {"value": 0}]
    assert value_data(Constant(True)) is True
    assert value_data(Points(((1, 2.0),), 0.5, "step")) == {"points": [[1, 2.0]], "rest": 0.5, "shape": "step"}


def test_slices_keep_their_layers_and_parameters():
    parts = (
        Slice((), (Input("base", ()),), (0, 2)),
        Slice((), (Input("tuned", (), (1, 3), {"scale": Constant(0.5)}),), None, {"scale": Constant(2)}),
    )
    data = artifact_data(Merge("stack", "passthrough", slices=parts, ends=("base", "base")))
    assert data["slices"] == [
        {"layers": [0, 2], "models": [{"model": "base"}]},
        {"models": [{"model": "tuned", "layers": [1, 3], "scale": 0.5}], "scale": 2},
    ]
    assert data["ends"] == "base"
    assert artifact_data(Merge("stack", "passthrough", slices=parts, ends=("a", "b")))["ends"] == ["a", "b"]


def test_parameters_and_tables_are_sorted():
    one = Merge("m", "linear", parameters={"b": Constant(1), "a": Constant(2)}, config={"y": 1, "x": {"b": 1, "a": 2}})
    assert json.dumps(artifact_data(one)) == (
        '{"kind": "merge", "name": "m", "method": "linear", "a": 2, "b": 1, "config": {"x": {"a": 2, "b": 1}, "y": 1}}'
    )


def test_false_and_zero_are_said_and_defaults_are_not():
    data = artifact_data(Merge("m", "linear", seed=0, keep=False, only=("mlp",)))
    assert data == {"kind": "merge", "name": "m", "method": "linear", "seed": 0, "only": ["mlp"], "keep": False}


def test_made_adapters_and_quantised_models_are_data():
    extracted = Adapter("x", extract=Extract("tuned", "base", 64))
    assert artifact_data(extracted)["extract"] == {"model": "tuned", "base": "base", "rank": 64}
    combined = Adapter("c", combine=(("a", 0.5), ("b", 1)), rank=8)
    assert artifact_data(combined) == {
        "kind": "adapter",
        "name": "c",
        "combine": [{"adapter": "a", "weight": 0.5}, {"adapter": "b", "weight": 1}],
        "rank": 8,
    }
    small = Quantize("q", "m", "gguf", "Q4_K_M", ("lm_head",), {"double_quant": True})
    assert artifact_data(small) == {
        "kind": "quantize",
        "name": "q",
        "model": "m",
        "format": "gguf",
        "type": "Q4_K_M",
        "skip": ["lm_head"],
        "double_quant": True,
    }


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("models/base", "models/base"),
        ("../base", "../base"),
        ("hf:org/name@main", "hf:org/name@main"),
        ("/srv/someone/models/base/", "base"),
        ("~/models/base", "base"),
        ("C:\\models\\base", "base"),
        ("local:models/base", "local:models/base"),
        ("local:/srv/someone/base", "local:base"),
    ],
)
def test_a_source_is_shown_without_the_folders_of_this_machine(source, shown):
    assert public_source(source) == shown
    assert artifact_data(Base("b", source))["source"] == shown
