"""Sources that are edited, truncated, replaced or deleted while a build reads them: seen, and never built in.

The edit happens inside the building process, just before one of its calls, so that every moment can be tried.
"""

import json
import os
import shutil

import pico
import pytest
from faults import at, once, run, some, two_models

FAST = ("build", "--jobs", "1", "--durability", "none")
WEIGHTS = "model.safetensors"


@pytest.fixture
def world(world):
    """Two models, and under `other/` a second edition of `b` with the same config and wholly different weights."""
    two_models(world).model("other", seed=9)
    world.build()
    return world.edit('"a", weight = 0.5', '"a", weight = 0.75')


@pytest.fixture
def clean(world):
    """The bytes of `m` as a build from nothing makes them from `b`, and from its other edition."""
    replaced = world.copy()
    shutil.copy(replaced.root / "other" / WEIGHTS, replaced.root / "b" / WEIGHTS)
    replaced.build()
    return world.from_nothing().bytes("m"), replaced.bytes("m")


def place(world, name=f"b/{WEIGHTS}"):
    return world.root / name


def edit(path):
    with open(path, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def edit_and_set_the_time_back(path):
    facts = os.stat(path)
    edit(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def truncate(path):
    os.truncate(path, os.path.getsize(path) - 50)


def replace(path):
    os.rename(path.parent.parent / "other" / path.name, path)


def rewrite(path):
    path.write_bytes((path.parent.parent / "other" / path.name).read_bytes())


def lengthen(path):
    with open(path, "ab") as file:
        file.write(bytes(8))


CHANGES = [edit, edit_and_set_the_time_back, truncate, replace, rewrite, lengthen, os.unlink]


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_tensors_are_made_is_named_and_nothing_of_it_is_built_in(world, clean, change):
    original = place(world).read_bytes()
    before = world.bytes("m")
    ran = run(world, *FAST, "--json", fault=once("pwrite", 9, lambda: change(place(world))))
    assert ran.code == 1, ran.stderr
    what, *facts = ran.stderr.splitlines()
    assert what == f"error: `{place(world)}` changed while it was being read"
    assert facts[0].startswith("   |  ")
    assert facts[-1] == "hint: build again"
    assert json.loads(ran.stdout)["artifacts"][-1]["status"] == "failed"
    assert world.bytes("m") == before
    place(world).write_bytes(original)
    again = run(world, *FAST, "--json")
    assert again.code == 0, again.stderr
    assert world.bytes("m") == clean[0]
    # What was finished before the change is sound, and taken over.
    assert json.loads(again.stdout)["artifacts"][-1]["tensors"]["reused"] > 0


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_replaced_at_any_read_or_write_the_output_is_of_one_edition_and_the_next_build_right(world, clean, jobs):
    words = ("build", "--jobs", jobs, "--durability", "none")
    original = place(world).read_bytes()
    before = world.bytes("m")
    total = run(world, *words, "--out", "elsewhere", "--cache", "another", also=("preadv",)).steps
    ends = set()
    for step in some(total, 30):
        shutil.rmtree(world.cache)
        shutil.rmtree(world.root / "build")
        run(world.edit("weight = 0.75", "weight = 0.5"), *FAST)
        world.edit('"a", weight = 0.5', '"a", weight = 0.75')
        ran = run(world, *words, fault=at(step, lambda: rewrite(place(world))), also=("preadv",))
        ends.add((ran.code, world.bytes("m") == clean[1]))
        if ran.code == 0:
            assert world.bytes("m") in clean, step
        else:
            assert (ran.code, world.bytes("m")) == (1, before), (step, ran.stderr)
            assert f"b/{WEIGHTS}` changed while it was being read" in ran.stderr, step
        if step % 2 and place(world).read_bytes() != original:
            assert run(world, *words).code == 0
            assert world.bytes("m") == clean[1], step
        place(world).write_bytes(original)
        assert run(world, *words).code == 0
        assert world.bytes("m") == clean[0], step
    # Before it was identified, while it was in use, and after its last byte was read.
    assert ends == {(0, True), (1, False), (0, False)}


def test_a_source_that_changes_while_it_is_hashed_is_named(world):
    for number in (1, 2, 3, 4):
        shutil.rmtree(world.cache)
        ran = run(world, *FAST, fault=once("preadv", number, lambda: lengthen(place(world))), also=("preadv",))
        if ran.code == 1:
            assert ran.stderr.startswith(f"error: `b/{WEIGHTS}` changed while it was being read\n"), ran.stderr
            assert ran.stderr.count("error: ") == 1
            return
    raise AssertionError("it was never caught while it was hashed")


def test_an_adapter_that_is_retrained_while_it_is_folded_in_is_not_built_in(world):
    world.lora("style", "a", seed=3).lora("other-style", "a", seed=4).modelfile(
        """
        [base.a]
        source = "a"
        [adapter.style]
        source = "style"
        [merge.styled]
        method = "lora"
        base = "a"
        adapters = [{ adapter = "style", weight = 1.0 }]
        """
    )
    clean = world.from_nothing().bytes("styled")
    adapter = world.root / "style" / "adapter_model.safetensors"
    original = adapter.read_bytes()
    other = (world.root / "other-style" / adapter.name).read_bytes()
    ran = run(world, *FAST, fault=once("pwrite", 8, lambda: adapter.write_bytes(other)))
    assert (ran.code, ran.stderr.splitlines()[0]) == (1, f"error: `{adapter}` changed while it was being read")
    assert not (world.out / "styled").exists()
    adapter.write_bytes(original)
    assert run(world, *FAST).code == 0
    assert world.bytes("styled") == clean


# --- side files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [("pwrite", 9), ("exchange", 1), ("link", 1), ("open", 1)])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "generation_config.json"])
def test_a_side_file_edited_between_plan_and_copy_is_seen_or_was_copied_whole_before(world, name, moment):
    before = world.bytes("m")
    unedited = world.from_nothing().bytes("m")
    path = place(world, f"a/{name}")
    text = path.read_text()
    tail = "" if name == "tokenizer.json" else text
    edited = text.replace("}", ' , "x_edited": 1 }', 1) if not tail else json.dumps({**json.loads(text), "x_edited": 1})
    ran = run(world, *FAST, fault=once(*moment, lambda: path.write_text(edited)))
    if ran.code == 0:
        assert world.bytes("m") == unedited
        assert moment[0] != "pwrite"
    else:
        assert (ran.code, world.bytes("m")) == (1, before)
        assert f"{name}` changed " in ran.stderr.splitlines()[0], ran.stderr
        assert "hint: build again" in ran.stderr
    assert run(world, *FAST).code == 0
    assert world.bytes("m") == world.from_nothing().bytes("m") != unedited


def make_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_a_link(path):
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("change", [os.unlink, make_a_pipe, make_a_link])
def test_a_side_file_that_is_gone_or_no_file_any_more_is_one_error(world, change):
    before = world.bytes("m")
    path = place(world, "a/tokenizer.json")
    text = path.read_text()
    ran = run(world, *FAST, fault=once("link", 1, lambda: change(path)))
    assert (ran.code, world.bytes("m")) == (1, before)
    assert str(path) in ran.stderr.splitlines()[0]
    assert "Traceback" not in ran.stderr
    path.unlink(missing_ok=True)
    path.write_text(text)
    assert run(world, *FAST).code == 0
    assert world.bytes("m") == world.from_nothing().bytes("m")


# --- what is edited after it was read ---------------------------------------------------------------------------------


def forget(world):
    """Removes all that builds made."""
    shutil.rmtree(world.cache)
    shutil.rmtree(world.out)
    (world.root / "Modelfile.lock").unlink()


def late_edits(world):
    """Edits that come too late for a build; each must be seen by the next."""

    def modelfile():
        world.edit('"a", weight = 0.75', '"a", weight = 0.25')

    def weights():
        rewrite(place(world))

    def weights_with_their_time():
        facts = os.stat(place(world))
        rewrite(place(world))
        os.utime(place(world), ns=(facts.st_atime_ns, facts.st_mtime_ns))

    def tokenizer():
        pico.save_tokenizer(world.root / "a", 63)

    def another_file():
        (world.root / "a" / "LICENSE").write_text("free")

    def config():
        path = world.root / "a" / "config.json"
        path.write_text(path.read_text().replace('"use_cache": true', '"use_cache": false'))

    return [modelfile, weights, weights_with_their_time, tokenizer, another_file, config]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("moment", [("utime", 1), ("replace", -3), ("replace", -2), ("replace", -1)])
def test_an_edit_after_the_last_read_is_never_taken_for_nothing_to_do(world, number, moment):
    call, count = moment
    forget(world)
    calls = run(world.copy(), *FAST).calls.count(call)
    act = late_edits(world)[number]
    ran = run(world, *FAST, fault=once(call, count if count > 0 else calls + 1 + count, act))
    if ran.code:
        assert (call, ran.code) == ("utime", 1), ran.stderr
        assert "changed" in ran.stderr
    again = run(world, "build")
    assert again.code == 0, again.stderr
    assert world.bytes("m") == world.from_nothing().bytes("m")


def test_an_output_edited_while_the_records_are_written_is_not_taken_for_fresh(world):
    path = world.out / "m" / "config.json"
    clean = world.from_nothing().bytes("m")
    forget(world)
    calls = run(world.copy(), *FAST).calls.count("replace")
    ran = run(world, *FAST, fault=once("replace", calls - 1, lambda: path.write_text("{}")))
    assert ran.code == 0, ran.stderr
    assert path.read_text() == "{}"
    ran = run(world, "build")
    assert ran.code == 0
    assert "config.json was edited; it is now " in ran.stderr
    assert world.bytes("m") == clean
    assert (world.out / ".edited" / "m" / "config.json").read_text() == "{}"
