"""Plain words are read without the library for command lines, and come to what that library makes of them."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild import plain
from modelbuild.errors import UsageError
from modelbuild.flags import BEFORE, COMMANDS, FLAGS
from modelbuild.options import Options

# --- both readers agree -----------------------------------------------------------------------------------------------


def by_the_library(arguments, environ):
    """What the full command line comes to: command, options, names and `--json`, or the error that it raises."""
    from modelbuild import cli

    told = []
    with pytest.MonkeyPatch.context() as patch:
        for name in [flag.variable for flag in FLAGS.values()]:
            patch.delenv(name, raising=False)
        for name, value in environ.items():
            patch.setenv(name, value)
        for command in COMMANDS:
            patch.setattr(plain, command, lambda *found, command=command: told.append((command, *found)))
        try:
            cli.app(list(arguments), standalone_mode=False)
        except Exception as error:
            return type(error)
    return told[0] if told else None


def by_the_table(arguments, environ):
    """The same from the plain reader; None where it leaves the words to the library."""
    told = []
    words = plain.read(arguments, environ)
    if words is None:
        return None
    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS:
            patch.setattr(plain, command, lambda *found, command=command: told.append((command, *found)))
        try:
            plain.do(words)
        except UsageError as error:
            return type(error)
    return told[0]


def listed(found):
    return found if found is None or isinstance(found, type) else (*found[:2], tuple(found[2]), found[3])


TEXTS = [
    "",
    "x",
    "build",
    "512MB",
    "hard",
    "batch",
    "a b",
    "merge.m.t=0.5",
    "-",
    "--",
    "-x",
    "é",
    "3",
    "0",
    "007",
    "1_0",
]
TEXTS += ["007", "1_0", "\u0663", " 4", "4.0", "many", "Modelfile", "=", "--json"]
OPTIONS = [word for flag in FLAGS.values() for word in flag.words]
WORDS = st.one_of(
    st.sampled_from(["build", "plan", "why", "lock", "--help", "-j4", "--jobs=4", "--no-such", "--cach", "-fX"]),
    st.sampled_from(OPTIONS),
    st.sampled_from(TEXTS),
)
GIVEN = st.sampled_from([flag for flag in FLAGS.values() if flag.name != "debug"]).flatmap(
    lambda flag: (
        st.just([flag.words[-1]])
        if flag.kind == "switch"
        else st.sampled_from(["2", "hard", "512MB", "none", "x"]).map(lambda value: [flag.words[0], value])
    )
)
LINES = st.one_of(
    st.lists(WORDS, max_size=6),
    st.tuples(
        st.sampled_from([[], ["-f", "Other"], ["--file", "a b"], ["--debug"]]),
        st.sampled_from([["build"], ["plan"]]),
        st.lists(st.one_of(GIVEN, st.sampled_from(TEXTS).map(lambda text: [text])), max_size=5),
    ).map(lambda parts: [*parts[0], *parts[1], *(word for given in parts[2] for word in given)]),
)
ENVIRONS = st.dictionaries(
    st.sampled_from([flag.variable for flag in FLAGS.values()]),
    st.sampled_from(["", "1", "0", "TRUE", "off", "x", "a b", "2", "batch", "512MB", "maybe"]),
    max_size=2,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LINES, ENVIRONS)
def test_what_the_plain_reader_takes_it_reads_as_the_library_does(arguments, environ):
    found = by_the_table(arguments, environ)
    if found is not None:
        assert listed(found) == listed(by_the_library(arguments, environ))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_the_table_is_read_and_is_one_of_the_commands(command):
    for name in COMMANDS[command]:
        flag = FLAGS[name]
        value = {"switch": [], "number": ["3"], "list": ["merge.m.t=1"], "text": ["hard"]}[flag.kind]
        value = {"memory": ["2GB"], "durability": ["none"]}.get(name, value)
        for word in flag.words:
            line = [command, "x", word, *value, "y"]
            found = by_the_table(line, {})
            assert found is not None, line
            assert listed(found) == listed(by_the_library(line, {}))
            assert found[2] == ("x", "y")


def test_the_library_knows_no_option_of_the_commands_that_the_table_does_not():
    import typer.main

    from modelbuild.cli import app

    main = typer.main.get_command(app)
    for known, command in ((BEFORE, main), *((COMMANDS[name], main.commands[name]) for name in COMMANDS)):
        words = {word for option in command.params for word in option.opts if word.startswith("-")} - {
            "--help",
            "--version",
        }
        assert words == {word for name in known for word in FLAGS[name].words}


def test_variables_stand_in_for_options_and_options_win():
    read = lambda *words, **env: plain.read(words, {f"MODELBUILD_{name}": value for name, value in env.items()})  # noqa: E731
    assert read("build", JOBS="3", CACHE="c").given == {"jobs": 3, "cache": "c"}
    assert read("build", "--jobs", "1", JOBS="3").given == {"jobs": 1}
    assert read("build", FILE="F", JSON="yes").given == {"modelfile": "F", "as_json": True}
    assert read("build", NO_CACHE="off", OUT="").given == {"no_cache": False}
    assert read("build", SET="a=1") is None
    assert read("build", NO_CACHE="maybe") is None
    assert read("build", SOMETHING_ELSE="1") is None, "an option that only the library knows"


@pytest.mark.parametrize(
    "line",
    [
        "", "build --help", "--help", "build -j4", "build --jobs=4", "build --jobs", "build --cache -x", "build --",
        "why m", "lock", "--json build", "build -f x", "cache dir", "biuld", "build --jobs many", "plan --jobs 2",
        "--version",
    ],
)  # fmt: skip
def test_words_that_are_not_plain_are_left_to_the_library(line):
    assert plain.read(line.split(), {}) is None


def test_options_that_are_repeated_add_up_or_the_last_one_counts():
    words = plain.read(["build", "--set", "a=1", "--out", "x", "--set", "b=2", "--out", "y"], {})
    assert words.given == {"overrides": ("a=1", "b=2"), "out": "y"}
    assert Options(**words.given).overrides == ("a=1", "b=2")


# --- what that saves --------------------------------------------------------------------------------------------------

LIBRARIES = {"typer", "click", "rich", "pydantic"}


@pytest.mark.parametrize("words", ["plan", "build", "build --no-cache --json", "plan --set merge.violet.t=0.5 violet"])
def test_a_plain_build_or_plan_imports_no_library_for_command_lines_or_schemas(violet, words):
    violet.from_nothing()  # compiles the kernels, once for each machine
    found = {name.partition(".")[0] for name in violet.imports(*words.split())}
    assert found & (LIBRARIES | {"numba", "torch"}) == set()


def test_a_plan_imports_neither_numpy_nor_what_only_a_build_uses(violet):
    found = violet.imports("plan")
    assert {name.partition(".")[0] for name in found} & {*LIBRARIES, "numpy", "llvmlite", "difflib", "secrets"} == set()
    assert not {"modelbuild.engine.run", "modelbuild.engine.make", "modelbuild.build", "modelbuild.cli"} & found


def test_a_build_whose_kernels_are_there_imports_no_readers_of_packages(violet):
    violet.run("build")
    found = violet.imports("build", "--no-cache")
    assert "modelbuild.kernels.diskcache" in found, "something was computed"
    assert not {"importlib.metadata", "email", "csv", "secrets", "pkgutil", "fractions"} & found


def test_errors_of_a_plain_command_are_those_of_the_full_one(violet):
    for words, code in (("build nothing", 2), ("build --memory lots", 2), ("-f None plan", 2)):
        quick, full = violet.run(*words.split()), through_the_library(violet, words.split())
        assert (quick.returncode, quick.stdout, quick.stderr) == (full.returncode, full.stdout, full.stderr)
        assert quick.returncode == code
        assert quick.stderr.startswith("error: ")
        as_data = violet.run(*words.split(), "--json")
        assert as_data.returncode == code
        assert as_data.stdout.startswith("{")


def through_the_library(world, words):
    program = f"import sys; sys.argv[1:] = {words!r}; from modelbuild.cli import run; run()"
    return subprocess.run([sys.executable, "-c", program], cwd=world.root, capture_output=True, text=True, check=False)


def test_an_interrupt_of_a_plain_command_is_told_and_ends_with_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plain, "plan", interrupted)
    with pytest.raises(SystemExit) as ended:
        plain.run(["plan"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_what_goes_wrong_unforeseen_is_a_sentence_and_a_traceback_only_with_debug(monkeypatch, capsys):
    def broken(*_):
        raise LookupError("xyzzy")

    monkeypatch.setattr(plain, "plan", broken)
    for name in [flag.variable for flag in FLAGS.values()]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        plain.run(["plan"])
    assert ended.value.code == 1
    assert "LookupError: xyzzy" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["modelbuild", "--debug", "plan"])
    with pytest.raises(LookupError):
        plain.run(["--debug", "plan"])
