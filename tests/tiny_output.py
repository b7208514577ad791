"""An output of a few bytes: the weights of tiny_cache, and side files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny_cache import FIRST, SECOND, build

from modelbuild.artifact.edits import OutputRecord, side_digests
from modelbuild.artifact.publish import Weights, write_output
from modelbuild.cache.store import open_store

SIDE: dict[str, bytes | str] = {"config.json": b"{}", "README.md": b"card", "1_Pooling/config.json": b"pool"}
NEW: dict[str, bytes | str] = {**SIDE, "README.md": b"new card", "config.json": b"new config"}
"""Two editions of the side files."""


def with_provenance(side: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
    """Side files, and the modelbuild.json that lists them."""
    weights = [{"name": FIRST}, {"name": SECOND}]
    return {**side, "modelbuild.json": json.dumps({"files": side_digests(side), "weights": weights}).encode()}


def names(folder: str | Path) -> list[str]:
    """What is in a folder, sorted."""
    return sorted(os.listdir(folder))


class Made:
    """Weights in `place/cache`, to be written with side files to `place/build/m`."""

    def __init__(self, place: Path) -> None:
        store = open_store(str(place / "cache"), "none")
        self.weights = Weights(store.path("k1"), build(store))
        self.folder = place / "build" / "m"
        self.edited = place / "build" / ".edited"

    def write(
        self,
        side: Mapping[str, bytes | str] = SIDE,
        *,
        unlisted: Mapping[str, bytes | str] | None = None,
        weights: bool = True,
        **options: Any,
    ) -> OutputRecord:
        """Write the output; `unlisted` are side files that its modelbuild.json does not list."""
        options = {"key": "k", "edited_root": str(self.edited), "durability": "none", **options}
        files = {**with_provenance(side), **(unlisted or {})}
        return write_output(str(self.folder), self.weights if weights else None, files, **options)
