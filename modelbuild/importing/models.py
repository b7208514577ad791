"""The models that recipes name, as artifacts: bases, adapters, and a merge for each `MODEL+ADAPTER`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from modelbuild.errors import Where
from modelbuild.importing.names import free, short, slug
from modelbuild.importing.nouns import Findings, Item, Place, Ref, Table
from modelbuild.importing.tokens import TOKENIZERS
from modelbuild.modelfile.keys import REPOSITORY

WHOLE = "mergekit's MODEL+ADAPTER: the adapter at its full weight."


@dataclass(frozen=True, slots=True)
class Folders:
    """Where local models are looked for: the folder of the Modelfile first, to which paths are then relative."""

    home: str
    others: tuple[str, ...] = ()

    def path(self, path: str) -> str | None:
        """The path of a file or folder that exists, relative to the Modelfile; None if there is none."""
        expanded = os.path.expanduser(path)
        if os.path.exists(os.path.join(self.home, expanded)):
            return expanded
        for folder in self.others:
            whole = os.path.join(folder, expanded)
            if os.path.exists(whole):
                return os.path.relpath(whole, self.home)
        return None


def source(place: Place, folders: Folders) -> str:
    """What the Modelfile calls a model: a folder or file that exists, else `hf:ORG/NAME[@REVISION]`, else a path."""
    local = folders.path(place.path)
    if local is not None or not re.fullmatch(REPOSITORY, place.path) or place.path.startswith("."):
        return local or place.path
    return f"hf:{place.path}@{place.revision}" if place.revision else f"hf:{place.path}"


def refs_of(item: Item, found: dict[Ref, Where]) -> None:
    """Adds every model that an item names, in order, with where it is first named."""
    if isinstance(item.value, Ref):
        found.setdefault(item.value, item.where)
    inner = item.value.values() if isinstance(item.value, dict) else item.value if isinstance(item.value, list) else ()
    for entry in inner:
        refs_of(entry, found)


def artifacts(
    findings: Findings,
    refs: Mapping[Ref, Where],
    made: Mapping[str, str],
    folders: Folders,
    donors: Collection[Ref] = (),
) -> tuple[list[Table], dict[Ref, str]]:
    """The tables of all models that recipes name, and the name of each; `made` has the names of what recipes make, by
    what other recipes call it; `donors` of a tokenizer are not called "base" or "union",
    which mean something else there."""
    plain = _plain(refs)
    adapters = list(dict.fromkeys(ref.lora for ref in refs if ref.lora is not None))
    sources = [ref for ref in plain if ref.model.path not in made]
    places = [*(ref.model for ref in sources), *adapters]
    found = dict(zip([*sources, *adapters], _named(places, made.values()), strict=True))
    if any(found.get(donor) in TOKENIZERS for donor in donors):
        found = dict(zip([*sources, *adapters], _named(places, [*made.values(), *TOKENIZERS]), strict=True))
    names: dict[Ref, str] = {ref: found.get(ref) or made[ref.model.path] for ref in plain}
    wheres = _first(refs)
    tables = [_source_table(findings, "base", found[ref], ref.model, wheres[ref], folders) for ref in sources]
    tables += [_source_table(findings, "adapter", found[a], a, wheres[a], folders) for a in adapters]
    for ref, where in refs.items():
        if ref.lora is not None:
            base = names[Ref(ref.model, None, ref.copy)]
            name = free(f"{base}-{found[ref.lora]}", [*names.values(), *found.values(), *made.values()])
            tables.append(_folded(name, base, found[ref.lora], where))
            names[ref] = name
    return tables, names


def _plain(refs: Mapping[Ref, Where]) -> list[Ref]:
    return list(dict.fromkeys(Ref(ref.model, None, ref.copy) for ref in refs))


def _first(refs: Mapping[Ref, Where]) -> dict[Ref | Place, Where]:
    """Where each model, with an adapter or without, and each adapter is first named."""
    found: dict[Ref | Place, Where] = {}
    for ref, where in refs.items():
        found.setdefault(Ref(ref.model, None, ref.copy), where)
        if ref.lora is not None:
            found.setdefault(ref.lora, where)
    return found


def _named(places: Sequence[Place], made: Collection[str]) -> list[str]:
    """A name for each place; one that stands several times, or in several revisions, is numbered."""
    distinct = list(dict.fromkeys(place.path for place in places))
    names = dict(zip(distinct, short(distinct, made), strict=True))
    used: set[str] = set(made)
    found = []
    for place in places:
        name = names[place.path]
        if name in used and place.revision is not None:
            name = f"{name}-{slug(place.revision[:12])}".rstrip("-")
        name = free(name, used | (set(names.values()) - {name}))
        used.add(name)
        found.append(name)
    return found


def _source_table(findings: Findings, kind: str, name: str, place: Place, where: Where, folders: Folders) -> Table:
    table = Table(kind, name, where)
    text = source(place, folders)
    with findings.comments_of(table):
        if place.revision and not text.startswith("hf:"):
            findings.note(where, f"the revision `{place.revision}` is left out: `{place.path}` is no Hub repository")
        elif "/" not in place.path and "\\" not in place.path and folders.path(place.path) is None:
            findings.note(where, f"`{place.path}` is taken for a folder: on the Hub, models are called ORG/NAME")
    table.entries["source"] = Item(text, where, where)
    return table


def _folded(name: str, base: str, adapter: str, where: Where) -> Table:
    entry = Item({"adapter": Item(adapter, where, where)}, where)
    entries = {"method": Item("lora", where), "base": Item(base, where), "adapters": Item([entry], where)}
    return Table("merge", name, where, entries, [WHOLE])
