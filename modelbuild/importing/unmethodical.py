"""A recipe whose method is missing or unknown: what else is wrong with it, so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelbuild.importing.known import MODEL, MODULE, SLICE, SOURCE
from modelbuild.importing.merges import dtype_of
from modelbuild.importing.nouns import Findings, Item
from modelbuild.importing.read import PARAMETERS, entries, fields, ref
from modelbuild.importing.tokens import vocabulary
from modelbuild.modelfile.suggest import did_you_mean, shown


def look_through(findings: Findings, given: Mapping[str, Item]) -> None:
    """Finds what is wrong with a recipe by any method: keys, models, names of parameters that no method has."""
    if "base_model" in given:
        ref(findings, given["base_model"], "base_model")
    dtype_of(findings, given)
    vocabulary(findings, given)
    _parameters(findings, given)
    _content(findings, given)
    modules = given["modules"].value if "modules" in given else None
    for name, module in modules.items() if isinstance(modules, dict) else ():
        inner = fields(findings, module, f"the module `{shown(name)}`", MODULE)
        _parameters(findings, inner)
        _content(findings, inner)


def _content(findings: Findings, given: Mapping[str, Item]) -> None:
    _models(findings, given, "models", "an entry of `models`", MODEL)
    for part in entries(findings, given["slices"], "slices") if "slices" in given else ():
        inner = fields(findings, part, "a slice", SLICE)
        _parameters(findings, inner)
        _models(findings, inner, "sources", "a source", SOURCE)


def _models(findings: Findings, given: Mapping[str, Item], key: str, what: str, known: Iterable[str]) -> None:
    for entry in entries(findings, given[key], key) if key in given else ():
        inner = fields(findings, entry, what, known)
        _parameters(findings, inner)
        if "model" in inner:
            ref(findings, inner["model"])
        elif isinstance(entry.value, dict):
            findings.fault(entry.where, f"{what} has no `model`")


def _parameters(findings: Findings, given: Mapping[str, Item]) -> None:
    item = given.get("parameters")
    for name, inner in item.value.items() if item is not None and isinstance(item.value, dict) else ():
        if name not in PARAMETERS:
            text = f"`{shown(name)}` is no parameter of any method: mergekit does not read it"
            findings.unread(inner.place, text, did_you_mean(name, PARAMETERS))
