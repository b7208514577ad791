"""What outputs depend on besides their sources: versions of modelbuild, methods, adapter types, formats, libraries.

The lock has them in `[methods]`. Methods stand there by their names; adapter types and formats with their kind before
it (`"adapter lora"`), since a method may have the same name. Of a method from outside the lock has the
distribution that it came with: `fox = "modelbuild-fox 1.2.0, version 1"`.

Of a format or method that an outside library computes there is also the numerics class under the library's name: its
version, the kind of processor, threads. The version of what is not installed here is None. A format's file may say
otherwise by a function `lock_entries(artifact)`, which gives versions by name for one `[quantize.NAME]`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, TypeAlias

import modelbuild.adapters
import modelbuild.formats
from modelbuild import __version__
from modelbuild.formats.numerics import MissingLibrary, library_version, locked_class
from modelbuild.formats.registry import formats
from modelbuild.methods._cast import VERSION as CAST
from modelbuild.modelfile.spec import Merge, Quantize, Spec
from modelbuild.rooms import files_of
from modelbuild.sources.content import SourceAdapter

Versions: TypeAlias = "dict[str, int | str | None]"

ADAPTER = "adapter "
"""What stands before the name of an adapter type."""

FORMAT = "format "
"""What stands before the name of a format."""


def versions_of(spec: Spec, names: Collection[str], adapters: Iterable[SourceAdapter]) -> Versions:
    """The versions that the artifacts `names` depend on, modelbuild's own first; None for what is not installed.

    `adapters` are those that were read: their types are seen from their configs.
    """
    chosen = [artifact for name, artifact in spec.artifacts.items() if name in names]
    merges = [artifact for artifact in chosen if isinstance(artifact, Merge)]
    found: Versions = {"modelbuild": __version__}
    # Any merge may have to round an input to its dtype.
    found |= {"cast": CAST} if merges else {}
    used = [own for name in sorted({merge.method for merge in merges}) if (own := spec.method(name)) is not None]
    found |= {declared.name: declared.locked for declared in used}
    for kind in sorted({str(adapter.config.get("peft_type", "LORA")).lower() for adapter in adapters}):
        version = adapter_version(kind)
        found |= {f"{ADAPTER}{kind}": version} if version is not None else {}
    for merge in merges:
        found |= _method_entries(spec, merge)
    for artifact in chosen:
        if isinstance(artifact, Quantize):
            found |= _format_entries(artifact)
    return found


def next_versions(old: Mapping[str, int | str], needed: Versions, whole: Versions) -> dict[str, int | str]:
    """What `[methods]` becomes where it was `old`, of the versions of the whole Modelfile and those that count now.

    What only other artifacts need of outside libraries stays as it was: it is not for this machine to say. So does what
    is not installed here.
    """
    found: dict[str, int | str] = {}
    for name, version in {**whole, **needed}.items():
        foreign = isinstance(version, str) and name not in needed
        known = old.get(name, version) if foreign or version is None else version
        found |= {name: known} if known is not None else {}
    return found


def adapter_version(kind: str) -> int | None:
    """The version of how adapters of this type are read; None where there is no such type."""
    version = _declared(modelbuild.adapters, kind, "VERSION")
    return version if isinstance(version, int) else None


def _method_entries(spec: Spec, merge: Merge) -> Versions:
    """What a merge takes of outside libraries: the class of what computes, the version of what reads prompts."""
    declared = spec.method(merge.method)
    names = declared.libraries(merge.parameters) if declared is not None else ()
    found: Versions = {}
    for name in ("tokenizers",) if "tokenizers" in names else ():
        try:
            found[name] = library_version(name)
        except MissingLibrary:
            found[name] = None
    bound = tuple(name for name in names if name not in found)
    return found | (locked_class(bound, algebra=True) if bound else {})


def _format_entries(artifact: Quantize) -> Mapping[str, int | str | None]:
    """What a format's file says that this output of it depends on."""
    entries = _declared(modelbuild.formats, artifact.format, "lock_entries")
    if entries is not None:
        return dict(entries(artifact))
    found = formats().get(artifact.format)
    if found is None or not found.built:
        return {}
    return {f"{FORMAT}{found.name}": found.version, **locked_class(found.libraries)}


def _declared(room: ModuleType, name: str, attribute: str) -> Any:
    """What the file `name` of a room declares; None where there is no such file, or it does not declare that."""
    wanted = name.replace("-", "_")
    # A name may come from a config that a stranger wrote: it is looked for among the files that are there.
    if wanted not in files_of(room):
        return None
    return getattr(import_module(f"{room.__name__}.{wanted}"), attribute, None)
