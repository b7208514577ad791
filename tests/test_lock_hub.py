"""The lock and its flags with sources on the Hub: what stays at its commit, what is looked up, what is asked for."""

import json
import shutil

import pytest

from modelbuild.sources.lockfile import read


def commits(world):
    """The locked commit of each source."""
    return {name: source.commit for name, source in read(world.root / "Modelfile.lock").sources.items()}


def ran(world, hub, code, *words):
    """What a command printed on both streams, after its exit code was checked."""
    done = world.run(*words, **hub.env)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def moved(far, hub):
    """Violet, locked and built, whose sources have all moved on since; the new commits by name."""
    far.build()
    new = {}
    for seed, name in enumerate(("red", "blue"), 8):
        far.model(f"newer-{name}", seed=seed)
        new[name] = hub.put(f"org/{name}", far.root / f"newer-{name}")
    hub.fresh()
    return new


@pytest.mark.parametrize("words", [("build",), ("plan",), ("why", "violet"), ("lock",)], ids=" ".join)
def test_what_is_locked_stays_without_a_request_whatever_its_branch_does(far, hub, moved, words):
    before = commits(far)
    flags = [[], ["--locked"], ["--frozen"], ["--locked", "--frozen"]] if words != ("lock",) else [[]]
    for more in flags:
        ran(far, hub, 0, *words, *more)
    assert (commits(far), hub.answers) == (before, [])


def test_an_update_takes_what_is_there_today_of_all_or_of_one(far, hub, moved):
    before = commits(far)
    told = ran(far, hub, 0, "lock", "--update", "red")
    assert f"source `red`: commit {before['red']} → {moved['red']}" in told
    assert commits(far) == before | {"red": moved["red"]}
    assert hub.count("/api/models/") == hub.count("/api/models/org/red") == 1
    data = json.loads(ran(far, hub, 0, "lock", "--update", "--json"))
    assert commits(far) == before | moved
    assert {source["name"]: source["commit"] for source in data["sources"]} == commits(far)
    assert far.build(locked=True)["violet"].status == "built"


def test_another_revision_is_out_of_date_and_frozen_asks_nobody(far, hub, moved):
    hub.put("org/red", far.root / "newer-red", branch="v2")
    far.edit('source = "hf:org/red"', 'source = "hf:org/red@v2"')
    hub.fresh()
    assert "source `red` is another one in the lock" in ran(far, hub, 3, "build", "--frozen")
    assert hub.answers == []
    assert "source `red`: `hf:org/red` → `hf:org/red@v2`" in ran(far, hub, 3, "plan", "--locked")
    assert ran(far, hub, 0, "lock")
    assert ran(far, hub, 0, "build", "--locked", "--frozen")


def test_a_checkout_with_its_lock_builds_frozen_on_another_machine(far, hub, moved):
    wanted = far.bytes("violet")
    for folder in (hub.home, far.cache, far.out):
        shutil.rmtree(folder)
    ran(far, hub, 0, "build", "--frozen", "--record")
    assert hub.count("/api/models/") == 0
    assert far.bytes("violet") == wanted
    ran(far, hub, 0, "verify", "violet", "--frozen")


def test_a_lock_that_names_a_commit_that_is_none_is_refused_before_anybody_is_asked(far, hub, moved):
    path = far.root / "Modelfile.lock"
    path.write_text(path.read_text().replace(commits(far)["red"], "main"))
    for words in (("build",), ("plan", "--frozen"), ("lock",)):
        assert "`commit` of `red` is not a commit" in ran(far, hub, 3, *words)
    assert hub.answers == []
    ran(far, hub, 0, "lock", "--update", "red")
    assert commits(far)["red"] == moved["red"]


def test_a_digest_of_the_hub_that_was_edited_is_told_and_nothing_comes_of_it(far, hub, moved):
    path = far.root / "Modelfile.lock"
    red = next(file for file in read(path).sources["red"].files if file.name == "model.safetensors")
    path.write_text(path.read_text().replace(red.sha256, "f" * 64))
    shutil.rmtree(far.cache)
    shutil.rmtree(far.out)
    shutil.rmtree(hub.home)
    ran(far, hub, 5, "build", "--frozen")
    assert not (far.out / "violet").exists()


def test_a_source_that_is_new_is_looked_up_alone(far, hub, moved):
    before = commits(far)
    far.modelfile(far.text + '\n[base.more]\nsource = "hf:org/red"\n')
    # It is not in the lock, and the targets do not need it: the lock would not change.
    ran(far, hub, 0, "build", "--locked", "--frozen")
    ran(far, hub, 0, "lock")
    assert commits(far) == before | {"more": moved["red"]}
    assert hub.count("/api/models/") == 1
