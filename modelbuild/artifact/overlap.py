"""Outputs that would take the place of what they are made from: a source, the Modelfile, the cache.

An output folder is replaced as a whole. Where it is also a source, each build would start from the one before; where it
holds the Modelfile, the whole project would be moved aside.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

from modelbuild.errors import Fault, UsageError
from modelbuild.modelfile.spec import Spec
from modelbuild.options import Options
from modelbuild.plan.planned import Plan
from modelbuild.sources.content import SourceAdapter, SourceModel

Places = Collection[tuple[str, str]]
"""What must stay, in words, and where it lies, its folder without links."""


def own_places(options: Options) -> Places:
    """The Modelfile, and the cache with its own folders."""
    cache = os.path.realpath(options.cache_root)
    return [("the Modelfile", os.path.realpath(options.modelfile)), ("the cache", cache)]


def source_places(plan: Plan, options: Options) -> Places:
    """All sources of a plan: what the Modelfile names, each file, and where links lead that stand for it."""
    folder = os.path.dirname(os.path.abspath(options.modelfile))
    sources: list[SourceModel | SourceAdapter] = [*plan.models.values(), *plan.adapters.values()]
    return list(dict.fromkeys(place for source in sources for place in _places_of(source, folder)))


def _places_of(source: SourceModel | SourceAdapter, folder: str) -> Iterator[tuple[str, str]]:
    kind, _, named = source.origin.partition(":")
    for path in [os.path.join(folder, named)] * (kind == "local") + [file.path for file in source.files]:
        at, name = os.path.split(os.path.abspath(path))
        yield f"its source `{source.name}`", os.path.join(os.path.realpath(at), name)
        yield f"its source `{source.name}`", os.path.realpath(path)


def refuse_overlaps(spec: Spec, targets: Sequence[str], options: Options, places: Places) -> None:
    """Raises UsageError, a fault for each target whose output would replace one of the places, or lie in the cache."""
    root = os.path.realpath(options.out_root)
    among_cache = root == os.path.realpath(options.cache_root)
    faults = []
    for target in targets:
        out = os.path.join(root, target)
        hits = (f"take the place of {what}" for what, path in places if path == out or path.startswith(out + os.sep))
        hit = "lie among the cache's own folders" if among_cache else next(hits, None)
        if hit is not None:
            where = spec.where_artifact(target)
            hint = "give the artifact another name, or its output another place with `--out`"
            faults.append(Fault(f"the output of `{target}` would {hit}", where, (out,), hint))
    if faults:
        raise UsageError(faults)
