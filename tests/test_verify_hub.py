"""`verify --against hf:ORG/NAME`: what the Hub lists is enough; no weights are downloaded, and no answer is trusted."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import pytest
from faults import run, two_models
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbuild.errors import SourceNotFound, UsageError
from modelbuild.publish.compare import Facts
from modelbuild.publish.listing import Listing, _checked, listing

COMMIT = "c" * 40
FAST = ("build", "--durability", "none")


class Hub(ThreadingHTTPServer):
    """A Hub that knows one thing, to list repositories, and counts who asks for what.

    `repositories` have their files' bytes by name; `answers` stand in for a listing: a status, headers and a body.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.answers, self.asked = {}, {}, []
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def env(self):
        """What tells a client to ask here, and to ask nobody else."""
        names = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "HF_HUB_DISABLE_IMPLICIT_TOKEN")
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "NO_PROXY": "*", **dict.fromkeys(names, "1")}


def listed(name, data):
    """A file as the Hub lists it: large ones with their SHA-256, others with git's digest."""
    entry = {
        "rfilename": name,
        "size": len(data),
        "blobId": hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest(),
    }
    if name.endswith(".safetensors"):
        entry["blobId"] = "0" * 40
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


class Handler(BaseHTTPRequestHandler):
    """Answers requests."""

    def log_message(self, *given):
        """Says nothing."""

    def do_GET(self):
        """Lists a repository, or refuses."""
        place = unquote(urlparse(self.path).path).removeprefix("/api/models/")
        self.server.asked.append(place)
        name, _, revision = place.partition("/revision/")
        if place in self.server.answers:
            status, headers, body = self.server.answers[place]
        elif name not in self.server.repositories:
            status, headers, body = 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        elif revision not in ("", "main", "v1"):
            status, headers, body = 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Invalid rev id"}
        else:
            files = self.server.repositories[name]
            siblings = [listed(file, data) for file, data in files.items()]
            status, headers, body = 200, {}, {"id": name, "sha": COMMIT, "siblings": siblings}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub():
    """A Hub on this machine."""
    server = Hub()
    yield server
    server.shutdown()
    server.thread.join()
    server.server_close()


@pytest.fixture
def published(world, hub):
    """The merge `m`, built, and the same at `me/m` on the Hub with what else a repository has."""
    two_models(world)
    assert run(world, *FAST).code == 0
    files = {".gitattributes": b"x", "README.md": b"another card", "Modelfile": b"x", "picture.png": b"x"}
    hub.repositories["me/m"] = {**world.bytes("m"), **files}
    return world


def verify(world, hub, place, *words, **env):
    ran = world.run("verify", "m", "--against", place, *words, **{**hub.env, **env})
    assert "Traceback" not in ran.stderr
    return ran


# --- what is listed ---------------------------------------------------------------------------------------------------


def test_an_output_that_is_on_the_hub_passes_with_one_request_and_no_download(published, hub):
    ran = verify(published, hub, "hf:me/m")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"m: 6 files are what hf:me/m has at {COMMIT[:12]} (build/m)\n"
    assert hub.asked == ["me/m"]


def test_a_revision_is_asked_for_by_name(published, hub):
    assert verify(published, hub, "hf:me/m@v1").returncode == 0
    assert hub.asked == ["me/m/revision/v1"]


def test_it_needs_no_record_and_no_lock_and_builds_what_is_not_there(published, hub):
    shutil.rmtree(published.out)
    (published.root / "Modelfile.lock").unlink()
    data = json.loads(verify(published, hub, "hf:me/m", "--json").stdout)
    assert (data["against"], data["reference"]) == ("hf:me/m", COMMIT)
    assert {file["status"] for file in data["files"]} == {"same"}
    kinds = {file["name"]: file["found"]["digest"].partition(":")[0] for file in data["files"]}
    assert (kinds["model.safetensors"], kinds["config.json"]) == ("sha256", "git")


def test_every_difference_has_its_line(published, hub):
    files = hub.repositories["me/m"]
    weights = files["model.safetensors"]
    files["model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    files["config.json"] = b"{}"
    files["model-00002-of-00002.safetensors"] = b"more"
    files["added_tokens.json"] = b"{}"
    del files["tokenizer.json"]
    ran = verify(published, hub, "hf:me/m")
    assert ran.returncode == 5
    here = published.bytes("m")
    size = len(weights)
    assert ran.stderr == (
        "error: `m` in build/m is not what `hf:me/m` says\n"
        "   |  `added_tokens.json` is missing\n"
        f"   |  `config.json`: expected 2 bytes, git's SHA-1 {listed('x', b'{}')['blobId']}\n"
        f"   |  `config.json`: found    {len(here['config.json'])} bytes\n"
        "   |  `model-00002-of-00002.safetensors` is missing\n"
        f"   |  `model.safetensors`: expected {size} bytes, SHA-256 "
        f"{hashlib.sha256(files['model.safetensors']).hexdigest()}\n"
        f"   |  `model.safetensors`: found    {size} bytes, SHA-256 {hashlib.sha256(weights).hexdigest()}\n"
        "   |  `tokenizer.json` is not in `hf:me/m`\n"
    )
    data = json.loads(verify(published, hub, "hf:me/m", "--json").stdout)
    assert data["error"]["exit_code"] == 5


def test_a_place_is_a_variable_too(published, hub):
    assert published.run("verify", "m", MODELBUILD_AGAINST="hf:me/m", **hub.env).returncode == 0
    assert published.run("verify", "m", MODELBUILD_AGAINST="hf:me/other", **hub.env).returncode == 4


def test_the_lock_is_held_to_as_well(published, hub):
    assert verify(published, hub, "hf:me/m", "--locked", "--frozen").returncode == 0
    published.model("b", seed=9)
    assert verify(published, hub, "hf:me/m", "--locked").returncode == 3
    assert verify(published, hub, "hf:me/m", "--frozen").returncode == 5
    assert verify(published, hub, "hf:me/m").returncode == 0


# --- what the Hub refuses ---------------------------------------------------------------------------------------------


def refused(published, hub, place, **env):
    """The facts and the hint of an error with exit code 4."""
    ran = verify(published, hub, place, **env)
    assert ran.returncode == 4, ran.stderr
    head, *rest = ran.stderr.splitlines()
    assert head == f"error: `{place}` cannot be compared with"
    return "\n".join(rest)


def test_a_repository_that_is_not_there(published, hub):
    assert refused(published, hub, "hf:me/other") == (
        "   |  the Hub has no such repository, or you may not see it\n\n"
        "hint: see to its spelling; if it is private, `hf auth login` first"
    )
    assert json.loads(verify(published, hub, "hf:me/other", "--json").stdout)["error"]["exit_code"] == 4


def test_a_revision_that_is_not_there(published, hub):
    assert refused(published, hub, "hf:me/m@v9") == "   |  the repository has no revision `v9`"


def test_a_repository_whose_owner_has_to_let_you_in(published, hub):
    hub.answers["me/m"] = 403, {"X-Error-Code": "GatedRepo"}, {"error": "gated"}
    assert refused(published, hub, "hf:me/m").endswith(
        "hint: accept its terms at https://huggingface.co/me/m, then `hf auth login`"
    )


@pytest.mark.parametrize("status", [401, 418, 500, 503])
def test_a_hub_that_is_not_well(published, hub, status):
    hub.answers["me/m"] = status, {}, {"error": "out of order"}
    assert "hint: " in refused(published, hub, "hf:me/m")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"null", b"{}", b'{"id": 1, "siblings": 7}', b'{"siblings": [[]]}']
)
def test_a_hub_that_answers_nonsense(published, hub, body):
    hub.answers["me/m"] = 200, {}, body
    refused(published, hub, "hf:me/m")


def test_no_network_and_a_hub_that_may_not_be_asked(published, hub):
    assert "`HF_HUB_OFFLINE` is set" in refused(published, hub, "hf:me/m", HF_HUB_OFFLINE="1")
    assert hub.asked == []
    hub.shutdown()
    hub.server_close()
    assert "hint: try again" in refused(published, hub, "hf:me/m")


# --- answers that cannot be -------------------------------------------------------------------------------------------


def info(*entries, sha=COMMIT):
    """What the client makes of a listing."""
    return SimpleNamespace(sha=sha, siblings=[SimpleNamespace(**entry) for entry in entries])


GOOD = {"rfilename": "config.json", "size": 3, "blob_id": "a" * 40, "lfs": None}
LARGE = {"rfilename": "x.safetensors", "size": 3, "blob_id": "a" * 40, "lfs": SimpleNamespace(size=3, sha256="b" * 64)}


def test_a_listing_has_the_digest_that_the_hub_keeps():
    assert _checked("hf:o/n", info(GOOD, LARGE)) == Listing(
        "hf:o/n", COMMIT, {"config.json": Facts(3, f"git:{'a' * 40}"), "x.safetensors": Facts(3, f"sha256:{'b' * 64}")}
    )
    assert _checked("hf:o/n", SimpleNamespace(sha=COMMIT, siblings=None)).files == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rfilename": "../x"}, {"rfilename": "/x"}, {"rfilename": ""}, {"rfilename": "a\nb"}, {"rfilename": None},
        {"rfilename": "a\x1b[2Jb"}, {"rfilename": "a/../b"}, {"size": -1}, {"size": None}, {"size": "3"},
        {"size": True},
        {"blob_id": None}, {"blob_id": "A" * 40}, {"blob_id": "a" * 64}, {"lfs": SimpleNamespace(size=3, sha256="b")},
        {"lfs": SimpleNamespace(size=None, sha256="b" * 64)}, {"lfs": SimpleNamespace(size=3, sha256=7)},
    ],
    ids=repr,
)  # fmt: skip
def test_a_listing_that_cannot_be_is_refused(wrong):
    with pytest.raises(SourceNotFound) as caught:
        _checked("hf:o/n", info(GOOD | {"rfilename": "other"}, GOOD | wrong))
    assert caught.value.render().isprintable() or caught.value.render().count("\n") == 1


def test_a_listing_with_a_name_twice_or_without_a_commit_is_refused():
    with pytest.raises(SourceNotFound, match="cannot be compared with"):
        _checked("hf:o/n", info(GOOD, GOOD))
    for sha in (None, "main", "C" * 40, 7):
        with pytest.raises(SourceNotFound):
            _checked("hf:o/n", info(GOOD, sha=sha))


@pytest.mark.parametrize(
    "place", ["o/n", "hf:", "hf:n", "hf:o/n/m", "hf:o/n@", "https://hf.co/o/n", "hf:../n m", "HF:o/n"]
)
def test_a_place_that_is_none_is_a_wrong_option(place):
    with pytest.raises(UsageError) as caught:
        listing(place)
    assert caught.value.faults[0].hint == "write `hf:ORG/NAME[@REVISION]`"


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.sampled_from([
        "README.md", "modelbuild.json", "config.json", "model.safetensors", "m-Q4_K_M.gguf", "tokenizer.json", "x.png",
        "pytorch_model.bin", "1_Pooling/config.json", "original/model.safetensors", "model.safetensors.index.json",
        ".gitattributes", "generation_config.json", "special.txt", "LICENSE",
    ])), st.sets(st.sampled_from(["special.txt", "pytorch_model.bin", "README.md", "config.json"])),
)  # fmt: skip
def test_compared_is_what_the_output_has_and_what_outputs_have(there, ours):
    files = {name: Facts(1, "git:" + "a" * 40) for name in there}
    chosen = Listing("hf:o/n", COMMIT, files).of_an_output(frozenset(ours)).keys()
    always = {"config.json", "model.safetensors", "m-Q4_K_M.gguf", "tokenizer.json", "1_Pooling/config.json",
              "model.safetensors.index.json", "generation_config.json", "LICENSE"}  # fmt: skip
    assert chosen == there & (always | ours) - {"README.md", "modelbuild.json"}
