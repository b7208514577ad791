"""What a build asks of a cache, wherever that is: the one interface that a shared or remote cache has to offer too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from modelbuild.cache.disk import Durability
from modelbuild.cache.nouns import Layout, Located, Manifest
from modelbuild.cache.stage import Stage


class Store(Protocol):
    """A cache of artifacts: what a build asks of it."""

    notes: list[str]
    durability: Durability

    def manifest(self, key: str) -> Manifest | None:
        """The manifest of a published artifact whose files can be trusted; None on a miss."""

    def find(self, keys: Iterable[str]) -> dict[str, Located]:
        """Where cached tensors lie, for those of the keys that are there."""

    def verify_tensor(self, located: Located) -> bool:
        """Whether a tensor's bytes still have their checksum."""

    def touch(self, artifacts: Iterable[str]) -> None:
        """Say that artifacts were used now."""

    def stage(
        self,
        key: str,
        name: str,
        layout: Layout,
        keys: Mapping[str, str],
        *,
        waiting: Callable[[str], None],
        anew: bool = False,
    ) -> AbstractContextManager[Stage]:
        """A place to write an artifact in."""

    def shared(self, name: str, waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        """A time during which nothing is collected."""
