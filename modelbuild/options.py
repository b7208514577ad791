"""How to build: where things lie, how much may be used, and what is allowed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from modelbuild.errors import UsageError
from modelbuild.units import parse_size

Link: TypeAlias = Literal["ref", "hard", "copy"]
Durability: TypeAlias = Literal["full", "batch", "none"]

_DISTRIBUTION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
DEFAULT_MEMORY = "512MB"


@dataclass(frozen=True, slots=True)
class Options:
    """How to build: where things lie, how much may be used, and what is allowed; see `modelbuild build --help`."""

    modelfile: str = "Modelfile"
    cache: str | None = None
    out: str | None = None
    jobs: int | None = None
    memory: str = DEFAULT_MEMORY
    link: Link | None = None
    durability: Durability = "batch"
    no_cache: bool = False
    require_cached: bool = False
    keep_going: bool = False
    allow_path: bool = False
    offline: bool = False
    locked: bool = False
    frozen: bool = False
    record: bool = False
    plugins: str | Sequence[str] = ""
    """The distributions whose merge methods may run: names, or one text with commas between them."""
    overrides: tuple[str, ...] = ()
    """`PATH=VALUE` strings, as `--set` takes them."""

    def __post_init__(self) -> None:
        """Raises UsageError for a size, a number of threads or a word that is none, and for options that exclude."""
        try:
            parse_size(self.memory)
        except ValueError as error:
            raise UsageError(f"`--memory {self.memory}`: {error}") from None
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"`--jobs {self.jobs}`: at least one thread is needed")
        if self.link not in (None, "ref", "hard", "copy"):
            raise UsageError(f"`--link {self.link}` is not known", hint="ref, hard or copy")
        if self.durability not in ("full", "batch", "none"):
            raise UsageError(f"`--durability {self.durability}` is not known", hint="full, batch or none")
        if bad := [name for name in self.trusted if not _DISTRIBUTION.fullmatch(name)]:
            hint = "name what is installed, with commas between: `--plugins modelbuild-fox,other`"
            raise UsageError(f"`--plugins`: `{bad[0]}` is not the name of a distribution", hint=hint)
        if self.record and self.overrides:
            hint = "write the value into the Modelfile, or leave out `--record`"
            raise UsageError("what is built with `--set` is not recorded in the lock", hint=hint)

    @property
    def trusted(self) -> tuple[str, ...]:
        """The distributions whose merge methods may run, sorted, in the one spelling that each has (PEP 503)."""
        names = self.plugins.split(",") if isinstance(self.plugins, str) else self.plugins
        return tuple(sorted({re.sub(r"[-_.]+", "-", name.strip()).lower() for name in names if name.strip()}))

    @property
    def cache_root(self) -> str:
        """The cache folder: the one given, else `cache/` beside the Modelfile."""
        return os.path.abspath(self.cache or os.path.join(os.path.dirname(os.path.abspath(self.modelfile)), "cache"))

    @property
    def out_root(self) -> str:
        """The output folder: the one given, else `build/` beside the Modelfile."""
        return os.path.abspath(self.out or os.path.join(os.path.dirname(os.path.abspath(self.modelfile)), "build"))


def named(targets: str | Sequence[str]) -> tuple[str, ...]:
    """Targets as a tuple of names, whether one or several were given."""
    return (targets,) if isinstance(targets, str) else tuple(targets)
