"""Merge methods from outside: what runs, whom it is said to come from, and that nothing runs that nobody trusts."""

import json

import numpy as np
import pico
import pytest
from plugin import Distribution, documented, source

from modelbuild.errors import UsageError
from modelbuild.methods.outside import Outside, normal
from modelbuild.methods.registry import methods
from modelbuild.options import Options

MODELFILE = """
    [base.red]
    source = "red"

    [base.blue]
    source = "blue"

    [merge.mix]
    method = "fox"
    base = "red"
    gain = 0.5
    models = [ { model = "blue" } ]
"""

TRUST = ("--plugins", "modelbuild-fox")


@pytest.fixture
def den(world):
    """Two models, and a Modelfile that merges them by a method of nobody's."""
    return world.model("red", seed=1).model("blue", seed=2).modelfile(MODELFILE)


@pytest.fixture
def fox(tmp_path):
    """Installs modelbuild-fox in a release, its method's source changed by pairs of texts, or another text."""

    def installed(*replaced, version="1.0.0", text=None, methods=None, name="modelbuild-fox", module="fox_methods"):
        folder = tmp_path / f"{name}-{version}-{len(list(tmp_path.iterdir()))}"
        offered = methods or {"fox": f"{module}:METHOD"}
        return Distribution(folder, name, version, offered, {module: text or source("fox", *replaced)})

    return installed


def both(*distributions):
    """The variables of a process in which several distributions are installed."""
    return {"PYTHONPATH": ":".join([*(str(d.folder) for d in distributions), distributions[0].env["PYTHONPATH"]])}


def failed(ran, code):
    """The text of a command that failed with an exit code, and told so without a traceback."""
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr


def built(ran):
    """What `build --json` printed."""
    assert ran.returncode == 0, ran.stderr
    (found,) = json.loads(ran.stdout)["artifacts"]
    return found


# --- building ---------------------------------------------------------------------------------------------------------


def test_on_the_way_to_another_merge_it_is_streamed_like_any_method(den, fox):
    den.modelfile(MODELFILE + '[merge.top]\nmethod = "lerp"\nbase = "mix"\nmodels = [ { model = "blue", t = 0.5 } ]\n')
    ran = den.run("build", "top", "--json", *TRUST, **fox().env)
    mix, top = json.loads(ran.stdout)["artifacts"]
    assert (mix["status"], mix["bytes"]["written"], top["status"]) == ("streamed", 0, "built")


def test_a_trusted_method_builds_and_is_told_wherever_versions_are(den, fox):
    found = built(den.run("build", "--json", *TRUST, **fox().env))
    assert (found["status"], found["tensors"]["computed"]) == ("built", found["tensors"]["total"])
    red, blue, mix = (pico.read_floats(path) for path in (den.root / "red", den.root / "blue", den.out / "mix"))
    for name, values in mix.items():
        middle = red[name] + np.float32(0.5) * (blue[name] - red[name])
        assert np.array_equal(values, pico.widen("BF16", pico.narrow("BF16", middle))), name
    told = json.loads((den.out / "mix" / "modelbuild.json").read_text())
    assert told["methods"] == {"fox": "modelbuild-fox 1.0.0, version 1"}
    assert (told["operations"], told["numerics"]) == ({"modelbuild-fox:fox": 1}, ["modelbuild-fox 1.0.0"])
    assert 'fox = "modelbuild-fox 1.0.0, version 1"\n' in den.path.with_suffix(".lock").read_text()


def test_the_card_says_what_computed_and_how_to_build_it_again(den, fox):
    den.modelfile(MODELFILE + '\n[merge.twice]\nmethod = "fox"\nbase = "red"\nmodels = [ { model = "mix" } ]\n')
    ran = den.run("build", "mix", "twice", *TRUST, **fox().env)
    assert ran.returncode == 0, ran.stderr
    cards = {name: (den.out / name / "README.md").read_text() for name in ("mix", "twice")}
    for name, card in cards.items():
        assert "- mix: fox of red, blue\n  computed by modelbuild-fox 1.0.0\n" in card
        assert " modelbuild-fox==1.0.0\n" in card
        assert f"\nmodelbuild build {name} --plugins modelbuild-fox\n" in card


def test_the_variable_trusts_as_the_option_does_however_the_name_is_spelled(den, fox):
    found = built(den.run("build", "--json", MODELBUILD_PLUGINS="other, Modelbuild_Fox", **fox().env))
    assert found["status"] == "built"


def test_an_identity_of_a_method_from_outside_computes_nothing(den, fox):
    den.edit("gain = 0.5", "gain = 0.0")
    assert built(den.run("build", "--json", *TRUST, **fox().env))["tensors"]["computed"] == 0


def test_another_release_computes_anew_and_why_names_both(den, fox):
    first = built(den.run("build", "--json", *TRUST, **fox().env))
    new = fox(version="1.1.0")
    why = den.run("why", "mix", *TRUST, **new.env)
    assert "numerics modelbuild-fox 1.0.0 → modelbuild-fox 1.1.0" in why.stdout
    again = built(den.run("build", "--json", *TRUST, **new.env))
    assert again["key"] != first["key"]
    assert again["tensors"]["computed"] == again["tensors"]["total"]
    back = built(den.run("build", "--json", *TRUST, **fox().env))
    assert (back["key"], back["tensors"]["computed"]) == (first["key"], 0)


def test_another_version_of_the_method_in_the_same_release_computes_anew(den, fox):
    first = built(den.run("build", "--json", *TRUST, **fox().env))
    new = fox(('"half way", "", 1', '"half way", "", 2'))
    assert "version of modelbuild-fox:fox 1 → 2" in den.run("why", "mix", *TRUST, **new.env).stdout
    assert built(den.run("build", "--json", *TRUST, **new.env))["key"] != first["key"]


def test_a_survey_from_outside_sees_the_inputs_before_it_computes(den, fox):
    text = source("fox", ("class Operation(Streamed):", SURVEY + "class Unused(Streamed):"))
    built(den.run("build", "--json", *TRUST, **fox(text=text).env))
    red, mix = pico.read_floats(den.root / "red"), pico.read_floats(den.out / "mix")
    for name, values in mix.items():
        assert np.all(values == np.abs(red[name]).max()), name


@pytest.mark.parametrize("stretches", [(), ((3, 5),), ((0, 2), (7, 8))])
def test_a_survey_from_outside_sees_the_stretches_that_it_names_and_no_others(den, fox, stretches):
    survey = SURVEY.replace("Pass(look)", f"Pass(look, {stretches})")
    built(
        den.run(
            "build", "--json", *TRUST, **fox(("class Operation(Streamed):", survey + "class Unused(Streamed):")).env
        )
    )
    red, mix = pico.read_floats(den.root / "red"), pico.read_floats(den.out / "mix")
    for name, values in mix.items():
        seen = [abs(value) for start, stop in stretches for value in red[name].reshape(-1)[start:stop]]
        assert np.all(values == max(seen, default=0)), name


SURVEY = """
class Operation(Streamed):
    def surveys(self, node):
        return True

    def prepare(self, node, whole):
        import numpy as np
        from modelbuild.kernels.convert import narrow, widen
        from modelbuild.methods.base import Pass

        most = [np.float32(0)]

        def look(start, stop, inputs, scratch):
            most[0] = max(most[0], np.abs(widen(inputs[0], node.inputs[0].dtype)).max())

        yield Pass(look)

        def kernel(start, stop, inputs, out, scratch):
            out[...] = narrow(np.full(out.shape, most[0]), node.dtype)

        return kernel

"""


def test_the_method_of_the_documentation_does_what_it_says(world, tmp_path):
    module, project = documented()
    about = project["project"]
    loudest = Distribution(
        tmp_path / "site",
        about["name"],
        about["version"],
        about["entry-points"]["modelbuild.methods"],
        {project["tool"]["setuptools"]["py-modules"][0]: module},
    )
    for number, name in enumerate(("base", "one", "two")):
        world.model(name, seed=number, dtype="float32")
    world.modelfile("""
        [base.base]
        source = "base"
        [base.one]
        source = "one"
        [base.two]
        source = "two"
        [merge.m]
        method = "loudest"
        base = "base"
        models = [ { model = "one" }, { model = "two" } ]
        lambda = 2.0
    """)
    refused = failed(world.run("build", **loudest.env), 2)
    built(world.run("build", "--json", "--plugins", about["name"], **loudest.env))
    base, one, two, m = (pico.read_floats(path) for path in (*map(world.root.joinpath, NAMES), world.out / "m"))
    for name, values in m.items():
        first, second = one[name] - base[name], two[name] - base[name]
        assert np.array_equal(values, base[name] + 2 * np.where(abs(second) > abs(first), second, first)), name
    hint = refused.partition("hint: ")[2].strip()
    assert hint in DOCUMENTED
    shown = world.run("methods", "loudest", "--plugins", about["name"], **loudest.env).stdout
    assert "lambda (number, of the merge, default 1.0): factor on the difference" in shown


NAMES = ("base", "one", "two")
DOCUMENTED = (
    "its code runs only if you trust it: `--plugins modelbuild-loudest`, or MODELBUILD_PLUGINS=modelbuild-loudest"
)


# --- trust ------------------------------------------------------------------------------------------------------------

TRAP = "import pathlib; pathlib.Path({!r}).touch()\n"


@pytest.mark.parametrize("words", [("build",), ("plan",), ("why", "mix"), ("lock",), ("verify", "mix"), ("methods",)])
def test_no_code_of_a_distribution_runs_that_nobody_trusts(den, fox, tmp_path, words):
    trap = tmp_path / "it-ran"
    installed = fox(text=TRAP.format(str(trap)) + source("fox"))
    ran = den.run(*words, **installed.env)
    assert not trap.exists()
    if words != ("methods",):
        assert failed(ran, 2) == NOT_TRUSTED
    den.run("methods", *TRUST, **installed.env)
    assert trap.exists()


NOT_TRUSTED = """\
error: there is no method `fox`
  --> Modelfile:9:10
   |  `modelbuild-fox` 1.0.0, which is installed, offers it

hint: its code runs only if you trust it: `--plugins modelbuild-fox`, or MODELBUILD_PLUGINS=modelbuild-fox
"""


def test_no_code_of_a_trusted_distribution_runs_that_no_merge_names(den, fox, tmp_path):
    trap = tmp_path / "it-ran"
    installed = fox(text=TRAP.format(str(trap)) + source("fox"))
    den.edit('method = "fox"', 'method = "lerp"').edit("gain = 0.5", "t = 0.5")
    assert built(den.run("build", "--json", *TRUST, **installed.env))["status"] == "built"
    assert not trap.exists()


def test_trusting_another_distribution_adds_to_it_in_the_hint(den, fox):
    told = failed(den.run("build", "--plugins", "owl", **fox().env), 2)
    assert "`--plugins` names `owl`, which is not installed" in told
    assert "`--plugins owl,modelbuild-fox`" in told


def test_a_method_that_nobody_offers_is_told_with_the_nearest(den, fox):
    den.edit('method = "fox"', 'method = "foxx"')
    told = failed(den.run("build", *TRUST, **fox().env), 2)
    assert "there is no method `foxx`" in told
    assert "hint: did you mean `fox`?" in told


def test_a_method_from_outside_cannot_take_the_place_of_one_of_ours(den, fox):
    den.edit('method = "fox"', 'method = "lerp"').edit("gain = 0.5", "t = 0.5")
    shadow = fox(methods={"lerp": "fox_methods:METHOD"})
    # Whoever trusts nobody is not kept from building by what is installed.
    assert built(den.run("build", "--json", **shadow.env))["status"] == "built"
    assert failed(den.run("plan", *TRUST, **shadow.env), 2) == SHADOWED


SHADOWED = """\
error: `lerp` cannot come from outside
   |  `modelbuild-fox` 1.0.0 declares it
   |  modelbuild has a method of this name

hint: leave `modelbuild-fox` out of `--plugins`; its method needs another name
"""


def test_two_distributions_that_offer_the_same_method_are_an_error(den, fox):
    env = both(fox(), fox(name="modelbuild-vixen", module="vixen_methods", version="2.0"))
    told = failed(den.run("build", "--plugins", "modelbuild-fox,modelbuild-vixen", **env), 2)
    assert "two distributions offer the method `fox`" in told
    assert "`modelbuild-vixen` 2.0 declares it" in told
    assert built(den.run("build", "--json", "--plugins", "modelbuild-vixen", **env))["status"] == "built"


def test_what_is_no_name_of_a_distribution_is_a_usage_error():
    with pytest.raises(UsageError, match="is not the name of a distribution"):
        Options(plugins="../x")
    assert Options(plugins=["B_b", "a..a", "b-B"]).trusted == ("a-a", "b-b")
    assert normal("B__b.c") == "b-b-c"


# --- what goes wrong in it --------------------------------------------------------------------------------------------


def told_of(*facts, what):
    return "\n".join(
        [
            f"error: method `fox` of `modelbuild-fox` 1.0.0 {what}",
            "  --> Modelfile:9:10",
            *(f"   |  {fact}" for fact in facts),
            "",
            "hint: `--debug` shows where; report it to those who made it\n",
        ]
    )


BROKEN = {
    "fails to import": ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    "leaves": ("raise SystemExit('no licence')\n", "SystemExit: no licence"),
    "has no METHOD": ("x = 1\n", "AttributeError: module 'fox_methods' has no attribute 'METHOD'"),
    "is no Method": (
        "METHOD = 3\n",
        "TypeError: fox_methods:METHOD is int, not a modelbuild.methods.base.Method",
    ),
    "is called otherwise": (
        source("hound"),
        "TypeError: its name is 'hound', and the entry point's is 'fox'",
    ),
    "has no step": (
        source("fox", ("step=step, ", "")),
        "TypeError: a method from outside needs a step and an operation, takes models, and makes no mixture",
    ),
    "makes a mixture": (
        source("fox", ("operation=Operation)", "operation=Operation, mixture=True)")),
        "TypeError: a method from outside needs a step and an operation, takes models, and makes no mixture",
    ),
    "has parameters of a type of its own": (
        source("fox", ('"merge", "number"', '"merge", "complex"')),
        "TypeError: its version is a whole number, and its parameters are those of modelbuild.methods.base",
    ),
}


@pytest.mark.parametrize(("text", "fact"), BROKEN.values(), ids=BROKEN)
def test_a_method_that_cannot_be_used_is_told_with_its_distribution(den, fox, text, fact):
    ran = den.run("build", *TRUST, **fox(text=text).env)
    assert failed(ran, 1) == told_of(fact, what="cannot be used")


LIBRARIES = {
    "raise": ("lambda parameters: parameters['seat']", "KeyError: 'seat'"),
    "are no names": ("lambda parameters: 'torch'", "TypeError: libraries gives no tuple of names"),
}


@pytest.mark.parametrize(("text", "fact"), LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("words", [("plan",), ("methods",)], ids=" ".join)
def test_libraries_that_cannot_be_said_are_told_with_the_distribution(den, fox, words, text, fact):
    env = fox(("operation=Operation)", f"operation=Operation, libraries={text})")).env
    told = failed(den.run(*words, *TRUST, **env), 1)
    assert told.startswith("error: method `fox` of `modelbuild-fox` 1.0.0 cannot say its libraries\n")
    assert f"   |  {fact}\n" in told


def test_debug_shows_where_a_method_failed(den, fox):
    ran = den.run("--debug", "build", *TRUST, **fox(text="1 / 0\n").env)
    assert "fox_methods.py" in ran.stderr
    assert "ZeroDivisionError" in ran.stderr


COMPUTE = 'return Compute((("gain", float(request.shared["gain"])),), (request.base, request.inputs[0]))'
STEPS = {
    "raises": ("raise ValueError('no such\\nluck')", "ValueError: no such luck"),
    "gives nothing": ("return None", "TypeError: step gives NoneType, not Take, Compute or Refuse"),
    "takes what is not there": ("return Take(7)", "ValueError: step takes input 7 of 1"),
    "makes nodes up": (
        "return Compute((), (request.base.__class__,))",
        "ValueError: step computes from tensors that it was not given",
    ),
    "has parameters without a key": (
        "return Compute((('x', {}),), (request.base,))",
        "TypeError: dict has no canonical encoding",
    ),
}


@pytest.mark.parametrize(("text", "fact"), STEPS.values(), ids=STEPS)
def test_a_step_that_fails_names_the_tensor(den, fox, text, fact):
    told = failed(den.run("plan", *TRUST, **fox((COMPUTE, text)).env), 1)
    assert "method `fox` of `modelbuild-fox` 1.0.0 failed at `" in told
    assert f"   |  {fact}\n" in told


KERNELS = {
    "prepare raises": ("        import numba\n", "        raise KeyError('seat')\n", "KeyError: 'seat'"),
    "kernel raises": (
        "            base, model = (",
        "            1 / 0\n            base, model = (",
        "ZeroDivisionError",
    ),
    "no kernel": ("        return kernel\n", "        return 3\n", "TypeError: prepare gives int, not a kernel"),
}


@pytest.mark.parametrize(("old", "new", "fact"), KERNELS.values(), ids=KERNELS)
def test_a_kernel_that_fails_leaves_no_output(den, fox, old, new, fact):
    told = failed(den.run("build", *TRUST, **fox((old, new)).env), 1)
    assert "method `fox` of `modelbuild-fox` 1.0.0 failed while computing" in told
    assert fact in told
    assert not (den.out / "mix").exists()


def test_a_parameter_that_a_merge_has_a_use_for_cannot_be_the_methods(den, fox):
    told = failed(den.run("plan", *TRUST, **fox(('Parameter("gain"', 'Parameter("tokenizer"')).env), 2)
    assert "declares a parameter that none can have" in told
    assert "`tokenizer` has a meaning of its own in a merge" in told


# --- the lock ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--locked", "--frozen"])
def test_a_locked_release_that_is_not_here_is_exit_3_and_named(den, fox, flag):
    installed = fox()
    built(den.run("build", "--json", *TRUST, **installed.env))
    assert den.run("build", flag, *TRUST, **installed.env).returncode == 0
    assert failed(den.run("build", flag, *TRUST), 3) == GONE
    told = failed(den.run("build", flag, *TRUST, **fox(version="1.1.0").env), 3)
    assert "modelbuild-fox 1.0.0, version 1" in told
    assert "modelbuild-fox 1.1.0, version 1" in told
    if flag == "--frozen":
        assert "install modelbuild-fox==1.0.0, which the lock names" in told
    # Here it is a matter of trust, not of the lock.
    assert failed(den.run("plan", flag, **installed.env), 2) == NOT_TRUSTED


GONE = """\
error: the lock has method `fox` of `modelbuild-fox` 1.0.0, which is not installed
  --> Modelfile.lock

hint: install modelbuild-fox==1.0.0, and trust it: `--plugins modelbuild-fox`
"""


def test_without_the_flags_the_lock_follows_the_release_that_is_here(den, fox):
    built(den.run("build", "--json", *TRUST, **fox().env))
    built(den.run("build", "--json", *TRUST, **fox(version="1.1.0").env))
    assert 'fox = "modelbuild-fox 1.1.0, version 1"' in den.path.with_suffix(".lock").read_text()


# --- listing ----------------------------------------------------------------------------------------------------------


def test_methods_lists_what_is_offered_and_by_whom(den, fox):
    env = fox().env
    assert (
        "(offered by modelbuild-fox 1.0.0, not trusted: `--plugins modelbuild-fox`)" in den.run("methods", **env).stdout
    )
    assert "half way (from modelbuild-fox 1.0.0)" in den.run("methods", *TRUST, **env).stdout
    found = {entry["name"]: entry for entry in json.loads(den.run("methods", "--json", *TRUST, **env).stdout)}
    assert found["fox"]["distribution"] == {"name": "modelbuild-fox", "version": "1.0.0", "trusted": True}
    assert found["lerp"]["distribution"] is None
    assert failed(den.run("methods", "fox", **env), 2).endswith(NOT_TRUSTED.rpartition("hint")[2])


def test_the_schema_knows_what_is_trusted(den, fox):
    env = fox().env
    with_fox = json.loads(den.run("schema", *TRUST, **env).stdout)
    without = json.loads(den.run("schema", **env).stdout)
    assert [
        schema["$defs"]["Merge"]["properties"]["method"]["enum"].count("fox") for schema in (with_fox, without)
    ] == [1, 0]
    assert "fox: how far to the model" in with_fox["$defs"]["Merge"]["properties"]["gain"]["description"]


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_nothing_of_packages_is_looked_up_where_nobody_is_trusted(violet):
    assert "importlib.metadata" not in violet.imports("plan")
    violet.build()
    assert "importlib.metadata" not in violet.imports("build")
    assert Outside().offers == {}
    assert Outside().method("lerp") is None
    assert methods()["lerp"].numerics is None


def test_a_build_with_nothing_to_do_runs_nothing_from_outside(den, fox):
    installed = fox()
    built(den.run("build", "--json", *TRUST, **installed.env))
    words = ["build", "--json", *TRUST]
    ran = den.run(*words, python=["-X", "importtime"], **installed.env)
    assert built(ran)["status"] == "fresh"
    assert "importlib.metadata" not in ran.stderr
    assert "fox_methods" not in ran.stderr
    # Trust is asked for again, and so is another release.
    assert failed(den.run("build", **installed.env), 2) == NOT_TRUSTED
    (installed.folder / "fox_methods.py").write_text(source("fox", ('"half way", "", 1', '"half way", "", 2')))
    assert built(den.run(*words, **installed.env))["tensors"]["computed"] > 0
