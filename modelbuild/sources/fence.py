"""Where a Modelfile may read: its own folder and the Hub client's cache, judged after resolving links."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from modelbuild.errors import SourceNotFound, UsageError
from modelbuild.sources.stamps import unreadable
from modelbuild.sources.strictjson import show


@dataclass(frozen=True, slots=True)
class Fence:
    """The Modelfile's `folder`, and the folders without links inside which files may be read; None for everywhere."""

    folder: str
    roots: tuple[str, ...] | None

    def resolve(self, path: str, shown: str) -> str:
        """The absolute path, without links, of what lies at `path`, relative to the Modelfile's folder.

        Raises SourceNotFound where nothing is there or it may not be read, UsageError where it lies outside.
        """
        whole = os.path.join(self.folder, path)
        try:
            real = os.path.realpath(whole)
        except (OSError, ValueError) as error:
            raise SourceNotFound(f"{show(shown)} is not a path", facts=[str(error)]) from None
        # First whether it is inside: what exists outside is nobody's business.
        if self.roots is not None and not any(_contains(root, real) for root in self.roots):
            facts = [f"it is `{real}`"] if real != path else []
            hint = "`--allow-path` lets it be read"
            raise UsageError(f"{show(shown)} lies outside the Modelfile's folder", facts=facts, hint=hint)
        try:
            return os.path.realpath(whole, strict=True)
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(self.folder, path, shown) from None
        except OSError as error:
            raise unreadable(shown, error) from error


def fence(folder: str | os.PathLike[str], allow_path: bool = False, environ: Mapping[str, str] = os.environ) -> Fence:
    """What a Modelfile in `folder` may read: all with `allow_path`, else the folder and the Hub client's cache."""
    home = os.path.realpath(folder)
    return Fence(home, None if allow_path else (home, *hub_caches(environ)))


def hub_caches(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The folders that the Hub client keeps repositories in, by its variables, absolute and without links."""
    home = environ.get("HF_HOME") or os.path.join(
        environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface"
    )
    given = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    caches = [given, os.path.join(home, "hub"), os.path.join("~", ".cache", "huggingface", "hub")]
    return tuple(
        dict.fromkeys(os.path.realpath(os.path.expandvars(os.path.expanduser(cache))) for cache in caches if cache)
    )


def _contains(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _missing(folder: str, path: str, shown: str) -> SourceNotFound:
    """Names the first part of the path that is missing, and what lies beside it with a similar name."""
    here, rest = os.sep if os.path.isabs(path) else folder, [part for part in path.split("/") if part]
    while len(rest) > 1 and os.path.isdir(os.path.join(here, rest[0])):
        here = os.path.join(here, rest.pop(0))
    missing = rest[0] if rest else path
    if os.path.islink(os.path.join(here, missing)):
        return SourceNotFound(f"{show(shown)} is not there", facts=[f"{show(missing)} is a link to nothing"])
    place = "the Modelfile's folder" if here == folder else show(os.path.relpath(here, folder))
    facts = [f"{place} has no {show(missing)}"]
    hint = _similar(missing, here, folders=len(rest) > 1)
    return SourceNotFound(f"{show(shown)} is not there", facts=facts, hint=hint)


def _similar(name: str, folder: str, *, folders: bool) -> str | None:
    from modelbuild.modelfile.suggest import did_you_mean
    from modelbuild.sources.shards import PICKLES, SAFETENSORS

    try:
        names = sorted(other for other in os.listdir(folder) if other.isprintable())
    except OSError:
        return None
    # A source is a folder or a file of weights, and what leads to it a folder: a recipe or a lock is never meant.
    ends = () if folders else (*SAFETENSORS.suffixes, *PICKLES.suffixes)
    likely = [other for other in names if other.endswith(ends) or os.path.isdir(os.path.join(folder, other))]
    return did_you_mean(name, likely)
