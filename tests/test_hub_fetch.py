"""Downloads: broken off and taken up again, checked once, never believed; and what is in the client's cache already."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from hubserver import PATIENCE, Gate

from modelbuild.errors import SourceNotFound, VerificationFailed
from modelbuild.report.terminal import Listener
from modelbuild.sources import hashing
from modelbuild.sources.fence import fence
from modelbuild.sources.hub import download
from modelbuild.sources.hub.files import HubFile, Snapshot, open_hub
from modelbuild.sources.hub.names import HubName
from modelbuild.sources.lockfile import read as read_lock
from modelbuild.sources.memory import Memory

RED = "model.safetensors"


@pytest.fixture
def one(world, hub):
    """One model on the Hub, cast to another dtype."""
    world.model("red", seed=1)
    hub.put("org/red", world.root / "red")
    return world.modelfile("""
        [base.red]
        source = "hf:org/red"
        [merge.m]
        method = "passthrough"
        dtype = "float32"
        models = [ { model = "red" } ]
    """)


@pytest.fixture
def wanted(one):
    """The bytes of the output that the same file of this machine gives."""
    near = one.copy()
    near.edit("hf:org/red", "red").build()
    return near.bytes("m")[RED]


def blob(hub, name=RED):
    """Where a file of the model lies in the client's cache."""
    (path,) = hub.cache.glob(f"models--org--red/snapshots/*/{name}")
    return path


def gone(hub, name=RED):
    """Whether the client has neither the file nor its bytes."""
    links = list(hub.cache.glob(f"models--org--red/snapshots/*/{name}"))
    tree = hub.repos["org/red"].commits[hub.repos["org/red"].refs["main"]]
    return not links and not list(hub.cache.glob(f"models--org--red/blobs/{tree[name].etag}"))


def failure(world, error=VerificationFailed, **options):
    """The error of a build as text."""
    with pytest.raises(error) as found:
        world.build(**options)
    assert (found.value.exit_code, world.path.name in found.value.render()) == (error.exit_code, True)
    return found.value.render()


def data(hub, name=RED):
    return hub.repos["org/red"].commits[hub.repos["org/red"].refs["main"]][name].data


def flipped(data):
    """The same number of bytes, the last one another."""
    return data[:-1] + bytes([data[-1] ^ 1])


# --- the network breaks -----------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on_where_it_broke(one, hub, wanted, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    one.plan()
    hub.fresh()
    hub.faults.drop_after[RED] = [20480, 8192]
    one.build()
    asked = [answer.range for answer in hub.answers if "/_storage/" in answer.path]
    assert asked == [None, "bytes=20480-", "bytes=28672-"]
    assert sum(answer.sent for answer in hub.answers if "/_storage/" in answer.path) == len(data(hub))
    assert one.bytes("m")[RED] == wanted


class Ear(Listener):
    """Adds up the bytes of each step, and keeps what is said."""

    def __init__(self):
        self.steps, self.said = {}, []

    def begin(self, name, what, total):
        self.now = (name, what, total)
        self.steps[self.now] = 0

    def advance(self, nbytes):
        self.steps[self.now] += nbytes

    def say(self, text):
        self.said.append(text)


def test_progress_is_told_in_bytes_and_adds_up_although_a_download_broke(one, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    one.plan()
    hub.faults.drop_after[RED] = [20480]
    ear = Ear()
    one.build(listener=ear)
    size = len(data(hub))
    assert ear.steps["from the Hub", "downloading", size] == size
    assert ear.said[0] == "downloading 1 file from the Hub, 51.6 kB"


def test_a_connection_that_is_reset_is_opened_again(one, hub, wanted, monkeypatch):
    """The client gives up on a reset; the file is asked for anew, and the progress with it."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    one.plan()
    hub.faults.reset_after[RED] = [20480, 30720]
    ear = Ear()
    one.build(listener=ear)
    size = len(data(hub))
    assert ear.steps["from the Hub", "downloading", size] == size
    assert one.bytes("m")[RED] == wanted
    assert hub.faults.reset_after[RED] == []


def test_a_server_that_breaks_off_again_and_again_is_given_up_and_nothing_is_used(one, hub, wanted, monkeypatch):
    one.plan()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.faults.drop_after[RED] = [0] * 50
    told = failure(one, SourceNotFound)
    assert "the Hub cannot be reached for `hf:org/red/model.safetensors`" in told
    assert gone(hub)
    hub.faults.drop_after.clear()
    one.build()
    assert one.bytes("m")[RED] == wanted


def running(world, hub, *words):
    """A build in a process of its own, which waits at a gate in the middle of a download."""
    gate = hub.faults.hold[RED] = Gate()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MODELBUILD_"))} | hub.env
    command = [sys.executable, "-m", "modelbuild", "build", *words]
    # A shell that runs the tests behind its back has them ignore Ctrl-C.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=world.root, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert gate.reached.wait(PATIENCE)
    return process, gate


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_build_that_is_stopped_while_it_downloads_leaves_nothing_that_is_used(one, hub, wanted, name, code):
    one.plan()
    process, gate = running(one, hub)
    process.send_signal(getattr(signal, name))
    told = process.communicate(timeout=PATIENCE)[1]
    gate.open.set()
    assert process.returncode == code
    assert "Traceback" not in told
    assert gone(hub)
    assert not (one.out / "m").exists()
    hub.faults.hold.clear()
    one.build()
    assert one.bytes("m")[RED] == wanted


def test_two_builds_that_download_the_same_file_at_once_both_come_out_right(one, hub, wanted):
    twin = one.copy()
    results = []

    def build(world):
        results.append(world.run("build", **hub.env))

    threads = [threading.Thread(target=build, args=(world,)) for world in (one, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ran.returncode for ran in results] == [0, 0], results
    assert one.bytes("m")[RED] == twin.bytes("m")[RED] == wanted


def test_all_files_that_are_missing_are_downloaded_at_once(world, hub):
    """Each waits for the others: one after the other they would never end."""
    world.model("red", seed=1, shards=4)
    hub.put("org/red", world.root / "red")
    world.modelfile(
        '[base.red]\nsource = "hf:org/red"\n[merge.m]\nmethod = "passthrough"\nmodels = [ { model = "red" } ]\n'
    )
    world.plan()
    together = threading.Barrier(4)

    class Meeting:
        def wait(self):
            together.wait(PATIENCE)

    for path in hub.repos["org/red"].commits[hub.repos["org/red"].refs["main"]]:
        if path.endswith(".safetensors"):
            hub.faults.hold[path] = Meeting()
    assert world.build()["m"].status == "built"


# --- a Hub that lies --------------------------------------------------------------------------------------------------


def test_other_bytes_under_the_same_digest_are_refused_and_out_of_use(one, hub, wanted):
    hub.faults.other_bytes[RED] = flipped(data(hub))
    told = failure(one)
    assert "`hf:org/red/model.safetensors` is not the file that the Hub lists" in told
    assert "expected SHA-256 " in told
    assert gone(hub)
    assert not (one.out / "m").exists()
    hub.faults.other_bytes.clear()
    one.build()
    assert one.bytes("m")[RED] == wanted


def test_a_digest_in_the_listing_that_is_not_the_files_is_found_after_the_download(one, hub):
    hub.faults.lie_sha256[RED] = "0" * 64
    told = failure(one)
    assert f"expected SHA-256 {'0' * 64}" in told
    # The file is what its own name says, and not the one that is at fault.
    assert not gone(hub)
    assert "expected SHA-256" in failure(one)


def test_a_size_in_the_listing_that_is_not_the_files_is_found_by_the_plan(one, hub):
    hub.faults.lie_size[RED] = len(data(hub)) + 8
    with pytest.raises(VerificationFailed) as error:
        one.plan()
    assert f"expected {len(data(hub)) + 8} bytes" in error.value.render()
    assert f"it has   {len(data(hub))}" in error.value.render()


def test_a_file_of_another_size_is_refused(one, hub):
    one.plan()
    hub.faults.other_bytes[RED] = data(hub)[:-1]
    assert "is not the file" in failure(one) or "did not come whole" in failure(one)
    assert gone(hub)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_small_file_that_is_not_the_one_that_git_knows_is_refused(one, hub, name):
    hub.faults.other_bytes[name] = data(hub, name).replace(b"a", b"b")
    assert "expected the git blob" in failure(one)
    assert gone(hub, name)
    hub.faults.other_bytes.clear()
    assert one.build()["m"].status == "built"


def test_a_small_file_with_another_size_than_listed_is_refused(one, hub):
    hub.faults.lie_size["config.json"] = 3
    assert "expected 3 bytes" in failure(one)


def swapped(data, one, other):
    """The file with two names of its header in each other's place."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = data[:start].replace(one, b"#").replace(other, one).replace(b"#", other)
    assert len(header) == start
    assert header != data[:start]
    return header + data[start:]


def test_a_header_that_is_not_the_files_is_found_before_anything_is_computed(one, hub, wanted):
    """Two tensors of one shape change places in the header that a plan gets: every size still fits."""
    hub.faults.other_ranges[RED] = swapped(data(hub), b"layers.0.self_attn.q_proj", b"layers.0.self_attn.k_proj")
    assert "is not the file it was announced as" in failure(one)
    assert not (one.out / "m").exists()
    one.build()
    assert one.bytes("m")[RED] == wanted


def test_a_false_header_does_not_outlive_its_process(one, hub, wanted):
    """What was announced is remembered apart from what is known; a local copy of the file never sees it."""
    whole = data(hub)
    hub.faults.other_ranges[RED] = whole.replace(b"layers.0.mlp.up_proj", b"layers.0.mlp.no_proj")
    one.plan()
    near = one.copy()
    shutil.copytree(one.cache / "sources", near.cache / "sources")
    near.edit("hf:org/red", "red").build()
    assert near.bytes("m")[RED] == wanted
    assert "is not the file it was announced as" in failure(one)
    one.build()
    assert one.bytes("m")[RED] == wanted


def test_a_lock_that_pins_other_digests_is_told_and_the_file_stays(one, hub):
    one.build()
    lock = one.root / "Modelfile.lock"
    (red,) = [file for file in read_lock(lock).sources["red"].files if file.name == RED]
    good = lock.read_text()
    for edited in (good.replace(red.sha256, "1" * 64), good.replace(f"size = {red.size}", f"size = {red.size + 1}")):
        lock.write_text(edited)
        told = failure(one, no_cache=True)
        assert "is not the file that the lock pins" in told
        assert "hint: `modelbuild lock --update red` takes what the Hub lists" in told
        assert not gone(hub)
    lock.write_text(good)
    assert one.build()["m"].status == "fresh"


# --- what is there already --------------------------------------------------------------------------------------------


def hashed(monkeypatch):
    """The names of the files that are hashed from now on."""
    names, real = [], hashing.hash_stretches

    def counting(stretches, *more):
        names.extend(stretch.name for stretch in stretches)
        return real(stretches, *more)

    monkeypatch.setattr(hashing, "hash_stretches", counting)
    return names


def test_a_downloaded_file_is_hashed_once_in_its_life(one, hub, monkeypatch):
    names = hashed(monkeypatch)
    one.build()
    assert names.count("hf:org/red/model.safetensors") == 1
    assert len(names) == len(set(names))
    names.clear()
    one.edit('dtype = "float32"', 'dtype = "float16"').build()
    assert names == []


def test_a_file_that_another_tool_downloaded_is_hashed_once_and_not_downloaded(one, hub, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download("org/red", RED, cache_dir=hub.cache)
    hub.fresh()
    names = hashed(monkeypatch)
    assert one.plan().download == 0
    assert f"hf:org/red/{RED}" not in names
    one.build()
    assert names.count(f"hf:org/red/{RED}") == 1
    assert hub.count(RED) == 0


def damage(path):
    """Writes through a link into the client's blob."""
    real = path.resolve()
    content = bytearray(real.read_bytes())
    content[-1] ^= 1
    real.write_bytes(content)


def test_damage_in_the_clients_cache_is_found_told_and_mended(one, hub, wanted):
    one.build()
    damage(blob(hub))
    one.edit('dtype = "float32"', 'dtype = "float16"')
    assert "is not the file that the lock pins" in failure(one)
    assert gone(hub)
    one.build()
    one.edit('dtype = "float16"', 'dtype = "float32"').build(no_cache=True)
    assert one.bytes("m")[RED] == wanted


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_edited_in_the_clients_cache_is_refused_and_fetched_again(one, hub, name):
    one.build()
    damage(blob(hub, name))
    assert "is not the file that the lock pins" in failure(one)
    assert one.build()["m"].status == "fresh"


def test_a_side_file_edited_in_the_clients_cache_is_not_copied(one, hub):
    one.build()
    good = one.bytes("m")["tokenizer.json"]
    damage(blob(hub, "tokenizer.json"))
    (one.out / "m/tokenizer.json").unlink()
    assert "is not the file that the lock pins" in failure(one)
    one.build()
    assert one.bytes("m")["tokenizer.json"] == good


def test_a_cached_tensor_that_is_damaged_is_made_again_from_a_file_that_was_not_downloaded(far, hub):
    """The plan counted on the cache; what is missing after all is fetched when it is read."""
    far.build()
    wanted = far.bytes("violet")["model.safetensors"]
    (path,) = [p for p in far.cache.rglob("*.safetensors") if p.stat().st_size > 40000]
    shutil.rmtree(hub.home)
    shutil.rmtree(far.out)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    far.modelfile(far.text + '\n[merge.again]\nmethod = "passthrough"\nmodels = [ { model = "violet" } ]\n')
    hub.fresh()
    far.build("again")
    assert far.bytes("again")["model.safetensors"] == wanted
    assert hub.count("/_storage/") > 0


# --- parts ------------------------------------------------------------------------------------------------------------


def test_the_first_download_that_fails_ends_the_others(one, hub, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def failing(hub, file, progress):
        if file.path == "a":
            assert begun.wait(PATIENCE)
            raise SourceNotFound("first")
        begun.set()
        while not ended.is_set():
            try:
                progress(1)
            except download._Stopped:
                ended.set()

    monkeypatch.setattr(download, "_fetch", failing)
    door = open_hub(fence(one.root), Memory(one.cache))
    at = Snapshot(HubName("red", "org/red"), "0" * 40)
    with pytest.raises(SourceNotFound, match="first"):
        download.download(door, [HubFile(at, name, 1) for name in "ab"], lambda nbytes: None)
    assert ended.is_set()
