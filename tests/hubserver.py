"""A Hub on this machine that an unmodified huggingface_hub talks to: listings, files, redirects, and what goes wrong.

    hub.put("org/red", world.root / "red")
    world.run("build", **hub.env)
    assert hub.count("/resolve/") == 3
    hub.move("org/red", other_folder)
    hub.faults.lie_size["model.safetensors"] = 1

Large files are redirected to another host name, as the Hub does with its storage. Every answer is noted in `answers`
with the bytes that were sent. A file may be a `Sparse`: a real start, and zeros behind it that take no memory.
"""

import hashlib
import itertools
import json
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf", ".model")
STEP = 2**16


@dataclass(frozen=True)
class Sparse:
    """A file with this start and this size, the rest zeros; its SHA-256 may be anything, since nobody hashes it."""

    start: bytes
    size: int

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        head = self.start[part.start : part.stop]
        return head + bytes(min(part.stop, self.size) - part.start - len(head))


@dataclass(frozen=True)
class Blob:
    """A file of a repository, as the Hub knows it."""

    data: bytes | Sparse
    large: bool
    xet: str | None = None

    @property
    def sha256(self):
        return hashlib.sha256(self.data.start if isinstance(self.data, Sparse) else self.data).hexdigest()

    @property
    def pointer(self):
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return text.encode()

    @property
    def oid(self):
        data = self.pointer if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    """A repository: trees by commit, commits by branch or tag, and who may see it."""

    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    private: bool = False
    gated: bool = False


@dataclass
class Faults:
    """What goes wrong, by the path of a file; all of it may be changed at any time."""

    drop_after: dict = field(default_factory=dict)
    """Bytes of a file after which the connection breaks, for as many answers as the list has entries."""
    reset_after: dict = field(default_factory=dict)
    """The same, with a reset in the place of an end."""
    lie_size: dict = field(default_factory=dict)
    """Sizes that the listing tells."""
    lie_sha256: dict = field(default_factory=dict)
    """Digests that the listing tells."""
    other_bytes: dict = field(default_factory=dict)
    """What is sent in the place of a file, under its name and digest."""
    other_ranges: dict = field(default_factory=dict)
    """What is sent in the place of a file to who asks for a part of it that starts at 0."""
    no_ranges: bool = False
    status: dict = field(default_factory=dict)
    """Answers 503 and the like, by a piece of the path, for as many answers as the list has entries."""
    listing: bytes | None = None
    """What is sent in the place of every listing."""
    hold: dict = field(default_factory=dict)
    """Gates at which the sending of a file waits, after its first bytes."""
    range_header: str | None = None
    """What is told of a part of a file in the place of where it lies."""


class Gate:
    """Where an answer waits: `reached` once it is there, until it is let through."""

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def wait(self):
        """Waits until the gate is open, a minute at most."""
        self.reached.set()
        self.open.wait(60)


@dataclass
class Answer:
    """A request and what became of it: the bytes of the body that were sent. Noted before it can be seen by others."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0
    over: bool = False


class HubServer(ThreadingHTTPServer):
    """The server. Tests add repositories, move branches, look at `answers`; `env` points the client at it."""

    daemon_threads = True
    token = "hf_right"

    def __init__(self, home):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {}
        self.faults = Faults()
        self.answers = []
        self.noted = threading.Condition()
        self.home = Path(home)
        self.waiting = 0
        self.xet = None
        self._numbers = itertools.count()

    # --- what tests do with it ----------------------------------------------------------------------------------------

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def env(self):
        """The variables of a client that talks to this server and has its cache beside it."""
        off = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_UPDATE_CHECK")
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), **dict.fromkeys(off, "1"), "HF_HUB_OFFLINE": "0"}

    @property
    def cache(self):
        """The client's cache."""
        return self.home / "hub"

    def put(self, name, files, branch="main"):
        """Commits a folder, or files by path, to a branch as all that is in it; the commit."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        tree = {path: Blob(data, path.endswith(LARGE)) for path, data in files.items()}
        text = json.dumps([name, next(self._numbers), {path: blob.sha256 for path, blob in tree.items()}])
        commit = hashlib.sha1(text.encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo())
        repo.commits[commit] = tree
        repo.refs[branch] = commit
        return commit

    def to_xet(self, name):
        """Moves the large files of a repository to Xet storage, a folder that hf-xet serves to its own client."""
        import hf_xet

        storage = self.home.parent / "xet-storage"
        storage.mkdir(exist_ok=True)
        self.xet = f"local://{storage}"
        for tree in self.repos[name].commits.values():
            for path, blob in tree.items():
                if blob.large:
                    with hf_xet.XetSession().new_upload_commit(self.xet, "x", 2**32) as commit:
                        handle = commit.start_upload_bytes(bytes(blob.data))
                    tree[path] = replace(blob, xet=handle.result().xet_info.hash)

    def forget(self, name, commit):
        """Deletes a commit, as a rewritten history does."""
        del self.repos[name].commits[commit]

    def count(self, piece="", method=None):
        """How many requests had this piece in their paths."""
        return sum(piece in a.path and method in (None, a.method) for a in self.answers)

    def sent(self, piece=""):
        """How many bytes of bodies were sent for paths with this piece."""
        return sum(a.sent for a in self.answers if piece in a.path)

    def ended(self, piece):
        """Waits until the answers with this piece in their paths are over, whoever still listens."""
        with self.noted:
            assert self.noted.wait_for(lambda: all(a.over for a in self.answers if piece in a.path), 60)

    def fresh(self):
        """Forgets the answers so far."""
        self.answers.clear()
        return self

    # --- what requests find -------------------------------------------------------------------------------------------

    def tree(self, repo, revision):
        """The commit and tree of a revision; (None, None) if there is none."""
        commit = repo.refs.get(revision, revision)
        return (commit, repo.commits[commit]) if commit in repo.commits else (None, None)

    def listing(self, name, commit, tree):
        """What the API tells of a repository at a commit, with `blobs=true`."""
        siblings = []
        for path, blob in sorted(tree.items()):
            size = self.faults.lie_size.get(path, len(blob.data))
            entry = {"rfilename": path, "size": size, "blobId": blob.oid}
            if blob.large:
                sha256 = self.faults.lie_sha256.get(path, blob.sha256)
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": len(blob.pointer)}
            siblings.append(entry)
        return {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Says nothing."""

    def do_GET(self):
        """Notes the request, and answers."""
        token = self.headers.get("Authorization")
        self.note = Answer(self.command, self.path, self.headers.get("Range"), token)
        self.server.answers.append(self.note)
        try:
            self.route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.noted:
                self.note.over = True
                self.server.noted.notify_all()

    do_HEAD = do_GET

    def route(self):
        """Finds out what is asked for."""
        url = urlsplit(self.path)
        for piece, codes in self.server.faults.status.items():
            if piece in self.path and codes:
                return self.error(codes.pop(0), None, "out of order")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", url.path):
            return self.info(unquote(match[1]), unquote(match[2]), parse_qs(url.query))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
            return self.resolve(*map(unquote, match.groups()))
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/xet-read-token/([0-9a-f]{40})", url.path):
            told = {"accessToken": "x", "exp": 2**32, "casUrl": self.server.xet}
            names = dict(zip(("Access-Token", "Token-Expiration", "Cas-Url"), map(str, told.values()), strict=True))
            return self.answer(200, json.dumps(told).encode(), {f"X-Xet-{name}": told for name, told in names.items()})
        if match := re.fullmatch(r"/_storage/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", url.path):
            return self.storage(*map(unquote, match.groups()))
        return self.error(404, None, "no such route")

    def allowed(self, name, resolving):
        """The repository, or None once the client was told why not. Gated ones are listed, but not given."""
        repo, token = self.server.repos.get(name), self.headers.get("Authorization")
        if token not in (None, f"Bearer {self.server.token}"):
            return self.error(401, None, "Invalid credentials in Authorization header")
        if repo is None or (repo.private and token is None):
            return self.error(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if repo.gated and resolving and token is None:
            return self.error(401, "GatedRepo", "Access to this model is restricted")
        return repo

    def info(self, name, revision, query):
        """The listing."""
        if (repo := self.allowed(name, False)) is None:
            return None
        commit, tree = self.server.tree(repo, revision)
        if tree is None:
            return self.error(404, "RevisionNotFound", "Invalid rev id")
        assert query.get("blobs") == ["true"]
        if gate := self.server.faults.hold.get("listing"):
            self.server.waiting += 1
            gate.wait()
        if self.server.faults.listing is not None:
            return self.answer(200, self.server.faults.listing)
        return self.answer(200, json.dumps(self.server.listing(name, commit, tree)).encode())

    def resolve(self, name, revision, path):
        """A small file, or where a large one lies."""
        if (repo := self.allowed(name, True)) is None:
            return None
        commit, tree = self.server.tree(repo, revision)
        if tree is None:
            return self.error(404, "RevisionNotFound", "Invalid rev id")
        if path not in tree:
            return self.error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        blob = tree[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if not blob.large:
            return self.send_file(path, blob.data, headers)
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        if blob.xet:
            route = f"{self.server.url}/api/models/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": blob.xet, "X-Xet-Refresh-Route": route}
        storage = self.server.url.replace("127.0.0.1", "localhost")
        return self.answer(302, b"", headers | {"Location": f"{storage}/_storage/{name}/{commit}/{path}"})

    def storage(self, name, commit, path):
        """A large file, from another host, which never gets a token."""
        assert "Authorization" not in self.headers
        return self.send_file(path, self.server.repos[name].commits[commit][path].data, {"Accept-Ranges": "bytes"})

    def send_file(self, path, data, headers):
        """A file, or the part of it that is asked for."""
        faults = self.server.faults
        data = faults.other_bytes.get(path, data)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if found is None or faults.no_ranges:
            return self.body(200, path, data, 0, len(data), headers)
        start = int(found[1])
        data = faults.other_ranges.get(path, data) if found[2] else data
        stop = min(int(found[2]) + 1, len(data)) if found[2] else len(data)
        told = f"bytes {start}-{stop - 1}/{len(data)}" if faults.range_header is None else faults.range_header
        headers = {**headers, "Content-Range": told}
        return self.body(206, path, data, start, stop, headers)

    def body(self, status, path, data, start, stop, headers):
        """Sends bytes in steps, and breaks off where it is told to."""
        self.head(status, headers | {"Content-Length": str(stop - start)})
        if self.command == "HEAD":
            return
        faults = self.server.faults
        reset = bool(faults.reset_after.get(path))
        left = faults.reset_after.get(path) or faults.drop_after.get(path)
        end = min(stop, start + left.pop(0)) if left else stop
        for at in range(start, end, STEP):
            self.note.sent += min(STEP, end - at)
            self.wfile.write(data[at : min(at + STEP, end)])
            if gate := self.server.faults.hold.get(path):
                gate.wait()
        if end < stop:
            self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def head(self, status, headers):
        """The status and the headers."""
        self.note.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def answer(self, status, data, headers=None):
        """A whole answer."""
        self.head(status, {**(headers or {}), "Content-Length": str(len(data))})
        if self.command != "HEAD":
            self.note.sent += len(data)
            self.wfile.write(data)

    def error(self, status, code, message, headers=None):
        """A refusal, in the Hub's words."""
        told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
        self.answer(status, json.dumps({"error": message}).encode(), told)


def serve(home):
    """A running server, whose client has its files under `home`; stop it with `shutdown` and `server_close`."""
    server = HubServer(home)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
