"""Files of a repository at a commit, and the door through which they are reached."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from modelbuild.sources.content import SourceFile
from modelbuild.sources.fence import Fence, hub_caches
from modelbuild.sources.hub.names import HubName
from modelbuild.sources.memory import Memory
from modelbuild.sources.safetensors import Header

TRUE = frozenset({"1", "on", "yes", "true"})
"""What a variable of the Hub client says to set a flag."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit; `pinned` says that the lock chose the commit, not the Hub today."""

    name: HubName
    commit: str
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its path there, its bytes, and its SHA-256 where that is known without reading it.

    The Hub lists a SHA-256 for large files only; of the others it tells `oid`, the SHA-1 that git knows them by.
    """

    at: Snapshot
    path: str
    size: int
    sha256: str | None = None
    oid: str | None = None

    @property
    def shown(self) -> str:
        """What messages call the file."""
        return f"{self.at.name.shown}/{self.path}"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at a commit, by path: all of them, or those that the lock or a cache knows of."""

    at: Snapshot
    files: Mapping[str, HubFile]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing tells of one file: bytes, SHA-256 of a large file, git's SHA-1."""

    size: int
    sha256: str | None = None
    oid: str | None = None


def listing(at: Snapshot, entries: Mapping[str, Entry]) -> Listing:
    """The files of a repository, from what is told of each."""
    return Listing(at, {path: HubFile(at, path, told.size, told.sha256, told.oid) for path, told in entries.items()})


@dataclass(frozen=True, eq=False)
class Hub:
    """How the Hub is reached: through its client, with that one's endpoint, or not at all (`offline`).

    `cache` is the client's cache. `checked` are files that were found to be what they should be by this process,
    `announced` headers by SHA-256 that the Hub, or an unchecked file, told of files nobody hashed here yet, `listed`
    commits and files by repository and revision, so that two sources from one branch are of one commit.
    """

    cache: str
    inside: Fence
    memory: Memory
    offline: bool = False
    threads: int | None = None
    say: Callable[[str], None] = lambda text: None
    checked: dict[HubFile, SourceFile] = field(default_factory=dict)
    announced: dict[str, Header] = field(default_factory=dict)
    listed: dict[tuple[str, str | None], tuple[str, Mapping[str, Entry]]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


def open_hub(
    inside: Fence,
    memory: Memory,
    *,
    offline: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Hub:
    """The Hub as this machine reaches it: `HF_HUB_OFFLINE`, `HF_HOME` and `HF_HUB_CACHE` are obeyed."""
    return Hub(hub_caches()[0], inside, memory, offline or says_offline(), threads, say=say)


def says_offline() -> bool:
    """Whether the Hub client's variables forbid it the network."""
    told = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return told.lower() in TRUE
