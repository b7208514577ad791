"""What is said when the Hub refuses, is not there, or answers nonsense: what, where, the facts, and what to do."""

import json
import socket
import time
from textwrap import dedent

import pytest
from hubserver import Gate

from modelbuild.errors import BuildFailed, SourceNotFound


@pytest.fixture
def one(world, hub):
    """One model on the Hub, passed through."""
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
def impatient(monkeypatch):
    """Nobody waits before asking again."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def told(world, error=SourceNotFound, call="plan", **options):
    """The error of a plan as text, the Modelfile's folder left out."""
    with pytest.raises(error) as found:
        getattr(world, call)(**options)
    assert type(found.value) is error
    return found.value.render().replace(f"{world.root}/", "")


def test_a_repository_that_is_not_there_or_private(one):
    assert told(one.edit("org/red", "org/rad")) == dedent("""\
        error: `hf:org/rad` is not on the Hub, or is private
          --> Modelfile:3:1
           |  the Hub answers 401: `Repository not found`

        hint: look for it at https://huggingface.co/org/rad; a private one takes `hf auth login`, or HF_TOKEN""")


def test_a_private_repository_is_read_with_a_token(one, hub, monkeypatch):
    hub.repos["org/red"].private = True
    assert "is not on the Hub, or is private" in told(one)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert one.build()["m"].status == "built"


def test_a_gated_repository_is_told_with_the_page_to_visit(one, hub):
    hub.repos["org/red"].gated = True
    assert told(one) == dedent("""\
        error: `hf:org/red` is gated
          --> Modelfile:3:1
           |  the Hub answers 401: `Access to this model is restricted`

        hint: accept its terms at https://huggingface.co/org/red, then log in with `hf auth login`""")


def test_a_repository_that_becomes_gated_after_the_plan(one, hub):
    one.plan()
    hub.repos["org/red"].gated = True
    assert "`hf:org/red` is gated\n  --> Modelfile:3:1" in told(one, call="build")


def test_a_token_that_is_not_one(one, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert told(one) == dedent("""\
        error: the Hub does not take the token for `hf:org/red`
          --> Modelfile:3:1
           |  the Hub answers 401: `Invalid credentials in Authorization header`

        hint: a token that holds is given by `hf auth login`, or HF_TOKEN""")


def test_a_revision_that_is_not_there(one):
    assert told(one.edit("org/red", "org/red@v9")) == dedent("""\
        error: `hf:org/red` has no revision `v9`
          --> Modelfile:3:1
           |  the Hub answers 404: `Invalid rev id`

        hint: a revision is a branch, a tag or a commit""")


def test_a_commit_that_the_lock_pins_and_that_is_gone(one, hub):
    one.build()
    old = hub.repos["org/red"].refs["main"]
    hub.put("org/red", one.root / "red")
    hub.forget("org/red", old)
    for folder in hub.cache.glob("models--*/snapshots/*"):
        (folder / "model.safetensors").unlink()
    for path in hub.cache.glob("models--*/blobs/*"):
        path.unlink()
    one.edit('dtype = "float32"', 'dtype = "float16"')
    assert told(one, call="build") == dedent(f"""\
        error: commit {old[:12]} of `hf:org/red`, which the lock pins, is gone
          --> Modelfile:3:1
           |  the Hub answers 404: `Invalid rev id`

        hint: `modelbuild lock --update red` takes what is there today""")


def test_a_repository_of_the_lock_that_is_gone(one, hub):
    one.build()
    del hub.repos["org/red"]
    assert one.build()["m"].status == "fresh"
    for path in hub.cache.glob("models--*/snapshots/*/config.json"):
        path.unlink()
    assert "is not on the Hub, or is private" in told(one, call="build")


def test_a_file_that_is_gone_between_the_listing_and_the_download(one, hub):
    tree = hub.repos["org/red"].commits[hub.repos["org/red"].refs["main"]]
    one.plan()
    del tree["model.safetensors"]
    real, hub.listing = hub.listing, lambda name, commit, found: listed
    listed = json.loads(json.dumps(real("org/red", hub.repos["org/red"].refs["main"], tree)))
    listed["siblings"].append({"rfilename": "model.safetensors", "size": 51584, "lfs": {"sha256": "0" * 64}})
    assert "`hf:org/red/model.safetensors` is not on the Hub" in told(one)


def test_a_file_of_the_lock_that_is_gone(one, hub):
    one.build()
    del hub.repos["org/red"].commits[hub.repos["org/red"].refs["main"]]["config.json"]
    for path in [*hub.cache.glob("models--*/snapshots/*/config.json")]:
        path.unlink()
    text = told(one, call="build")
    assert "which the lock pins, is gone" in text
    assert "`hf:org/red/config.json`" in text


def test_a_folder_that_is_not_in_the_repository(far):
    far.edit('source = "hf:org/style"', 'source = "hf:org/style"\nsubfolder = "nowhere"')
    assert "`hf:org/style` has no file in `nowhere`" in told(far)


def test_no_network(one, hub, impatient, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    text = told(one)
    assert text.startswith("error: the Hub cannot be reached for `hf:org/red`\n  --> Modelfile:3:1\n")
    assert "ConnectError" in text
    assert "hint: `--offline` builds from what was downloaded before" in text


def test_a_host_that_has_no_address(one, impatient, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    assert "the Hub cannot be reached for `hf:org/red`" in told(one)


def test_a_hub_that_does_not_answer_in_time(one, hub, impatient, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    gate = hub.faults.hold["listing"] = Gate()
    assert "ReadTimeout" in told(one)
    assert hub.waiting == 3
    gate.open.set()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_hub_that_is_busy_is_asked_again_and_then_given_up(one, hub, impatient, status):
    hub.faults.status["/api/models/"] = [status] * 2
    one.plan()
    hub.fresh().faults.status["/api/models/"] = [status] * 9
    text = told(one)
    assert text.startswith("error: the Hub is busy or broken\n  --> Modelfile:3:1\n")
    assert f"the Hub answers {status}" in text
    assert hub.count("/api/models/") == 3


def test_a_hub_that_is_busy_while_a_header_is_read(one, hub, impatient):
    hub.faults.status["model.safetensors"] = [503, 503]
    assert one.plan().download > 0


def test_a_hub_that_forbids(one, hub):
    hub.faults.status["/api/models/"] = [403]
    text = told(one)
    assert text.startswith("error: the Hub refuses `hf:org/red`\n")
    assert "the Hub answers 403" in text


def test_a_name_that_no_repository_can_have(one):
    assert "`hf:../..` cannot be on the Hub" in told(one.edit("org/red", "../.."))
    assert "`hf:a/b--c` cannot be on the Hub" in told(one.edit("../..", "a/b--c"))


LISTINGS = {
    "no JSON": b"<html>",
    "a list": b"[]",
    "no commit": b'{"siblings": []}',
    "a commit that is none": b'{"sha": "main", "siblings": []}',
    "no files": b'{"sha": "%b"}' % (b"0" * 40),
    "files that are no list": b'{"sha": "%b", "siblings": {}}' % (b"0" * 40),
    "a file that is none": b'{"sha": "%b", "siblings": ["a"]}' % (b"0" * 40),
    "no size": b'{"sha": "%b", "siblings": [{"rfilename": "a"}]}' % (b"0" * 40),
    "a size that is true": b'{"sha": "%b", "siblings": [{"rfilename": "a", "size": true}]}' % (b"0" * 40),
    "a size below zero": b'{"sha": "%b", "siblings": [{"rfilename": "a", "size": -1}]}' % (b"0" * 40),
    "a size of stars": b'{"sha": "%b", "siblings": [{"rfilename": "a", "size": 1%b}]}' % (b"0" * 40, b"0" * 30),
    "a digest that is none": b'{"sha": "%b", "siblings": [{"rfilename": "a", "size": 1, "lfs": {"sha256": "../a"}}]}'
    % (b"0" * 40),
    "a digest in capitals": b'{"sha": "%b", "siblings": [{"rfilename": "a", "size": 1, "lfs": {"sha256": "%b"}}]}'
    % (b"0" * 40, b"A" * 64),
    "a file twice": b'{"sha": "%b", "siblings": [{"rfilename": "a", "size": 1}, {"rfilename": "a", "size": 2}]}'
    % (b"0" * 40),
    "deep": b'{"sha": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_listing_that_is_none(one, hub, listing):
    hub.faults.listing = LISTINGS[listing]
    text = told(one, BuildFailed)
    assert text.startswith("error: the Hub's listing of `hf:org/red` is not to be relied on\n  --> Modelfile:3:1\n")
    assert not list(hub.home.rglob("*"))


def test_a_listing_without_end(one, hub, monkeypatch):
    from modelbuild.sources.hub import requests

    monkeypatch.setattr(requests, "LISTING_LIMIT", 1000)
    hub.faults.listing = b" " * 1_000_000
    assert "the Hub's answer is too large" in told(one, BuildFailed)


def test_a_listing_of_too_many_files(one, hub, monkeypatch):
    from modelbuild.sources.hub import requests

    monkeypatch.setattr(requests, "FILES_LIMIT", 3)
    assert "6 files; the limit is 3" in told(one, BuildFailed)


def test_a_listing_of_another_commit_than_was_asked_for(one, hub):
    commit = hub.put("org/red", one.root / "red", branch="other")
    hub.faults.listing = json.dumps({"sha": "0" * 40, "siblings": []}).encode()
    assert "not the one that was asked for" in told(one.edit("org/red", f"org/red@{commit}"), BuildFailed)


HOSTILE = [
    "../up", "/root", "a/../../b", "a//b", ".", "..", "a\\b", "a\nb", "a\x1b[31m", "a\u202eb", "x" * 2000,
    "a/" + "y" * 300, " ", "a/ /b", "\ud800",
]  # fmt: skip


def test_names_that_lead_elsewhere_are_passed_over(one, hub):
    tree = hub.repos["org/red"].commits[hub.repos["org/red"].refs["main"]]
    listed = hub.listing("org/red", hub.repos["org/red"].refs["main"], tree)
    listed["siblings"] += [{"rfilename": name, "size": 1} for name in HOSTILE]
    hub.faults.listing = json.dumps(listed).encode()
    one.build()
    assert {path.name for path in hub.cache.glob("models--org--red/snapshots/*/*")} == set(tree)


def test_a_config_that_is_larger_than_any_is_not_fetched(one, hub):
    hub.faults.lie_size["config.json"] = 20_000_000
    assert "`hf:org/red/config.json` is too large" in told(one, BuildFailed)
    assert hub.count("config.json") == 0


def test_weights_whose_digest_the_hub_does_not_list_are_not_fetched_if_they_are_large(one, hub, monkeypatch):
    listed = json.loads(json.dumps(hub.listing("org/red", *hub.tree(hub.repos["org/red"], "main"))))
    for sibling in listed["siblings"]:
        sibling.pop("lfs", None)
        if sibling["rfilename"] == "model.safetensors":
            sibling["size"] = 100_000_000
    hub.faults.listing = json.dumps(listed).encode()
    assert "the Hub lists no SHA-256 of `hf:org/red/model.safetensors`" in told(one, BuildFailed)
    assert hub.count("model.safetensors") == 0


def test_small_weights_whose_digest_the_hub_does_not_list_are_fetched_and_hashed(one, hub):
    listed = hub.listing("org/red", *hub.tree(hub.repos["org/red"], "main"))
    for sibling in listed["siblings"]:
        sibling.pop("lfs", None)
        sibling["blobId"] = None if sibling["rfilename"] == "model.safetensors" else sibling["blobId"]
    hub.faults.listing = json.dumps(listed).encode()
    assert one.plan().download == 0
    near = one.copy()
    near.edit("hf:org/red", "red")
    assert near.plan()["m"].key == one.plan()["m"].key


def test_errors_on_the_command_line_have_their_codes_and_no_traceback(one, hub):
    hub.repos["org/red"].gated = True
    ran = one.run("build", **hub.env)
    assert (ran.returncode, "Traceback" in ran.stderr) == (4, False)
    assert "error: `hf:org/red` is gated\n  --> Modelfile:3:1\n" in ran.stderr
    ran = one.run("plan", "--json", **hub.env)
    assert json.loads(ran.stdout)["error"]["exit_code"] == 4
    assert json.loads(ran.stdout)["error"]["line"] == 3
