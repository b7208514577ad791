"""Asks the Hub: what a repository holds at a revision, and for a few bytes of a file.

All through the client's session: its endpoint, token, proxies and retries. No answer is believed unchecked, or read
further than a limit.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from modelbuild import __version__
from modelbuild.errors import BuildFailed, SourceNotFound, VerificationFailed
from modelbuild.sources.hub.cache import FILES_LIMIT
from modelbuild.sources.hub.errors import told_as_ours
from modelbuild.sources.hub.files import Entry, Hub, HubFile, Listing, Snapshot, listing
from modelbuild.sources.hub.names import COMMIT, DEFAULT_REVISION, SHA256, HubName, is_safe
from modelbuild.sources.strictjson import show

LISTING_LIMIT = 100_000_000
"""Bytes that a listing may have."""

SIZE_LIMIT = 2**50
"""Bytes that a file may have."""

TRIES = 3
"""How often something is asked for that the network lost."""

IGNORED_LIMIT = 200_000_000
"""Bytes from the start of a file that are read where a server does not know what a range is."""

STEP = 2**16

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_Found = TypeVar("_Found")


def list_repository(hub: Hub, name: HubName) -> Listing:
    """The commit that a revision is today, and all files of it, by one request.

    Raises SourceNotFound (no such repository or revision, gated, no network) and BuildFailed for an answer that is not
    to be relied on.
    """
    known = hub.listed.get((name.repo, name.revision))
    if known is None:
        with told_as_ours(name):
            known = _checked(_ask(name), name)
        hub.listed[name.repo, name.revision] = known
    return listing(Snapshot(name, known[0]), known[1])


def read_range(file: HubFile, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file as the Hub gives them now; nothing says yet that they are what they should be.

    Raises SourceNotFound, and VerificationFailed where the Hub has a file of another size than it lists.
    """
    if start == stop:
        return b""
    with told_as_ours(file):
        return _patiently(lambda: _range(file, start, stop))


def headers() -> dict[str, str]:
    """The headers of a request: the client's token, who asks, and no compression, which would hide sizes."""
    from huggingface_hub.utils import build_hf_headers

    return {**build_hf_headers(library_name="modelbuild", library_version=__version__), "Accept-Encoding": "identity"}


def _ask(name: HubName) -> bytes:
    from urllib.parse import quote

    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name.repo)
    revision = quote(name.revision or DEFAULT_REVISION, safe="")
    url = f"{constants.ENDPOINT}/api/models/{name.repo}/revision/{revision}"
    return _patiently(lambda: b"".join(_stream(url, LISTING_LIMIT, params={"blobs": "true"})))


def _stream(url: str, limit: int, **words: Any) -> Iterator[bytes]:
    """The body of an answer, in pieces, refused beyond `limit` bytes."""
    with _opened(url, headers(), **words) as answer:
        read = 0
        for piece in answer.iter_bytes(STEP):
            read += len(piece)
            if read > limit:
                raise BuildFailed("the Hub's answer is too large", facts=[show(url), f"the limit is {limit} bytes"])
            yield piece


def _opened(url: str, headers: Mapping[str, str], **words: Any) -> Any:
    """An answer that is being read, after redirects; a server that is busy is asked again by the client."""
    from contextlib import contextmanager

    from huggingface_hub import constants
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    @contextmanager
    def opened() -> Iterator[Any]:
        # What goes wrong while the answer is read is ours to try again: the client would hand out a second answer.
        with http_stream_backoff(
            "GET",
            url,
            headers=dict(headers),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=TRIES - 1,
            retry_on_exceptions=(),
            **words,
        ) as answer:
            hf_raise_for_status(answer)
            yield answer

    return opened()


def _patiently(ask: Callable[[], _Found]) -> _Found:
    """What `ask` gives; where the network fails it is asked again."""
    from huggingface_hub.utils import httpx

    for attempt in range(1, TRIES):
        try:
            return ask()
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError):
            time.sleep(0.5 * attempt)
    return ask()


def _range(file: HubFile, start: int, stop: int) -> bytes:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(file.at.name.repo, file.path, revision=file.at.commit)
    with _opened(url, headers() | {"Range": f"bytes={start}-{stop - 1}"}) as answer:
        if answer.status_code == 206:
            _check_range(file, answer.headers.get("Content-Range", ""), start)
            return _exactly(answer, stop - start)
        # The whole file is on its way: what is wanted is taken from its start, and the rest never read.
        if stop > IGNORED_LIMIT or "content-encoding" in answer.headers:
            raise SourceNotFound("the Hub does not give parts of files", facts=[show(file.shown)])
        _check_size(file, answer.headers.get("Content-Length"))
        return _exactly(answer, stop)[start:]


def _exactly(answer: Any, count: int) -> bytes:
    """The first `count` bytes of an answer."""
    from huggingface_hub.utils import httpx

    data = bytearray()
    for piece in answer.iter_raw(STEP):
        data += piece
        if len(data) >= count:
            return bytes(data[:count])
    raise httpx.RemoteProtocolError(f"the answer ended after {len(data)} of {count} bytes")


def _check_range(file: HubFile, told: str, start: int) -> None:
    found = _RANGE.fullmatch(told)
    if found is None or int(found[1]) != start:
        raise SourceNotFound("the Hub does not give parts of files", facts=[show(file.shown), show(told)])
    _check_size(file, None if found[3] == "*" else found[3])


def _check_size(file: HubFile, told: str | None) -> None:
    if told is not None and told.isdecimal() and int(told) != file.size:
        facts = [f"expected {file.size} bytes", f"it has   {told}"]
        raise VerificationFailed(
            f"{show(file.shown)} is not the file that {source_of(file)}", where=file.at.name.where, facts=facts
        )


def source_of(file: HubFile) -> str:
    """Who says what the file is, with a verb."""
    return "the lock pins" if file.at.pinned else "the Hub lists"


def _checked(data: bytes, name: HubName) -> tuple[str, Mapping[str, Entry]]:
    """Commit and files of a listing; files with names that no lock could hold are passed over."""
    try:
        told = json.loads(data)
        commit, siblings = told["sha"], told["siblings"]
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
            raise ValueError("no commit or no files")
        if len(siblings) > FILES_LIMIT:
            raise ValueError(f"{len(siblings)} files; the limit is {FILES_LIMIT}")
        if COMMIT.fullmatch(name.revision or "") and commit != name.revision:
            raise ValueError(f"it has commit {commit}, not the one that was asked for")
        found: dict[str, Entry] = {}
        for sibling in siblings:
            path, entry = _entry(sibling)
            if path in found:
                raise ValueError(f"{show(path)} is listed twice")
            if is_safe(path):
                found[path] = entry
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        facts = [f"it is not a listing: {type(error).__name__} {error}"]
        raise BuildFailed(f"the Hub's listing of {show(name.shown)} is not to be relied on", facts=facts) from None
    return commit, dict(sorted(found.items()))


def _entry(sibling: Any) -> tuple[str, Entry]:
    path, size, oid, large = (sibling.get(key) for key in ("rfilename", "size", "blobId", "lfs"))
    sha256 = large.get("sha256") if isinstance(large, dict) else None
    if not isinstance(path, str) or type(size) is not int or not 0 <= size <= SIZE_LIMIT:
        raise ValueError(f"a file without a name or a size: {show(str(path))}")
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        raise ValueError(f"{show(path)} has a SHA-256 that is none")
    known = isinstance(oid, str) and COMMIT.fullmatch(oid) is not None and sha256 is None
    return path, Entry(size, sha256, oid if known else None)
