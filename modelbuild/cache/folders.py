"""Where things lie in a cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

MANIFEST = "manifest.json"
"""The name of an artifact's manifest in its folder."""

_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,199}\Z")
_NAMES = ("artifacts", "stage", "locks", "pins", "roots", "records", "aside", "trash")


def is_key(text: str) -> bool:
    """Whether `text` may name an artifact: letters, digits, `_` and `-`, so that it is never a path."""
    return _KEY.match(text) is not None


def is_file_name(text: str) -> bool:
    """Whether `text` may name a data file: a visible base name that is not the manifest's."""
    return text not in ("", MANIFEST) and text[0] != "." and not any(c in text for c in "/\\\0\n")


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of the cache at `root`; every path of a key refuses (ValueError) what is not a key."""

    root: str

    def all(self) -> tuple[str, ...]:
        """Every folder that a cache has."""
        return tuple(os.path.join(self.root, name) for name in _NAMES)

    def _of(self, folder: str, key: str) -> str:
        if not is_key(key):
            raise ValueError(f"{key!r} is not a key")
        return os.path.join(self.root, folder, key)

    @property
    def artifacts(self) -> str:
        """The folder of published artifacts."""
        return os.path.join(self.root, "artifacts")

    @property
    def stages(self) -> str:
        """The folder of artifacts that are being written."""
        return os.path.join(self.root, "stage")

    @property
    def aside(self) -> str:
        """The folder of damaged things."""
        return os.path.join(self.root, "aside")

    @property
    def trash(self) -> str:
        """The folder of what is being removed."""
        return os.path.join(self.root, "trash")

    @property
    def locks(self) -> str:
        """The folder of lock files."""
        return os.path.join(self.root, "locks")

    @property
    def pins(self) -> str:
        """The folder of pins."""
        return os.path.join(self.root, "pins")

    @property
    def records(self) -> str:
        """The folder of what builds remember besides artifacts."""
        return os.path.join(self.root, "records")

    @property
    def roots(self) -> str:
        """The folder that says what the last builds need."""
        return os.path.join(self.root, "roots")

    @property
    def index(self) -> str:
        """The SQLite file; it may be deleted at any time."""
        return os.path.join(self.root, "index.sqlite")

    def artifact(self, key: str) -> str:
        """The folder of a published artifact."""
        return self._of("artifacts", key)

    def manifest(self, key: str) -> str:
        """The manifest of a published artifact."""
        return os.path.join(self.artifact(key), MANIFEST)

    def stage(self, key: str) -> str:
        """The folder of an artifact that is being written."""
        return self._of("stage", key)

    def lock(self, key: str) -> str:
        """The lock file of an artifact."""
        return self._of("locks", key)

    def pin(self, key: str) -> str:
        """The file whose presence pins an artifact."""
        return self._of("pins", key)

    def root_file(self, workspace: str) -> str:
        """The file that says what the last build of a workspace needs."""
        return self._of("roots", workspace) + ".json"
