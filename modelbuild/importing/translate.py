"""From the text of a mergekit file to a Modelfile: every recipe a merge, every model that it names an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelbuild.errors import Fault, Where
from modelbuild.importing.lifted import lift
from modelbuild.importing.merges import NOT_A_RECIPE, merge
from modelbuild.importing.models import Folders, artifacts, refs_of
from modelbuild.importing.moe import mixture, stack
from modelbuild.importing.names import free, of_recipe, slug
from modelbuild.importing.nouns import Findings, Item, Ref, Table
from modelbuild.importing.read import text as read_text
from modelbuild.importing.write import modelfile, places
from modelbuild.importing.yamltext import documents
from modelbuild.modelfile.spec import Path
from modelbuild.modelfile.suggest import shown


@dataclass(frozen=True)
class Imported:
    """A Modelfile made from a mergekit file: its text, where the parts of it come from (key and value, by path), what
    was left out, the name of what the last recipe makes, and keys that may be why the Modelfile is a faulty one."""

    text: str
    places: Mapping[Path, tuple[Where, Where]]
    notes: tuple[str, ...]
    name: str
    suspects: tuple[Fault, ...] = ()


def translate(text: str, origin: Where, names: Sequence[str], folders: Folders) -> Imported:
    """The Modelfile of a mergekit file.

    `origin` is where the text stands, `names` what the recipe may be called, best first. Raises ModelfileError with all
    that is wrong with the file.
    """
    findings = Findings()
    found = documents(text, origin, findings)
    findings.stop()
    if not found:
        findings.fault(Where(origin.file), "there is no recipe in this file", NOT_A_RECIPE)
    called = _called(findings, found, of_recipe(names))
    findings.stop()
    merges = [t for item, name in zip(found, called.values(), strict=True) for t in _recipe(findings, item, name)]
    findings.stop()
    for table in merges:
        lift(table)
    made = {key: name for key, name in called.items() if key is not None}
    for table in merges:
        if table.key is not None:
            table.name = made[table.key] = free(table.name, {*called.values(), *made.values()})
    refs: dict[Ref, Where] = {}
    for table in merges:
        refs_of(Item(table.entries, table.where), refs)
    donors = [donor for table in merges if isinstance(donor := _tokenizer(table), Ref)]
    sources, named = artifacts(findings, refs, made, folders, donors)
    tables = [*sources, *merges]
    notes = [
        f"{where}: {note}" for where, note in sorted(findings.notes, key=lambda note: (note[0].line, note[0].column))
    ]
    last = called.get(None) or list(called.values())[-1]
    text = modelfile(_head(origin, merges), tables, named)
    return Imported(text, places(tables), tuple(notes), last, tuple(findings.suspects))


def _tokenizer(table: Table) -> object:
    return table.entries["tokenizer"].value if "tokenizer" in table.entries else None


def _called(findings: Findings, found: Sequence[Item], name: str) -> dict[str | None, str]:
    """The name of each recipe by what other recipes call it; None for the one that has no name."""
    called: dict[str | None, str] = {}
    for item in found:
        if not isinstance(item.value, dict):
            findings.fault(item.where, f"a recipe is a mapping, not {item.told()}", NOT_A_RECIPE)
            continue
        given = item.value.get("name")
        own = read_text(findings, given, "name") if given is not None and given.value is not None else None
        if own in called:
            if own is None:
                findings.fault(item.where, "a second recipe without a `name`", "one of several may have none")
            else:
                findings.fault(item.value["name"].where, f"`{shown(own)}` is the name of two recipes")
            continue
        called[own] = free(slug(own) or "merge" if own is not None else name, called.values())
    return called


def _recipe(findings: Findings, item: Item, name: str) -> list[Table]:
    keys = item.value
    if "genome" in keys:
        fact = "mergekit-evolve searches for a recipe; there is none in this file"
        findings.fault(keys["genome"].place, "a genome is no recipe", fact, hint="import the recipe that it found")
        return [Table("merge", name, item.where)]
    if "experts" in keys and "merge_method" not in keys:
        return [mixture(findings, item, name)]
    if "layer_slices" in keys and "merge_method" not in keys:
        return [stack(findings, item, name)]
    return merge(findings, item, name)


def _head(origin: Where, merges: Sequence[Table]) -> list[str]:
    """What stands at the top of the Modelfile."""
    last = origin.file.rsplit("/", 1)[-1] if not origin.file.startswith("hf:") else origin.file
    count = sum(1 for table in merges if table.key is None)
    what = "a mergekit recipe" if count == 1 else f"{count} mergekit recipes"
    methods = dict.fromkeys(str(table.entries["method"].value) for table in merges)
    return [f"{', '.join(str(table.name) for table in merges)}: from {last}, {what} ({', '.join(methods)})."]
