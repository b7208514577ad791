"""What builds remember beside their artifacts: reasons, output records and stamps, as small JSON files in the cache.

`ROOT/records/WORKSPACE/KIND-NAME.json`, a workspace being one Modelfile; a line of checksum, then JSON. All of it is
disposable: without it a build is as correct, and only knows less about the last one.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from modelbuild.digest import seal, unseal


class Records:
    """The records of one workspace in a cache."""

    def __init__(self, cache_root: str, workspace: str) -> None:
        self.workspace = workspace
        self._folder = os.path.join(cache_root, "records", workspace)

    def read(self, kind: str, name: str) -> dict[str, Any] | None:
        """The record, or None where there is none or it is damaged."""
        try:
            with open(self._path(kind, name), "rb") as file:
                found = json.loads(unseal(file.read()))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, kind: str, name: str, data: dict[str, Any]) -> None:
        """Replaces the record in one step."""
        os.makedirs(self._folder, exist_ok=True)
        path = self._path(kind, name)
        scratch = f"{path}.{os.urandom(4).hex()}.new"
        try:
            with open(scratch, "wb") as file:
                # `dumps` rather than `dump`, which would not use the encoder in C.
                file.write(seal(json.dumps(data, separators=(",", ":"))))
            os.replace(scratch, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)

    def forget(self, kind: str, name: str) -> None:
        """Removes the record, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(kind, name))

    def _path(self, kind: str, name: str) -> str:
        return os.path.join(self._folder, f"{kind}-{name}.json")
