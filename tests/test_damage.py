"""Damage of any file in the cache ends in a right build, with a line that says what was done again; edits of outputs
are kept aside or made anew, never lost and never built on."""

import json
import os
import re
import shutil

import pytest
from faults import THOROUGH, Snapshot, litter, run, two_models
from tiny_cache import flip
from world import World

FAST = ("build", "--jobs", "1", "--durability", "none")
EDIT = ('"a", weight = 0.5', '"a", weight = 0.75')
SECOND = """
    [merge.half]
    method = "linear"
    only = ["self_attn"]
    models = [{ model = "a", weight = 0.5 }, { model = "b", weight = 0.5 }]
    """


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A world that was built, a snapshot of that, and the clean bytes of `m` before and after an edit."""
    folder = tmp_path_factory.mktemp("damage")
    world = two_models(World(folder / "world"))
    assert run(world, *FAST).code == 0
    built = Snapshot(world)
    clean = world.from_nothing().bytes("m")
    world.edit(*EDIT)
    edited = world.from_nothing().bytes("m")
    yield world, built, clean, edited
    shutil.rmtree(folder)


@pytest.fixture
def world(scene):
    world, built, _, _ = scene
    built.restore()
    return world


def check(world, scene, *, again=True):
    """Builds now, after an edit and after going back, and compares each output with the clean one; the first run."""
    _, _, clean, edited = scene
    ran = run(world, *FAST)
    assert (ran.code, "Traceback" in ran.stderr) == (0, False), ran.stderr
    assert world.bytes("m") == clean
    if again:
        for words, expected in ((EDIT, edited), (EDIT[::-1], clean)):
            world.edit(*words)
            assert run(world, *FAST).code == 0
            assert world.bytes("m") == expected
    assert run(world, "cache", "verify").code == 0
    return ran


def only(world, pattern):
    (found,) = world.cache.glob(pattern)
    return found


# --- weights in the cache ---------------------------------------------------------------------------------------------


def data_start(path):
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


REGIONS = {"length": lambda p: 2, "header": lambda p: 40, "first": data_start, "last": lambda p: os.path.getsize(p) - 1}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("shared", [True, False], ids=["hardlinked", "copied"])
def test_a_flipped_bit_anywhere_in_cached_weights_is_made_good(world, scene, region, shared):
    path = only(world, "artifacts/*/*.safetensors")
    if not shared:
        shutil.copy2(world.out / "m" / path.name, world.root / "copy")
        os.replace(world.root / "copy", world.out / "m" / path.name)
    flip(path, REGIONS[region](path))
    ran = check(world, scene)
    assert "`m` in the cache was damaged" in ran.stderr
    assert "made anew" in ran.stderr
    if region in ("first", "last"):
        assert re.search(r"wrong bytes in `model\.[\w.]+`\).*1 of 21 tensors are made anew", ran.stderr)


def test_of_a_damaged_artifact_only_the_damaged_tensors_are_computed(world, scene):
    path = only(world, "artifacts/*/*.safetensors")
    flip(path, os.path.getsize(path) - 1)
    ran = run(world, *FAST, "--json")
    tensors = json.loads(ran.stdout)["artifacts"][0]["tensors"]
    assert tensors == {"total": 21, "computed": 1, "copied": 0, "reused": 20}
    assert world.bytes("m") == scene[2]


@pytest.mark.parametrize("size", [0, 7, 3000, 0.5, -1])
def test_truncated_cached_weights_are_made_good(world, scene, size):
    path = only(world, "artifacts/*/*.safetensors")
    whole = os.path.getsize(path)
    os.chmod(path, 0o644)
    os.truncate(path, int(whole * size) if isinstance(size, float) else size % whole)
    ran = check(world, scene)
    assert f"bytes instead of {whole}" in ran.stderr


def test_deleted_cached_weights_are_made_again(world, scene):
    only(world, "artifacts/*/*.safetensors").unlink()
    assert "it is missing" in check(world, scene).stderr


def test_a_deleted_artifact_is_made_again(world, scene):
    shutil.rmtree(only(world, "artifacts/*"))
    check(world, scene)


def test_a_cache_that_is_deleted_whole_is_made_again(world, scene):
    shutil.rmtree(world.cache)
    check(world, scene)


def test_weights_replaced_by_a_link_or_a_folder_are_made_again(world, scene):
    path = only(world, "artifacts/*/*.safetensors")
    path.unlink()
    path.symlink_to(world.root / "a" / "model.safetensors")
    check(world, scene, again=False)
    path = only(world, "artifacts/*/*.safetensors")
    path.unlink()
    path.mkdir()
    check(world, scene)


# --- what lies beside them --------------------------------------------------------------------------------------------


def delete(path):
    path.unlink()


def empty(path):
    put(path, b"")


def garbage(path):
    put(path, bytes(range(256)) * 8)


def half(path):
    put(path, path.read_bytes()[: path.stat().st_size // 2])


def wrong_json(path):
    put(path, b'{"keys": 5, "record": [], "format": "modelbuild output 1", "files": {"../x": []}, "version": null}')


def deep_json(path):
    put(path, b"[" * 100_000)


def no_text(path):
    put(path, b'"\xff\xfe\x00"')


def bit(path):
    if path.stat().st_size:
        flip(path, path.stat().st_size // 2)


def put(path, data):
    os.chmod(path, 0o644)
    path.write_bytes(data)


DAMAGES = [delete, empty, garbage, half, wrong_json, deep_json, no_text, bit]
PLACES = {
    "manifest": "artifacts/*/manifest.json", "index": "index.sqlite", "output record": "records/*/output-m.json",
    "plan record": "records/*/plan-m.json", "stamp": "records/*/stamp-*.json", "root": "roots/*.json",
    "digests": "sources/stamps", "contents": "sources/contents/*/*.json", "lock file": "locks/[0-9a-f]*",
    "cache lock": "locks/.cache", "tag": "CACHEDIR.TAG",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", PLACES)
def test_any_file_of_the_cache_may_be_damaged_in_any_way(world, scene, place, damage):
    if place == "stamp":
        assert run(world, "build").code == 0
    found = list(world.cache.glob(PLACES[place]))
    assert found
    for path in found:
        damage(path)
    planned = run(world, "plan", "--json")
    assert planned.code == 0, planned.stderr
    deep = THOROUGH or damage in (garbage, bit)
    told = planned.stdout + check(world, scene, again=deep).stderr
    if place == "manifest":
        assert ("in the cache was set aside" if damage is not delete else "its manifest cannot be read") in told
    if place == "index" and damage in (garbage, wrong_json):
        assert "the index of the cache was damaged; it was made anew from the manifests" in told
    commands = (("why", "m"), ("cache", "ls"), ("cache", "size"), ("clean",), ("cache", "gc", "--max-size", "0"))
    for words in commands if deep else ():
        ran = run(world, *words)
        assert (ran.code, "Traceback" in ran.stderr) == (0, False), (words, ran.stderr)
    assert world.bytes("m") == scene[2]


@pytest.mark.parametrize("damage", [garbage, bit, delete])
def test_damage_that_costs_no_work_computes_nothing(world, scene, damage):
    for place in ("index", "plan record", "root", "digests", "contents", "tag"):
        for path in world.cache.glob(PLACES[place]):
            damage(path)
    tensors = json.loads(run(world, *FAST, "--json").stdout)["artifacts"][0]["tensors"]
    assert tensors["computed"] == 0


def test_a_damaged_manifest_computes_again_and_says_why(world, scene):
    garbage(only(world, PLACES["manifest"]))
    ran = run(world, *FAST, "--json")
    assert ran.stderr.startswith("artifact "), ran.stderr
    assert "it is not a manifest; it is made anew\n" in ran.stderr
    assert json.loads(ran.stdout)["artifacts"][0]["tensors"]["computed"] == 21


def test_a_root_that_cannot_be_read_keeps_everything_and_is_named(world):
    only(world, PLACES["root"]).write_text("garbage")
    ran = run(world, "cache", "gc", "--max-size", "0")
    assert "cannot be read" in ran.stdout
    assert len(list((world.cache / "artifacts").iterdir())) == 1


def test_pins_of_garbage_and_strange_files_are_no_matter(world, scene):
    (world.cache / "pins").joinpath("..x").write_text("?")
    (world.cache / "pins").joinpath("0" * 64).write_text("?")
    (world.cache / "pins").joinpath("a folder").mkdir()
    for folder in ("artifacts", "stage", "trash", "aside", "roots", "records", "locks"):
        (world.cache / folder / "junk").write_text("junk")
        (world.cache / folder / "junk folder").mkdir()
        (world.cache / folder / ".hidden").symlink_to("/nowhere")
    check(world, scene)
    assert run(world, "cache", "ls").code == 0
    assert run(world, "cache", "gc", "--max-size", "0").code == 0
    assert world.bytes("m") == scene[2]


def test_a_folder_of_the_cache_may_be_missing(world, scene):
    for folder in ("locks", "pins", "roots", "records", "sources", "stage", "trash", "aside"):
        shutil.rmtree(world.cache / folder)
    check(world, scene)


@pytest.mark.parametrize("junk", ["files", "journal", "garbage journal", "wrong bytes"])
def test_junk_in_the_stage_of_an_artifact_changes_nothing(world, scene, junk):
    world.edit(*EDIT)
    key = sorted(set(names_after_build(world)) - set(os.listdir(world.cache / "artifacts")))[0]
    stage = world.cache / "stage" / key
    stage.mkdir()
    if junk == "files":
        (stage / "files").write_text("a file where a folder should be")
    if junk == "journal":
        (stage / "journal").mkdir()
    if junk in ("garbage journal", "wrong bytes"):
        (stage / "files").mkdir()
        (stage / "journal").write_bytes(b"\n0123456789abcdef [1]\n" + bytes(300) + b"\n[]\n")
    if junk == "wrong bytes":
        (stage / "files" / "model.safetensors").write_bytes(b"x" * 100_000)
        (stage / "files" / "of-another-time.safetensors").write_bytes(b"y" * 1000)
    ran = run(world, *FAST)
    assert "Traceback" not in ran.stderr
    assert ran.code == 0, ran.stderr
    assert world.bytes("m") == scene[3]
    assert litter(world) == []


def names_after_build(world):
    copy = world.copy()
    copy.build()
    return os.listdir(copy.cache / "artifacts")


# --- a bit that flips under the eyes of the build ---------------------------------------------------------------------


def test_a_bit_flipped_without_a_trace_is_found_when_the_tensor_is_reused(world, scene):
    world.modelfile(world.text + SECOND)
    clean = world.from_nothing("half").bytes("half")
    path = only(world, "artifacts/*/*.safetensors")
    flip(path, offset_of(path, "layers.0.self_attn.q_proj") + 5, keep_time=True)
    ran = run(world, *FAST, "half", "--json")
    assert ran.code == 0, ran.stderr
    assert world.bytes("half") == clean
    assert "1 tensor in the cache is damaged; it is made anew" in ran.stderr
    tensors = json.loads(ran.stdout)["artifacts"][0]["tensors"]
    assert (tensors["computed"], tensors["reused"]) == (1, 7), tensors
    # What was found out is put right everywhere.
    assert "`m` in the cache was damaged" in ran.stderr
    assert run(world, *FAST).code == 0
    assert world.bytes("m") == scene[2]
    assert world.bytes("half") == clean
    assert run(world, "cache", "verify").code == 0


def test_bits_flipped_in_many_reused_tensors_are_all_found(world):
    world.modelfile(world.text + SECOND)
    clean = world.from_nothing("half").bytes("half")
    path = only(world, "artifacts/*/*.safetensors")
    for part in "qkvo":
        flip(path, offset_of(path, f"layers.1.self_attn.{part}_proj") + 100, keep_time=True)
    ran = run(world, "build", "half", "--jobs", "3")
    assert ran.code == 0, ran.stderr
    assert "4 tensors in the cache are damaged; they are made anew" in ran.stderr
    assert world.bytes("half") == clean


@pytest.mark.parametrize("gc", [False, True], ids=["", "collected"])
@pytest.mark.parametrize("link", ["hard", "copy"])
def test_damage_that_a_check_of_the_cache_finds_is_put_right_in_outputs_too(world, scene, gc, link):
    (path,) = world.cache.glob("artifacts/*/*.safetensors")
    if link == "copy":
        shutil.rmtree(world.out)
        assert run(world, *FAST, "--link", "copy").code == 0
    assert run(world, "build").stdout == "m: nothing to do (21 tensors, build/m)\n"
    flip(path, os.path.getsize(path) - 1, keep_time=True)
    assert (world.bytes("m") == scene[2]) == (link == "copy")
    assert run(world, "cache", "verify").code == 5
    if gc:
        assert run(world, "cache", "gc", "--max-size", "0").code == 0
    assert run(world, "build").code == 0
    assert world.bytes("m") == scene[2]


def offset_of(path, piece):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    (name,) = [name for name in header if piece in name]
    return 8 + length + header[name]["data_offsets"][0]


# --- outputs that somebody edited -------------------------------------------------------------------------------------


def test_a_weight_file_edited_in_place_is_made_anew_and_the_cache_healed(world, scene):
    path = world.out / "m" / "model.safetensors"
    assert os.path.samefile(path, only(world, "artifacts/*/*.safetensors"))
    flip(path, os.path.getsize(path) - 1)
    ran = check(world, scene, again=False)
    assert "`m` in the cache was damaged" in ran.stderr
    assert f"{path} was changed or removed; it is made anew" in ran.stderr
    assert [p for p in world.cache.glob("artifacts/*/*.safetensors") if os.path.samefile(p, path)]


def test_a_weight_file_replaced_or_deleted_in_the_output_is_shown_again_from_the_cache(world, scene):
    path = world.out / "m" / "model.safetensors"
    path.unlink()
    ran = run(world, *FAST, "--json")
    assert json.loads(ran.stdout)["artifacts"][0]["tensors"]["computed"] == 0
    assert world.bytes("m") == scene[2]
    os.replace(shutil.copy(world.root / "a" / "model.safetensors", world.root / "other"), path)
    ran = run(world, *FAST, "--json")
    assert json.loads(ran.stdout)["artifacts"][0]["tensors"]["computed"] == 0
    assert f"{path} was changed or removed; it is made anew" in ran.stderr
    assert world.bytes("m") == scene[2]


def test_a_weight_file_that_was_only_touched_costs_nothing(world, scene):
    path = world.out / "m" / "model.safetensors"
    os.utime(path, (10**9, 10**9))
    ran = run(world, *FAST, "--json")
    assert json.loads(ran.stdout)["artifacts"][0]["status"] == "fresh"
    assert ran.stderr == ""


@pytest.mark.parametrize("name", ["config.json", "README.md", "tokenizer.json", "modelbuild.json"])
def test_an_edited_side_file_is_kept_aside_and_named(world, scene, name):
    path = world.out / "m" / name
    path.write_text("mine")
    ran = check(world, scene)
    kept = world.out / ".edited" / "m" / name
    assert kept.read_text() == "mine"
    assert f"{path} was edited; it is now {kept}\n" in ran.stderr


def test_a_deleted_side_file_comes_back_without_a_word_about_edits(world, scene):
    (world.out / "m" / "README.md").unlink()
    check(world, scene)
    assert not (world.out / ".edited").exists()


def test_an_added_file_stays_until_the_output_is_replaced_and_is_then_kept_aside(world, scene):
    path = world.out / "m" / "notes" / "mine.txt"
    path.parent.mkdir()
    path.write_text("mine")
    assert run(world, *FAST).code == 0
    assert path.read_text() == "mine"
    world.edit(*EDIT)
    ran = run(world, *FAST)
    kept = world.out / ".edited" / "m" / "notes" / "mine.txt"
    assert kept.read_text() == "mine"
    assert f"{path} was added; it is now {kept}\n" in ran.stderr
    assert world.bytes("m") == scene[3]


def test_two_edits_of_the_same_file_are_both_kept(world, scene):
    for text in ("one", "two"):
        (world.out / "m" / "README.md").write_text(text)
        assert run(world, *FAST).code == 0
    kept = world.out / ".edited" / "m"
    assert {path.read_text() for path in kept.iterdir()} == {"one", "two"}
    assert world.bytes("m") == scene[2]


def test_an_edit_is_seen_although_the_cache_and_its_records_are_gone(world, scene):
    shutil.rmtree(world.cache)
    (world.out / "m" / "README.md").write_text("mine")
    check(world, scene)
    assert (world.out / ".edited" / "m" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_stands_in_the_place_of_an_output_and_is_not_ours_is_moved_aside(world, scene, kind, recorded):
    path = world.out / "m"
    shutil.rmtree(path)
    if not recorded:
        shutil.rmtree(world.cache)
    elsewhere = world.out.parent / "elsewhere"
    if kind == "folder":
        path.mkdir()
        (path / "precious").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    else:
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / "precious").write_text("mine")
        path.symlink_to(elsewhere)
    ran = check(world, scene)
    kept = world.out / ".edited" / "m"
    # A folder in the place of one that a record tells of is gone through file by file; without a record it goes whole.
    whole = not (kind == "folder" and recorded)
    moved = f"{path} was not written by modelbuild; it is now {kept}"
    assert (moved if whole else f"{path}/precious was added; it is now {kept}/precious") in ran.stderr
    assert (kept if kind == "file" else kept / "precious").read_text() == "mine"


def test_a_whole_output_folder_that_is_deleted_is_shown_again_without_computing(world, scene):
    shutil.rmtree(world.out)
    ran = run(world, *FAST, "--json")
    assert json.loads(ran.stdout)["artifacts"][0]["tensors"] == {"total": 21, "computed": 0, "copied": 0, "reused": 21}
    assert world.bytes("m") == scene[2]
