"""Finds the files of a source on the Hub, by the same rules as those of a folder of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from modelbuild.errors import SourceNotFound
from modelbuild.modelfile.spec import Adapter, Base
from modelbuild.sources.content import SourceFile
from modelbuild.sources.find import ADAPTER_CONFIG, Found, adapter_in, model_in, too_large
from modelbuild.sources.hub.cache import cached_listing
from modelbuild.sources.hub.fetch import bring, distant
from modelbuild.sources.hub.files import Entry, Hub, HubFile, Listing, Snapshot, listing
from modelbuild.sources.hub.names import COMMIT, HubName, is_safe
from modelbuild.sources.hub.requests import list_repository
from modelbuild.sources.lock import LockedSource
from modelbuild.sources.sidefiles import FOLDERS
from modelbuild.sources.strictjson import show

OFFLINE = "without `--offline` and HF_HUB_OFFLINE the Hub is asked for what is missing"


def find_on_hub(hub: Hub, name: HubName, artifact: Base | Adapter, locked: LockedSource | None) -> Found:
    """The files of a model or adapter on the Hub: as `locked`, else as the Hub has them, or offline its client's cache.

    JSON files, and small files whose SHA-256 the Hub does not list, are fetched; weights are not. Raises what
    `find.find_model` raises, and what the Hub refuses.
    """
    subfolder = artifact.subfolder if isinstance(artifact, Adapter) else None
    files = _locked(name, artifact, subfolder, locked)
    if files is None:
        files = cached_listing(hub, name) if hub.offline else list_repository(hub, name)
    folder = HubFolder(hub, files, subfolder)
    try:
        return adapter_in(folder) if isinstance(artifact, Adapter) else model_in(folder)
    except SourceNotFound as error:
        if not hub.offline:
            raise
        raise SourceNotFound([replace(fault, hint=fault.hint or OFFLINE) for fault in error.faults]) from error


def _locked(
    name: HubName, artifact: Base | Adapter, subfolder: str | None, locked: LockedSource | None
) -> Listing | None:
    """The files that the lock pins; None where it pins another origin or subfolder, or no commit that there can be."""
    if locked is None or locked.origin != name.origin or not COMMIT.fullmatch(locked.commit or ""):
        return None
    files = {file.name: Entry(file.size, file.sha256) for file in locked.files if is_safe(file.name)}
    if isinstance(artifact, Adapter) and _within(subfolder, ADAPTER_CONFIG) not in files:
        return None
    return listing(Snapshot(name, locked.commit or "", pinned=True), files)


def _within(subfolder: str | None, name: str) -> str:
    return name if subfolder is None else f"{subfolder.strip('/')}/{name}"


class HubFolder:
    """A repository at a commit, or a `subfolder` of it; see find.Folder."""

    def __init__(self, hub: Hub, files: Listing, subfolder: str | None = None) -> None:
        self.hub = hub
        self.shown = files.at.name.shown if subfolder is None else f"{files.at.name.shown}/{subfolder}"
        self.origin = files.at.name.origin
        self.commit = files.at.commit
        self._files = _below(files, subfolder)
        if subfolder is not None and not self._files:
            facts = [f"{show(files.at.name.shown)} has no file in {show(subfolder)}"]
            raise SourceNotFound(f"{show(self.shown)} is not there", facts=facts)

    def names(self) -> tuple[str, ...]:
        """The names at the top of the folder, sorted, of files and of folders."""
        return tuple(sorted({name.split("/")[0] for name in self._files}))

    def nested(self) -> list[str]:
        """Names one level down, in the folders that may hold side files."""
        return [name for name in self._files if name.count("/") == 1 and FOLDERS.fullmatch(name.split("/")[0])]

    def texts(self, limits: Mapping[str, int]) -> dict[str, bytes]:
        """The contents of small files, fetched where they are not in the client's cache."""
        for name, limit in limits.items():
            if self._files[name].size > limit:
                raise too_large(self._files[name].shown, limit)
        brought = bring(self.hub, [self._files[name] for name in limits])
        return {name: _text(file) for name, file in zip(limits, brought, strict=True)}

    def places(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, SourceFile]]:
        """All files are identified: by the digests that the Hub lists, or the lock has, and by fetching the rest."""
        wanted = {name: self._files[name] for name in sorted(names)}
        here = {name: file for name, file in wanted.items() if file.sha256 is None or file in self.hub.checked}
        local = dict(zip(here, bring(self.hub, list(here.values())), strict=True))
        return {}, {name: local.get(name) or distant(self.hub, file) for name, file in wanted.items()}


def _below(files: Listing, subfolder: str | None) -> dict[str, HubFile]:
    """The files of a folder by their names within it."""
    start = _within(subfolder, "")
    return {path.removeprefix(start): file for path, file in files.files.items() if path.startswith(start)}


def _text(file: SourceFile) -> bytes:
    with open(file.path, "rb") as stored:
        return stored.read(file.size + 1)
