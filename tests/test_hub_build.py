"""Sources on the Hub, from the first plan to a build with nothing to do: what is asked for, and what is not."""

import json
import shutil
from pathlib import Path

import pico
import pytest
from world import World

from modelbuild import stamps
from modelbuild.errors import BuildFailed, NotCached, SourceNotFound, UsageError
from modelbuild.modelfile.check import not_built
from modelbuild.modelfile.parse import load
from modelbuild.report.plan import show_plan
from modelbuild.report.terminal import Listener
from modelbuild.sources.fence import fence
from modelbuild.sources.hub import fetch, headers
from modelbuild.sources.hub.fetch import distant
from modelbuild.sources.hub.files import open_hub
from modelbuild.sources.hub.names import HubName, hub_name
from modelbuild.sources.hub.requests import list_repository
from modelbuild.sources.lockfile import read as read_lock
from modelbuild.sources.memory import Memory

WEIGHTS = ("model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
HEAVY = {"torch", "numba", "huggingface_hub", "httpx2"}


def purge(hub):
    """Empties the client's cache."""
    shutil.rmtree(hub.home)


def in_snapshots(hub):
    """The names of the files that the client has."""
    return sorted(path.name for path in hub.cache.glob("models--*/snapshots/*/*"))


def for_weights(hub):
    """The answers to who asked for the weights of a model, or for a part of them."""
    return [answer for answer in hub.answers if answer.path.rpartition("/")[2] in WEIGHTS]


def local_again(world):
    """The same world with sources in its own folder."""
    copy = World(world.root.parent / "near")
    copy.root.mkdir()
    text = world.text
    for name in ("red", "blue", "style"):
        shutil.copytree(world.root.parent / name, copy.root / name)
        text = text.replace(f'"hf:org/{name}"', f'"{name}"')
    return copy.modelfile(text)


def keys(result):
    return {artifact.name: artifact.key for artifact in result.artifacts}


# --- plan, lock, build ------------------------------------------------------------------------------------------------


def test_a_plan_says_what_is_downloaded_and_downloads_headers_configs_and_adapters(far, hub):
    plan = far.plan()
    files = {name: (far.root.parent / name).glob("*.safetensors") for name in ("red", "blue")}
    size = {name: sum(path.stat().st_size for path in found) for name, found in files.items()}
    assert plan.download == size["red"] + size["blue"]
    assert (plan["styled"].download, plan["violet"].download) == (size["red"], size["blue"])
    assert plan.as_json()["bytes"]["download"] == plan.download
    assert plan.as_json()["artifacts"][1]["bytes"]["download"] == size["blue"]
    assert hub.count("/api/models/") == 3
    assert not set(WEIGHTS) & set(in_snapshots(hub))
    assert "adapter_model.safetensors" in in_snapshots(hub)
    assert all(answer.range for answer in for_weights(hub))
    assert not (far.root / "Modelfile.lock").exists()


def test_a_second_plan_asks_for_listings_alone(far, hub):
    far.plan()
    hub.fresh()
    far.plan()
    assert [answer.path.split("/")[2] for answer in hub.answers] == ["models"] * 3


def test_a_plan_as_text_names_the_bytes(far):
    text = show_plan(far.plan())
    assert "  downloads 51.6 kB from the Hub\n" in text
    assert "in all: 103.2 kB to download" in text


def test_a_build_downloads_what_it_reads_once_and_the_next_one_asks_nothing(far, hub):
    result = far.build()
    assert result["violet"].status == "built"
    assert sorted(set(in_snapshots(hub)) & set(WEIGHTS)) == sorted(WEIGHTS)
    assert hub.count("/_storage/", "GET") - sum(a.range is not None for a in hub.answers if "/_storage/" in a.path) == 4
    hub.fresh()
    assert far.build()["violet"].status == "fresh"
    far.plan()
    far.why("violet")
    assert hub.answers == []


def test_the_lock_has_commit_size_and_digest_of_every_file(far, hub):
    far.build()
    lock = read_lock(far.root / "Modelfile.lock")
    red = lock.sources["red"]
    assert red.origin == "hf:org/red"
    assert red.commit == hub.repos["org/red"].refs["main"]
    tree = hub.repos["org/red"].commits[red.commit]
    assert {file.name: (file.size, file.sha256) for file in red.files} == {
        path: (len(blob.data), blob.sha256) for path, blob in tree.items()
    }


def test_lock_resolves_without_downloading_weights(far, hub):
    ran = far.run("lock", **hub.env)
    assert ran.returncode == 0, ran.stderr
    assert set(read_lock(far.root / "Modelfile.lock").sources) == {"red", "blue", "style"}
    assert not set(WEIGHTS) & set(in_snapshots(hub))


def test_a_branch_that_moves_changes_nothing_until_the_lock_is_gone(far, hub):
    before = keys(far.build())
    far.model("newer", seed=9)
    moved = hub.put("org/red", far.root / "newer")
    hub.fresh()
    far.edit("weight = 0.5", "weight = 0.25")
    pinned = far.build()
    assert hub.answers == []
    assert read_lock(far.root / "Modelfile.lock").sources["red"].commit != moved
    (far.root / "Modelfile.lock").unlink()
    again = far.build()
    assert read_lock(far.root / "Modelfile.lock").sources["red"].commit == moved
    assert len({tuple(found.items()) for found in (before, keys(pinned), keys(again))}) == 3


def test_a_build_from_the_lock_alone_downloads_the_commits_that_it_pins(far, hub):
    """As on another machine, after the branch moved: nothing but Modelfile and lock is there."""
    before = far.build()
    wanted = far.bytes("violet")
    far.model("newer", seed=9)
    hub.put("org/red", far.root / "newer")
    purge(hub)
    shutil.rmtree(far.cache)
    shutil.rmtree(far.out)
    hub.fresh()
    again = far.build()
    assert hub.count("/api/models/") == 0
    assert (keys(again), far.bytes("violet")) == (keys(before), wanted)


def test_another_revision_in_the_modelfile_is_looked_up(far, hub):
    far.build()
    far.model("newer", seed=9)
    commit = hub.put("org/red", far.root / "newer", branch="v2")
    hub.fresh()
    far.edit('source = "hf:org/red"', 'source = "hf:org/red"\nrevision = "v2"').build()
    assert hub.count("/api/models/") == hub.count("/api/models/org/red/revision/v2") == 1
    lock = read_lock(far.root / "Modelfile.lock")
    assert (lock.sources["red"].origin, lock.sources["red"].commit) == ("hf:org/red@v2", commit)


@pytest.mark.parametrize("form", ["@{}", '"\nrevision = "{}'])
def test_a_commit_may_be_named_in_the_modelfile(far, hub, form):
    commit = hub.repos["org/red"].refs["main"]
    far.model("newer", seed=9)
    hub.put("org/red", far.root / "newer")
    far.edit('hf:org/red"', f'hf:org/red{form.format(commit)}"').build()
    assert read_lock(far.root / "Modelfile.lock").sources["red"].commit == commit


def test_two_sources_from_one_branch_are_of_one_commit(world, hub):
    world.model("red", seed=1)
    hub.put("org/red", world.root / "red")
    world.modelfile("""
        [base.a]
        source = "hf:org/red"
        [base.b]
        source = "hf:org/red"
        [merge.m]
        method = "linear"
        models = [ { model = "a", weight = 1 }, { model = "b", weight = 3 } ]
    """)
    world.build()
    assert hub.count("/api/models/") == 1
    assert hub.count("model.safetensors", "HEAD") == 1


# --- only what is needed ----------------------------------------------------------------------------------------------


def test_a_build_that_finds_everything_in_the_cache_downloads_no_weights(far, hub):
    far.build()
    purge(hub)
    shutil.rmtree(far.out)
    hub.fresh()
    assert far.plan().download == 0
    assert far.build()["violet"].tensors.reused == 21
    assert not for_weights(hub)


def test_only_the_shards_that_are_read_are_downloaded(world, hub):
    """The second shard belongs to layers that a slice leaves out."""
    world.model("red", seed=1, layers=4, shards=4)
    hub.put("org/red", world.root / "red")
    index = json.loads((world.root / "red/model.safetensors.index.json").read_text())["weight_map"]
    used = {file for name, file in index.items() if "layers." not in name or "layers.0." in name}
    assert 0 < len(used) < 4
    world.modelfile("""
        [base.red]
        source = "hf:org/red"
        [[merge.m.slices]]
        models = [ { model = "red", layers = [0, 1] } ]
        [merge.m]
        method = "passthrough"
    """)
    sizes = {path.name: path.stat().st_size for path in (world.root / "red").glob("*.safetensors")}
    assert world.plan().download == sum(sizes[file] for file in used)
    world.build()
    assert {name for name in in_snapshots(hub) if name.endswith(".safetensors")} == used


def test_an_output_that_lost_a_side_file_needs_no_weights(far, hub):
    far.build()
    (far.out / "violet/tokenizer.json").unlink()
    purge(hub)
    hub.fresh()
    assert far.build()["violet"].status == "built"
    assert (far.out / "violet/tokenizer.json").exists()
    assert not for_weights(hub)


def test_large_side_files_come_with_the_weights_not_with_the_plan(far, hub):
    data = b"a large vocabulary" * 1000
    hub.put("org/red", {**tree(hub, "org/red"), "tokenizer.model": data})
    plan = far.plan()
    assert "tokenizer.model" not in in_snapshots(hub)
    assert plan["violet"].download == plan["styled"].download + len(data) + 32
    far.build()
    assert (far.out / "violet/tokenizer.model").read_bytes() == data


def tree(hub, name):
    repo = hub.repos[name]
    return {path: blob.data for path, blob in repo.commits[repo.refs["main"]].items()}


def test_one_copy_of_weights_is_taken_of_several(far, hub):
    files = tree(hub, "org/red")
    junk = (
        "pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "red.Q4_K_M.gguf",
        "onnx/model.onnx", "tf_model.h5", "modeling_red.py", "README.md", "checkpoint-5/model.safetensors",
        "runs/events", "../outside.json", "a\\b.json",
    )  # fmt: skip
    hub.put("org/red", {**files, **dict.fromkeys(junk, b"junk")})
    far.build()
    assert not {path.rpartition("/")[2] for path in junk} & {name for name in in_snapshots(hub) if name not in files}
    assert {file.name for file in read_lock(far.root / "Modelfile.lock").sources["red"].files} == set(files)


def test_weights_in_other_formats_only_are_told_before_anything_is_fetched(far, hub):
    hub.put("org/red", {"config.json": b"{}", "tf_model.h5": b"junk"})
    with pytest.raises(BuildFailed, match=r"tf_model\.h5"):
        far.build()
    assert hub.count("tf_model.h5") == 0


def test_side_files_in_folders_come_along(far, hub):
    files = {**tree(hub, "org/red"), "1_Pooling/config.json": b"{}", "LICENSE": b"mine", "notes/config.json": b"{}"}
    hub.put("org/red", files)
    far.build()
    assert (far.out / "violet/1_Pooling/config.json").read_bytes() == b"{}"
    assert (far.out / "violet/LICENSE").read_bytes() == b"mine"
    assert not (far.out / "violet/notes").exists()


def test_an_adapter_in_a_subfolder(far, hub):
    files = {f"checkpoint-100/{path}": data for path, data in tree(hub, "org/style").items()}
    hub.put("org/style", files)
    wanted = local_again(far)
    wanted.build()
    with pytest.raises(SourceNotFound, match=r"has no `adapter_model\.safetensors`") as error:
        far.build()
    assert 'subfolder = "checkpoint-100"' in error.value.faults[0].hint
    far.edit('source = "hf:org/style"', 'source = "hf:org/style"\nsubfolder = "checkpoint-100"').build()
    assert far.tensors("violet").keys() == wanted.tensors("violet").keys()
    assert far.bytes("violet")["model.safetensors"] == wanted.bytes("violet")["model.safetensors"]
    lock = read_lock(far.root / "Modelfile.lock")
    assert [file.name for file in lock.sources["style"].files] == sorted(files)
    hub.fresh()
    far.build()
    assert hub.answers == []


def test_another_subfolder_is_looked_up_although_the_origin_is_the_same(far, hub):
    style = tree(hub, "org/style")
    hub.put("org/style", {f"{folder}/{path}": data for folder in ("a", "b") for path, data in style.items()})
    far.edit('source = "hf:org/style"', 'source = "hf:org/style"\nsubfolder = "a"').build()
    hub.fresh()
    far.edit('subfolder = "a"', 'subfolder = "b"').build()
    assert hub.count("/api/models/org/style") == hub.count("/api/models/") == 1
    lock = read_lock(far.root / "Modelfile.lock")
    assert {file.name.split("/")[0] for file in lock.sources["style"].files} == {"b"}


# --- identity ---------------------------------------------------------------------------------------------------------


def test_the_hub_and_local_copies_give_the_same_keys_and_weights(far, hub):
    near = local_again(far)
    one, other = far.plan(), near.plan()
    assert [a.key for a in one.artifacts] == [a.key for a in other.artifacts]
    far.build()
    near.build()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert far.bytes("violet")[name] == near.bytes("violet")[name]


def test_a_cache_filled_from_local_copies_serves_the_hub(far, hub):
    near = local_again(far)
    near.build()
    result = far.build(cache=str(near.cache))
    assert (result["violet"].status, result["violet"].tensors.reused) == ("built", 21)
    assert all(answer.range for answer in for_weights(hub))


def test_a_local_source_may_lie_in_the_clients_cache(far, hub):
    """The links of a snapshot lead to blobs, and the cache is inside the fence."""
    far.build()
    (snapshot,) = hub.cache.glob("models--org--red/snapshots/*")
    wanted = far.plan("styled")["styled"].key
    far.edit('"hf:org/red"', f'"{snapshot}"')
    assert far.plan("styled")["styled"].key == wanted


def test_a_link_out_of_the_clients_cache_needs_permission(far, hub):
    far.build()
    (path,) = hub.cache.glob("models--org--red/snapshots/*/model.safetensors")
    outside = far.root.parent / "outside.safetensors"
    path.resolve().rename(outside)
    path.unlink()
    path.symlink_to(outside)
    far.edit("weight = 0.5", "weight = 0.25")
    with pytest.raises(UsageError, match="lies outside"):
        far.build()
    assert far.build(allow_path=True)["violet"].status == "built"


def test_integer_tensors_are_compared_by_range(world, hub):
    """Buffers that cannot be merged must be the same in all inputs; a plan fetches them and nothing else."""
    import numpy as np

    buffer = {"embeddings.counts": ("I64", np.arange(64).reshape(1, 64))}
    world.model("red", "bert", seed=1, extra=buffer).model("blue", "bert", seed=2, extra=buffer)
    other = {"embeddings.counts": ("I64", np.arange(1, 65).reshape(1, 64))}
    world.model("odd", "bert", seed=2, extra=other)
    for name in ("red", "blue", "odd"):
        hub.put(f"org/{name}", world.root / name)
    world.modelfile("""
        [base.red]
        source = "hf:org/red"
        [base.blue]
        source = "hf:org/blue"
        [merge.m]
        method = "lerp"
        base = "red"
        models = [ { model = "blue", t = 0.5 } ]
    """)
    world.plan()
    assert all(answer.range for answer in for_weights(hub))
    with pytest.raises(BuildFailed, match="cannot be merged"):
        world.edit("hf:org/blue", "hf:org/odd").plan()
    built = world.edit("hf:org/odd", "hf:org/blue").build()
    assert built["m"].status == "built"
    assert (world.tensors("m")["embeddings.counts"][1] == np.arange(64)).all()


# --- without the network ----------------------------------------------------------------------------------------------


def test_offline_with_everything_here_asks_nothing(far, hub):
    far.build()
    (far.root / "Modelfile.lock").unlink()
    shutil.rmtree(far.cache)
    hub.fresh()
    assert far.build(offline=True)["violet"].tensors.computed > 0
    assert hub.answers == []
    commits = {source.commit for source in read_lock(far.root / "Modelfile.lock").sources.values()}
    assert commits == {repo.refs["main"] for repo in hub.repos.values()}


def test_offline_is_an_option_of_build_plan_why_and_lock_and_a_variable(far, hub):
    far.run("build", **hub.env)
    hub.fresh()
    far.edit("weight = 0.5", "weight = 0.25")
    for words in (["plan"], ["why", "violet"], ["lock"], ["build"]):
        ran = far.run(*words, "--offline", **hub.env)
        assert ran.returncode == 0, ran.stderr
    assert far.run("plan", MODELBUILD_OFFLINE="1", **hub.env).returncode == 0
    assert far.run("plan", **{**hub.env, "HF_HUB_OFFLINE": "1"}).returncode == 0
    assert hub.answers == []


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_names_the_file_that_is_missing(far, hub, how):
    far.run("build", **hub.env)
    (path,) = hub.cache.glob("models--org--blue/snapshots/*/model-00002-of-00002.safetensors")
    path.unlink()
    hub.fresh()
    far.edit("weight = 0.5", "weight = 0.25")
    env = {**hub.env, "HF_HUB_OFFLINE": ""} | ({how: "1"} if how != "--offline" else {})
    ran = far.run("build", *(["--offline"] if how == "--offline" else []), **env)
    assert ran.returncode == 4
    assert "`hf:org/blue/model-00002-of-00002.safetensors` is not on this machine" in ran.stderr
    assert "Modelfile:6" in ran.stderr
    assert hub.answers == []


def test_offline_without_a_lock_or_a_known_branch_says_so(far, hub):
    with pytest.raises(SourceNotFound) as error:
        far.plan(offline=True)
    assert "the Hub client's cache has no revision `main` of it" in error.value.render()
    assert hub.answers == []


def test_offline_takes_what_another_tool_downloaded(far, hub):
    """The client notes what a branch was; blobs are named by their digests."""
    from huggingface_hub import hf_hub_download

    for repo in hub.repos:
        for path in tree(hub, repo):
            hf_hub_download(repo, path, cache_dir=hub.cache)
    hub.fresh()
    assert far.build(offline=True)["violet"].status == "built"
    assert hub.answers == []
    assert far.bytes("violet")["model.safetensors"] == local_built(far)


def local_built(far):
    near = local_again(far)
    near.build()
    return near.bytes("violet")["model.safetensors"]


def test_offline_without_links_hashes_what_it_finds(far, hub):
    far.build()
    wanted = far.bytes("violet")["model.safetensors"]
    for path in hub.cache.glob("models--*/snapshots/*/*"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    shutil.rmtree(far.cache)
    shutil.rmtree(far.out)
    (far.root / "Modelfile.lock").unlink()
    far.build(offline=True)
    assert far.bytes("violet")["model.safetensors"] == wanted


def test_a_plan_notes_no_branch_so_that_older_files_stay_in_use(far, hub):
    """Noting what a branch is now, with only its config here, would take the model from who works offline."""
    far.plan()
    assert list(hub.cache.glob("models--org--red/refs/*")) == []
    far.build()
    assert [path.read_text() for path in hub.cache.glob("models--org--red/refs/*")] == [
        hub.repos["org/red"].refs["main"]
    ]


# --- nothing to do ----------------------------------------------------------------------------------------------------


def test_a_build_with_nothing_to_do_loads_no_client(far, hub):
    assert far.run("build", **hub.env).returncode == 0
    hub.fresh()
    ran = far.run("build", python=["-X", "importtime"], **hub.env)
    assert ran.returncode == 0
    assert not [name for name in {*HEAVY, "modelbuild.session"} if f" {name}\n" in ran.stderr]
    assert hub.answers == []


@pytest.mark.parametrize("words", [["plan"], ["why", "violet"], ["lock"]], ids=" ".join)
def test_work_on_locked_sources_that_are_here_loads_no_client(far, hub, words):
    assert far.run("build", **hub.env).returncode == 0
    ran = far.run(*words, python=["-X", "importtime"], **hub.env)
    assert ran.returncode == 0
    assert not [name for name in HEAVY if f" {name}\n" in ran.stderr]


def test_a_stamp_holds_without_the_clients_cache(far, hub, monkeypatch):
    monkeypatch.chdir(far.root)
    far.build()
    purge(hub)
    hub.fresh()
    for words in (["build"], ["build", "--offline"]):
        assert stamps.answer(["-f", str(far.path), *words]) == "violet: nothing to do (21 tensors, build/violet)"
    assert hub.answers == []


def test_a_stamp_falls_with_the_lock(far, hub, monkeypatch):
    monkeypatch.chdir(far.root)
    far.build()
    (far.root / "Modelfile.lock").unlink()
    assert stamps.answer(["-f", str(far.path), "build"]) is None


def test_the_variables_of_the_client_are_obeyed(far, hub, tmp_path):
    env = {**hub.env, "HF_HUB_CACHE": str(tmp_path / "elsewhere"), "HF_TOKEN": hub.token}
    hub.repos["org/red"].private = True
    ran = far.run("build", **env)
    assert ran.returncode == 0, ran.stderr
    assert list((tmp_path / "elsewhere").glob("models--org--red/blobs/*"))
    assert not hub.cache.exists()
    assert {answer.token for answer in hub.answers if "/_storage/" not in answer.path} == {f"Bearer {hub.token}"}


def test_the_result_of_the_command_line_is_that_of_the_api(far, hub):
    ran = far.run("build", "--json", **hub.env)
    assert json.loads(ran.stdout)["artifacts"][1]["status"] == "built"
    assert "downloading 3 files from the Hub, 103.2 kB" in ran.stderr
    assert pico.read_tensors(far.out / "violet")


# --- what else a build may be told ------------------------------------------------------------------------------------


TWO = """
    [base.red]
    source = "hf:org/red"
    [base.blue]
    source = "hf:org/blue"
    [merge.r]
    method = "passthrough"
    dtype = "float32"
    models = [ { model = "red" } ]
    [merge.b]
    method = "passthrough"
    dtype = "float32"
    models = [ { model = "blue" } ]
"""


def test_with_keep_going_a_repository_that_is_lost_fails_only_what_needs_it(far, hub):
    far.modelfile(TWO).plan()
    hub.repos["org/red"].gated = True
    with pytest.raises(SourceNotFound, match="is gated") as error:
        far.build(keep_going=True)
    assert {a.name: a.status for a in error.value.result.artifacts} == {"r": "failed", "b": "built"}
    assert (far.out / "b/model.safetensors").exists()
    assert not (far.out / "r").exists()


def test_require_cached_downloads_nothing_for_what_it_does_not_compute(far, hub):
    far.plan()
    hub.fresh()
    with pytest.raises(NotCached):
        far.build(require_cached=True)
    assert not for_weights(hub)
    far.build()
    assert far.build(require_cached=True)["violet"].status == "fresh"


def test_an_incomplete_snapshot_is_told_offline(far, hub):
    far.build()
    for path in hub.cache.glob("models--org--red/snapshots/*/model.safetensors"):
        path.unlink()
    (far.root / "Modelfile.lock").unlink()
    with pytest.raises(SourceNotFound, match="has no safetensors file") as error:
        far.build(offline=True)
    assert "without `--offline`" in error.value.render()


def test_a_large_adapter_is_told_before_the_plan_fetches_it(far, hub, monkeypatch):
    monkeypatch.setattr(fetch, "LOUD", 5000)
    said = []

    class Ear(Listener):
        def say(self, text):
            said.append(text)

    far.plan(listener=Ear())
    assert said == ["downloading 1 file from the Hub, 9.2 kB"]


def test_weights_in_another_format_are_fetched_whole_to_be_looked_into(far, hub, monkeypatch):
    """All at once, checked, and only where they were never looked into."""
    hub.put("org/old", {"pytorch_model.bin": b"12345"})
    door = open_hub(fence(far.root), Memory(far.cache))
    (file,) = list_repository(door, HubName("old", "org/old")).files.values()
    looked = []
    monkeypatch.setattr(headers, "look_into", lambda file, memory, shown: looked.append((file, shown)))
    assert headers.look_ahead([distant(door, file)], {}) == [None]
    ((local, shown),) = looked
    assert (shown, local.sha256, local.remote) == ("hf:org/old/pytorch_model.bin", file.sha256, None)
    with open(local.path, "rb") as stored:
        assert stored.read() == b"12345"


def test_all_sources_of_the_examples_have_names_on_the_hub():
    root = Path(__file__).parent.parent
    for folder in ("chronolima-airo-grad-l2-13b", "airolima-chronos-grad-l2-13b", "mixture-of-experts"):
        spec = load(str(root / "examples" / folder / "Modelfile"))
        sources = [artifact for artifact in spec.artifacts.values() if getattr(artifact, "source", None)]
        assert len(sources) >= 3
        assert all(hub_name(artifact) is not None for artifact in sources)
        assert not_built(spec, [artifact.name for artifact in sources]) == []
