"""What outputs depend on besides their sources: versions of modelbuild, methods, adapter types, formats, libraries.

The lock has them in `[methods]`. Methods stand there by their names; adapter types and formats with their kind before
it (`"adapter lora"`), since a method may have the same name.

A format's file (`formats/bnb.py`) says what its outputs depend on by a function `lock_entries(artifact)`, which gives
versions by name for one `[quantize.NAME]`: its own version as `format bnb`, and for what an outside library computes
the library's version and the numerics class. Where it has none, its `VERSION` is all there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeAlias

import modelbuild.adapters
import modelbuild.formats
from modelbuild import __version__
from modelbuild.methods._cast import VERSION as CAST
from modelbuild.methods.registry import method
from modelbuild.modelfile.spec import Merge, Quantize, Spec
from modelbuild.sources.content import SourceAdapter

Versions: TypeAlias = "dict[str, int | str]"

ADAPTER = "adapter "
"""What stands before the name of an adapter type."""

FORMAT = "format "
"""What stands before the name of a format."""


def versions_of(
    spec: Spec, adapters: Iterable[SourceAdapter], names: Collection[str] | None = None, known: Collection[str] = ()
) -> Versions:
    """The versions that the artifacts `names` depend on (None: all of the Modelfile), modelbuild's own first.

    `adapters` are those that were read, whose types are seen from their configs; `known` are entries of an older lock:
    of these the adapter types stay, for adapters that were not read now.
    """
    chosen = [artifact for name, artifact in spec.artifacts.items() if names is None or name in names]
    merges = [artifact for artifact in chosen if isinstance(artifact, Merge)]
    found: Versions = {"modelbuild": __version__}
    # Any merge may have to round an input to its dtype.
    found |= {"cast": CAST} if merges else {}
    used = {merge.method for merge in merges}
    found |= {name: declared.version for name in sorted(used) if (declared := method(name)) is not None}
    types = {str(adapter.config.get("peft_type", "LORA")).lower() for adapter in adapters}
    types |= {name.removeprefix(ADAPTER) for name in known if name.startswith(ADAPTER)}
    for kind in sorted(types):
        version = _declared(modelbuild.adapters, kind, "VERSION")
        found |= {f"{ADAPTER}{kind}": version} if version is not None else {}
    for artifact in chosen:
        if isinstance(artifact, Quantize):
            found |= _format_entries(artifact)
    return found


def _format_entries(artifact: Quantize) -> Mapping[str, int | str]:
    """What a format's file says that this output of it depends on."""
    entries = _declared(modelbuild.formats, artifact.format, "lock_entries")
    if entries is not None:
        return dict(entries(artifact))
    version = _declared(modelbuild.formats, artifact.format, "VERSION")
    return {f"{FORMAT}{artifact.format}": version} if version is not None else {}


def _declared(room: ModuleType, name: str, attribute: str) -> Any:
    """What the file `name` of a room declares; None where there is no such file, or it does not declare that."""
    wanted = name.replace("-", "_")
    # A name may come from a config that a stranger wrote: it is looked for among the files that are there.
    if wanted not in {module.name for module in iter_modules(room.__path__)}:
        return None
    return getattr(import_module(f"{room.__name__}.{wanted}"), attribute, None)
