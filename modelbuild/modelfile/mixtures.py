"""What must hold within a `[merge.NAME]` that makes a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.spec import Constant, Input, Merge, Path, Texts, Value
from modelbuild.modelfile.suggest import listed, shown
from modelbuild.modelfile.tables import Table, means, title

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelbuild.methods.base import Method

Prompts: TypeAlias = "tuple[tuple[str, ...], tuple[str, ...]]"
"""The texts that an expert is for, and those that it is not for."""

_WHOLE = ("gate_mode", "experts_per_token", "architecture", "prompt", "negative_prompt", "shared")
"""Parameters that say something of the mixture or of an expert as a whole, not of single tensors."""


def check_mixture(faults: Faults, path: Path, raw: Table, merge: Merge, method: Method) -> None:
    """Notes what is wrong with a mixture of experts, and a `router` where there is none."""
    if not method.mixture:
        if merge.router is not None:
            message = f"`router` has no meaning with method `{method.name}`"
            faults.key((*path, "router"), message, hint="mixtures of experts are made by method `moe`")
        return
    for key in ("slices", "only", "copy"):
        if key in raw:
            hint = "give it a merge by `passthrough` for a model" if key == "slices" else None
            faults.key((*path, key), f"`{key}` has no meaning with method `{method.name}`", hint=hint)
    if not _are_whole(faults, path, merge):
        return
    _check_counts(faults, path, merge)
    _check_architecture(faults, path, merge)
    if "gate_mode" in raw and "gate_mode" not in merge.parameters:
        return  # which mode is meant is not known
    mode = str(_constant(merge, None, "gate_mode") or "hidden")
    _check_given(faults, path, merge, mode)
    _check_prompts(faults, path, raw, merge, mode)


def prompts_of(merge: Merge, entry: Input) -> Prompts:
    """What an expert is for and what not; a prompt on the merge is one of every expert."""
    return _texts(merge, entry, "prompt"), _texts(merge, entry, "negative_prompt")


def _texts(merge: Merge, entry: Input, name: str) -> tuple[str, ...]:
    value = entry.parameters.get(name) or merge.parameters.get(name)
    if isinstance(value, Texts):
        return value.values
    return (str(value.value),) if isinstance(value, Constant) else ()


def _constant(merge: Merge, entry: Input | None, name: str) -> object:
    value = (entry.parameters.get(name) if entry is not None else None) or merge.parameters.get(name)
    return value.value if isinstance(value, Constant) else None


def _are_whole(faults: Faults, path: Path, merge: Merge) -> bool:
    """Whether what is no parameter of single tensors has one value."""
    good = True
    for where, parameters in ((path, merge.parameters), *((entry.path, entry.parameters) for entry in merge.models)):
        for name in _WHOLE:
            if name in parameters and not isinstance(parameters[name], (Constant, Texts)):
                faults.value((*where, name), f"`{name}` is the same for every tensor: it has no choices")
                good = False
    return good


def _experts(merge: Merge) -> list[Input]:
    """The models that the router chooses among."""
    return [entry for entry in merge.models if _constant(merge, entry, "shared") is not True]


def _check_counts(faults: Faults, path: Path, merge: Merge) -> None:
    count = len(_experts(merge))
    wanted = _constant(merge, None, "experts_per_token")
    each = wanted if isinstance(wanted, int) else 2
    if count and each > count:
        message = f"{title(path)} has fewer experts than work on one token"
        facts = [f"it has {count}", f"`experts_per_token` is {each}"]
        faults.key((*path, "experts_per_token"), message, *facts)


def _check_architecture(faults: Faults, path: Path, merge: Merge) -> None:
    from modelbuild.methods.moe import ARCHITECTURES, architectures

    word = _constant(merge, None, "architecture")
    if not isinstance(word, str):
        return
    meant = architectures(word)
    if not meant:
        message = f"there is no mixture of experts `{shown(word)}`"
        faults.unknown_value(
            (*path, "architecture"), message, word, ARCHITECTURES, f"built are {listed(ARCHITECTURES)}"
        )
    elif not set(meant) & set(ARCHITECTURES):
        message = f"mixtures of experts by architecture `{shown(word)}` are not built yet"
        faults.value((*path, "architecture"), message, f"built are {listed(ARCHITECTURES)}")


def _check_given(faults: Faults, path: Path, merge: Merge, mode: str) -> None:
    if mode == "given" and merge.router is None:
        hint = "`router = NAME` of a base or merge that has routers"
        faults.key(
            (*path, "gate_mode"), f"{title(path)} has no `router`", "`gate_mode` says that it is given", hint=hint
        )
    if mode != "given" and merge.router is not None:
        fact = f"`gate_mode` is {mode}" if "gate_mode" in merge.parameters else f"`gate_mode` is {mode} by default"
        faults.key(
            (*path, "router"), "`router` is not used", fact, hint='`gate_mode = "given"` takes the routers from it'
        )


def _is_meant(table: Table, read: Mapping[str, Value]) -> bool:
    """Whether a table has a prompt that was told as a fault already: of a wrong type, or under another name."""
    return any(name not in read and name != "negative_prompt" and means(name, "prompt") for name in table)


def _check_prompts(faults: Faults, path: Path, raw: Table, merge: Merge, mode: str) -> None:
    from modelbuild.methods.moe import PROMPTED

    experts = _experts(merge)
    if mode not in PROMPTED or not experts:
        return
    lacking = [entry for entry in experts if not prompts_of(merge, entry)[0]]
    tables = {entry.path: raw["models"][entry.path[-1]] for entry in lacking}
    for entry in lacking if not _is_meant(raw, merge.parameters) else ():
        if _is_meant(tables[entry.path], entry.parameters):
            continue
        fact = f"`gate_mode` {mode} makes the router from texts that each expert is for"
        hint = '`gate_mode = "random"` does without'
        faults.key(entry.path, f"expert `{shown(entry.name)}` has no `prompt`", fact, hint=hint)
    if lacking:
        return
    found = [prompts_of(merge, entry) for entry in experts]
    if len(found) > 1 and all(prompts == found[0] for prompts in found):
        message = f"all experts of {title(path)} have the same prompts"
        faults.key((*path, "models"), message, "the router could not tell them apart")
    for entry, (wanted, unwanted) in zip(experts, found, strict=True):
        if wanted == unwanted:
            faults.key(
                entry.path, f"expert `{shown(entry.name)}` is for what it is not for", "its prompts are the same"
            )
