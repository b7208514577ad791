"""What cannot be quantised is refused in the plan, with the facts, before anything is written."""

import json
from importlib.metadata import PackageNotFoundError
from textwrap import dedent

import pico
import pytest
from quantizing import Quantizing, table

from modelbuild.errors import ModelbuildError
from modelbuild.formats import numerics


@pytest.fixture
def world(tmp_path):
    return Quantizing(tmp_path)


def refusal(world, code=1):
    """What the user reads of a build, which is what the plan says too; nothing may have been written."""
    texts = set()
    for way in (world.build, world.plan):
        with pytest.raises(ModelbuildError) as caught:
            way()
        assert caught.value.exit_code == code
        texts.add(caught.value.render().replace(f"{world.root}/", ""))
    assert not world.out.exists()
    assert not list(world.cache.glob("artifacts/*")) + list(world.cache.glob("stages/*"))
    (text,) = texts
    return text


def golden(text):
    return dedent(text).strip("\n")


def test_a_mixture_of_experts(world):
    world.small("base", "mixtral").write(table("q", "base"))
    assert refusal(world) == golden("""
        error: `q` cannot be made: `base` is a mixture of experts, which bitsandbytes and transformers leave in 16 bits or do not load
          --> Modelfile:4:1
           |  `model.layers.0.block_sparse_moe.gate.weight`, and 25 more

        hint: the other formats take experts, once they are built
    """)  # fmt: skip  # noqa: E501


def test_weights_that_do_not_divide_into_blocks(world):
    world.small("base", hidden=24, intermediate=36, layers=1).write(table("q", "base", "nf4"))
    assert refusal(world) == golden("""
        error: `q` cannot be made: `base` has weights that do not divide into blocks
          --> Modelfile:4:1
           |  `model.layers.0.mlp.gate_proj.weight` is [36, 24]
           |  `model.layers.0.mlp.up_proj.weight` is [36, 24]
           |  `model.layers.0.mlp.down_proj.weight` is [24, 36]
           |  a block is 64 weights

        hint: leave them alone: skip = [PATTERN]
    """)
    world.edit('type = "nf4"\n', 'type = "nf4"\nskip = ["mlp"]\n').build()
    world.edit('type = "nf4"\nskip = ["mlp"]\n', 'type = "int8"\n').build()


def test_a_model_that_is_quantised_already(world):
    world.small("base").write(table("q", "base")).build()
    (world.out / "q").rename(world.root / "small")
    again = world.age("small").copy()
    again.write(table("q", "small"))
    text = refusal(again)
    assert text.startswith("error: `q` cannot be made: `small` is quantised already\n")
    assert " |  its config.json says `quantization_config`: bitsandbytes\n" in text
    assert text.endswith("hint: name the model that it was made from")


def test_weights_that_are_not_floating(world):
    wrong = {"model.layers.0.mlp.up_proj.weight": ("I8", pico.np.zeros((128, 64), pico.np.int8))}
    world.small("base", extra=wrong).write(table("q", "base"))
    assert " |  `model.layers.0.mlp.up_proj.weight` is I8\n" in refusal(world)


def test_skipping_everything(world):
    world.small("base").write(table("q", "base", skip="_proj"))
    text = refusal(world)
    assert text.startswith("error: `q` cannot be made: `base` has nothing to quantise\n")
    assert "`skip` leaves all of its linear layers alone" in text


def test_a_model_without_a_config(world):
    world.small("base")
    (world.root / "base" / "config.json").unlink()
    world.modelfile('[base.base]\nsource = "base"\n' + table("q", "base"))
    assert "`base` has no config.json, which says how to load it" in refusal(world)


def test_a_layer_that_the_processor_cannot_run_is_noted_and_packed(world):
    world.small("base", kv_heads=1).write(table("q", "base", "nf4-dq"))
    (note,) = world.plan().notes
    assert note == (
        "q: `model.layers.0.self_attn.k_proj` has 16 outputs and 64 inputs, and 3 more are like it: on a processor with"
        " AVX-512, bitsandbytes runs only outputs in multiples of 32 and inputs in multiples of 64"
    )
    assert world.build()["q"].status == "built"


# --- what the Modelfile alone shows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "message"), [
    ('type = "nf5"', "format `bnb` has no type `nf5`"),
    ('type = "int8"\ndouble_quant = true', "`double_quant` has no meaning for `int8`"),
    ('type = "nf4"\nblock_size = 100', "`block_size` is one of 32, 64, 128, 256, 512, 1024, 2048, 4096, not 100"),
    ('type = "nf4"\nblock_size = 0', "`block_size` is an integer of at least 1, not the number 0"),
    ('type = "nf4"\ndouble_quant = 1', "`double_quant` is true or false, not the number 1"),
    ('type = "nf4"\nimatrix = "x"', "[quantize.q] has no key `imatrix`"),
])  # fmt: skip
def test_options_that_make_no_sense(world, line, message):
    world.small("base").write(f'[quantize.q]\nmodel = "base"\nformat = "bnb"\n{line}\n')
    assert refusal(world, code=2).startswith(f"error: {message}\n")


def test_an_adapter_is_no_model(world):
    world.small("base").lora("style", "base", seed=2).write(table("q", "style"))
    assert "`model` takes [base.NAME] or [merge.NAME]" in refusal(world, code=2)


def test_what_is_quantised_is_no_input(world):
    world.small("base").write(table("p", "base"), table("q", "p"))
    text = refusal(world, code=2)
    assert "use `base`, which it is made from" in text


@pytest.mark.parametrize("name", ["gguf", "compressed-tensors", "mlx"])
def test_other_formats_are_told_to_be_not_built_yet(world, name):
    kind = {"gguf": "Q8_0", "compressed-tensors": "fp8", "mlx": "4bit"}[name]
    text = table("q", "base").replace('"bnb"', json.dumps(name)).replace('"nf4"', json.dumps(kind))
    world.small("base").write(text)
    assert f"`q` needs format `{name}`, which this version does not build yet" in refusal(world)


# --- the library ------------------------------------------------------------------------------------------------------


def test_a_missing_library_is_told_in_the_plan_with_what_installs_it(world, monkeypatch):
    real = numerics.version
    monkeypatch.setattr(numerics, "version", lambda name: real("no-such-package" if name == "bitsandbytes" else name))
    world.small("base").write(table("q", "base"))
    assert refusal(world) == golden("""
        error: `q` needs bitsandbytes, which is not installed
          --> Modelfile:5:1
           |  format `bnb` is computed by it

        hint: pip install 'modelbuild[bnb]'
    """)


def test_what_needs_no_library_is_built_without_it(world, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    merge = '[merge.m]\nmethod = "passthrough"\nmodels = [{ model = "base" }]\n'
    world.small("base").write(merge, table("q", "base"))
    monkeypatch.setattr(numerics, "version", missing)
    with pytest.raises(ModelbuildError, match="needs bitsandbytes"):
        world.build("q")
    plain = world.copy()
    plain.write(merge)
    assert plain.build("m")["m"].status == "built"
