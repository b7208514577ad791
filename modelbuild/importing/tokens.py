"""mergekit's `tokenizer_source`, `tokenizer` and `chat_template`: where the vocabulary of a merge comes from."""

from __future__ import annotations

from collections.abc import Mapping

from modelbuild.importing.known import TOKEN, TOKENIZER
from modelbuild.importing.nouns import Findings, Item
from modelbuild.importing.read import fields, integer, ref, text, truth, typed
from modelbuild.modelfile.suggest import shown

TOKENIZERS = ("union", "base")
"""What a tokenizer is taken from, besides models."""
OLD = "model:"
"""What stood before the model that gives the tokenizer in older recipes."""


def vocabulary(findings: Findings, given: Mapping[str, Item]) -> dict[str, Item]:
    """The keys `tokenizer`, `tokens`, `pad_to_multiple_of` and `chat_template` of a merge."""
    found: dict[str, Item] = {}
    legacy, section = given.get("tokenizer_source"), given.get("tokenizer")
    if legacy is not None and section is not None and legacy.value and section.value:
        findings.fault(section.place, "`tokenizer_source` and `tokenizer` exclude each other")
    elif legacy is not None:
        found["tokenizer"] = _source(findings, legacy)
    elif section is not None:
        found |= _section(findings, section)
    if text(findings, template := given.get("chat_template"), "chat_template") and template is not None:
        found["chat_template"] = template
    return found


def _source(findings: Findings, item: Item) -> Item:
    """The donor of the tokenizer: "union", "base", or a model."""
    if item.value in TOKENIZERS:
        return item
    if isinstance(item.value, str) and item.value.startswith(OLD):
        findings.remark("`model:` before the donor of a tokenizer is an older spelling.")
        item = item.but(item.value.removeprefix(OLD))
    return item.but(ref(findings, item, "tokenizer"))


def _section(findings: Findings, item: Item) -> dict[str, Item]:
    given = fields(findings, item, "`tokenizer`", TOKENIZER)
    found = {"tokenizer": _source(findings, given.get("source", item.but("union")))}
    if "pad_to_multiple_of" in given and (size := _integer(findings, given, "pad_to_multiple_of")).value:
        found["pad_to_multiple_of"] = size
    tokens = given.get("tokens")
    if tokens is not None and not isinstance(tokens.value, dict):
        findings.expected(tokens, "`tokens`", "a mapping")
    elif tokens is not None and tokens.value:
        chosen = {token: _token(findings, token, entry) for token, entry in tokens.value.items()}
        found["tokens"] = tokens.but(chosen)
    return found


def _token(findings: Findings, token: str, item: Item) -> Item:
    """One token: `{ model = NAME }`, `{ zero = true }` or `{ model = NAME, token = TEXT }`, and `force = true`."""
    what = f"the token `{shown(token)}`"
    given = fields(findings, item, what, TOKEN)
    found = _embedding(findings, what, given["source"]) if "source" in given else {}
    if "force" in given:
        force = truth(given["force"])
        if force is None:
            findings.expected(given["force"], "`force`", "true or false")
        elif force:
            found["force"] = given["force"].but(True)
    return item.but(found)


def _integer(findings: Findings, given: Mapping[str, Item], name: str) -> Item:
    found = integer(given[name])
    if found is None:
        findings.expected(given[name], f"`{name}`", "an integer")
    return given[name].but(found)


def _embedding(findings: Findings, what: str, item: Item) -> dict[str, Item]:
    kind = item.value.get("kind") if isinstance(item.value, dict) else None
    if kind is None:
        return {"model": item.but(ref(findings, item))}
    if kind.value == "zero":
        fields(findings, item, what, ("kind",))
        return {"zero": item.but(True)}
    if kind.value != "model_token":
        findings.expected(kind, f"`kind` of {what}", "zero or model_token")
        return {}
    given = fields(findings, item, what, ("kind", "model", "token", "token_id"))
    if "model" not in given or ("token" in given) == ("token_id" in given):
        findings.fault(item.where, f"{what} needs a `model` and one of `token` and `token_id`")
        return {}
    found = {"model": given["model"].but(ref(findings, given["model"]))}
    if "token" in given:
        typed(findings, given["token"], "token", str, "a string")
        return found | {"token": given["token"]}
    return found | {"token_id": _integer(findings, given, "token_id")}
