"""What must hold within one `[merge.NAME]`: its shape, its method's needs, and the names that it gives its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelbuild.modelfile.chat_templates import TEMPLATES
from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.mixtures import check_mixture
from modelbuild.modelfile.spec import Merge, Path, Slice
from modelbuild.modelfile.suggest import listed, shown
from modelbuild.modelfile.tables import ALIASES, Table, title
from modelbuild.modelfile.tokens import check_tokens

if TYPE_CHECKING:
    from modelbuild.methods.base import Method


def check_merge(faults: Faults, path: Path, raw: Table, merge: Merge, method: Method | None) -> None:
    """Notes what is wrong with the merge as a whole; `method` None if it is not known."""
    _check_shape(faults, path, raw, method)
    _check_names(faults, path, merge)
    if method is not None:
        _check_method(faults, path, raw, method)
        check_mixture(faults, path, raw, merge, method)


def check_lengths(faults: Faults, part: Slice) -> None:
    """All models of a slice give equally many layers."""
    ranges = [(entry, entry.layers or part.layers) for entry in part.models]
    known = [(entry, found) for entry, found in ranges if found is not None]
    for entry, (start, end) in known[1:]:
        first, (first_start, first_end) = known[0]
        if end - start != first_end - first_start:
            faults.value(
                (*entry.path, "layers") if entry.layers else (*part.path, "layers"),
                "the ranges of a slice are not equally long",
                f"`{shown(first.name)}` gives {first_end - first_start} layers, [{first_start}, {first_end}]",
                f"`{shown(entry.name)}` gives {end - start}, [{start}, {end}]",
            )


def _check_shape(faults: Faults, path: Path, raw: Table, method: Method | None) -> None:
    """Exactly one of models, slices and adapters, as the method takes."""
    wanted = "adapters" if method and method.takes == "adapters" else "models"
    called = f"`{method.name}`" if method else ""
    if "models" in raw and "slices" in raw:
        faults.key((*path, "slices"), "`models` and `slices` exclude each other")
    if method is None:
        if not any(key in raw or key in map(ALIASES.get, raw) for key in ("models", "slices", "adapters")):
            faults.key(path, f"{title(path)} has no `models`")
        return
    wrong = ("models", "slices") if wanted == "adapters" else ("adapters",)
    for key in wrong:
        if key in raw:
            hint = "adapters are folded in by method `lora`" if key == "adapters" else None
            faults.key((*path, key), f"method {called} takes `{wanted}`, not `{key}`", hint=hint)
    if wanted not in raw and "slices" not in raw and wanted not in map(ALIASES.get, raw):
        faults.key(path, f"{title(path)} has no `{wanted}`", f"method {called} takes `{wanted}`")
    for key in ("tokens", "pad_to_multiple_of"):
        if key in raw and wanted == "adapters":
            hint = "give the result to a merge by `passthrough`"
            faults.key((*path, key), f"`{key}` has no meaning with method {called}", hint=hint)
    if "base_precision" in raw and wanted != "adapters":
        faults.key((*path, "base_precision"), f"`base_precision` has no meaning with method {called}")


def _check_names(faults: Faults, path: Path, merge: Merge) -> None:
    """`tokenizer`, `tokens` and `chat_template` name inputs of this merge; `ends` stands with slices."""
    entries = [*merge.models, *(entry for part in merge.slices for entry in part.models)]
    if merge.ends is not None and not merge.slices:
        faults.key((*path, "ends"), "`ends` has no meaning without `slices`")
    named = [*([merge.base] if merge.base else []), *(entry.name for entry in entries), *(merge.ends or ())]
    inputs = list(dict.fromkeys(named))
    if merge.tokenizer is not None and merge.tokenizer not in ("base", "union", *inputs):
        message = f'`tokenizer` is "base", "union" or an input of {title(path)}, not "{shown(merge.tokenizer)}"'
        known = ["base", "union", *inputs]
        faults.unknown_value((*path, "tokenizer"), message, merge.tokenizer, known, f"its inputs are {listed(inputs)}")
    check_tokens(faults, (*path, "tokens"), dict(merge.tokens), inputs)
    template = merge.chat_template
    if template is not None and "{" not in template and template not in ("auto", *inputs, *TEMPLATES):
        message = f'`chat_template` is "auto", an input, a known format or a text, not "{shown(template)}"'
        facts = [f"the inputs of {title(path)} are {listed(inputs)}", f"known formats are {listed(TEMPLATES)}"]
        faults.unknown_value((*path, "chat_template"), message, template, ["auto", *inputs, *TEMPLATES], *facts)


def _check_method(faults: Faults, path: Path, raw: Table, method: Method) -> None:
    """A base where the method needs one, as many inputs as it takes, and every required parameter."""
    if method.base == "required" and "base" not in raw and "base_model" not in raw:
        faults.key(path, f"{title(path)} has no `base`", f"method `{method.name}` needs one")
    if method.takes == "adapters":
        _check_inputs(faults, path, "adapters", raw, (raw,), method)
    elif "models" in raw:
        _check_inputs(faults, path, "models", raw, (raw,), method)
    else:
        for index, part in enumerate(_tables(raw, "slices")):
            if part is not None:
                _check_inputs(faults, (*path, "slices", index), "models", part, (part, raw), method)


def _tables(raw: Table, name: str) -> list[Table | None]:
    """The tables in the list called `name`, None for each entry that is something else."""
    found = raw.get(name)
    return [entry if isinstance(entry, dict) else None for entry in found] if isinstance(found, list) else []


def _check_inputs(
    faults: Faults, path: Path, name: str, table: Table, around: tuple[Table, ...], method: Method
) -> None:
    """The inputs of one table: as many as the method takes, with every required parameter in reach."""
    entries = _tables(table, name)
    what = name.removesuffix("s")
    count = len(entries)
    if table is not around[-1] and method.base != "none":
        # A slice may name the base, to give it layers of its own: that is no input.
        base = around[-1].get("base")
        entries = [None if entry is not None and entry.get(what) == base else entry for entry in entries]
        count -= sum(1 for entry in _tables(table, name) if entry is not None and entry.get(what) == base)
    if count:
        _check_count(faults, (*path, name), count, method)
    for parameter in method.parameters:
        if parameter.default is not None or parameter.nullable or any(parameter.name in outer for outer in around):
            continue
        if parameter.scope == "merge":
            faults.key(path, f"{title(path)} has no `{parameter.name}`", f"`{parameter.name}`: {parameter.help}")
            continue
        for index, entry in enumerate(entries):
            if entry is not None and parameter.name not in entry:
                message = f"`{shown(str(entry.get(what, '')))}` has no `{parameter.name}`"
                fact = f"method `{method.name}` needs it: {parameter.help}"
                faults.key((*path, name, index), message, fact)


def _check_count(faults: Faults, path: Path, count: int, method: Method) -> None:
    low, high = method.inputs
    if low <= count and (high is None or count <= high):
        return
    words = {1: "one", 2: "two", 3: "three"}
    noun = "model" if path[-1] == "models" else "adapter"
    bound = low if count < low else high or low
    limit = "exactly" if low == high else "at least" if count < low else "at most"
    plural = "" if bound == 1 else "s"
    besides = " besides the base" if method.base == "required" else ""
    message = f"method `{method.name}` takes {limit} {words.get(bound, bound)} {noun}{plural}{besides}, not {count}"
    faults.key(path, message)
