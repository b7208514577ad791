"""The Hub client's cache, looked at without the client: what it has, what a branch was, what is taken out of it."""

import os

import pytest
from huggingface_hub import hf_hub_download, try_to_load_from_cache

from modelbuild.errors import SourceNotFound
from modelbuild.modelfile.spec import Adapter, Base
from modelbuild.sources.fence import fence
from modelbuild.sources.hub import cache
from modelbuild.sources.hub.fetch import bring, distant
from modelbuild.sources.hub.files import HubFile, Snapshot, open_hub, says_offline
from modelbuild.sources.hub.find import _locked
from modelbuild.sources.hub.names import HubName, hub_name
from modelbuild.sources.hub.requests import list_repository
from modelbuild.sources.lock import LockedFile, LockedSource
from modelbuild.sources.memory import Memory

NAME = HubName("m", "org/m")


@pytest.fixture
def door(tmp_path, hub):
    (tmp_path / "home").mkdir()
    return open_hub(fence(tmp_path / "home"), Memory(tmp_path / "home/cache"))


def offline(door):
    return open_hub(door.inside, door.memory, offline=True)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "revision", "repo", "found", "origin"),
    [
        ("hf:o/n", None, "o/n", None, "hf:o/n"),
        ("hf:o/n@v1", None, "o/n", "v1", "hf:o/n@v1"),
        ("hf:o/n", "v1", "o/n", "v1", "hf:o/n@v1"),
        ("hf:o/n@refs/pr/1", None, "o/n", "refs/pr/1", "hf:o/n@refs/pr/1"),
        ("hf:o/n@a@b", None, "o/n", "a@b", "hf:o/n@a@b"),
    ],
)
def test_a_source_is_called_by_what_the_modelfile_says(source, revision, repo, found, origin):
    name = hub_name(Base("m", source, revision))
    assert (name.repo, name.revision, name.origin) == (repo, found, origin)


def test_a_local_source_has_no_name_on_the_hub():
    assert hub_name(Base("m", "models/m")) is None
    assert hub_name(Adapter("m")) is None


# --- places -----------------------------------------------------------------------------------------------------------


def test_files_are_looked_for_where_the_client_puts_them(hub, door):
    commit = hub.put("org/m", {"config.json": b"{}", "a/b.txt": b"x"})
    files = list_repository(door, NAME).files
    assert [cache.cached(door, file) for file in files.values()] == [None, None]
    for path, file in files.items():
        put = hf_hub_download("org/m", path, revision=commit, cache_dir=hub.cache)
        assert cache.pointer(door.cache, file) == put == try_to_load_from_cache("org/m", path, hub.cache, commit)
        assert cache.cached(door, file) == os.path.realpath(put)


def test_a_link_to_nothing_is_no_file(hub, door):
    hub.put("org/m", {"config.json": b"{}"})
    (file,) = list_repository(door, NAME).files.values()
    (brought,) = bring(door, [file])
    os.unlink(brought.path)
    assert cache.cached(door, file) is None


def test_what_the_cache_has_is_listed_with_the_digests_that_blobs_are_named_by(hub, door):
    hub.put("org/m", {"config.json": b"{}", "model.safetensors": b"12345", "1_Pooling/config.json": b"{}"})
    listed = list_repository(door, NAME)
    for path in listed.files:
        hf_hub_download("org/m", path, cache_dir=hub.cache)
    hub.fresh()
    assert cache.cached_listing(offline(door), NAME) == listed
    assert hub.answers == []


def test_a_commit_needs_no_branch_to_be_found(hub, door):
    commit = hub.put("org/m", {"config.json": b"{}"})
    bring(door, list(list_repository(door, NAME).files.values()))
    assert set(cache.cached_listing(offline(door), HubName("m", "org/m", commit)).files) == {"config.json"}
    with pytest.raises(SourceNotFound, match="is not on this machine"):
        cache.cached_listing(offline(door), NAME)


@pytest.mark.parametrize("text", ["", "main", "../../x", "0" * 39, "\0" * 40, "Z" * 40])
def test_a_note_of_a_branch_that_is_no_commit_is_none(hub, door, text):
    commit = hub.put("org/m", {"config.json": b"{}"})
    hf_hub_download("org/m", "config.json", cache_dir=hub.cache)
    ref = hub.cache / "models--org--m/refs/main"
    assert ref.read_text() == commit
    ref.write_text(text)
    with pytest.raises(SourceNotFound):
        cache.cached_listing(offline(door), NAME)


@pytest.mark.parametrize("revision", ["../snapshots", "/etc", "..", "a/../../b"])
def test_a_revision_never_leads_out_of_the_notes(hub, door, revision):
    with pytest.raises(SourceNotFound):
        cache.cached_listing(offline(door), HubName("m", "org/m", revision))
    cache.note_ref(door, Snapshot(HubName("m", "org/m", revision), "0" * 40))
    assert not hub.cache.exists()


@pytest.mark.parametrize("revision", [None, "v2", "refs/pr/1"])
def test_what_a_branch_was_is_noted_where_the_client_finds_it(hub, door, revision):
    commit = hub.put("org/m", {"config.json": b"{}"}, branch=revision or "main")
    (file,) = list_repository(door, HubName("m", "org/m", revision)).files.values()
    bring(door, [file])
    cache.note_ref(door, file.at)
    found = try_to_load_from_cache("org/m", "config.json", hub.cache, revision)
    assert found == cache.pointer(door.cache, file)
    assert commit in found


def test_commits_and_what_the_lock_pins_are_no_branches(hub, door):
    cache.note_ref(door, Snapshot(HubName("m", "org/m", "0" * 40), "0" * 40))
    cache.note_ref(door, Snapshot(NAME, "0" * 40, pinned=True))
    cache.note_ref(offline(door), Snapshot(NAME, "0" * 40))
    assert not hub.cache.exists()


# --- age and removal --------------------------------------------------------------------------------------------------


def test_a_young_file_is_made_older_and_an_old_one_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    young = path.stat().st_mtime_ns
    cache.settle(str(path))
    assert path.stat().st_mtime_ns == young - cache.AGE_NS
    os.utime(path, ns=(1, 10**18))
    cache.settle(str(path))
    assert path.stat().st_mtime_ns == 10**18
    cache.settle(str(tmp_path / "nothing"))


def test_a_downloaded_file_is_remembered_at_once_and_seen_when_it_is_written_to(hub, door):
    hub.put("org/m", {"model.safetensors": b"12345"})
    (file,) = list_repository(door, NAME).files.values()
    (brought,) = bring(door, [file])
    again = Memory(door.inside.folder + "/cache")
    assert again.digest(brought.stamp) == brought.sha256 == file.sha256
    with open(brought.path, "r+b") as blob:
        blob.write(b"6")
    assert again.digest(again.stamp(brought.path, os.stat(brought.path))) is None


def test_only_a_file_that_is_not_what_its_own_name_says_is_removed(hub, door):
    hub.put("org/m", {"model.safetensors": b"12345"})
    (file,) = list_repository(door, NAME).files.values()
    (brought,) = bring(door, [file])
    cache.discard(door, file, brought.path, brought.sha256)
    assert cache.cached(door, file) == brought.path
    cache.discard(door, file, brought.path, "0" * 64)
    assert cache.cached(door, file) is None
    assert not os.path.lexists(cache.pointer(door.cache, file))
    assert not os.path.exists(brought.path)


def test_nothing_outside_the_cache_is_ever_removed(hub, door, tmp_path):
    hub.put("org/m", {"model.safetensors": b"12345"})
    (file,) = list_repository(door, NAME).files.values()
    outside = tmp_path / "outside"
    outside.write_bytes(b"54321")
    link = cache.pointer(door.cache, file)
    os.makedirs(os.path.dirname(link))
    os.symlink(outside, link)
    cache.discard(door, file, str(outside), "0" * 64)
    assert outside.read_bytes() == b"54321"
    assert not os.path.lexists(link)


# --- the lock and the variables ---------------------------------------------------------------------------------------

PINNED = LockedSource("hf:org/m", (LockedFile("model.safetensors", 5, "0" * 64),), "1" * 40)


def pinned(locked, artifact=None):
    artifact = artifact or Base("m", "hf:org/m")
    subfolder = artifact.subfolder if isinstance(artifact, Adapter) else None
    return _locked(hub_name(artifact), artifact, subfolder, locked)


def test_a_source_is_taken_as_the_lock_pins_it():
    found = pinned(PINNED)
    at = Snapshot(NAME, "1" * 40, pinned=True)
    assert (found.at, dict(found.files)) == (at, {"model.safetensors": HubFile(at, "model.safetensors", 5, "0" * 64)})


@pytest.mark.parametrize(
    "locked",
    [
        None,
        LockedSource("hf:org/m@v2", PINNED.files, "1" * 40),
        LockedSource("local:m", PINNED.files, "1" * 40),
        LockedSource("hf:org/m", PINNED.files, None),
        LockedSource("hf:org/m", PINNED.files, "main"),
        LockedSource("hf:org/m", PINNED.files, "../../../etc"),
    ],
)
def test_a_lock_of_another_origin_or_without_a_commit_pins_nothing(locked):
    assert pinned(locked) is None


def test_names_in_the_lock_that_lead_elsewhere_are_passed_over():
    files = (*PINNED.files, LockedFile("../up", 1, "0" * 64), LockedFile("/root", 1, "0" * 64))
    assert set(pinned(LockedSource("hf:org/m", files, "1" * 40)).files) == {"model.safetensors"}


def test_an_adapter_of_another_subfolder_is_not_the_one_that_is_pinned():
    names = ("a/adapter_config.json", "a/adapter_model.safetensors")
    locked = LockedSource("hf:org/m", tuple(LockedFile(name, 1, "0" * 64) for name in names), "1" * 40)
    assert pinned(locked, Adapter("m", "hf:org/m", subfolder="a")) is not None
    assert pinned(locked, Adapter("m", "hf:org/m", subfolder="b")) is None
    assert pinned(locked, Adapter("m", "hf:org/m")) is None


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, False),
        ({"HF_HUB_OFFLINE": "1"}, True),
        ({"HF_HUB_OFFLINE": "yes"}, True),
        ({"HF_HUB_OFFLINE": "0"}, False),
        ({"TRANSFORMERS_OFFLINE": "ON"}, True),
        ({"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "true"}, True),
        ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, False),
    ],
)
def test_the_variables_that_forbid_the_network_are_those_of_the_client(monkeypatch, variables, told):
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert says_offline() is told
    assert constants._is_true(variables.get("HF_HUB_OFFLINE") or variables.get("TRANSFORMERS_OFFLINE")) is told


def test_a_file_that_is_read_in_parts_is_read_from_the_cache_where_it_lies_there(hub, door):
    hub.put("org/m", {"model.safetensors": b"0123456789"})
    (file,) = list_repository(door, NAME).files.values()
    source = distant(door, file)
    hub.fresh()
    assert source.remote.read(3, 4) == b"3456"
    assert hub.sent() == 4
    source.remote.local()
    hub.fresh()
    assert source.remote.read(3, 4) == b"3456"
    assert hub.answers == []
    with pytest.raises(SourceNotFound, match="is not on this machine"):
        distant(offline(door), HubFile(file.at, "other.safetensors", 10, "0" * 64)).remote.read(0, 1)
