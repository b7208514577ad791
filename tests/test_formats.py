"""The registry of formats, what they declare, what `methods` shows of them, and the numerics class of a library."""

import json
from pathlib import Path

import pytest

import modelbuild.formats
from modelbuild.formats import numerics
from modelbuild.formats.announced import ANNOUNCED
from modelbuild.formats.base import LATE, Model, Unfit
from modelbuild.formats.bnb import FORMAT, plan, quantization_config, state_json
from modelbuild.formats.registry import formats, packer
from modelbuild.modelfile.schema import json_schema
from modelbuild.report.methods import method_data, show_methods

# --- the registry -----------------------------------------------------------------------------------------------------


def test_formats_that_are_built_have_a_file_of_their_own_name():
    folder = Path(modelbuild.formats.__file__).parent
    built = {found.name for found in formats().values() if found.built}
    assert built == {"bnb"}
    assert all((folder / f"{name}.py").is_file() for name in built)
    assert not [found.name for found in ANNOUNCED if (folder / f"{found.name}.py").exists() or found.built]


def test_a_format_is_found_by_its_name():
    assert list(formats()) == ["bnb", "compressed-tensors", "gguf", "mlx"]
    assert formats()["bnb"] is FORMAT
    with pytest.raises(KeyError):
        packer("gguf")


def test_every_format_says_what_it_is_and_its_defaults_are_among_its_choices():
    for found in formats().values():
        assert found.summary
        assert found.types
        for option in found.options:
            assert option.help
            assert not option.choices or option.default in option.choices
            assert set(option.types) <= set(found.types)
        assert found.built == bool(found.libraries and found.extra and found.version and found.packer)


def test_the_schema_knows_the_choices_of_an_option():
    entry = json_schema()["$defs"]["Quantize"]["properties"]["block_size"]
    choices = next(part["enum"] for part in [entry, *entry.get("anyOf", ())] if "enum" in part)
    assert choices == [32, 64, 128, 256, 512, 1024, 2048, 4096]


def test_methods_lists_formats_too_and_shows_one_in_full():
    listed = method_data(None)
    assert {found["name"] for found in listed if found["kind"] == "format"} == set(formats())
    assert {found["kind"] for found in listed} == {"method", "format"}
    assert "\nbnb " in show_methods(listed)
    assert "gguf                (not built yet)" not in show_methods(listed)
    (bnb,) = method_data("bnb")
    assert json.loads(json.dumps(bnb)) == bnb
    assert show_methods([bnb]) == (
        "bnb: bitsandbytes, loaded by transformers\n"
        "types: nf4, fp4, int8\n"
        "computed by bitsandbytes, torch: pip install 'modelbuild[bnb]'\n"
        "  double_quant (boolean, for nf4, fp4, default false): quantise the scales too\n"
        "  block_size (integer, for nf4, fp4, default 64): weights that share one scale"
    )
    assert "not built yet" in show_methods(method_data("gguf"))


# --- what bnb plans ---------------------------------------------------------------------------------------------------


def model(kind="nf4", shape=(128, 64), dtype="BF16", **options):
    return Model("m", {"a.weight": (dtype, shape)}, {"model_type": "x"}, kind, options, lambda name: False)


def outputs(**options):
    return {output.name: output for output in plan(model(**options)).packed["a.weight"].outputs}


def test_the_outputs_of_a_weight_are_known_before_it_is_packed():
    found = outputs(kind="nf4")
    assert {name: (o.dtype, o.shape) for name, o in found.items()} == {
        "weight": ("U8", (4096, 1)),
        "weight.absmax": ("F32", (128,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (79,)),
    }
    assert not [output for output in found.values() if output.late]


def test_with_double_quant_one_output_is_small_and_late():
    found = outputs(kind="fp4", double_quant=True, block_size=32)
    assert found["weight.absmax"] == outputs(kind="fp4", double_quant=True, block_size=32)["weight.absmax"]
    assert (found["weight.absmax"].dtype, found["weight.absmax"].shape) == ("U8", (256,))
    assert found["weight.nested_absmax"].shape == (1,)
    late = [output for output in found.values() if output.late]
    assert [output.name for output in late] == ["weight.quant_state.bitsandbytes__fp4"]
    assert late[0].shape[0] <= LATE


def test_int8_has_a_scale_for_each_row():
    found = outputs(kind="int8")
    assert {name: (o.dtype, o.shape) for name, o in found.items()} == {
        "weight": ("I8", (128, 64)), "SCB": ("F32", (128,)), "weight_format": ("U8", ()),
    }  # fmt: skip


def test_parameters_that_have_no_meaning_for_a_type_are_no_part_of_its_key():
    assert dict(plan(model("int8")).packed["a.weight"].params) == {"type": "int8", "transposed": False}
    assert dict(plan(model("nf4")).packed["a.weight"].params) == {
        "type": "nf4", "double_quant": False, "block_size": 64, "transposed": False,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "shape"), [("nf4", (3, 5)), ("fp4", (0, 64)), ("int8", (0, 64)), ("int8", (64, 0))])
def test_shapes_that_do_not_divide_are_refused(kind, shape):
    with pytest.raises(Unfit, match="do not divide into blocks"):
        plan(model(kind, shape))


def test_the_config_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    for kind, doubled, skip in (("nf4", True, None), ("fp4", False, ["lm_head", "x"]), ("int8", False, None)):
        four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": doubled}
        settings = four if kind != "int8" else {"load_in_8bit": True}
        theirs = transformers.BitsAndBytesConfig(**settings, llm_int8_skip_modules=skip).to_dict()
        assert quantization_config(kind, doubled, skip) == json.loads(json.dumps(theirs, default=lambda v: v.value))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_state_is_foretold_byte_for_byte(dtype):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    given = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    for kind, shape, block in (("nf4", (6, 64), 64), ("fp4", (100, 1280), 128)):
        _, state = functional.quantize_4bit(torch.ones(shape, dtype=given), blocksize=block, quant_type=kind)
        packed = state.as_dict(packed=True)[f"quant_state.bitsandbytes__{kind}"]
        assert bytes(packed.tolist()) == state_json(kind, block, dtype, shape)


# --- numerics ---------------------------------------------------------------------------------------------------------


def test_a_class_names_libraries_processor_and_threads():
    found = numerics.numerics_class(("numpy", "pytest")).split(", ")
    assert [part.split()[0] for part in found] == ["numpy", "pytest", numerics.processor_family().split()[0], "1"]
    assert found[-1] == "1 thread"
    assert found[1] == f"pytest {pytest.__version__}"


def test_how_a_library_was_built_is_no_part_of_its_version(monkeypatch):
    monkeypatch.setattr(numerics, "version", lambda name: "2.13.0+cpu")
    assert numerics.library_version("torch") == "2.13.0"


def test_a_library_that_is_not_there_is_named():
    with pytest.raises(numerics.MissingLibrary) as caught:
        numerics.numerics_class(("numpy", "no-such-library"))
    assert caught.value.name == "no-such-library"
    assert numerics.library_places(["no_such_library"]) == []


def test_the_family_is_what_torch_makes_of_the_processor():
    torch = pytest.importorskip("torch")
    family = numerics.processor_family()
    level = {"DEFAULT": "SSE"}.get(torch.backends.cpu.get_cpu_capability(), torch.backends.cpu.get_cpu_capability())
    assert family in (f"x86-64 {level}", "arm64")


@pytest.mark.parametrize(("flags", "chosen", "level"), [
    ({"sse2"}, "", "SSE"),
    ({"avx2", "fma"}, "", "AVX2"),
    ({"avx2", "fma", "avx512f"}, "", "AVX2"),
    ({"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}, "", "AVX512"),
    ({"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}, "avx2", "AVX2"),
    ({"avx2", "fma"}, "default", "DEFAULT"),
])  # fmt: skip
def test_the_vectors_that_torch_uses_are_part_of_the_class(monkeypatch, flags, chosen, level):
    monkeypatch.setattr(numerics.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(numerics, "_flags", lambda: flags)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", chosen)
    assert numerics.processor_family.__wrapped__() == f"x86-64 {level}"


def test_other_machines_are_known_by_their_name(monkeypatch):
    for machine, told in (("aarch64", "arm64"), ("arm64", "arm64"), ("riscv64", "riscv64")):
        monkeypatch.setattr(numerics.platform, "machine", lambda machine=machine: machine)
        assert numerics.processor_family.__wrapped__() == told
