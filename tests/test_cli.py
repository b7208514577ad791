"""The command line: exit codes, texts of errors, data on stdout and all else on stderr, and never a traceback."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from faults import run, two_models
from tiny_cache import flip
from world import World

FAST = ("build", "--jobs", "1", "--durability", "none")


@pytest.fixture
def world(world):
    return two_models(world)


def ends(world, code, *words, env=None):
    """What a command says on stderr, after its exit code was checked; never a traceback, and stdout only if it is 0."""
    ran = run(world, *words, env=env)
    assert ran.code == code, (words, ran)
    assert "Traceback" not in ran.stderr + ran.stdout
    if code not in (0, 5):
        assert ran.stderr.split("\n\n")[-1].startswith(("error: ", "hint: ")) or "error: " in ran.stderr
        if "--json" not in words:
            assert ran.stdout == ""
    return ran.stderr


def prints(world, *words, env=None):
    """What a command that ends well prints on stdout; on stderr it says nothing."""
    ran = run(world, *words, env=env)
    assert (ran.code, ran.stderr) == (0, ""), (words, ran)
    return ran.stdout


# --- exit codes and texts ---------------------------------------------------------------------------------------------


def test_exit_0_with_one_line_for_each_artifact(world):
    text = prints(world, *FAST)
    pattern = (
        r"m: built → build/m \(21 computed of 21 tensors; 98\.9 kB read, 49\.5 kB written, \d\.\d s\)\n"
        r"  because built for the first time \(21 tensors\)\n"
    )
    assert re.fullmatch(pattern, text), text
    assert prints(world, "build") == "m: nothing to do (21 tensors, build/m)\n"


def test_exit_1_for_what_is_known_but_not_built_yet(world):
    world.edit("[merge.m]", '[quantize.m4]\nmodel = "m"\nformat = "gguf"\ntype = "Q4_K_M"\n[merge.m]')
    text = ends(world, 1, "build")
    assert text.startswith("error: `m4` needs format `gguf`, which this version does not build yet\n  --> Modelfile:")
    for command in ("push", "graph", "plot", "diff"):
        text = ends(world, 1, command, "m", "--whatever", "x")
        assert text == f"error: `modelbuild {command}` is not built yet\n"


def test_exit_1_for_what_only_the_inputs_show(world):
    world.model("b", seed=2, hidden=16)
    text = ends(world, 1, *FAST)
    assert text.startswith("error: ")
    assert "  --> Modelfile:" in text
    assert "`a`" in text
    assert "`b`" in text
    assert "32" in text
    assert "16" in text


def test_exit_2_for_what_the_modelfile_alone_shows_all_of_it_at_once(world):
    world.edit('"linear"', '"liner"').edit('source = "b"', 'sauce = "b"')
    text = ends(world, 2, "build")
    assert text.count("error: ") >= 2
    assert "  --> Modelfile:4:1" in text
    assert "did you mean `linear`?" in text
    assert not world.cache.exists()


def test_exit_2_for_words_that_make_no_sense(world):
    assert ends(world, 2, "build", "x") == "error: `x` is not in Modelfile\n   |  it can build `m`\n"
    assert ends(world, 2, "why", "x").startswith("error: `x` is not in Modelfile")
    assert ends(world, 2, "build", "mm").endswith("hint: did you mean `m`?\n")
    assert ends(world, 2, "build", "a").startswith("error: ")
    assert ends(world, 2, "biuld") == "error: no such command 'biuld'\n\nhint: did you mean `build`?\n"
    assert ends(world, 2, "build", "--no-such").startswith("error: no such option: --no-such")
    assert ends(world, 2) == "error: a command is missing\n\nhint: `modelbuild --help` lists them\n"
    assert ends(world, 2, "cache").startswith("error: a command is missing")
    assert ends(world, 2, "why") == "error: missing argument 'name'\n"
    assert ends(world, 2, "build", "--jobs", "0") == "error: `--jobs 0`: at least one thread is needed\n"
    assert ends(world, 2, "build", "--jobs", "many").startswith("error: invalid value for '--jobs'")
    assert ends(world, 2, "build", "--memory", "lots") == (
        "error: `--memory lots`: `lots` is not a size such as 5GB or 512MiB\n"
    )
    assert ends(world, 2, "build", "--link", "soft") == (
        "error: `--link soft` is not known\n\nhint: ref, hard or copy\n"
    )
    assert ends(world, 2, "build", "--durability", "some") == (
        "error: `--durability some` is not known\n\nhint: full, batch or none\n"
    )
    assert ends(world, 2, "cache", "gc", "--max-size", "x").startswith("error: `--max-size x`: ")
    for days in ("-1", "nan", "inf"):
        assert ends(world, 2, "cache", "gc", "--max-age", days).startswith("error: `--max-age ")
    assert ends(world, 2, "cache", "pin", "zz") == (
        "error: no artifact has a key that starts with `zz`\n\nhint: `modelbuild cache ls` lists them\n"
    )
    assert ends(world, 2, "methods", "lienar") == (
        "error: there is no method `lienar`\n\nhint: did you mean `linear`?\n"
    )
    assert ends(world, 2, "build", "--set", "merge.m.x=1").startswith("error: ")
    assert ends(world, 2, "build", "--set", "nonsense").startswith("error: ")


def test_options_of_the_whole_command_say_where_they_stand(world):
    text = "error: `-f` stands before the command\n\nhint: `modelbuild -f FILE COMMAND`\n"
    assert ends(world, 2, "plan", "--values", "m", "-f", "Modelfile") == text
    text = ends(world, 2, "plan", "--file", "Modelfile")
    assert text == "error: `--file` stands before the command\n\nhint: `modelbuild --file FILE COMMAND`\n"


@pytest.mark.parametrize("words", [("--debug", "clean"), ("clean", "--debug"), ("build", "x", "--debug")], ids=" ".join)
def test_debug_shows_where_wherever_it_stands(world, monkeypatch, words):
    monkeypatch.setattr("modelbuild.tidy.clean", lambda *given: 1 // 0)
    expected = "UsageError" if "build" in words else "ZeroDivisionError"
    text = run(world, *words).stderr
    assert "Traceback" in text
    assert expected in text.splitlines()[-1] or f"{expected}: " in text, text
    assert "NoSuchOption" not in text


@pytest.mark.parametrize("words", [("why", "mix.yml", "m"), ("verify", "mix.yml"), ("lock", "mix.YAML")])
def test_a_recipe_where_a_name_is_wanted_says_how_to_start_from_it(world, words):
    assert ends(world, 2, *words) == (
        f"error: `{words[1]}` is a file; `{words[0]}` takes names\n\n"
        f"hint: `modelbuild -f {words[1]} {words[0]}` starts from it\n"
    )


@pytest.mark.parametrize("name", ["Modelfile", "a/config.json"])
def test_inspect_says_of_a_file_without_weights_that_it_has_none(world, name):
    assert ends(world, 1, "inspect", name) == (
        f"error: `{os.path.basename(name)}` is no file of weights\n"
        "   |  weights are .safetensors files, or .bin, .pt or .pth files of torch.save\n"
    )
    (world.root / "bad.safetensors").write_bytes(b"not a header")
    assert "is not a safetensors file to rely on" in ends(world, 1, "inspect", "bad.safetensors")


def test_inspect_reads_weights_whatever_the_file_is_called(world):
    shutil.copy(world.root / "a" / "model.safetensors", world.root / "blob")
    assert prints(world, "inspect", "blob") == prints(world, "inspect", "a/model.safetensors")


def test_the_version_is_that_of_env(world):
    version = json.loads(prints(world, "env", "--json"))["modelbuild"]
    assert prints(world, "--version") == f"modelbuild {version}\n"


def test_parameters_are_shown_as_a_modelfile_writes_them(world):
    lines = prints(world, "methods", "dare_ties").splitlines()
    assert "  weight (number, of each of models, required): share of this model's difference from the base" in lines
    assert (
        "  density (number from 0 to 1, of each of models, default 1.0): share of the delta's elements that is kept"
    ) in lines
    shown = "  normalize (boolean, of the merge, default false): divide by the sum of the weights"
    assert f"{shown} of the models that agree" in lines
    assert shown in prints(world, "methods", "dare_linear").splitlines()
    (rescale,) = [line for line in lines if line.startswith("  rescale_by")]
    assert rescale.startswith('  rescale_by ("norm" or "density", of the merge, default "norm"): ')
    (prompt,) = [line for line in prints(world, "methods", "moe").splitlines() if line.startswith("  prompt ")]
    assert prompt.startswith("  prompt (strings, of each of models, optional): ")


def test_every_method_shows_its_parameters_without_a_word_of_python(world):
    for found in json.loads(prints(world, "methods", "--json")):
        text = prints(world, "methods", found["name"])
        assert not re.search(r"\b(None|True|False)\b", text), text
        for parameter in found["parameters"]:
            assert all(f'"{choice}"' in text for choice in parameter["choices"] if found["kind"] == "method"), text


def test_why_says_which_model_a_tensor_is_read_from(world):
    text = prints(world, "why", "m", "model.norm.weight")
    assert "  read model.norm.weight of `a` from model.safetensors (BF16 32)\n" in text
    assert "  read model.norm.weight of `b` from model.safetensors (BF16 32)\n" in text


@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
def test_streams_that_are_closed_are_no_reason_to_fail(world, closed):
    run(world, *FAST)
    ends_here = {"stdout": ">&-", "stderr": "2>&-", "both": ">&- 2>&-"}[closed]
    command = f'"{sys.executable}" -m modelbuild build {ends_here}'
    done = subprocess.run(["sh", "-c", command], cwd=world.root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_is_one_document_of_every_command_that_prints(world):
    assert json.loads(prints(world, "schema", "--json")) == json.loads(prints(world, "schema"))
    assert json.loads(prints(world, "cache", "dir", "--json")) == {"path": prints(world, "cache", "dir").strip()}
    assert json.loads(prints(world, "-f", "New", "init", "--json")) == {"modelfile": "New"}
    assert json.loads(prints(world, "clean", "--json")) == {"notes": []}
    run(world, *FAST)
    (key,) = [found["key"] for found in json.loads(prints(world, "cache", "ls", "--json"))]
    pinned = json.loads(prints(world, "cache", "pin", key, "--json"))
    assert pinned == {"notes": [f"{key[:12]} is pinned"]}


def test_exit_2_without_a_modelfile(world):
    world.path.unlink()
    hint = "hint: `modelbuild init` writes one to start from\n"
    for words in (("build",), ("plan",), ("why", "m"), ("lock",), ("clean",)):
        assert ends(world, 2, *words) == f"error: there is no file `Modelfile`\n\n{hint}"
    assert ends(world, 2, "-f", "Other", "build") == f"error: there is no file `Other`\n\n{hint}"


def test_exit_4_for_a_source_that_is_not_there(world):
    shutil.rmtree(world.root / "b")
    (world.root / "bb").mkdir()
    text = (
        "error: `b` is not there\n  --> Modelfile:4:1\n   |  the Modelfile's folder has no `b`\n\n"
        "hint: did you mean `bb`?\n"
    )
    for words in (("build",), ("plan",), ("why", "m"), ("lock",)):
        assert ends(world, 4, *words) == text
    assert ends(world, 4, "inspect", "nowhere").startswith("error: `nowhere` is no file, folder or built artifact\n")


def test_exit_5_where_the_cache_is_damaged_and_0_once_that_is_set_aside(world):
    run(world, *FAST)
    (path,) = world.cache.glob("artifacts/*/*.safetensors")
    assert prints(world, "cache", "verify") == "the cache is sound\n"
    flip(path, 3000, keep_time=True)
    ran = run(world, "cache", "verify")
    assert ran.code == 5
    assert "`m` in the cache was damaged" in ran.stdout
    ran = run(world, "cache", "verify", "--json")
    assert (ran.code, json.loads(ran.stdout)) == (0, {"problems": []})
    assert run(world, *FAST).code == 0
    assert world.bytes("m") == world.from_nothing().bytes("m")


def test_exit_6_at_the_first_tensor_that_would_have_to_be_computed(world):
    text = ends(world, 6, *FAST, "--require-cached")
    assert re.fullmatch(
        r"error: `model\.[\w.]+` of `m` is not in the cache\n   \|  it would have to be computed by linear\n\n"
        r"hint: `modelbuild why m model\.[\w.]+` says what changed\n", text,
    ), text  # fmt: skip
    assert not (world.out / "m").exists()
    assert run(world, *FAST).code == 0
    shutil.rmtree(world.out)
    assert run(world, *FAST, "--require-cached").code == 0
    assert world.bytes("m") == world.from_nothing().bytes("m")


# --- JSON on failure, and builds that go on ---------------------------------------------------------------------------

MANY = """
    [base.a]
    source = "a"
    [base.b]
    source = "b"
    [base.small]
    source = "small"
    [merge.first]
    method = "linear"
    models = [{ model = "a", weight = 0.5 }, { model = "b", weight = 0.5 }]
    [merge.broken]
    method = "linear"
    models = [{ model = "a", weight = 0.5 }, { model = "small", weight = 0.5 }]
    [merge.above]
    method = "linear"
    models = [{ model = "broken", weight = 0.5 }, { model = "b", weight = 0.5 }]
    [merge.last]
    method = "lerp"
    base = "a"
    t = 0.5
    models = [{ model = "b" }]
    """


def document(ran):
    """The JSON document on stdout, which is all that is there."""
    data = json.loads(ran.stdout)
    assert {"seconds", "artifacts"} <= data.keys()
    return data


@pytest.mark.parametrize(
    ("words", "code"),
    [(("build", "x"), 2), (("build", "--jobs", "0"), 2), (("build", "--nope"), 2), (("nope",), 2), (("plan", "x"), 2)],
)
def test_json_is_one_document_with_the_error_whatever_went_wrong(world, words, code):
    ran = run(world, *words, "--json")
    assert ran.code == code
    error = document(ran)["error"]
    assert error["exit_code"] == code
    assert error["text"] + "\n" == ran.stderr
    assert ran.stderr.startswith(f"error: {error['message']}")


def test_json_by_its_variable_is_the_same_also_for_errors(world):
    ran = run(world, "build", "x", env={"MODELBUILD_JSON": "1"})
    assert (ran.code, document(ran)["error"]["exit_code"]) == (2, 2)


def test_an_error_in_json_has_file_line_message_and_code(world):
    shutil.rmtree(world.root / "b")
    ran = run(world, "build", "--json")
    assert document(ran)["error"] == {
        "exit_code": 4, "file": "Modelfile", "line": 4, "message": "`b` is not there", "text": ran.stderr[:-1],
    }  # fmt: skip


def test_keep_going_builds_what_can_be_built_and_reports_the_rest(world):
    world.model("small", seed=3, hidden=16).modelfile(MANY)
    ran = run(world, *FAST, "first", "broken", "above", "last", "--keep-going", "--json")
    assert ran.code == 1
    data = document(ran)
    found = {artifact["name"]: artifact["status"] for artifact in data["artifacts"]}
    assert (found["first"], found["last"], found["broken"]) == ("built", "built", "failed")
    assert found["above"] in ("failed", "skipped")
    failed = next(artifact for artifact in data["artifacts"] if artifact["name"] == "broken")
    assert failed["error"]["exit_code"] == 1
    assert failed["error"]["file"] == "Modelfile"
    assert failed["path"] is None
    assert data["error"] == failed["error"]
    copy = world.copy()
    copy.build("first", "last")
    for name in ("first", "last"):
        assert world.bytes(name) == copy.bytes(name)
    assert not (world.out / "broken").exists()
    assert not (world.out / "above").exists()


def test_without_keep_going_the_first_failure_ends_the_build(world):
    world.model("small", seed=3, hidden=16).modelfile(MANY)
    ran = run(world, *FAST, "first", "broken", "--json")
    assert (ran.code, document(ran)["error"]["exit_code"]) == (1, 1)


def test_keep_going_tells_each_failure_on_stderr(world):
    world.model("small", seed=3, hidden=16).modelfile(MANY)
    ran = run(world, *FAST, "first", "broken", "last", "--keep-going")
    assert ran.code == 1
    assert "`broken`" in ran.stderr or "small" in ran.stderr
    assert "Traceback" not in ran.stderr


# --- stdout, stderr, colours ------------------------------------------------------------------------------------------


def test_warnings_and_notes_go_to_stderr_and_data_to_stdout(world):
    def spoil(raw):
        raw.reshape(-1)[0] = 0x7FC0
        return raw

    world.tensor("b", "model.norm.weight", spoil)
    ran = run(world, *FAST, "--json")
    document(ran)
    assert "warning: m: NaN or infinite values in `model.norm.weight` (1)" in ran.stderr
    ran = run(world, "build", "--no-cache")
    assert ran.stdout.startswith("m: ")
    assert "warning" not in ran.stdout


@pytest.mark.parametrize("words", [("build",), ("plan",), ("cache", "ls"), ("env",), ("methods",), ("build", "x")])
def test_without_a_terminal_there_is_no_escape_code(world, words):
    ran = run(world, *words, env={"FORCE_COLOR": "", "TERM": "xterm-256color"})
    assert "\x1b" not in ran.stdout + ran.stderr


IMPATIENT = """
from modelbuild.report import terminal
terminal.PATIENCE_SECONDS = {patience}
from modelbuild.__main__ import command
import os, sys
if "rich" in sys.modules:
    sys.exit("rich was imported before there was anything to draw")
os._exit = lambda code: sys.exit(code + 77 * ({patience} > 0 and "rich" in sys.modules))
command()
"""
"""A process that waits so many seconds before it draws the bar of a step."""


def on_a_terminal(world, *words, patience=-1.0, **env):
    """What a command writes on stderr when that is a terminal."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", IMPATIENT.format(patience=patience), *words]
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color"}
    done = subprocess.run(command, cwd=world.root, env=environment | env, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 65536):
            text += chunk
    except OSError:
        pass
    os.close(ours)
    assert done.returncode == 0, text
    return text.decode(), done.stdout.decode()


def test_no_color_is_obeyed_on_a_terminal(world):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]|\x1b\[[0-9;]*9[0-7]m")
    told, printed = on_a_terminal(world, "build", "--no-cache")
    assert "\x1b" in told
    assert "\x1b" not in printed
    told, printed = on_a_terminal(world, "build", "--no-cache", NO_COLOR="1")
    assert not colour.search(told)
    assert "\x1b" not in printed


def test_a_step_that_is_soon_over_draws_no_bar_and_loads_nothing_to_draw_one_with(world):
    told, printed = on_a_terminal(world, "build", "--no-cache", patience=1e9)
    assert "\x1b" not in told + printed
    assert printed.startswith("m: built")


def test_a_reader_that_goes_away_is_no_traceback(world):
    command = f"{sys.executable} -m modelbuild methods | head -n 1; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], cwd=world.root, capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr
    assert len(ran.stdout.splitlines()) == 1


# --- options and variables --------------------------------------------------------------------------------------------


def commands():
    """Every command and subcommand, by its words."""
    from typer.main import get_command

    from modelbuild.cli import app

    def walk(command, words):
        yield words, command
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk(sub, (*words, name))

    return dict(walk(get_command(app), ()))


def test_every_option_has_its_variable_named_after_it():
    seen = set()
    for words, command in commands().items():
        for option in command.params:
            if option.param_type_name != "option" or option.name in ("help", "version"):
                continue
            long = max(option.opts, key=len)
            expected = f"MODELBUILD_{long.removeprefix('--').replace('-', '_').upper()}"
            assert option.envvar == expected, (words, long)
            assert option.help, (words, long)
            seen.add(long)
    assert {"--file", "--cache", "--out", "--json", "--jobs", "--memory", "--link", "--no-cache", "--set"} <= seen


def test_every_command_of_the_contract_is_there_and_has_help(world):
    expected = {
        "init", "build", "plan", "why", "lock", "verify", "push", "import", "graph", "plot", "inspect", "diff",
        "methods", "schema", "env", "clean", "cache",
    }  # fmt: skip
    found = commands()
    assert {words[0] for words in found if words} == expected
    assert {words[1] for words in found if len(words) == 2} == {"dir", "size", "ls", "gc", "verify", "pin"}
    for words in found:
        assert "Usage: " in run(world, *words, "--help").stdout


@pytest.mark.parametrize(
    ("words", "variable", "value"),
    [
        (("-f", "Other", "build"), "MODELBUILD_FILE", "Other"),
        (("build", "--out", "there"), "MODELBUILD_OUT", "there"),
        (("build", "--cache", "that"), "MODELBUILD_CACHE", "that"),
        (("build", "--link", "copy"), "MODELBUILD_LINK", "copy"),
        (("build", "--set", "merge.m.normalize=false"), "MODELBUILD_SET", "merge.m.normalize=false"),
    ],
)
def test_a_variable_does_what_its_option_does(world, words, variable, value):
    def outcome(place, *given, env=None):
        assert run(place, *given, env=env).code == 0
        seen = {}
        for path in place.root.rglob("*"):
            if path.name in ("modelbuild.json", "Modelfile", "model.safetensors", "CACHEDIR.TAG"):
                links = path.stat().st_nlink if path.name == "model.safetensors" else 0
                seen[str(path.relative_to(place.root))] = (path.read_bytes(), links)
        return seen

    shutil.copy(world.path, world.root / "Other")
    other = world.copy()
    bare = tuple(word for word in words if word == "build")
    assert outcome(world, *words) == outcome(other, *bare, env={variable: value})


def test_debug_shows_the_traceback_by_flag_and_by_variable(world):
    assert "Traceback" in run(world, "--debug", "build", "x").stderr
    assert "Traceback" in run(world, "build", "x", env={"MODELBUILD_DEBUG": "1"}).stderr
    assert "Traceback" not in run(world, "build", "x", env={"MODELBUILD_DEBUG": "0"}).stderr


def test_what_nobody_foresaw_is_one_error_with_a_hint_and_no_traceback(world, monkeypatch):
    monkeypatch.setattr("modelbuild.tidy.clean", lambda *given: 1 // 0)
    assert ends(world, 1, "clean") == (
        "error: modelbuild went wrong\n   |  ZeroDivisionError: integer division or modulo by zero\n\n"
        "hint: `--debug` shows where; please report it\n"
    )


# --- odd places -------------------------------------------------------------------------------------------------------


def test_a_cache_that_is_a_file_is_exit_2(world):
    (world.root / "cache").write_text("in the way")
    for words in (("build",), ("plan",), ("cache", "ls"), ("cache", "gc"), ("why", "m")):
        text = ends(world, 2, *words)
        assert text.startswith(f"error: {world.root}/cache cannot be the cache: a file stands in the way\n")
        assert text.endswith("hint: choose another folder with --cache DIR\n")
    assert (world.root / "cache").read_text() == "in the way"


def test_an_output_folder_that_is_a_file_is_one_error(world):
    world.out.write_text("in the way")
    text = ends(world, 1, *FAST)
    assert str(world.out) in text
    assert world.out.read_text() == "in the way"
    world.out.unlink()
    assert run(world, *FAST).code == 0


NOBODY = 65534


@pytest.fixture
def open_world(tmp_path):
    """A world that everybody may read, and the folders `free` and `out` that nobody in particular owns."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and "pytest" in str(folder):
            os.chmod(folder, 0o755)
    world = two_models(World(tmp_path / "world"))
    for name in ("free", "out"):
        (world.root / name).mkdir()
        if os.geteuid() == 0:
            os.chown(world.root / name, NOBODY, NOBODY)
    return world


def as_nobody(world, *words):
    """Runs a command as a user who is not root."""
    ran = run(world, *words, user=NOBODY if os.geteuid() == 0 else None)
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def test_a_cache_that_may_not_be_written_is_exit_2(open_world):
    os.chmod(open_world.root, 0o555)
    ran = as_nobody(open_world, *FAST, "--out", "out")
    os.chmod(open_world.root, 0o755)
    assert ran.code == 2, ran.stderr
    assert ran.stderr == (
        f"error: {open_world.cache} cannot be the cache: it cannot be written: Permission denied\n"
        f"   |  {open_world.cache}\n\nhint: choose another folder with --cache DIR\n"
    )


def test_an_output_folder_that_may_not_be_written_is_one_error(open_world):
    open_world.out.mkdir()
    os.chmod(open_world.out, 0o555)
    if os.geteuid() == 0:
        os.chown(open_world.root, NOBODY, NOBODY)
    ran = as_nobody(open_world, *FAST, "--cache", "free")
    os.chmod(open_world.out, 0o755)
    assert ran.code == 1
    assert ran.stderr.startswith("error: ")
    assert "Permission denied" in ran.stderr
    assert str(open_world.out) in ran.stderr


def test_a_lock_that_may_not_be_written_is_one_error_before_anything_is_computed(open_world):
    os.chmod(open_world.root, 0o555)
    ran = as_nobody(open_world, *FAST, "--cache", "free", "--out", "out")
    os.chmod(open_world.root, 0o755)
    assert ran.code == 1
    assert ran.stderr == ("error: the lock could not be written\n   |  `Modelfile.lock`: Permission denied\n")
    assert not (open_world.root / "out" / "m").exists()
    assert not list((open_world.root / "free").glob("artifacts/*"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_source_that_may_not_be_read_is_exit_4(open_world, name):
    os.chmod(open_world.root / "b" / name, 0)
    ran = as_nobody(open_world, *FAST, "--cache", "free", "--out", "out")
    assert ran.code == 4, ran.stderr
    assert f"b/{name}" in ran.stderr
    assert "Permission denied" in ran.stderr


def test_a_modelfile_that_may_not_be_read_is_exit_2(open_world):
    os.chmod(open_world.path, 0)
    ran = as_nobody(open_world, *FAST)
    assert (ran.code, ran.stderr) == (2, "error: `Modelfile` cannot be read: Permission denied\n")


def test_a_modelfile_that_is_a_folder_or_no_text_is_exit_2(world):
    world.path.rename(world.root / "Other")
    world.path.mkdir()
    assert ends(world, 2, "build") == "error: `Modelfile` is a folder, not a Modelfile\n"
    world.path.rmdir()
    for data in (b"", b"\x00", b"\xff\xfe[\x00", bytes(range(256)), b"[" * 10_000, "[merge.ä]".encode(), b"[merge."):
        world.path.write_bytes(data)
        for words in (("build",), ("plan",), ("lock",), ("clean",)):
            ran = run(world, *words)
            assert ran.code in ((0, 2) if data == b"" else (2,)), (data[:10], words, ran)
            assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", ""])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "socket", "empty"])
def test_a_source_that_is_no_file_is_one_error(world, name, kind):
    import socket

    path = world.root / "b" / name if name else world.root / "b"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    server = None
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        old = os.getcwd()
        os.chdir(path.parent)
        try:
            server.bind(path.name)
        finally:
            os.chdir(old)
    else:
        path.write_bytes(b"")
    ran = run(world, *FAST)
    if server is not None:
        server.close()
    assert "Traceback" not in ran.stderr
    if name != "tokenizer.json":
        assert ran.code in (1, 4), ran
        assert "b" in ran.stderr.splitlines()[0]
    else:
        # The tokenizer is the donor's, and b is not the donor.
        assert ran.code in (0, 1, 4), ran


def test_names_of_files_and_folders_may_be_any_text(world):
    for name in ("é ß", "模型", "a'b\"c", "x\ty", "-f", "😀"):
        place = World(world.root.parent / f"place {name}")
        two_models(place)
        os.rename(place.root / "a", place.root / name)
        quoted = json.dumps(name, ensure_ascii=False)
        place.edit('source = "a"', f"source = {quoted}")
        assert run(place, *FAST).code == 0, name
        assert run(place, *FAST, "--json").code == 0
        assert run(place, "plan").code == 0
        os.rename(place.root / name, place.root / "gone")
        assert "Traceback" not in ends(place, 4, *FAST)


def test_a_folder_whose_name_is_no_unicode_is_no_traceback(world):
    root = os.fsencode(world.root) + b"-\xff\xfe"
    shutil.copytree(os.fsencode(world.root), root)
    place = World(os.fsdecode(root))
    for words in (FAST, (*FAST, "--json"), ("plan",), ("cache", "dir"), ("why", "m"), ("build", "x"), ("lock",)):
        ran = run(place, *words)
        assert "Traceback" not in ran.stderr, (words, ran.stderr)
        assert ran.code in (0, 1, 2), (words, ran)


def test_an_encoding_of_the_terminal_that_knows_ascii_only_is_no_traceback(world):
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    for words in (("build",), ("plan",), ("methods",), ("methods", "linear"), ("env",), ("build", "ä")):
        ran = world.run(*words, **env)
        assert "Traceback" not in ran.stderr, (words, ran.stderr)
        assert ran.returncode in (0, 2)


# --- the other commands -----------------------------------------------------------------------------------------------


def test_init_writes_a_modelfile_that_says_what_it_needs_and_builds_once_that_is_there(tmp_path):
    world = World(tmp_path)
    assert prints(world, "init") == "wrote Modelfile\n"
    text = ends(world, 4, "build")
    assert "error: `models/first` is not there" in text or "error: `models/second` is not there" in text
    assert "Modelfile:" in text
    assert "the Modelfile's folder has no `models`" in text
    assert "did you mean" not in text
    world.model("models/first", seed=1, layers=14, hidden=8).model("models/second", seed=2, layers=14, hidden=8)
    world.lora("models/style", "models/first", seed=3)
    assert prints(world, "build").startswith("styled: streamed")
    assert (world.out / "blend" / "model.safetensors").exists()
    assert ends(world, 2, "init") == "error: Modelfile is there already\n\nhint: it is left as it is\n"
    assert prints(world, "-f", "Other", "init") == "wrote Other\n"
    assert ends(world, 2, "-f", "no/such/Modelfile", "init").startswith("error: no/such/Modelfile cannot be written")


def test_lock_is_written_and_then_left_alone(world):
    path = world.root / "Modelfile.lock"
    assert prints(world, "lock") == "Modelfile.lock: 2 sources, written\n"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert prints(world, "lock") == "Modelfile.lock: 2 sources, nothing changed\n"
    assert run(world, *FAST).code == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    path.write_text("garbage")
    assert ends(world, 3, "lock").startswith("error: the lock is damaged\n  --> Modelfile.lock:1:")
    assert path.read_text() == "garbage"


def test_clean_removes_what_the_file_no_longer_names_and_nothing_else(world):
    world.modelfile(world.text.replace("merge.m", "merge.old"))
    run(world, *FAST)
    world.modelfile(world.text.replace("merge.old", "merge.m"))
    run(world, *FAST)
    (world.out / "mine").mkdir()
    (world.out / "file").write_text("mine")
    (world.out / "link").symlink_to(world.root / "a")
    old = os.path.join("build", "old")
    assert prints(world, "clean", "--dry-run") == f"would remove {world.root}/{old}\n"
    assert (world.out / "old").exists()
    assert prints(world, "clean") == f"removed {world.root}/{old}\n"
    assert sorted(os.listdir(world.out)) == ["file", "link", "m", "mine"]
    assert prints(world, "clean") == ""
    assert run(world, *FAST, "--require-cached").code == 0


def test_clean_leaves_alone_what_somebody_edited(world):
    world.modelfile(world.text.replace("merge.m", "merge.old"))
    run(world, *FAST)
    world.modelfile(world.text.replace("merge.old", "merge.m"))
    (world.out / "old" / "README.md").write_text("mine")
    assert prints(world, "clean") == f"{world.out}/old is left alone: README.md was edited or added\n"
    assert (world.out / "old" / "README.md").read_text() == "mine"


def test_cache_tells_where_it_is_how_large_and_what_is_in_it(world):
    assert prints(world, "cache", "dir") == f"{world.cache}\n"
    assert prints(world, "cache", "dir", env={"MODELBUILD_CACHE": "/nowhere/x"}) == "/nowhere/x\n"
    assert prints(world, "cache", "ls") == "the cache is empty\n"
    run(world, *FAST)
    (entry,) = json.loads(prints(world, "cache", "ls", "--json"))
    assert (entry["name"], entry["complete"], entry["pinned"]) == ("m", True, False)
    assert entry["needed_by"] == [str(world.path)]
    assert json.loads(prints(world, "cache", "size", "--json")) == {"bytes": entry["bytes"]}
    text = prints(world, "cache", "ls")
    assert text.startswith(entry["key"][:12])
    assert f"[needed by {world.path}]" in text


def test_cache_gc_says_what_it_removes_and_keeps_what_is_pinned_or_needed(world):
    for weight in ("0.5", "0.6", "0.7"):
        world.modelfile(re.sub(r'"a", weight = 0\.\d', f'"a", weight = {weight}', world.text))
        assert run(world, *FAST).code == 0
    entries = json.loads(prints(world, "cache", "ls", "--json"))
    assert len(entries) == 3
    pinned = entries[0]["key"]
    assert prints(world, "cache", "pin", pinned[:8]) == f"{pinned[:12]} is pinned\n"
    dry = json.loads(prints(world, "cache", "gc", "--max-size", "0", "--dry-run", "--json"))
    assert [entry["key"] for entry in dry["removed"]] == [entries[1]["key"]]
    assert len(json.loads(prints(world, "cache", "ls", "--json"))) == 3
    text = prints(world, "cache", "gc", "--max-size", "0")
    assert text.startswith(f"removed {entries[1]['key'][:12]}")
    assert "the last builds need" in text
    assert "are pinned" in text
    assert prints(world, "cache", "pin", pinned, "--off") == f"{pinned[:12]} is no longer pinned\n"
    after = json.loads(prints(world, "cache", "gc", "--max-age", "0", "--json"))
    assert [entry["key"] for entry in after["removed"]] == [pinned]
    assert after["bytes"]["after"] < after["bytes"]["before"]
    assert world.bytes("m") == world.from_nothing().bytes("m")


def test_inspect_shows_the_tensors_of_a_source_a_file_and_a_built_artifact(world):
    run(world, *FAST)
    data = json.loads(prints(world, "inspect", "m", "--json"))
    assert len(data["tensors"]) == 21
    embeddings = next(tensor for tensor in data["tensors"] if "embed_tokens" in tensor["name"])
    assert (embeddings["dtype"], embeddings["shape"], embeddings["bytes"]) == ("BF16", [64, 32], 4096)
    assert json.loads(prints(world, "inspect", "a", "--json"))["bytes"] == data["bytes"]
    assert prints(world, "inspect", "a/model.safetensors").endswith("21 tensors, 49.5 kB\n")
    assert "no safetensors files" in ends(world, 4, "inspect", "cache")
    (world.root / "bad.safetensors").write_bytes(b"\xff" * 100)
    assert "bad.safetensors" in ends(world, 1, "inspect", "bad.safetensors")


def test_methods_schema_and_env_print_data(world):
    methods = json.loads(prints(world, "methods", "--json"))
    assert {"linear", "lerp", "lora", "ties"} <= {method["name"] for method in methods}
    (linear,) = json.loads(prints(world, "methods", "linear", "--json"))
    assert {parameter["name"] for parameter in linear["parameters"]} >= {"weight", "normalize"}
    assert prints(world, "methods", "linear").startswith("linear: ")
    assert "not built yet" in prints(world, "methods", "gguf")
    assert "  density (number from 0 to 1, of the merge, optional): " in prints(world, "methods", "tsv")
    assert "  lambda (number, of the merge, default 1.0): " in prints(world, "methods", "tsv")
    schema = json.loads(prints(world, "schema"))
    assert {"base", "adapter", "merge", "quantize", "publish", "settings"} <= schema["properties"].keys()
    facts = json.loads(prints(world, "env", "--json"))
    assert facts["python"].startswith("3.")
    assert str(world.root) not in json.dumps(facts)


def test_plan_and_why_end_well_before_and_after_a_build(world):
    for _ in range(2):
        assert "m" in prints(world, "plan")
        planned = json.loads(prints(world, "plan", "--json"))
        assert planned["artifacts"][0]["name"] == "m"
        assert json.loads(prints(world, "why", "m", "--json"))["name"] == "m"
        assert "linear" in prints(world, "why", "m", "model.norm.weight")
        assert "did you mean `model.norm.weight`?" in ends(world, 2, "why", "m", "model.norm.wait")
        run(world, *FAST)
    assert not list((world.cache / "stage").iterdir())
