"""What weight files on the Hub contain, found out without downloading them: headers by range request.

A header that came alone is announced, not known: it is remembered apart, under the SHA-256 of its file, and compared
with the file's own when that is here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from modelbuild.errors import BuildFailed
from modelbuild.sources.content import SourceFile
from modelbuild.sources.headers import look_into
from modelbuild.sources.hub.cache import cached
from modelbuild.sources.hub.errors import offline
from modelbuild.sources.hub.fetch import Distant, bring
from modelbuild.sources.hub.files import Hub, HubFile
from modelbuild.sources.hub.requests import read_range
from modelbuild.sources.safetensors import Header, header_length, parse_header, read_header
from modelbuild.sources.strictjson import Malformed, show

TOGETHER = 8
"""Headers that are asked for at a time."""

FIRST = 32_768
"""Bytes that are asked for where nothing tells how long a header is; most are shorter."""

LEAST, MOST = 4_096, 2**20
"""Bytes between which the first request lies whatever an index tells."""

ENTRY = 110
"""Bytes that a header takes for a tensor besides its name, at most: dtype, shape, offsets, punctuation."""


def look_ahead(files: Sequence[SourceFile], index: Mapping[str, str]) -> list[Header]:
    """The headers of safetensors files on the Hub, in order; `index` gives tensors' files as far as it is known.

    From memory, from the client's cache, else by a request for each, two where the first was too short. Raises
    BuildFailed for a bad header, and what requests raise.
    """
    names: dict[str, list[str]] = {}
    for tensor, file in index.items():
        names.setdefault(file, []).append(tensor)
    _bring_whole(files)
    guesses = [_guess(names.get(os.path.basename(file.name))) for file in files]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(TOGETHER, thread_name_prefix="header") as pool:
        return list(pool.map(_look, files, guesses))


def _bring_whole(files: Sequence[SourceFile]) -> None:
    """Fetches weights that are no safetensors and were never looked into: what they hold stands all over them."""
    whole: dict[Hub, list[HubFile]] = {}
    for file in files:
        if file.name.endswith(".safetensors") or not isinstance(file.remote, Distant):
            continue
        if file.remote.hub.memory.contents(file) is None:
            whole.setdefault(file.remote.hub, []).append(file.remote.file)
    for hub, wanted in whole.items():
        bring(hub, wanted)


def _guess(names: Sequence[str] | None) -> int:
    """How many bytes of a file hold its length and a header with these names."""
    if names is None:
        return FIRST
    return min(max(LEAST, 8 + sum(len(name.encode()) + ENTRY for name in names) + 256), MOST)


def _look(file: SourceFile, guess: int) -> Header:
    remote = file.remote
    assert isinstance(remote, Distant)
    hub = remote.hub
    if remote.file in hub.checked:
        return look_into(hub.checked[remote.file], hub.memory, remote.file.shown)
    known = hub.memory.contents(file)
    if known is not None:
        return known.header
    header = hub.memory.announced(file)
    if header is None:
        header = _cached_header(remote) or _asked(remote, guess)
        hub.memory.remember_announced(file, header)
    hub.announced[file.sha256] = header
    return header


def _cached_header(remote: Distant) -> Header | None:
    """The header of a file in the client's cache that has the right size; nobody hashed it yet."""
    path = cached(remote.hub, remote.file)
    if path is None or os.stat(path).st_size != remote.file.size:
        return None
    return read_header(path, remote.file.size, name=remote.file.shown)


def _asked(remote: Distant, guess: int) -> Header:
    file = remote.file
    if remote.hub.offline:
        raise offline([file], 1)
    try:
        start = read_range(file, 0, min(guess, file.size))
        end = 8 + header_length(start, file.size)
        if end > len(start):
            start += read_range(file, len(start), end)
        return parse_header(start[8:end], file.size)
    except Malformed as error:
        facts = [f"it {error}"]
        raise BuildFailed(f"{show(file.shown)} is not a safetensors file to rely on", facts=facts) from None
