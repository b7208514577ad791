"""Reading one mapping of a recipe against the keys that mergekit knows: types, unknown keys, models that it names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from modelbuild.importing.known import METHODS, TOKENIZER
from modelbuild.importing.nouns import Findings, Item, Place, Ref
from modelbuild.modelfile.suggest import did_you_mean, shown

PARAMETERS = frozenset(name for known in METHODS.values() for name in known.parameters)
_TRUE = ("1", "t", "true", "y", "yes", "on")
_FALSE = ("0", "f", "false", "n", "no", "off")
MISPLACED = "parameters stand under `parameters`"
SEEDS = dict.fromkeys(("random_seed", "seed"), "mergekit has `--random-seed`, a Modelfile `seed`")
"""Keys that recipes have where mergekit does not look for them."""
OURS = {
    "base": "base_model",
    "method": "merge_method",
    "match": "filter",
    "layers": "layer_range",
    "model": "source_model",
}
"""What a Modelfile calls the keys of a recipe, where the two words are not near each other."""


def fields(findings: Findings, item: Item, what: str, known: Iterable[str]) -> dict[str, Item]:
    """The known keys of a mapping that say something; a note for each other key, since mergekit reads none of them."""
    names = tuple(known)
    if not isinstance(item.value, dict):
        alone = isinstance(item.value, str) and names[0] in ("model", "source_model")
        findings.expected(item, what, "a mapping", f"write `{names[0]}: {shown(item.value)}`" if alone else None)
        return {}
    for key, inner in item.value.items():
        if key not in names:
            text = f"mergekit does not know `{shown(key)}` in {what}"
            if key in SEEDS:
                findings.note(inner.place, f"{text}, and it is left out; {SEEDS[key]}")
            else:
                findings.unread(inner.place, text, _placed(key, names) or _meant(key, names))
    return {key: item.value[key] for key in names if key in item.value and item.value[key].value is not None}


def _placed(key: str, names: tuple[str, ...]) -> str | None:
    """Where a key that stands in the wrong place belongs; None for all others."""
    if key in PARAMETERS and "parameters" in names:
        return MISPLACED
    return f"`{key}` stands under `tokenizer`" if key in TOKENIZER[1:] and "tokenizer" in names else None


def _meant(key: str, names: tuple[str, ...]) -> str | None:
    """The key that was probably meant: the Modelfile's word for it, or one that is spelled nearly so."""
    ours = OURS.get(key)
    return f"did you mean `{ours}`?" if ours in names else did_you_mean(key, names)


def entries(findings: Findings, item: Item, name: str) -> list[Item]:
    """The entries of a list that is not empty."""
    if not isinstance(item.value, list):
        findings.expected(item, f"`{name}`", "a list")
        return []
    if not item.value:
        findings.fault(item.where, f"`{name}` is empty")
    return item.value


def typed(findings: Findings, item: Item | None, name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    """The value of an item of this type; None, and a fault, if it is of another one."""
    if item is None:
        return None
    if not isinstance(item.value, kind) or (kind is not bool and isinstance(item.value, bool)):
        findings.expected(item, f"`{name}`", wanted)
        return None
    return item.value


def integer(item: Item) -> int | None:
    """The integer that an item is, or that is written in it as `4.0` or in quotes, which mergekit reads alike."""
    value = item.value
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def truth(item: Item) -> bool | None:
    """The boolean that an item is, or that mergekit reads in it: 0 and 1, 0.0 and 1.0, and words such as "yes"."""
    word = str(int(item.value) if item.value in (0.0, 1.0) else item.value).lower()
    return True if word in _TRUE else False if word in _FALSE else None


def text(findings: Findings, item: Item | None, name: str) -> str | None:
    """A string that is not empty."""
    found: str | None = typed(findings, item, name, str, "a string")
    if found is not None and item is not None and not found.strip():
        findings.fault(item.where, f"`{name}` is empty")
        return None
    return found


def ref(findings: Findings, item: Item, name: str = "model") -> Ref | None:
    """The model that an item names: `PATH[@REVISION][+ADAPTER[@REVISION]]`, or a mapping of these."""
    if isinstance(item.value, dict):
        given = fields(findings, item, f"`{name}`", ("model", "lora", "override_architecture"))
        if "override_architecture" in given:
            findings.note(
                given["override_architecture"].place,
                "`override_architecture` is left out: layers are read from the names of tensors",
            )
        if "model" not in given:
            findings.fault(item.where, f"`{name}` names no `model`")
            return None
        model = _place(findings, given["model"])
        lora = _place(findings, given["lora"]) if "lora" in given else None
        return Ref(model, lora) if model is not None and (lora is not None or "lora" not in given) else None
    if text(findings, item, name) is None:
        return None
    parts = item.value.split("+")
    if len(parts) > 2:
        hint = "a merge with method `lora` takes any number of adapters"
        findings.fault(item.where, f"`{shown(item.value)}` names more than one adapter", hint=hint)
        return None
    places = [_place(findings, item.but(part)) for part in parts]
    if any(place is None for place in places):
        return None
    return Ref(places[0], places[1] if len(places) > 1 else None)  # type: ignore[arg-type]


def _place(findings: Findings, item: Item) -> Place | None:
    if isinstance(item.value, dict):
        given = fields(findings, item, "the path of a model", ("path", "revision"))
        path = text(findings, given.get("path", item.but("")), "path")
        revision = text(findings, given.get("revision"), "revision")
        return Place(path, revision) if path is not None else None
    if text(findings, item, "model") is None:
        return None
    path, _, revision = item.value.partition("@")
    if not path.strip() or "@" in revision or (not revision and "@" in item.value):
        findings.fault(item.where, f"`{shown(item.value)}` is not PATH or PATH@REVISION")
        return None
    return Place(path, revision or None)
