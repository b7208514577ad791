"""The lock and its flags on the command line: what is held to it, what is written into it, and when nothing is."""

import importlib
import json
import os
import re
import shutil
import time

import pytest
from faults import Process, run, two_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import World

import modelbuild
from modelbuild import __version__, stamps
from modelbuild.cache.store import open_store
from modelbuild.errors import BuildFailed, LockOutOfDate, UsageError, VerificationFailed
from modelbuild.locking import lock_with
from modelbuild.options import Options
from modelbuild.report.terminal import Listener
from modelbuild.sources.lock import render
from modelbuild.sources.lockfile import read

BUILDING = importlib.import_module("modelbuild.build")
"""The module; as an attribute of the package, `build` is the function."""

FAST = ("build", "--durability", "none")
HINT = "hint: `modelbuild lock` brings it up to date\n"
NO_LOCK = "error: there is no lock\n  --> Modelfile.lock\n   |  `--{}` needs one\n\nhint: `modelbuild lock` writes it\n"


@pytest.fixture
def world(world):
    return two_models(world)


@pytest.fixture
def built(world):
    """The two models, and `m` built of them with its lock."""
    assert run(world, *FAST).code == 0
    return world


def path(world):
    return world.root / "Modelfile.lock"


def text(world):
    return path(world).read_text()


def held(world):
    return read(path(world))


def edit_lock(world, old, new, count=1):
    assert text(world).count(old) >= 1
    path(world).write_text(text(world).replace(old, new, count))


def facts(world):
    """What tells that a lock was not written again."""
    status = os.stat(path(world))
    return text(world), status.st_mtime_ns, status.st_ino


def fails(world, code, *words, env=None):
    """What a command says on stderr that ends with this code; the lock and the outputs are as before."""
    before = made(world)
    ran = run(world, *words, env=env)
    assert ran.code == code, (words, ran)
    assert "Traceback" not in ran.stderr
    assert made(world) == before
    return ran.stderr


def made(world):
    """The text of the lock, None if there is none, and what lies in the output folder."""
    return text(world) if path(world).exists() else None, sorted(world.out.rglob("*"))


# --- lock -------------------------------------------------------------------------------------------------------------


def test_lock_as_data(world):
    first = json.loads(run(world, "lock", "--json").stdout)
    assert (first["path"], first["written"], first["changes"]) == ("Modelfile.lock", True, [])
    (a, b) = first["sources"]
    assert (a["name"], a["origin"], a["commit"]) == ("a", "local:a", None)
    assert (b["files"], b["bytes"]) == (6, sum(file.size for file in held(world).sources["b"].files))
    assert json.loads(run(world, "lock", "--json").stdout) == first | {"written": False}
    world.model("b", seed=9)
    changes = json.loads(run(world, "lock", "--json").stdout)["changes"]
    assert [re.sub(r"[0-9a-f]{12}", "…", change) for change in changes] == [
        "source `b`: `model.safetensors` changed, … → …"
    ]


@pytest.mark.parametrize("words", [(), ("--update",), ("--update", "b"), ("--update", "b", "a"), ("a", "--update")])
def test_what_is_local_is_locked_as_it_is_with_and_without_update(built, words):
    built.model("b", seed=9)
    assert run(built, "lock", *words).stdout.startswith("Modelfile.lock: 2 sources, written\n  source `b`: `model.s")
    assert run(built, "build", "--locked").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--update", "aa"),
            "error: `aa` is not in Modelfile\n   |  its sources are `a`, `b`\n\nhint: did you mean `a`?\n",
        ),
        (("--update", "xyz"), "error: `xyz` is not in Modelfile\n   |  its sources are `a`, `b`\n"),
        (("--update", "m"), "error: `m` is not a source: there is nothing to lock\n  --> Modelfile:5:8\n"),
        (("a",), "error: all sources are locked together\n\nhint: `--update a` looks up that one anew\n"),
        (
            ("--set", "merge.m.normalize=false"),
            "error: a lock is of the Modelfile as it is\n\nhint: leave out `--set`\n",
        ),
    ],
)
def test_lock_with_words_that_make_no_sense_is_exit_2_and_writes_nothing(world, words, told):
    assert fails(world, 2, "lock", *words) == told
    assert not path(world).exists()


def test_update_is_a_variable_too(built):
    assert run(built, "lock", env={"MODELBUILD_UPDATE": "1"}).stdout == "Modelfile.lock: 2 sources, nothing changed\n"
    assert fails(built, 2, "lock", "m", env={"MODELBUILD_UPDATE": "1"}).startswith("error: `m` is not a source")


def test_a_lock_is_of_the_modelfile_as_it_is_from_python_too(world):
    with pytest.raises(UsageError):
        lock_with(Options(str(world.path), overrides=("merge.m.normalize=false",)), Listener())


def test_a_modelfile_of_nothing_gets_no_lock(tmp_path):
    world = World(tmp_path).modelfile("modelfile = 1\n")
    assert fails(world, 2, "lock").startswith("error: there is no artifact in this file\n")
    assert not path(world).exists()


def test_lock_and_build_write_the_same_text(world):
    assert run(world, "lock").code == 0
    copy = world.from_nothing()
    assert text(copy) == text(world) == render(held(world))


def test_the_lock_does_not_depend_on_the_order_of_tables(world):
    run(world, "lock")
    before = text(world)
    first, second, third = re.split(r"\n(?=\[)", world.text.strip())
    world.modelfile("\n".join([third, second, first]))
    assert run(world, "lock").stdout == "Modelfile.lock: 2 sources, nothing changed\n"
    assert text(world) == before


def test_methods_of_the_lock_are_all_that_outputs_depend_on(violet):
    violet.build()
    assert held(violet).methods == {"modelbuild": __version__, "cast": 1, "lerp": 1, "lora": 1, "adapter lora": 1}
    violet.build("styled")
    violet.run("lock")
    assert held(violet).methods == {"modelbuild": __version__, "cast": 1, "lerp": 1, "lora": 1, "adapter lora": 1}


def test_building_a_part_leaves_what_the_lock_says_of_the_rest(violet):
    violet.modelfile(violet.text + '\n[merge.plain]\nmethod = "linear"\nmodels = [{ model = "blue", weight = 1 }]\n')
    violet.run("lock")
    whole = text(violet)
    violet.build("plain")
    assert text(violet) == whole
    path(violet).unlink()
    violet.build("plain")
    assert held(violet).sources.keys() == {"blue"}
    assert "adapter lora" not in held(violet).methods
    violet.build("violet")
    assert text(violet) == whole


# --- --locked ---------------------------------------------------------------------------------------------------------

COMMANDS = [("build",), ("plan",), ("why", "m")]
by_command = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])


@by_command
@pytest.mark.parametrize("flag", ["locked", "frozen"])
def test_without_a_lock_the_flags_are_exit_3(world, words, flag):
    assert fails(world, 3, *words, f"--{flag}") == NO_LOCK.format(flag)
    assert fails(world, 3, *words, env={f"MODELBUILD_{flag.upper()}": "1"}) == NO_LOCK.format(flag)
    assert not path(world).exists()
    assert not (world.cache / "sources").exists()


def test_verify_holds_to_the_lock_as_well(world):
    assert fails(world, 3, "verify", "m", "--locked") == NO_LOCK.format("locked")
    assert run(world, *FAST, "--record").code == 0
    assert run(world, "verify", "m", "--locked", "--frozen").code == 0
    edit_lock(world, "linear = 1", "linear = 2")
    assert fails(world, 3, "verify", "m", "--locked").startswith("error: the lock is out of date\n")
    assert fails(world, 3, "verify", "m", "--frozen").startswith("error: the lock has version 2 of `linear`")


@by_command
def test_a_lock_that_is_up_to_date_lets_everything_pass(built, words):
    before = facts(built)
    plain, locked, frozen = (run(built, *words, *flags).stdout for flags in ((), ("--locked",), ("--frozen",)))
    assert plain == locked == frozen
    assert facts(built) == before


def appear(world):
    shutil.copy(world.root / "a" / "tokenizer.json", world.root / "b" / "added_tokens.json")
    world.age("b")


def vanish(world):
    (world.root / "b" / "tokenizer.json").unlink()


def other_method(world):
    return world.edit('"linear"', '"task_arithmetic"\nbase = "a"').edit('{ model = "a", weight = 0.5 }, ', "")


def rewrite(world, pattern, new):
    """Edits the lock by hand."""
    path(world).write_text(rewritten(pattern, new, text(world)))


def rewritten(pattern, new, text):
    """The text, with the first place that fits the pattern written anew."""
    return re.sub(pattern, new, text, count=1)


CHANGES = {
    "weights": (lambda world: world.model("b", seed=9), "source `b`: `model.safetensors` changed, "),
    "another file": (appear, "source `b`: `added_tokens.json` is new"),
    "a file less": (vanish, "source `b`: `tokenizer.json` is gone"),
    "another folder": (
        lambda world: (shutil.copytree(world.root / "b", world.root / "c"), world.edit('source = "b"', 'source = "c"')),
        "source `b`: `local:b` → `local:c`",
    ),
    "a new source": (lambda world: world.edit("[merge.m]", '[base.c]\nsource = "b"\n[merge.m]').edit(
        '{ model = "b", weight = 0.5 }', '{ model = "c", weight = 0.5 }'), "source `c` is not in the lock"),
    "a source that is gone": (lambda world: world.edit('[base.b]\nsource = "b"\n', "").edit(
        ', { model = "b", weight = 0.5 }', ""), "source `b` is no longer used"),
    "another method": (
        lambda world: other_method(world), "`task_arithmetic` is not in the lock",
    ),
    "an older modelbuild": (
        lambda world: edit_lock(world, f'modelbuild = "{__version__}"', 'modelbuild = "0.0.1"'),
        f"`modelbuild` 0.0.1 → {__version__}",
    ),
    "a newer modelbuild": (
        lambda world: edit_lock(world, f'modelbuild = "{__version__}"', 'modelbuild = "9.9"'),
        f"`modelbuild` 9.9 → {__version__}",
    ),
    "an older method": (lambda world: edit_lock(world, "linear = 1", "linear = 0"), "`linear` 0 → 1"),
    "a digest edited by hand": (
        lambda world: rewrite(world, r'("config\.json".*)"[0-9a-f]{3}', r'\1"fff'), "`config.json` changed, ",
    ),
    "a size edited by hand": (
        lambda world: rewrite(world, r'("model\.safetensors", size = )', r"\g<1>1"), "`model.safetensors` changed, ",
    ),
    "an origin edited by hand": (
        lambda world: edit_lock(world, '"local:b"', '"local:elsewhere"'), "source `b`: `local:elsewhere` → `local:b`"
    ),
    "a commit edited in": (
        lambda world: edit_lock(world, 'origin = "local:b"', f'origin = "local:b"\ncommit = "{"1" * 40}"'),
        f"source `b`: commit {'1' * 40} → none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_stops_what_is_locked_and_names_it_and_a_build_takes_it_in(built, change):
    edit, sentence = CHANGES[change]
    edit(built)
    for words in COMMANDS:
        told = fails(built, 3, *words, "--locked")
        assert told.startswith("error: the lock is out of date\n  --> Modelfile.lock\n")
        assert sentence in told
        assert told.endswith("\n\n" + HINT)
    copy = built.copy()
    shutil.copy(path(built), path(copy))
    assert sentence in run(copy, "lock").stdout
    assert run(built, *FAST).code == 0
    assert text(built) == text(copy)
    assert run(built, "build", "--locked").code == 0


def test_every_difference_is_told_at_once(built):
    built.model("a", seed=8).model("b", seed=9)
    edit_lock(built, "linear = 1", "linear = 3")
    told = fails(built, 3, "build", "--locked")
    assert [line for line in told.splitlines() if "source `a`" in line or "source `b`" in line or "linear" in line]
    assert told.count("   |  ") == 3


def test_a_clean_checkout_with_its_lock_builds_locked_and_leaves_the_lock_alone(built):
    copy = built.copy()
    shutil.copy2(path(built), path(copy))
    before = facts(copy)
    ran = run(copy, *FAST, "--locked", "--frozen")
    assert (ran.code, ran.stderr) == (0, "")
    assert facts(copy) == before
    assert copy.bytes("m") == built.bytes("m")


def test_a_difference_elsewhere_in_the_modelfile_counts_where_that_is_needed(violet):
    violet.modelfile(violet.text + '\n[merge.plain]\nmethod = "linear"\nmodels = [{ model = "blue", weight = 1 }]\n')
    violet.build()
    violet.model("red", seed=9)
    violet.build("plain", locked=True, frozen=True)
    with pytest.raises(LockOutOfDate):
        violet.build("styled", locked=True)


def test_with_set_the_lock_is_held_to_for_what_it_has(built):
    ran = run(built, *FAST, "--locked", "--frozen", "--set", "merge.m.normalize=false")
    assert ran.code == 0
    told = fails(built, 3, "plan", "--locked", "--set", "merge.m.method='passthrough'", "--set",
                 "merge.m.models=[{model='a'}]")  # fmt: skip
    assert "`passthrough` is not in the lock" in told
    assert told.count("   |  ") == 1


# --- --frozen ---------------------------------------------------------------------------------------------------------


@by_command
def test_a_local_file_that_is_not_the_locked_one_is_exit_5(built, words):
    was = {file.name: file for file in held(built).sources["b"].files}["model.safetensors"]
    built.model("b", seed=9)
    told = fails(built, 5, *words, "--frozen")
    assert re.fullmatch(
        "error: source `b` is not what the lock says\n  --> Modelfile:3:7\n"
        rf"   \|  `model\.safetensors`: expected {was.size} bytes, SHA-256 {was.sha256}\n"
        rf"   \|  `model\.safetensors`: found    {was.size} bytes, SHA-256 [0-9a-f]{{64}}\n\n"
        "hint: put the locked files back; `modelbuild lock` accepts those that are here\n", told,
    ), told  # fmt: skip


def test_files_more_or_less_than_the_locked_ones_are_exit_5_too(built):
    appear(built)
    assert "`added_tokens.json` is not in the lock" in fails(built, 5, "build", "--frozen")
    (built.root / "b" / "added_tokens.json").unlink()
    vanish(built)
    assert "`tokenizer.json` is missing" in fails(built, 5, "build", "--frozen")


def test_a_digest_in_the_lock_that_is_not_the_files_is_exit_5(built):
    CHANGES["a digest edited by hand"][0](built)
    assert "`config.json`: expected" in fails(built, 5, "build", "--frozen")


def test_a_source_that_is_gone_is_exit_4_also_when_frozen(built):
    shutil.rmtree(built.root / "b")
    assert fails(built, 4, "build", "--frozen").startswith("error: `b` is not there\n")


def test_what_is_not_in_the_lock_is_exit_3(built):
    CHANGES["another folder"][0](built)
    assert fails(built, 3, "build", "--frozen") == (
        "error: source `b` is another one in the lock\n  --> Modelfile:4:1\n"
        f"   |  the lock has `local:b`\n   |  the Modelfile has `local:c`\n\n{HINT}"
    )
    built.edit("[base.b]", "[base.d]").edit('model = "b"', 'model = "d"')
    assert fails(built, 3, "build", "--frozen").startswith(
        "error: source `d` is not in the lock\n  --> Modelfile:4:1\n"
    )
    built.edit('"linear"', '"task_arithmetic"\nbase = "a"').edit('{ model = "a", weight = 0.5 }, ', "")
    assert fails(built, 3, "build", "--frozen").count("error: ") == 2


def test_a_method_version_that_is_not_here_names_the_release_that_has_it(built):
    edit_lock(built, "linear = 1", "linear = 5")
    edit_lock(built, f'modelbuild = "{__version__}"', 'modelbuild = "3.2.1"')
    assert fails(built, 3, "build", "--frozen") == (
        "error: the lock has version 5 of `linear`, which is not here\n  --> Modelfile.lock\n"
        f"   |  built with modelbuild `3.2.1`\n   |  this is modelbuild {__version__}, with version 1\n\n"
        "hint: install modelbuild==3.2.1\n"
    )


def test_a_frozen_build_leaves_a_lock_of_another_release_alone_and_the_next_build_does_not(built):
    edit_lock(built, f'modelbuild = "{__version__}"', 'modelbuild = "3.2.1"')
    before = facts(built)
    for _ in range(2):
        assert run(built, *FAST, "--frozen").code == 0
    assert facts(built) == before
    fails(built, 3, "build", "--locked")
    assert run(built, "build").code == 0
    assert held(built).methods["modelbuild"] == __version__
    assert run(built, "build", "--locked").code == 0


def test_both_flags_ask_for_both(built):
    edit_lock(built, f'modelbuild = "{__version__}"', 'modelbuild = "3.2.1"')
    assert fails(built, 3, "build", "--locked", "--frozen").startswith("error: the lock is out of date\n")
    built.model("b", seed=9)
    assert fails(built, 5, "build", "--locked", "--frozen").startswith("error: source `b` is not what the lock says\n")


def test_the_flags_are_options_from_python(built):
    built.build(locked=True)
    built.plan(frozen=True)
    built.model("b", seed=9)
    for wrong, flag in ((LockOutOfDate, "locked"), (VerificationFailed, "frozen")):
        for call in (built.build, built.plan):
            with pytest.raises(wrong):
                call(**{flag: True})
        with pytest.raises(wrong):
            built.why("m", **{flag: True})


def test_errors_of_the_flags_are_data_too(built):
    built.model("b", seed=9)
    for flag, code in (("--locked", 3), ("--frozen", 5)):
        ran = run(built, "build", "--json", flag)
        assert json.loads(ran.stdout)["error"] == json.loads(run(built, "plan", "--json", flag).stdout)["error"]
        assert json.loads(ran.stdout)["error"]["exit_code"] == ran.code == code
    assert json.loads(ran.stdout)["error"]["file"] == "Modelfile"


# --- locks that were edited, merged, or come from elsewhere -----------------------------------------------------------

EDITED = "the lock was edited or damaged"
UNMERGED = "the lock holds two versions that were not merged"
BROKEN = {
    "garbage": (lambda text: "garbage", "the lock is damaged"),
    "conflict in a table": (
        lambda text: text.replace("linear = 1\n", "<<<<<<< ours\nlinear = 1\n=======\nlinear = 2\n>>>>>>> theirs\n"),
        UNMERGED,
    ),
    "conflict in a list": (lambda text: text.replace("files = [\n", "files = [\n<<<<<<< HEAD\n", 1), UNMERGED),
    "a newer format": (
        lambda text: text.replace("lock = 1", "lock = 2").replace(f'"{__version__}"', '"7.0"'),
        "the lock is from a newer modelbuild",
    ),
    "an unknown key": (lambda text: text.replace("[methods]", "x = 1\n[methods]"), EDITED),
    "a file twice": (lambda text: rewritten(r'(  \{ name = "config.json".*\n)', r"\1\1", text), EDITED),
    "a source twice": (lambda text: text.replace("[sources.b]", "[sources.a]"), "the lock is damaged"),
    "a short digest": (lambda text: rewritten(r'sha256 = "..', 'sha256 = "', text), EDITED),
    "a digest in capitals": (lambda text: rewritten(r'sha256 = "\w+"', f'sha256 = "{"A" * 64}"', text), EDITED),
    "a negative size": (lambda text: text.replace("size = ", "size = -", 1), EDITED),
    "a size in quotes": (lambda text: rewritten(r"size = (\d+)", r'size = "\1"', text), EDITED),
    "half of it": (lambda text: text[: len(text) // 2], "the lock is damaged"),
    "empty": (lambda text: "", EDITED),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_lock_that_is_not_understood_is_exit_3_everywhere_and_stays_as_it_is(built, how):
    change, message = BROKEN[how]
    path(built).write_text(change(text(built)))
    shutil.rmtree(built.out)
    for words in (
        *COMMANDS,
        ("lock",),
        ("lock", "--update"),
        ("verify", "m"),
        ("build", "--set", "merge.m.normalize=false"),
    ):
        for flag in [[], ["--locked"], ["--frozen"]] if words in COMMANDS else [[]]:
            told = fails(built, 3, *words, *flag)
            assert told.startswith(f"error: {message}\n  --> Modelfile.lock")
            assert "\n\nhint: " in told


def test_what_to_do_about_a_newer_format(built):
    path(built).write_text('lock = 2\n[methods]\nmodelbuild = "7.0"\n')
    assert fails(built, 3, "build", "--frozen") == (
        "error: the lock is from a newer modelbuild\n  --> Modelfile.lock:1:8\n"
        "   |  it has format 2, written by modelbuild 7.0\n   |  this modelbuild knows format 1\n\n"
        "hint: use that release, or a newer one\n"
    )


def test_a_lock_with_line_ends_of_another_system_is_the_same_lock(built):
    path(built).write_bytes(text(built).replace("\n", "\r\n").encode())
    before = path(built).read_bytes()
    assert run(built, "build", "--locked", "--frozen").code == 0
    assert run(built, *FAST).code == 0
    assert run(built, "lock").stdout == "Modelfile.lock: 2 sources, nothing changed\n"
    assert path(built).read_bytes() == before


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_byte_is_an_error_a_difference_or_nothing_and_never_a_traceback(built, data):
    whole = path(built).read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path(built).write_bytes(damaged)
    ran = run(built, "plan", "--locked", "--frozen")
    assert "Traceback" not in ran.stderr
    assert ran.code in (0, 3, 5)
    path(built).write_bytes(whole)


# --- --record ---------------------------------------------------------------------------------------------------------


def digests(world, name):
    """Size and SHA-256 of every file of an output but card and provenance."""
    import hashlib

    found = {n: data for n, data in world.bytes(name).items() if n not in ("README.md", "modelbuild.json")}
    return {n: (len(data), hashlib.sha256(data).hexdigest()) for n, data in found.items()}


def recorded(world, name):
    return {file.name: (file.size, file.sha256) for file in held(world).outputs[name].files}


def test_a_record_has_the_key_and_every_weight_config_and_tokenizer_file(violet):
    result = violet.build(record=True)
    assert recorded(violet, "violet") == digests(violet, "violet")
    assert held(violet).outputs["violet"].key == result["violet"].key
    assert held(violet).outputs["violet"].numerics == ()
    assert held(violet).outputs.keys() == {"violet"}


def test_what_is_recorded_in_shards_has_every_shard_and_the_index(violet):
    violet.modelfile('[settings]\nshard_size = "20KB"\n' + violet.text)
    violet.build(record=True)
    assert recorded(violet, "violet") == digests(violet, "violet")
    assert {"model.safetensors.index.json", "model-00001-of-00003.safetensors"} <= recorded(violet, "violet").keys()


def test_a_record_is_the_same_from_any_cache_and_for_any_threads(violet):
    violet.build(record=True, jobs=1)
    first = text(violet)
    for options in ({"jobs": 3}, {"no_cache": True}, {"memory": "1MB"}):
        violet.build(record=True, **options)
        assert text(violet) == first
    assert text(violet.from_nothing(record=True)) == first


def test_a_build_with_nothing_to_do_records_too(built):
    before = built.bytes("m")
    assert "nothing to do" in run(built, "build", "--record").stdout
    assert recorded(built, "m") == digests(built, "m")
    assert built.bytes("m") == before
    assert run(built, "build").stdout == "m: nothing to do (21 tensors, build/m)\n"
    assert run(built, "build", "--jobs", "1").stdout == "m: nothing to do (21 tensors, build/m)\n"


def test_the_record_is_a_variable_too(built):
    assert run(built, "build", env={"MODELBUILD_RECORD": "1"}).code == 0
    assert recorded(built, "m") == digests(built, "m")


def test_the_digests_of_weights_are_kept_in_the_manifest_and_change_no_output(built, monkeypatch):
    plain = built.bytes("m")
    built.build(record=True)
    store = open_store(str(built.cache))
    (key,) = store.artifacts()
    (file,) = store.manifest(key).files
    store.close()
    assert file.sha256 == recorded(built, "m")["model.safetensors"][1]
    monkeypatch.setattr("modelbuild.recording.read_digests", lambda *given: pytest.fail("it was read again"))
    assert built.build(record=True)["m"].status == "fresh"
    assert built.build(no_cache=True)["m"].status == "fresh"
    shutil.rmtree(built.out)
    built.build()
    assert built.bytes("m") == plain
    assert run(built, "cache", "verify").stdout == "the cache is sound\n"


def test_a_manifest_that_cannot_be_written_is_no_reason_to_fail(built, monkeypatch):
    def refuse(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modelbuild.cache.disk.replace", refuse)
    store = open_store(str(built.cache))
    (key,) = store.artifacts()
    before = store.manifest(key)
    store.learn(key, {"model.safetensors": "a" * 64})
    assert store.manifest(key) == before
    store.learn("0" * 64, {"model.safetensors": "a" * 64})
    store.close()


def test_what_is_damaged_in_the_cache_is_not_recorded(built):
    (stored,) = built.cache.glob("artifacts/*/model.safetensors")
    status = stored.stat()
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    os.chmod(stored, 0o644)
    with open(stored, "r+b") as file:
        file.write(data)
    os.chmod(stored, 0o444)
    os.utime(stored, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BuildFailed, match="was damaged in the cache before it could be recorded"):
        built.build(record=True)
    assert held(built).outputs == {}
    built.build(record=True)
    assert recorded(built, "m") == digests(built, "m") == digests(built.from_nothing(), "m")


def test_records_stay_while_the_modelfile_names_them_and_are_never_a_reason_to_stop(built):
    run(built, *FAST, "--record")
    was = held(built).outputs
    built.edit('"a", weight = 0.5', '"a", weight = 0.25')
    for words in (("build", "--locked"), ("build", "--frozen"), ("build",), ("lock",)):
        assert run(built, *words).code == 0
        assert held(built).outputs == was
    built.edit("[merge.m]", "[merge.n]")
    assert run(built, "build", "--locked").code == 0
    assert held(built).outputs == was
    assert run(built, *FAST).code == 0
    assert held(built).outputs == {}


@pytest.mark.parametrize("flags", [("--locked",), ("--frozen",), ("--locked", "--frozen")], ids=" ".join)
def test_what_is_held_to_its_lock_records_outputs_and_changes_nothing_else(built, flags):
    before = held(built)
    assert run(built, *FAST, "--record", *flags).code == 0
    assert (held(built).sources, held(built).methods) == (before.sources, before.methods)
    assert recorded(built, "m") == digests(built, "m")


def test_a_frozen_record_leaves_the_writer_of_the_lock_named(built):
    edit_lock(built, f'modelbuild = "{__version__}"', 'modelbuild = "3.2.1"')
    assert run(built, *FAST, "--record", "--frozen").code == 0
    assert held(built).methods["modelbuild"] == "3.2.1"
    assert recorded(built, "m") == digests(built, "m")


def test_what_is_built_with_set_is_not_recorded(world):
    told = fails(world, 2, *FAST, "--record", "--set", "merge.m.normalize=false")
    assert told == (
        "error: what is built with `--set` is not recorded in the lock\n\n"
        "hint: write the value into the Modelfile, or leave out `--record`\n"
    )
    assert not world.cache.exists()
    with pytest.raises(UsageError):
        modelbuild.build(str(world.path), record=True, overrides=("merge.m.normalize=false",))


def test_a_build_that_fails_records_nothing(world):
    world.model("b", seed=2, hidden=16)
    assert run(world, *FAST, "--record").code == 1
    assert not path(world).exists()


# --- where the lock cannot be written ---------------------------------------------------------------------------------


def nowhere(world):
    """Puts the lock where no file can be written, whoever runs the build."""
    path(world).symlink_to("nowhere/lock")


def computed(world):
    return [*(world.cache / "artifacts").glob("*"), *world.out.glob("*")]


@pytest.mark.parametrize("words", [FAST, (*FAST, "--record"), (*FAST, "--json")], ids=" ".join)
def test_a_folder_that_takes_no_lock_stops_a_build_before_anything_is_computed(world, words):
    nowhere(world)
    ran = run(world, *words)
    assert ran.code == 1
    assert ran.stderr == ("error: the lock could not be written\n   |  `Modelfile.lock`: No such file or directory\n")
    assert computed(world) == []
    assert run(world, "plan").code == 0
    assert run(world, *FAST, "--set", "merge.m.normalize=false").code == 0


def test_a_lock_that_need_not_be_written_needs_no_folder_that_takes_it(built, monkeypatch):
    shutil.rmtree(built.out)
    monkeypatch.setattr("modelbuild.locking.check_writable", lambda path: pytest.fail("it was tried"))
    assert built.build()["m"].status == "built"
    with pytest.raises(pytest.fail.Exception):
        built.build(record=True)
    built.model("b", seed=9)
    with pytest.raises(pytest.fail.Exception):
        built.build()


def test_trying_whether_the_folder_takes_a_lock_leaves_nothing(world):
    tried = []
    ran = run(world, *FAST, fault=lambda number, name, arguments: tried.append(name))
    assert ran.code == 0
    assert sorted(os.listdir(world.root)) == ["Modelfile", "Modelfile.lock", "a", "b", "build", "cache"]


# --- several builds at once -------------------------------------------------------------------------------------------

PAIR = """
    [base.a]
    source = "a"
    [base.b]
    source = "b"
    [base.c]
    source = "c"
    [base.d]
    source = "d"
    [merge.left]
    method = "linear"
    models = [{ model = "a", weight = 0.5 }, { model = "b", weight = 0.5 }]
    [merge.right]
    method = "lerp"
    base = "c"
    t = 0.5
    models = [{ model = "d" }]
    """


@pytest.fixture
def pair(world):
    """Two targets that have nothing in common."""
    return world.model("c", seed=3).model("d", seed=4).modelfile(PAIR)


def slower(seconds):
    """Some time before each file that takes another's place, so that two writers of the lock are likely to meet."""

    def fault(number, name, arguments):
        if name == "replace":
            time.sleep(seconds)

    return fault


@pytest.mark.parametrize("attempt", range(3))
def test_two_builds_at_once_each_write_what_they_know(pair, attempt):
    builds = [Process(pair, *FAST, "--record", name, fault=slower(0.01 * attempt)) for name in ("left", "right")]
    assert [build.wait().code for build in builds] == [0, 0]
    assert held(pair).sources.keys() == {"a", "b", "c", "d"}
    assert held(pair).outputs.keys() == {"left", "right"}
    for name in ("left", "right"):
        assert recorded(pair, name) == digests(pair, name)
    assert run(pair, "build", "--locked", "--frozen", "left", "right").code == 0


def test_a_lock_that_another_build_wrote_meanwhile_keeps_what_that_one_knows(pair, monkeypatch):
    settle = BUILDING.settle_lock

    def late(*given):
        monkeypatch.setattr(BUILDING, "settle_lock", settle)
        assert run(pair, *FAST, "--record", "right").code == 0
        return settle(*given)

    monkeypatch.setattr(BUILDING, "settle_lock", late)
    pair.build("left", record=True)
    assert held(pair).sources.keys() == {"a", "b", "c", "d"}
    assert held(pair).outputs.keys() == {"left", "right"}


def test_a_lock_that_is_damaged_during_a_build_is_told_and_not_overwritten(pair, monkeypatch):
    settle = BUILDING.settle_lock

    def late(*given):
        path(pair).write_text("mine")
        return settle(*given)

    monkeypatch.setattr(BUILDING, "settle_lock", late)
    with pytest.raises(LockOutOfDate):
        pair.build("left")
    assert path(pair).read_text() == "mine"


# --- nothing to do ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stamped(violet, monkeypatch):
    """Violet as built, where a stamp answers."""
    monkeypatch.chdir(violet.root)
    for name in [name for name in os.environ if name.startswith("MODELBUILD_")]:
        monkeypatch.delenv(name)
    violet.build()
    return violet


def answer(world, *words):
    return stamps.answer(["-f", str(world.path), "build", *words])


def test_a_stamp_answers_for_what_is_held_to_its_lock(stamped):
    plain = answer(stamped)
    assert plain is not None
    for words in (["--locked"], ["--frozen"], ["--frozen", "--locked"]):
        assert answer(stamped, *words) == plain
        assert stamped.run("build", *words).stdout == plain + "\n"
        assert stamped.run("build", *words, "--jobs", "1").stdout == plain + "\n"
    assert answer(stamped, "--record") is None
    assert answer(stamped, "--locked", "--record") is None


@pytest.mark.parametrize("name", ["MODELBUILD_LOCKED", "MODELBUILD_FROZEN"])
@pytest.mark.parametrize(("value", "answers"), [("1", True), ("true", True), ("0", True), ("no", True), ("x", False)])
def test_a_stamp_answers_where_the_flags_are_variables(stamped, monkeypatch, name, value, answers):
    monkeypatch.setenv(name, value)
    assert (answer(stamped) is not None) == answers


def test_a_record_in_the_environment_is_for_the_full_build(stamped, monkeypatch):
    monkeypatch.setenv("MODELBUILD_RECORD", "1")
    assert answer(stamped) is None


def test_a_build_that_was_held_to_its_lock_leaves_a_stamp(violet, monkeypatch):
    monkeypatch.chdir(violet.root)
    violet.run("lock")
    for flag in ("locked", "frozen"):
        violet.build(**{flag: True})
        assert answer(violet) is not None
        for path in violet.cache.glob("records/*/stamp-*.json"):
            path.unlink()
    violet.build(record=True)
    assert answer(violet) is not None


def test_a_frozen_build_that_leaves_the_lock_out_of_date_leaves_no_stamp(stamped):
    edit_lock(stamped, f'modelbuild = "{__version__}"', 'modelbuild = "3.2.1"')
    stamped.build(frozen=True)
    assert answer(stamped) is None
    assert stamped.run("build", "--locked").returncode == 3
    stamped.build()
    assert answer(stamped) is not None
    assert stamped.run("build", "--locked").returncode == 0


def test_a_stamp_sees_a_lock_behind_a_link(stamped):
    (stamped.root / "kept").mkdir()
    path(stamped).rename(stamped.root / "kept" / "lock")
    path(stamped).symlink_to("kept/lock")
    stamped.build()
    assert answer(stamped) is not None
    real = stamped.root / "kept" / "lock"
    real.write_text(real.read_text().replace("lerp = 1", "lerp = 2"))
    assert answer(stamped) is None
    assert stamped.run("build", "--locked").returncode == 3


def test_a_lock_that_somebody_writes_while_a_build_ends_gets_no_stamp(violet, monkeypatch):
    monkeypatch.chdir(violet.root)
    settle = BUILDING.settle_lock

    def settled(*given):
        found = settle(*given)
        edit_lock(violet, "lerp = 1", "lerp = 2")
        return found

    monkeypatch.setattr(BUILDING, "settle_lock", settled)
    violet.build()
    assert answer(violet) is None
    assert violet.run("build", "--locked").returncode == 3


def test_with_the_flags_and_nothing_to_do_nothing_but_the_stamps_is_imported(violet):
    assert violet.run("build").returncode == 0
    found = {name for name in violet.imports("build", "--locked", "--frozen") if name.startswith("modelbuild")}
    assert found == {"modelbuild", "modelbuild.digest", "modelbuild.stamps"}


def test_a_locked_shard_that_is_gone_is_named_by_a_frozen_build(world):
    world.model("a", seed=1, shards=2).modelfile("""
        [base.a]
        source = "a"
        [merge.m]
        method = "linear"
        models = [ { model = "a", weight = 1 } ]
    """)
    assert world.run("lock").returncode == 0
    (world.root / "a" / "model-00002-of-00002.safetensors").unlink()
    ran = world.run("build", "--frozen")
    assert ran.returncode == 5
    assert "`model-00002-of-00002.safetensors` is missing" in ran.stderr
    assert world.run("build").returncode == 4
