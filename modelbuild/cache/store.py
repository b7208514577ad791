"""The store: where tensors that were computed once are found again. The format is described in docs/cache.md.

`LocalStore`, a folder on this machine, is the first implementation of `interface.Store`. Nothing here is an error that
a build could not get over: what is missing or damaged is a miss, and `notes` says what was set aside and why.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from modelbuild.cache import check, disk, locks
from modelbuild.cache.aside import folder_inode, salvage, set_aside, whole_key
from modelbuild.cache.disk import DISK_FULL, Durability
from modelbuild.cache.folders import Folders, is_key
from modelbuild.cache.index import Index
from modelbuild.cache.manifest import Garbage, dump_manifest, parse_manifest
from modelbuild.cache.nouns import Layout, Located, Manifest
from modelbuild.cache.roots import Root, read_roots, set_pin, write_root
from modelbuild.cache.stage import Stage
from modelbuild.cache.twins import Twin, sharing, twins
from modelbuild.errors import BuildFailed, UsageError

DAY = 86400.0


class LocalStore:
    """A cache in a folder."""

    def __init__(self, root: str, durability: Durability = "batch") -> None:
        self.folders = Folders(root)
        self.durability: Durability = durability
        self.notes: list[str] = []
        self._index = Index(self.folders.index, self.notes)
        self._shared = 0
        self._suspects: set[str] = set()

    def path(self, key: str) -> str:
        """The folder of a published artifact's files."""
        return self.folders.artifact(key)

    def artifacts(self) -> list[str]:
        """The keys of all published artifacts, sorted."""
        with os.scandir(self.folders.artifacts) as entries:
            return sorted(e.name for e in entries if is_key(e.name) and e.is_dir(follow_symlinks=False))

    def manifest(self, key: str) -> Manifest | None:
        """The manifest of a published artifact whose files can be trusted; None on a miss.

        Files whose size or mtime is not the recorded one are read and compared with their checksums: sound ones are
        remembered, damage is set aside and noted, so that afterwards nothing stands under the key.
        """
        manifest = self._read(key)
        return manifest if manifest is not None and self._sound(manifest) else None

    def _read(self, key: str) -> Manifest | None:
        inode = folder_inode(self.folders, key)  # first: a folder that is there has had its manifest from the start
        if inode is None:
            return None
        try:
            with open(self.folders.manifest(key), "rb") as file:
                return parse_manifest(file.read(), key)
        except Garbage as error:
            reason = f"its manifest is damaged: {error}"
        except OSError as error:
            reason = f"its manifest cannot be read: {error.strerror}"
        if (away := set_aside(self.folders, key, inode)) is not None:
            where = os.path.relpath(away, self.folders.root)
            self.notes.append(f"artifact {key[:12]} in the cache was set aside as {where}: {reason}; it is made anew")
        return None

    def _sound(self, manifest: Manifest) -> bool:
        folder = self.folders.artifact(manifest.key)
        names = [name for name in check.doubtful(folder, manifest.files) if not self._trusted(manifest.key, name)]
        return not names or not self._examine(manifest, names)

    def _trusted(self, key: str, name: str) -> bool:
        facts = check.stamp(os.path.join(self.folders.artifact(key), name))
        return facts is not None and facts == self._index.trusted(key, name)

    def _examine(self, manifest: Manifest, names: Collection[str] | None = None) -> list[str]:
        """Read files of an artifact; what is wrong with it and with others, after they were set aside.

        Damage of a file is that of every artifact that shares it, whose size and mtime may tell nothing.
        """
        problem, shared = self._check(manifest, names)
        problems = [problem]
        for key, files in shared.items():
            if key != manifest.key and (other := self._read(key)) is not None:
                problems.append(self._check(other, files)[0])
        return [problem for problem in problems if problem is not None]

    def _check(self, manifest: Manifest, names: Collection[str] | None) -> tuple[str | None, dict[str, list[str]]]:
        """What `_examine` finds in one artifact, and the files of others, by key, that are the same damaged ones."""
        folder = self.folders.artifact(manifest.key)
        inode = folder_inode(self.folders, manifest.key)
        before = {f.name: check.stamp(os.path.join(folder, f.name)) for f in manifest.files}
        health = check.examine(folder, manifest, names)
        if health.damaged:
            shared = sharing(folder, health.damaged, {key: self.path(key) for key in self.artifacts()})
            note = salvage(self.folders, manifest, health, inode)
            self.notes += [note] if note else []
            return note or f"`{manifest.name}` was damaged and is gone", shared
        for name in check.doubtful(folder, manifest.files):
            if (facts := before[name]) is not None and (names is None or name in names):
                self._index.trust(manifest.key, name, *facts)
        return None, {}

    def examine(self, key: str) -> list[str]:
        """Read every byte of an artifact; what is wrong, a sentence for each that was set aside.

        The first is about the artifact itself, the others about those that share its damaged files.
        """
        already = len(self.notes)
        manifest = self._read(key)
        return self.notes[already:] if manifest is None else self._examine(manifest)

    def learn(self, key: str, digests: Mapping[str, str]) -> None:
        """Write the SHA-256 of files, by name, into an artifact's manifest; nothing, where that cannot be done.

        They are those of the files that the manifest describes, so the rest of it stays.
        """
        manifest = self._read(key)
        if manifest is None:
            return
        files = tuple(replace(file, sha256=digests.get(file.name, file.sha256)) for file in manifest.files)
        if files == manifest.files:
            return
        with suppress(OSError):
            disk.replace(
                self.folders.manifest(key),
                dump_manifest(replace(manifest, files=files)),
                self.durability,
                self.folders.trash,
            )

    def find(self, keys: Iterable[str]) -> dict[str, Located]:
        """Where cached tensors lie, for those of the keys that are in artifacts whose files can be trusted.

        The artifacts that hold most of them are looked at first, so that few files have to be opened.
        """
        wanted = set(keys)
        located: dict[str, Located] = {}
        for _ in range(2):  # once more if something was damaged: its sound tensors have come back elsewhere
            missing = wanted - located.keys()
            holders = self._index.holders(self._present(), self._read, missing)
            damaged = False
            for artifact in sorted(holders, key=lambda name: (-holders[name], name)):
                if missing <= located.keys():
                    return located
                manifest = self.manifest(artifact)
                damaged |= manifest is None
                located |= self._locate(manifest, missing - located.keys()) if manifest else {}
            if not damaged:
                break
        return located

    def _locate(self, manifest: Manifest, wanted: Collection[str]) -> dict[str, Located]:
        folder = self.folders.artifact(manifest.key)
        return {
            t.key: Located(t.key, os.path.join(folder, t.file), t.offset, t.nbytes, t.checksum, manifest.key)
            for t in manifest.tensors
            if t.key in wanted
        }

    def twins(self, layout: Layout, keys: Mapping[str, str]) -> dict[str, Twin]:
        """For files of the layout the same file of a published artifact that can be trusted."""
        holders = self._index.holders(self._present(), self._read, keys.values())
        # What lies between the tensors of a rest may be damaged.
        names = sorted((name for name in holders if not whole_key(name)), key=lambda name: (-holders[name], name))
        found = ((self.path(name), manifest) for name in names if (manifest := self.manifest(name)) is not None)
        return twins(layout, keys, found)

    def _present(self) -> dict[str, str]:
        return {key: self._stamp(key) for key in self.artifacts()}

    def _stamp(self, key: str) -> str:
        try:
            facts = os.lstat(self.folders.manifest(key))
        except OSError:
            return "none"
        return f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"

    def verify_tensor(self, located: Located) -> bool:
        """Whether a tensor's bytes still have their checksum.

        If not, its artifact is examined, and set aside, when the outermost `shared` ends: other tensors of it may be
        in use until then.
        """
        try:
            fd = os.open(located.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            sound = check.holds(fd, located.offset, located.nbytes, located.checksum)
        finally:
            os.close(fd)
        if not sound:
            self._suspects.add(located.artifact)
        return sound

    def touch(self, artifacts: Iterable[str]) -> None:
        """Say that artifacts were used now: the mtime of an artifact's folder is its time of last use."""
        for key in artifacts:
            with suppress(FileNotFoundError, PermissionError):
                os.utime(self.folders.artifact(key))

    @contextmanager
    def stage(
        self,
        key: str,
        name: str,
        layout: Layout,
        keys: Mapping[str, str],
        *,
        waiting: Callable[[str], None],
        anew: bool = False,
    ) -> Iterator[Stage]:
        """A place to write the artifact `key`, called `name`, in, with what an interrupted build left there.

        `keys` are the keys of its tensors by name. Waits while another process writes the same artifact, and tells
        `waiting` which; if it is there by then (and `anew` is not asked), `Stage.published` says so. Left by an
        exception, the stage stays for the next build. Raises BuildFailed when the disk is full or fails, also for an
        OSError that is raised inside.
        """
        with locks.exclusive(self.folders.lock(key), name, waiting):
            stage: Stage | None = None
            try:
                stage = Stage(self, key, name, layout, keys, anew=anew)
                yield stage
            except OSError as error:
                if error.errno in DISK_FULL:
                    raise disk.full(name, sum(layout.sizes.values()), self.folders.root) from error
                raise BuildFailed(f"`{name}` could not be written to the cache", facts=(str(error),)) from error
            finally:
                if stage is not None:
                    stage.close()

    def published(self, manifest: Manifest) -> None:
        """Enter an artifact that was just published in the index."""
        self._index.add(manifest, self._stamp(manifest.key))

    @contextmanager
    def shared(self, name: str, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """A time during which nothing is collected, for building `name`; may be entered again inside itself."""
        if self._shared:
            self._shared += 1
            try:
                yield
            finally:
                self._shared -= 1
            return
        with locks.building(self.folders.locks, name, waiting):
            self._shared = 1
            try:
                yield
            finally:
                self._shared = 0
                while self._suspects:
                    self.examine(self._suspects.pop())

    @contextmanager
    def alone(self, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """A time during which nobody builds. Raises RuntimeError inside `shared`, where it would wait for itself."""
        if self._shared:
            raise RuntimeError("the cache cannot be collected during a build")
        with locks.collecting(self.folders.locks, waiting):
            yield

    def sweep(self, max_age_s: float = DAY, keep: Collection[str] = frozenset()) -> int:
        """Remove stages that nobody writes, older than this or published, except those of `keep`, and what kills left.

        The number of stages removed.
        """
        locks.builders(self.folders.locks)
        for name in os.listdir(self.folders.trash):
            disk.remove(os.path.join(self.folders.trash, name))
        count = 0
        for key in os.listdir(self.folders.stages):
            path = os.path.join(self.folders.stages, key)
            if key in keep or not is_key(key):
                continue
            # Where a kill came between publishing and tidying up, nobody will ever look into the stage again.
            if not os.path.lexists(self.folders.manifest(key)) and time.time() - disk.newest(path) < max_age_s:
                continue
            with locks.attempt(self.folders.lock(key)) as free:
                count += free and disk.discard(path, self.folders.trash)
        return count

    def set_root(self, workspace: str, keys: Collection[str], note: str, path: str | None = None) -> None:
        """Say that the last build of `workspace` (a key) needs these artifacts, and no longer what it needed before.

        `path` is a file without which the workspace is gone.
        """
        write_root(self.folders, Root(workspace, frozenset(keys), note, path), self.durability)

    def roots(self) -> dict[str, Root]:
        """What the last build of each workspace needs."""
        return read_roots(self.folders)[0]

    def pin(self, key: str, on: bool = True) -> None:
        """Keep an artifact whatever the limits, or let it go."""
        set_pin(self.folders, key, on)

    def close(self) -> None:
        """Close the index; the store may be used again."""
        self._index.close()


def open_store(root: str, durability: Durability = "batch") -> LocalStore:
    """The cache in the folder `root`, made if it is not there.

    Raises UsageError when `root` is no folder, cannot be written, or belongs to another user and anybody may write it.
    """
    store = LocalStore(os.path.abspath(root), durability)
    try:
        for folder in store.folders.all():
            os.makedirs(folder, exist_ok=True)
        facts = os.stat(root)
        tag = os.path.join(root, "CACHEDIR.TAG")
        if not os.path.lexists(tag):
            disk.write_new(tag, b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of modelbuild.\n", "none")
    except FileExistsError as error:
        if os.path.isdir(root) and os.path.basename(str(error.filename)) == "CACHEDIR.TAG":
            return store
        raise _unusable(root, "a file stands in the way", str(error.filename)) from None
    except NotADirectoryError as error:
        raise _unusable(root, "a file stands in the way", str(error.filename)) from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise _unusable(root, f"it cannot be written: {error.strerror}", str(error.filename)) from None
    if facts.st_mode & 0o002 and facts.st_uid != os.geteuid():
        raise _unusable(root, "it belongs to another user, and anybody may write it", root)
    return store


def _unusable(root: str, reason: str, path: str) -> UsageError:
    return UsageError(
        f"{root} cannot be the cache: {reason}", facts=(path,), hint="choose another folder with --cache DIR"
    )
