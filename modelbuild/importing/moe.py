"""mergekit-moe's recipes, and bakllama's: other grammars for a mixture of experts, and for a stack of layers."""

from __future__ import annotations

from collections.abc import Mapping

from modelbuild.importing.known import BAKLLAMA, EXPERT, LAYERS, MOE
from modelbuild.importing.merges import dtype_of
from modelbuild.importing.nouns import Findings, Item, Ref, Table
from modelbuild.importing.parameters import setting
from modelbuild.importing.read import entries, fields, ref, typed
from modelbuild.methods.registry import method


def mixture(findings: Findings, item: Item, name: str) -> Table:
    """A mixture of experts: the base gives attention, norms and embeddings, the models are the experts, in order."""
    table = Table("merge", name, item.where)
    with findings.comments_of(table):
        given = fields(findings, item, "a mixture of experts", MOE)
        table.entries["method"] = item.but("moe")
        if "base_model" not in given:
            findings.fault(item.where, "a mixture of experts has no `base_model`")
        else:
            table.entries["base"] = given["base_model"].but(ref(findings, given["base_model"], "base_model"))
        table.entries |= dtype_of(findings, given)
        for key in ("gate_mode", "experts_per_token", "architecture"):
            if key in given and (value := _value(findings, given[key], key)) is not None:
                table.entries[key] = value
        seen: dict[Ref, int] = {}
        models = [_expert(findings, entry, seen, False) for entry in _entries(findings, item, given, "experts")]
        if "shared_experts" in given:
            shared = _entries(findings, item, given, "shared_experts")
            models += [_expert(findings, entry, seen, True) for entry in shared]
        if any(count > 1 for count in seen.values()):
            findings.remark("A model that is several experts has a name for each.")
        table.entries["models"] = item.but([model for model in models if model is not None])
    return table


def _entries(findings: Findings, item: Item, given: Mapping[str, Item], name: str) -> list[Item]:
    return entries(findings, given[name] if name in given else item.but([]), name)


def _value(findings: Findings, item: Item, name: str) -> Item | None:
    found = method("moe")
    parameter = found.parameter(name) if found else None
    assert parameter is not None, f"moe has no {name}"
    return setting(findings, item, parameter)


def _expert(findings: Findings, item: Item, seen: dict[Ref, int], shared: bool) -> Item | None:
    given = fields(findings, item, "an expert", EXPERT)
    if "source_model" not in given:
        if isinstance(item.value, dict):
            findings.fault(item.where, "an expert has no `source_model`")
        return None
    model = ref(findings, given["source_model"], "source_model")
    if model is None:
        return None
    seen[model] = seen.get(model, 0) + 1
    entry = {"model": given["source_model"].but(Ref(model.model, model.lora, seen[model] - 1))}
    if shared:
        entry["shared"] = item.but(True)
    for theirs, ours in (("positive_prompts", "prompt"), ("negative_prompts", "negative_prompt")):
        if theirs in given and (prompts := _prompts(findings, given[theirs], theirs)) is not None:
            entry[ours] = prompts
    for key in ("noise_scale", "residual_scale"):
        if key in given and (value := _value(findings, given[key], key)) is not None:
            entry[key] = value
    return item.but(entry)


def _prompts(findings: Findings, item: Item, name: str) -> Item | None:
    """The prompts; a single one stands without a list."""
    if not isinstance(item.value, list):
        findings.expected(item, f"`{name}`", "a list of strings")
        return None
    # An empty prompt is one: cards with `gate_mode: random` have them.
    texts = [typed(findings, entry, name, str, "a string") for entry in item.value]
    if None in texts or not texts:
        return None
    return item.but(texts[0] if len(texts) == 1 else item.value)


# --- bakllama ---------------------------------------------------------------------------------------------------------


def stack(findings: Findings, item: Item, name: str) -> Table:
    """A stack of layers in the grammar of bakllama, which mergekit 0.1.5 still ships and no longer reads."""
    table = Table("merge", name, item.where)
    with findings.comments_of(table):
        given = fields(findings, item, "a bakllama recipe", BAKLLAMA)
        listed = [_layers(findings, entry) for entry in entries(findings, given["layer_slices"], "layer_slices")]
        parts = [part for part in listed if part is not None]
        table.entries["method"] = item.but("passthrough")
        for key in ("embedding_source", "lm_head_source"):
            if key in given:
                told = "mergekit makes no use of it; `ends` of a Modelfile chooses who gives both"
                findings.note(given[key].place, f"`{key}` is left out: {told}")
        table.entries["slices"] = given["layer_slices"].but(parts)
        if any("scale" in entry.value for part in parts for entry in part.value["models"].value):
            findings.remark("bakllama's `scale` is one of `down_proj`, the output of the mlp.")
    return table


def _layers(findings: Findings, item: Item) -> Item | None:
    given = fields(findings, item, "an entry of `layer_slices`", LAYERS)
    for key in ("model", "start", "end"):
        if key not in given:
            findings.fault(item.where, f"an entry of `layer_slices` has no `{key}`")
            return None
    model = ref(findings, given["model"])
    for key in ("start", "end"):
        typed(findings, given[key], key, int, "an integer")
    entry = {"model": given["model"].but(model)}
    if "scale" in given and typed(findings, given["scale"], "scale", (int, float), "a number") is not None:
        match = {"match": item.but("down_proj"), "value": given["scale"]}
        entry["scale"] = given["scale"].but([item.but(match)])
    layers = given["start"].but([given["start"], given["end"]])
    return item.but({"layers": layers, "models": item.but([item.but(entry)])})
