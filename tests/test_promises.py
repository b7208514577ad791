"""What a command imports, and when the stamp of a finished build is believed."""

import json
import os
import subprocess
import sys

import pytest

from modelbuild import stamps
from modelbuild.errors import ModelbuildError

HEAVY = {"torch", "numba", "llvmlite", "transformers", "peft", "huggingface_hub", "safetensors"}
LATE = {*HEAVY, "numpy", "pydantic", "typer", "click", "rich", "tomli", "sqlite3", "xxhash"}


def packages(modules):
    return {name.partition(".")[0] for name in modules}


# --- imports ----------------------------------------------------------------------------------------------------------


def test_importing_modelbuild_imports_nothing_heavy():
    program = "import sys, modelbuild; modelbuild.__version__; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert packages(found) & LATE == set()
    assert [name for name in found if name.startswith("modelbuild.")] == []


def test_the_api_stays_functions_when_submodules_of_the_same_names_are_imported():
    import modelbuild

    before = modelbuild.build, modelbuild.plan, modelbuild.why
    import modelbuild.build
    import modelbuild.plan.node
    from modelbuild import build, plan, why

    assert (modelbuild.build, modelbuild.plan, modelbuild.why) == (build, plan, why) == before
    assert [found.__name__ for found in before] == ["build", "plan", "why"]


def test_a_build_with_nothing_to_do_imports_nothing_but_its_stamps(violet):
    assert violet.run("build").returncode == 0
    found = violet.imports("build")
    assert packages(found) & LATE == set()
    ours = {name for name in found if name.startswith("modelbuild")}
    assert ours == {"modelbuild", "modelbuild.digest", "modelbuild.stamps"}


def test_planning_imports_neither_torch_nor_kernels_nor_the_hub_client(violet):
    assert packages(violet.imports("plan")) & HEAVY == set()
    violet.run("build")
    for words in (["plan"], ["plan", "--json"], ["why", "violet"], ["why", "violet", "lm_head.weight"], ["lock"]):
        assert packages(violet.imports(*words)) & HEAVY == set(), words


def test_sources_that_are_remembered_load_nothing_to_hash_with(violet):
    first = violet.imports("plan")
    again = violet.imports("plan")
    for found in (first, again):
        assert "modelbuild.sources.hashing" in found
        assert not {"modelbuild.kernels.sha256", "modelbuild.kernels.compile", "llvmlite"} & found


def test_an_output_that_is_only_linked_again_imports_neither_torch_nor_kernels(violet):
    violet.run("build")
    (violet.out / "violet" / "config.json").unlink()
    assert packages(violet.imports("build")) & HEAVY == set()
    assert (violet.out / "violet" / "config.json").exists()


@pytest.mark.parametrize("words", [["--help"], ["build", "--help"], ["methods"], ["cache", "dir"]], ids=" ".join)
def test_help_imports_nothing_heavy(world, words):
    assert packages(world.imports(*words)) & {*HEAVY, "numpy"} == set()
    # The cache folder is made by what writes to it.
    assert list(world.root.iterdir()) == []


# --- stamps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stamped(violet, monkeypatch):
    """Violet as built, in its own folder, where a stamp answers."""
    monkeypatch.chdir(violet.root)
    for name in [name for name in os.environ if name.startswith("MODELBUILD_")]:
        monkeypatch.delenv(name)
    violet.build()
    assert answer(violet) is not None
    return violet


def answer(world, *words):
    return stamps.answer(["-f", str(world.path), "build", *words])


def restored(path, change):
    """Changes a file and gives it the mtime it had."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path):
    """Flips the last bit of a file; its size stays."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(data)


def test_a_stamp_says_what_the_full_build_says(stamped):
    told = stamps.answer(["build"])
    assert told == "violet: nothing to do (21 tensors, build/violet)"
    assert stamped.run("build").stdout == told + "\n"
    assert stamped.run("build", "--jobs", "1").stdout == told + "\n"


def test_the_json_of_a_stamp_is_that_of_the_full_build(stamped):
    quick, full = (json.loads(stamped.run("build", "--json", *words).stdout) for words in ([], ["--jobs", "1"]))
    for document in (quick, full):
        document["seconds"] = 0
        for artifact in document["artifacts"]:
            artifact["seconds"] = 0
    assert quick == full
    assert quick["artifacts"][0]["status"] == "fresh"


SOURCE_EDITS = {
    "touched": lambda root: os.utime(root / "red/model.safetensors", (1, 1)),
    "edited": lambda root: flip(root / "red/model.safetensors"),
    "edited and its mtime restored": lambda root: restored(root / "red/model.safetensors", flip),
    "second shard edited": lambda root: restored(root / "blue/model-00002-of-00002.safetensors", flip),
    "config edited": lambda root: restored(root / "red/config.json", lambda p: p.write_text(p.read_text() + "\n")),
    "tokenizer edited": lambda root: restored(root / "red/tokenizer.json", lambda p: p.write_text("{}")),
    "adapter edited": lambda root: restored(root / "style/adapter_model.safetensors", flip),
    "adapter config edited": lambda root: restored(root / "style/adapter_config.json", lambda p: p.write_text("{}")),
    "shard gone": lambda root: (root / "blue/model-00001-of-00002.safetensors").unlink(),
    "folder gone": lambda root: (root / "blue").rename(root / "elsewhere"),
    "another file in a folder": lambda root: (root / "red/added_tokens.json").write_text("{}"),
    "another file beside an adapter": lambda root: (root / "style/README.md").write_text("new"),
    "a file replaced by its copy": lambda root: replaced(root / "red/model.safetensors"),
}


def replaced(path):
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    restored(path, lambda path: copy.replace(path))


@pytest.mark.parametrize("edit", SOURCE_EDITS)
def test_a_stamp_is_not_believed_when_a_source_is_not_what_it_was(stamped, edit):
    SOURCE_EDITS[edit](stamped.root)
    assert answer(stamped) is None


OUTPUT_EDITS = {
    "weights edited": lambda out: restored_by_copy(out / "model.safetensors"),
    "config edited": lambda out: (out / "config.json").write_text("{}"),
    "card edited": lambda out: (out / "README.md").write_text("mine"),
    "touched": lambda out: os.utime(out / "config.json", (1, 1)),
    "weights gone": lambda out: (out / "model.safetensors").unlink(),
    "provenance gone": lambda out: (out / "modelbuild.json").unlink(),
    "folder gone": lambda out: out.rename(out.with_name("elsewhere")),
}


def restored_by_copy(path):
    """Other bytes of the same size in the place of a linked, read-only file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("edit", OUTPUT_EDITS)
def test_a_stamp_is_not_believed_when_the_output_is_not_what_it_was(stamped, edit):
    OUTPUT_EDITS[edit](stamped.out / "violet")
    assert answer(stamped) is None
    wanted = stamped.from_nothing().bytes("violet")
    stamped.build()
    assert stamped.bytes("violet") == wanted


MODELFILE_EDITS = {
    "t": lambda world: world.edit("t = 0.25", "t = 0.5"),
    "a comment": lambda world: world.modelfile("# violets\n" + world.text),
    "gone": lambda world: world.path.unlink(),
    "a lock that was edited": lambda world: (world.root / "Modelfile.lock").write_text(""),
    "no lock": lambda world: (world.root / "Modelfile.lock").unlink(),
}


@pytest.mark.parametrize("edit", MODELFILE_EDITS)
def test_a_stamp_is_not_believed_when_the_modelfile_or_its_lock_is_not_what_it_was(stamped, edit):
    MODELFILE_EDITS[edit](stamped)
    assert answer(stamped) is None


def test_a_stamp_is_not_believed_by_another_version(stamped, monkeypatch):
    monkeypatch.setattr(stamps, "__version__", "9.9.9")
    assert answer(stamped) is None


def test_a_stamp_is_not_believed_in_another_folder(stamped, monkeypatch, tmp_path):
    # Paths in the answer are relative to the folder that it was given in.
    monkeypatch.chdir(tmp_path)
    assert answer(stamped) is None


def test_a_stamp_is_not_believed_of_other_targets_caches_or_outputs(stamped):
    assert answer(stamped, "styled") is None
    assert answer(stamped, "--cache", str(stamped.root / "other")) is None
    assert answer(stamped, "--out", str(stamped.root / "other")) is None
    assert answer(stamped, "--out", str(stamped.out)) is not None


@pytest.mark.parametrize(
    "words", [["--no-cache"], ["--set", "merge.violet.t=0.5"], ["--jobs", "2"], ["--help"], ["-x"]]
)
def test_a_stamp_answers_only_plain_builds(stamped, words):
    assert answer(stamped, *words) is None


def test_an_option_in_the_environment_is_for_the_full_build(stamped, monkeypatch):
    monkeypatch.setenv("MODELBUILD_NO_CACHE", "1")
    assert answer(stamped) is None


@pytest.mark.parametrize("damage", ["", "{}", "[]", "nonsense", '{"version": "0.1.0"}'])
def test_a_stamp_that_is_damaged_is_as_good_as_none(stamped, damage):
    (path,) = stamped.cache.glob("records/*/stamp-*.json")
    path.write_text(damage)
    assert answer(stamped) is None
    assert stamped.build()["violet"].status == "fresh"
    assert answer(stamped) is not None


def test_a_young_source_gets_no_stamp(violet, monkeypatch):
    monkeypatch.chdir(violet.root)
    os.utime(violet.root / "style" / "adapter_config.json")
    violet.build()
    assert answer(violet) is None
    assert violet.build()["violet"].status == "fresh"


def test_a_build_with_overrides_leaves_no_stamp(violet, monkeypatch):
    monkeypatch.chdir(violet.root)
    violet.build(overrides=("merge.violet.models=[{model='blue', t=0.5}]",))
    assert answer(violet) is None
    assert violet.build()["violet"].tensors.computed > 0
    assert answer(violet) is not None


def test_after_an_override_the_old_stamp_is_not_believed(stamped):
    stamped.build(overrides=("merge.violet.models=[{model='blue', t=0.5}]",))
    assert answer(stamped) is None


def test_a_failed_build_leaves_no_stamp(violet, monkeypatch):
    monkeypatch.chdir(violet.root)
    violet.model("blue", seed=2, hidden=16)
    with pytest.raises(ModelbuildError):
        violet.build()
    assert answer(violet) is None


def test_a_stamp_sees_where_links_lead(stamped):
    """A folder that is a link, and files that are links, as in the Hub client's cache."""
    world = stamped
    world.model("other", seed=99)
    first = next(iter(world.root.glob("*/model.safetensors"))).parent
    kept = world.root / "kept"
    first.rename(kept)
    first.symlink_to("kept")
    world.build()
    assert answer(world) is not None
    first.unlink()
    first.symlink_to("other")
    assert answer(world) is None
    first.unlink()
    first.mkdir()
    for path in kept.iterdir():
        (first / path.name).symlink_to(path)
    os.utime(first, (1, 1))
    world.build()
    assert answer(world) is not None
    (first / "model.safetensors").unlink()
    (first / "model.safetensors").symlink_to(world.root / "other" / "model.safetensors")
    os.utime(first, (1, 1))
    assert answer(world) is None
