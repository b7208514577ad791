"""One mergekit recipe as `[merge.NAME]`: models, slices or modules, and all that stands around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modelbuild.importing.known import DTYPES, METHODS, MODEL, MODULE, RECIPE, SHORT
from modelbuild.importing.nouns import Findings, Item, Ref, Table
from modelbuild.importing.parameters import joined, parameters
from modelbuild.importing.read import entries, fields, ref, text
from modelbuild.importing.slices import Around, read_parts, slices, stretches
from modelbuild.importing.stages import stacked
from modelbuild.importing.tokens import vocabulary
from modelbuild.modelfile.suggest import listed, nearest, shown

ALONE = {name for name, known in METHODS.items() if "rescale" in known.shared} | {"sce", "ram", "ramplus_tl"}
"""Methods that give the base back where there is nothing else."""
NOT_A_RECIPE = "a recipe has a `merge_method`, or the `experts` of a mixture"


def merge(findings: Findings, item: Item, name: str) -> list[Table]:
    """The tables of a recipe that is no mixture of experts, its own the last; what is wrong is among the findings."""
    table = Table("merge", name, item.where)
    with findings.comments_of(table):
        given = fields(findings, item, "a recipe", RECIPE)
        method = _method(findings, item, given)
        if method is None:
            from modelbuild.importing.unmethodical import look_through  # only faults need it

            look_through(findings, given)
            return [table]
        table.entries["method"] = given["merge_method"]
        base = ref(findings, given["base_model"], "base_model") if "base_model" in given else None
        if base is not None:
            table.entries["base"] = given["base_model"].but(base)
        table.entries |= dtype_of(findings, given) | vocabulary(findings, given)
        around = Around(findings, method, METHODS[method], given.get("base_model"), base)
        content, levels = _content(findings, given, item)
        shared = parameters(findings, method, given.get("parameters"), "merge", "the recipe")
        for level in levels:
            shared = joined(parameters(findings, method, level, "slice", "the module"), shared)
        if "slices" in content:
            return _slices(around, content["slices"], shared, table)
        if "models" in content:
            table.entries |= shared
            _models(around, content["models"], table, shared)
    return [table]


def _slices(around: Around, item: Item, shared: Mapping[str, Item], table: Table) -> list[Table]:
    """The recipe's table with its slices; where these have several bases, behind the merges that it is a stack of."""
    parts = read_parts(around, item)
    if not parts or around.findings.faults:
        return [table]
    found = stretches(around, parts)
    if len(found) > 1:
        return stacked(around, found, item, shared, table)
    base = found[0][0]
    if base is not None and around.base is not None and base != around.base:
        text = "the base_model of the slices is the base here, and gives config and tokenizer too"
        around.findings.note(around.item(around.base).place, text)
    if base is not None:
        table.entries = {"method": table.entries["method"], "base": item.but(base)} | table.entries
        table.entries["base"] = table.entries["base"].but(base)
    table.entries |= slices(replace(around, base=base), parts, item, shared)
    return [table]


def _method(findings: Findings, item: Item, given: Mapping[str, Item]) -> str | None:
    if "merge_method" not in given:
        findings.fault(item.where, "there is no `merge_method`", NOT_A_RECIPE)
        return None
    found = text(findings, given["merge_method"], "merge_method")
    if found is not None and found not in METHODS:
        near = nearest(found, METHODS)
        hint = f"did you mean `{near}`?" if near else f"its methods are {listed(METHODS)}"
        findings.fault(given["merge_method"].where, f"mergekit has no method `{shown(found)}`", hint=hint)
        return None
    return found


def _content(findings: Findings, given: Mapping[str, Item], item: Item) -> tuple[Mapping[str, Item], list[Item]]:
    """What has the models or slices, and the parameters that stand between these and the recipe's."""
    have = [key for key in ("models", "slices", "modules") if key in given and given[key].value]
    if len(have) != 1:
        message = "a recipe needs exactly one of `models`, `slices` and `modules`"
        place = given[have[1]].place if have else item.where
        findings.fault(place, message, f"it has {listed(have)}" if have else "it has none")
        return {}, []
    if have != ["modules"]:
        return given, []
    return _module(findings, given["modules"])


def _module(findings: Findings, item: Item) -> tuple[Mapping[str, Item], list[Item]]:
    """A recipe of one module, or of several that say the same, is a recipe without modules."""
    if not isinstance(item.value, dict):
        findings.expected(item, "`modules`", "a mapping")
        return {}, []
    found = [fields(findings, module, f"the module `{shown(name)}`", MODULE) for name, module in item.value.items()]
    if any(Item(module, item.where).data() != Item(found[0], item.where).data() for module in found[1:]):
        message = "modules are merged in different ways, and a merge has one way for all of its tensors"
        hint = "write a recipe for each, and choose its tensors with `only` and `copy` in the Modelfile"
        findings.fault(item.place, message, f"the modules are {listed(item.value)}", hint=hint)
        return {}, []
    have = [key for key in ("models", "slices") if key in found[0]]
    if len(have) != 1:
        findings.fault(item.place, "a module needs exactly one of `models` and `slices`")
        return {}, []
    findings.remark("mergekit's modules all say the same, and are left out: a merge has all tensors of a model.")
    return found[0], [found[0]["parameters"]] if "parameters" in found[0] else []


# --- dtype ------------------------------------------------------------------------------------------------------------


def dtype_of(findings: Findings, given: Mapping[str, Item]) -> dict[str, Item]:
    """The dtype of the output: `out_dtype`, else `dtype`, in which mergekit reads its inputs."""
    read, written = given.get("dtype"), given.get("out_dtype")
    names = [_named(findings, found, key) for key, found in (("dtype", read), ("out_dtype", written))]
    item = written or read
    name = names[1] if written is not None else names[0]
    if item is None or name is None:
        return {}
    if read is not None and written is not None and names[0] not in (None, "float32", "float64", name):
        told = f"mergekit rounds inputs to {names[0]} (`dtype`) first; here they are read as they are"
        findings.remark(f"{told}, and the result is rounded once.")
    if name == "float64":
        findings.note(item.place, "float64 becomes float32: arithmetic is float32 here, and so is the widest output")
        name = "float32"
    return {"dtype": item.but(name)}


def _named(findings: Findings, item: Item | None, key: str) -> str | None:
    name = text(findings, item, key)
    if name is None or item is None:
        return None
    name = name.removeprefix("torch.")
    if name not in (*DTYPES, "float64"):
        message = f"`{key}` is one of {listed(DTYPES)}, not {item.told()}"
        near = SHORT.get(name.lower()) or nearest(name, DTYPES)
        findings.fault(item.where, message, hint=f"did you mean `{near}`?" if near else None)
        return None
    return name


# --- models -----------------------------------------------------------------------------------------------------------


def _models(around: Around, item: Item, table: Table, shared: Mapping[str, Item]) -> None:
    """`models` of the merge: without the base where the method has one, and with it where it counts as an input."""
    findings, known, base = around.findings, around.known, around.base
    found: list[Item] = []
    for entry in entries(findings, item, "models"):
        given = fields(findings, entry, "an entry of `models`", MODEL)
        model = ref(findings, given["model"]) if "model" in given else None
        if model is None:
            if "model" not in given and isinstance(entry.value, dict):
                findings.fault(entry.where, "an entry of `models` has no `model`")
            continue
        if model == base and known.base != "input":
            around.leave_out(given, given["model"], "models")
            continue
        own = parameters(findings, around.method, given.get("parameters"), "input", "a model")
        found.append(entry.but({"model": given["model"].but(model), **own}))
    if base is not None and known.base == "input" and base not in [_ref_of(entry) for entry in found]:
        found.append(_appended(around, shared))
    if not found and base is not None and item.value and not findings.faults and around.method in ALONE:
        # mergekit gives the base back as it is where nothing is added to it.
        findings.remark(f"Nothing is merged into the base, which {around.method} leaves as it is.")
        kept = ("base", "dtype", "tokenizer", "chat_template")
        keep = {key: value for key, value in table.entries.items() if key in kept}
        table.entries.clear()
        table.entries |= {"method": item.but("passthrough")} | keep
        found.append(Item({"model": around.item(base)}, item.where))
    table.entries["models"] = item.but(found)


def _ref_of(entry: Item) -> Ref | None:
    found = entry.value["model"].value
    return found if isinstance(found, Ref) else None


def _appended(around: Around, shared: Mapping[str, Item]) -> Item:
    """The base_model of a method that has no notion of one: mergekit's last input."""
    place = around.base_item
    assert place is not None
    assert around.base is not None
    missing = [name for name in around.known.each if name == "weight" and name not in shared]
    if missing:
        fact = f"mergekit counts the base_model of {around.method} as one more input, and needs its weight"
        hint = "list it under `models` with a weight, or leave `base_model` out"
        around.findings.fault(place.place, "the base_model has no `weight`", fact, hint=hint)
    around.findings.remark(f"mergekit counts the base_model of {around.method} as one more input, the last.")
    return Item({"model": around.item(around.base)}, place.where)
