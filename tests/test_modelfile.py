"""What a right Modelfile means: every form of every key, as nouns."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbuild.errors import ModelfileError, UsageError, Where
from modelbuild.modelfile.check import not_built
from modelbuild.modelfile.parse import parse_text
from modelbuild.modelfile.spec import (
    Adapter,
    Base,
    Choice,
    Choices,
    Constant,
    Extract,
    Gradient,
    Points,
    Publish,
    Quantize,
    Settings,
)
from modelbuild.modelfile.template import TEMPLATE

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "Modelfile.example").read_text("utf-8")
BASES = '[base.a]\nsource = "models/a"\n[base.b]\nsource = "models/b"\n[adapter.l]\nsource = "lora"\n'


def parse(text, *overrides):
    return parse_text(BASES + text, "Modelfile", overrides)


def merge(body, *overrides):
    return parse("[merge.x]\n" + body, *overrides).artifacts["x"]


def weight(value, method="linear"):
    """The noun of a weight written so."""
    return (
        merge(f'method = "{method}"\nmodels = [ {{ model = "a", weight = {value} }} ]').models[0].parameters["weight"]
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", Constant(0.25)),
        ("1", Constant(1.0)),
        ("-0.0", Constant(0.0)),
        ("1e-3", Constant(0.001)),
        ("[1, 0.5]", Gradient((1.0, 0.5))),
        ("[2]", Gradient((2.0,))),
        ("{ points = [[0, 0.9], [24, 0]] }", Points(((0, 0.9), (24, 0.0)))),
        ('{ points = [[3, 1]], rest = 0.5, shape = "step" }', Points(((3, 1.0),), 0.5, "step")),
        ("[ { value = 1 } ]", Choices((Choice(None, Constant(1.0)),))),
        (
            '[ { match = "mlp", value = [1, 2] }, { match = "layers.3.*.q_proj", value = { points = [[0, 1]] } } ]',
            Choices((Choice("mlp", Gradient((1.0, 2.0))), Choice("layers.3.*.q_proj", Points(((0, 1.0),))))),
        ),
        (
            '[ { match = "mlp", value = [ { match = "up", value = 1 } ] }, { value = 0 } ]',
            Choices((Choice("mlp", Choices((Choice("up", Constant(1.0)),))), Choice(None, Constant(0.0)))),
        ),
    ],
)
def test_every_form_of_a_value(text, value):
    assert weight(text) == value


def test_one_and_one_point_zero_are_the_same_value():
    assert repr(weight("1")) == repr(weight("1.0"))
    assert repr(weight("-0.0")) == repr(weight("0"))


def test_booleans_stay_booleans_and_integers_integers():
    assert merge('method = "linear"\nweight = 1\nnormalize = false\nmodels = [{ model = "a" }]').parameters == {
        "weight": Constant(1.0),
        "normalize": Constant(False),
    }
    assert merge('method = "karcher"\nmax_iter = 5\nmodels = [{ model = "a" }]').parameters == {"max_iter": Constant(5)}


def test_choices_nest_sixteen_deep_and_no_deeper():
    def nested(depth):
        return "[ { value = " * depth + "1" + " } ]" * depth

    assert isinstance(weight(nested(16)), Choices)
    with pytest.raises(ModelfileError, match="nested deeper than 16"):
        weight(nested(17))


def test_a_config_nests_sixty_four_deep_and_no_deeper():
    def nested(depth):
        return f'method = "passthrough"\nmodels = [{{ model = "a" }}]\nconfig = {{ a = {"[" * depth}{"]" * depth} }}'

    assert merge(nested(60)).config
    with pytest.raises(ModelfileError, match="nested deeper than 64"):
        merge(nested(70))


def test_every_key_of_a_merge():
    found = merge(
        'method = "passthrough"\nmodels = [{ model = "a" }]\nbase = "b"\ndtype = "float16"\nseed = 7\n'
        'tokenizer = "a"\ntokens = { "<s>" = "a" }\npad_to_multiple_of = 64\nchat_template = "a"\n'
        'only = "mlp"\ncopy = ["norm", "embed"]\nconfig = { n = 1 }\ngeneration = { t = 0.5 }\n'
        'description = "words"\nkeep = false'
    )
    assert (found.method, found.base, found.dtype, found.seed) == ("passthrough", "b", "float16", 7)
    assert (found.tokenizer, found.tokens, found.pad_to_multiple_of) == ("a", {"<s>": "a"}, 64)
    assert (found.chat_template, found.only, found.copy) == ("a", ("mlp",), ("norm", "embed"))
    assert (found.config, found.generation) == ({"n": 1}, {"t": 0.5})
    assert (found.description, found.keep, found.parameters) == ("words", False, {})


def test_an_adapter_merge():
    found = merge('method = "lora"\nbase = "a"\nbase_precision = "nf4"\nadapters = [{ adapter = "l", weight = 0.25 }]')
    assert [(entry.name, entry.parameters) for entry in found.adapters] == [("l", {"weight": Constant(0.25)})]
    assert found.base_precision == "nf4"
    assert found.models == ()


def test_slices_with_parameters_on_every_level():
    found = merge(
        'method = "linear"\nweight = 1\nends = "b"\n[[merge.x.slices]]\nlayers = [0, 2]\nnormalize = false\n'
        'models = [{ model = "a", weight = 0.5 }, { model = "b", layers = [4, 6] }]\n'
        '[[merge.x.slices]]\nmodels = [{ model = "a", layers = [2, 3] }]\n'
    )
    first, second = found.slices
    assert (first.layers, first.parameters, first.path) == (
        (0, 2),
        {"normalize": Constant(False)},
        ("merge", "x", "slices", 0),
    )
    assert [(entry.name, entry.layers) for entry in first.models] == [("a", None), ("b", (4, 6))]
    assert first.models[0].parameters == {"weight": Constant(0.5)}
    assert (second.layers, second.models[0].layers) == (None, (2, 3))
    assert second.models[0].path == ("merge", "x", "slices", 1, "models", 0)
    assert (found.ends, found.parameters) == (("b", "b"), {"weight": Constant(1.0)})


def test_the_same_model_may_stand_in_several_slices():
    found = merge(
        'method = "passthrough"\nslices = [{ layers = [0, 2], models = [{ model = "a" }] },'
        ' { layers = [1, 3], models = [{ model = "a" }] }]'
    )
    assert [part.layers for part in found.slices] == [(0, 2), (1, 3)]


@pytest.mark.parametrize("place", ["input", "merge"])
def test_a_parameter_of_each_input_may_stand_on_the_merge(place):
    inner, outer = (", t = 0.5", "") if place == "input" else ("", "t = 0.5")
    found = merge(f'method = "lerp"\nbase = "a"\nmodels = [{{ model = "b"{inner} }}]\n{outer}')
    assert (found.models[0].parameters if place == "input" else found.parameters) == {"t": Constant(0.5)}


def test_a_word_of_the_table_wins_over_a_parameter_of_the_same_name():
    """`copy`, `only`, `seed` and the like are keys of the merge, whatever a method calls its parameters."""
    from modelbuild.methods.registry import methods
    from modelbuild.modelfile.keys import MERGE

    assert not [(m.name, p.name) for m in methods().values() for p in m.parameters if p.name in MERGE]


def test_sources_and_adapters():
    text = (
        '[base.h]\nsource = "hf:org/name@v1.0"\n[base.r]\nsource = "hf:org/name"\nrevision = "main"\n'
        f'sha256 = "{"a" * 64}"\n'
        '[adapter.f]\nsource = "hf:o/n"\nsubfolder = "checkpoint-100"\n'
        '[adapter.e]\nextract = { model = "a", base = "b", rank = 64 }\nkeep = true\n'
        '[adapter.c]\ncombine = [ { adapter = "f", weight = 2 }, { adapter = "e" } ]\nrank = 8\ndescription = "sum"\n'
    )
    found = parse(text).artifacts
    assert found["h"] == Base("h", "hf:org/name@v1.0")
    assert found["r"] == Base("r", "hf:org/name", "main", "a" * 64)
    assert found["f"] == Adapter("f", "hf:o/n", subfolder="checkpoint-100")
    assert found["e"] == Adapter("e", extract=Extract("a", "b", 64), keep=True)
    assert found["c"] == Adapter("c", combine=(("f", 2.0), ("e", 1.0)), rank=8, description="sum")


@pytest.mark.parametrize(
    "source", ["models/a", "./a:b", "C:/models/a", "C:\\\\models", "../elsewhere", "/abs", "a b", "é"]
)
def test_a_path_may_look_like_any_path(source):
    assert parse(f'[base.p]\nsource = "{source}"\n').artifacts["p"].source == source.replace("\\\\", "\\")


def test_quantize_publish_and_settings():
    spec = parse(
        '[settings]\ndtype = "float32"\nseed = 3\nshard_size = "1MiB"\nshards = "order"\ndefault = ["q"]\n'
        '[quantize.q]\nmodel = "a"\nformat = "bnb"\ntype = "nf4"\nskip = ["lm_head"]\ndouble_quant = true\n'
        '[publish.q]\nrepo = "me/q"\nprivate = true\nlicense = "mit"\nlanguage = ["en", "de"]\ntags = ["x"]\n'
        'notes = "n"\n'
    )
    assert spec.artifacts["q"] == Quantize("q", "a", "bnb", "nf4", ("lm_head",), {"double_quant": True})
    assert spec.publish["q"] == Publish("q", "me/q", True, "mit", ("en", "de"), ("x",), "n")
    assert spec.settings == Settings("float32", 3, 2**20, "order", ("q",))
    assert parse("").settings == Settings(None, 0, 5_000_000_000, None, ())


def test_a_spec_knows_where_its_keys_stand():
    spec = parse('[merge.x]\nmethod = "linear"\nmodels = [{ model = "a",\n  weight = 1 }]\n')
    assert spec.where_artifact("x") == Where("Modelfile", 7, 8)
    assert spec.where("merge", "x", "models", 0, "weight") == Where("Modelfile", 10, 3)
    assert spec.where("merge", "x", "dtype") == Where("Modelfile", 7, 8)
    assert spec.file == "Modelfile"


def test_artifacts_come_in_the_order_of_the_file():
    text = '[quantize.q]\nmodel = "m"\nformat = "gguf"\ntype = "Q8_0"\n[merge.m]\nmethod = "passthrough"\n'
    spec = parse_text(text + 'models = [{ model = "z" }]\n[base.z]\nsource = "z"\n', "Modelfile")
    assert list(spec.artifacts) == ["q", "m", "z"]
    assert spec.references("m") == ("z",)


TABLES = [
    table.strip() + "\n" for table in re.split(r"^(?=\[)", EXAMPLE.replace("modelfile = 1", ""), flags=re.MULTILINE)
]


@given(st.permutations(TABLES[1:]))
def test_the_order_of_tables_means_nothing(tables):
    first, again = parse_text(EXAMPLE, "Modelfile"), parse_text("\n".join(tables), "Modelfile")
    assert dict(first.artifacts) == dict(again.artifacts)
    assert dict(first.publish) == dict(again.publish)
    assert first.settings == again.settings


def test_comments_spaces_and_line_ends_mean_nothing():
    first = parse_text(EXAMPLE, "Modelfile")
    assert parse_text(EXAMPLE.replace("\n", "\r\n"), "Modelfile").artifacts == first.artifacts
    assert parse_text(EXAMPLE.replace("\n", "  # words\n"), "Modelfile").artifacts == first.artifacts
    assert parse_text(EXAMPLE.encode(), "Modelfile").artifacts == first.artifacts


@pytest.mark.parametrize("text", [EXAMPLE, TEMPLATE], ids=["Modelfile.example", "init"])
def test_what_we_give_to_start_from_is_right(text):
    spec = parse_text(text, "Modelfile")
    assert len(spec.artifacts) >= 5
    assert all(target in spec.artifacts for target in spec.settings.default)


def test_what_init_writes_is_built_by_this_version():
    spec = parse_text(TEMPLATE, "Modelfile")
    assert not_built(spec, spec.artifacts) == []


# --- what is known and not built -------------------------------------------------------------------------------------


def unbuilt(text, *names):
    spec = parse(text)
    return [fault.render() for fault in not_built(spec, names)]


@pytest.mark.parametrize(
    ("body", "what", "line"),
    [
        (
            'method = "moe"\nbase = "a"\ngate_mode = "random"\n'
            'models = [{ model = "a" }, { model = "b" }, { model = "c", shared = true }]\n[base.c]\nsource = "c"',
            "shared experts",
            11,
        ),
        ('method = "lora"\nbase = "a"\nadapters = [{ adapter = "l" }]\nbase_precision = "nf4"', "`base_precision`", 11),
    ],
)
def test_what_a_merge_needs_and_this_version_does_not_build(body, what, line):
    assert unbuilt(f"[merge.x]\n{body}\n", "x") == [
        f"error: `x` needs {what}, which this version does not build yet\n"
        f"  --> Modelfile:{line}:1\n   |  the Modelfile is right, and a later version builds it"
    ]


@pytest.mark.parametrize(
    "line", ['tokenizer = "union"', 'tokens = { x = "a" }', "pad_to_multiple_of = 8", 'chat_template = "auto"']
)
def test_choices_of_vocabulary_are_built(line):
    assert unbuilt(f'[merge.x]\nmethod = "passthrough"\nmodels = [{{ model = "a" }}]\n{line}\n', "x") == []


def test_what_other_artifacts_need_and_this_version_does_not_build():
    text = (
        '[base.h]\nsource = "hf:o/n"\n[adapter.e]\nextract = { model = "a", base = "b", rank = 4 }\n'
        '[adapter.c]\ncombine = [{ adapter = "l" }]\n[quantize.q]\nmodel = "a"\nformat = "gguf"\ntype = "Q8_0"\n'
    )
    told = [fault.splitlines()[0] for fault in unbuilt(text, "h", "e", "c", "q")]
    assert [line.split("`", 2)[2].removeprefix(" needs ").split(", which")[0] for line in told] == [
        "`extract`",
        "`combine`",
        "format `gguf`",
    ]


def test_only_the_artifacts_asked_for_are_looked_at():
    text = '[base.h]\nsource = "hf:o/n"\n[adapter.c]\ncombine = [{ adapter = "l" }]\n'
    text += '[merge.x]\nmethod = "passthrough"\nmodels = [{ model = "a" }]\n'
    text += 'tokenizer = "base"\n'
    assert unbuilt(text, "x", "a", "l", "h") == []
    assert len(unbuilt(text, "x", "c")) == 1


# --- `--set` ---------------------------------------------------------------------------------------------------------

LERP = 'method = "lerp"\nbase = "a"\nt = 0.1\nmodels = [{ model = "b" }]\n'


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("merge.x.t=0.4", Constant(0.4)),
        (" merge.x.t = 1 ", Constant(1.0)),
        ("merge.x.t=[0, 1]", Gradient((0.0, 1.0))),
        ("merge.x.t={ points = [[0, 1]] }", Points(((0, 1.0),))),
        ('merge."x".t=0.4', Constant(0.4)),
    ],
)
def test_set_changes_one_value(override, value):
    assert merge(LERP, override).parameters == {"t": value}


def test_set_reaches_lists_new_keys_and_new_tables():
    found = merge(LERP, "merge.x.models.0.t=0.7", "merge.x.keep=true", "merge.x.config.n=3", "merge.x.models.0.model=a")
    assert found.models[0].parameters == {"t": Constant(0.7)}
    assert (found.keep, found.config, found.models[0].name) == (True, {"n": 3}, "a")
    assert parse("", "settings.dtype=float16", "settings.default=[]").settings.dtype == "float16"
    assert parse("", "base.a.source=hf:org/name@v1").artifacts["a"].source == "hf:org/name@v1"
    assert parse("", "base.a.source=../models/a").artifacts["a"].source == "../models/a"


def test_the_last_of_two_settings_wins():
    assert merge(LERP, "merge.x.t=0.4", "merge.x.t=0.5").parameters == {"t": Constant(0.5)}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("merge.x.t", "`merge.x.t` is not PATH=VALUE"),
        ("=1", "`=1` is not PATH=VALUE"),
        ("merge..t=1", "`merge..t` is not a path"),
        ("a b=1", "`a b` is not a path"),
        ("a\nb=1", "`a\\nb` is not a path"),
        ("merge.x.t=", "`` is not a value"),
        ("merge.x.t=[1", "`[1` is not a value"),
        ("merge.x.t=1\ny = 2", "`1\\ny = 2` is not a value"),
        ("merge.x.t=two words", "`two words` is not a value"),
        ("merge.y.t=1", "there is no [merge.y] in the Modelfile"),
        ("merge.x.models.1.t=1", "`merge.x.models` has no entry `1`"),
        ("merge.x.models.one.t=1", "`merge.x.models` has no entry `one`"),
        ("merge.x.method.t=1", '`merge.x.method` is the string "lerp": nothing is inside it'),
        ("merge.x.q=1", "[merge.x] has no key `q`"),
        ("merge.x.t=half", '`t` is a finite number, not the string "half"'),
        ("settings.seed=-1", "`seed` is an integer from 0 to 9223372036854775807, not the number -1"),
        ("frob.x=1", "there is no kind `frob`"),
        ("merge.x.base=c", "there is no artifact `c`"),
        ("merge.x.models.0.model=x", "`x` is made from itself"),
    ],
)
def test_what_set_gets_wrong_is_told_at_the_option(override, told):
    with pytest.raises(UsageError) as caught:
        merge(LERP, override)
    (fault,) = caught.value.faults
    assert (fault.message, str(fault.where)) == (told, "--set " + override.replace("\n", "\\n"))


def test_a_misspelled_artifact_in_set_gets_the_nearest():
    with pytest.raises(UsageError) as caught:
        parse('[merge.chronolima]\nmethod = "passthrough"\nmodels = [{ model = "a" }]', "merge.chronolina.keep=true")
    assert caught.value.faults[0].hint == "did you mean `chronolima`?"


def test_two_cycles_are_two_faults_and_what_leads_into_one_is_none():
    def copy(name, *others):
        models = ", ".join(f'{{ model = "{other}", weight = 1 }}' for other in others)
        return f'[merge.{name}]\nmethod = "linear"\nmodels = [{models}]\n'

    with pytest.raises(ModelfileError) as caught:
        parse(
            copy("into", "p") + copy("p", "q") + copy("q", "p", "a") + copy("r", "s") + copy("s", "t") + copy("t", "r")
        )
    assert [fault.message.split(": ")[1] for fault in caught.value.faults] == [
        "`p` → `q` → `p`",
        "`r` → `s` → `t` → `r`",
    ]


def test_a_chain_of_ten_thousand_merges_is_no_recursion():
    chain = "".join(
        f'[merge.m{i}]\nmethod = "lerp"\nt = 0\nbase = "m{i - 1}"\nmodels = [{{ model = "a" }}]\n'
        for i in range(1, 10_000)
    )
    spec = parse('[base.m0]\nsource = "m"\n' + chain)
    assert spec.references("m9999") == ("m9998", "a")
