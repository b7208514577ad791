"""LoRA and rsLoRA adapters as PEFT saves them: which base tensors they change, and by what.

Keys (after the prefix `base_model.model.`), for a module M of the base:

    M.lora_A.weight [r, in], M.lora_B.weight [out, r]     W + s·B·A; transposed for layers stored [in, out] (Conv1D)
    M.lora_embedding_A [r, rows], M.lora_embedding_B [dim, r]   W + s·(B·A)ᵀ
    M.lora_B.bias [out]                                   bias + s·b
    M.base_layer.weight, M.weight, M.bias, …              a tensor that was trained whole: a replacement

with s = alpha / r, or alpha / √r for rsLoRA, alpha after `alpha_pattern`. What a key says is read from its shape as
well, and a shape that contradicts the config stops the build. Every key is used, or the build stops and names it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelbuild.dtypes import FLOATS
from modelbuild.sources.content import SourceAdapter, SourceTensor

VERSION = 1
"""Of how such adapters are read: it goes up when an adapter comes to mean another change of its base."""

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB](?=\.)|lora_embedding_[AB]\Z)(?P<leaf>\.weight|\.bias|)")
_SAVED = re.compile(r"\.(modules_to_save(\.\w+)?|original_module|base_layer)\.")
_REFUSED = {
    "use_dora": "DoRA",
    "target_parameters": "LoRA on parameters (`target_parameters`)",
    "layer_replication": "`layer_replication`",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "`trainable_token_indices`",
    "arrow_config": "Arrow",
    "megatron_config": "Megatron",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "Monteclora",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_QUANTIFIED_GROUP = re.compile(r"\)[*+{?]|\\[1-9]|\(\?")
_META = frozenset("\\^$*+?{}[]()|")
_LONGEST = 256
"""Characters that a pattern may have, and the name of a module that one is held against."""
_CHOICES = (256, 32)
"""How many ways through a pattern there may be: without a repetition, and with the one that it may have."""


class AdapterFault(Exception):
    """Something in an adapter that cannot be folded in: a sentence and the facts; the caller adds names and places."""

    def __init__(self, message: str, facts: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.facts = tuple(facts)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Factors:
    """A low-rank pair of one module, its rank, and alpha/r (alpha/√r for rsLoRA) before any weight.

    `transposed` says that the layer stores its weight [in, out], as embeddings do.
    `alpha` and `root` (r, or √r) give the scale of a weight w as PEFT computes it: w·alpha / root.
    """

    a: SourceTensor
    b: SourceTensor
    rank: int
    alpha: float
    root: float
    embedding: bool = False
    transposed: bool = False

    def scale(self, weight: float) -> float:
        """The factor on B·A for an adapter at this weight."""
        return weight * self.alpha / self.root


@dataclass(slots=True)
class Change:
    """What an adapter does to a module: a low-rank pair, a bias that goes with it, replacements by leaf name."""

    factors: Factors | None = None
    bias: SourceTensor | None = None
    replaced: dict[str, SourceTensor] = field(default_factory=dict)


def read(adapter: SourceAdapter) -> dict[str, Change]:
    """What the adapter changes, by module name as the adapter knows it (`model.layers.0.self_attn.q_proj`).

    Raises AdapterFault for another adapter type, an option that changes what the tensors mean, or a pair that is not
    whole.
    """
    config = adapter.config
    _check_config(config)
    pairs: dict[str, dict[str, SourceTensor]] = {}
    changes: dict[str, Change] = {}
    for key, tensor in adapter.tensors.items():
        name = key.removeprefix(_PREFIX)
        if found := _FACTOR.fullmatch(name):
            parts, slot = pairs.setdefault(found["module"], {}), found["part"] + found["leaf"].removeprefix(".weight")
            if slot in parts:
                raise AdapterFault("two of its keys are the same factor", (f"`{parts[slot].name}`", f"`{key}`"))
            parts[slot] = tensor
            continue
        if "lora_" in name or ".token_adapter." in name:
            raise AdapterFault(f"its key `{key}` is of a kind that is not known")
        module, _, leaf = _SAVED.sub(".", name).rpartition(".")
        replaced = changes.setdefault(module, Change()).replaced
        if leaf in replaced:
            facts = (f"`{replaced[leaf].name}`", f"`{key}`")
            raise AdapterFault("two of its keys replace the same tensor", facts)
        replaced[leaf] = tensor
    for module, parts in pairs.items():
        change = changes.setdefault(module, Change())
        change.factors = _factors(module, parts, config)
        change.bias = parts.get("lora_B.bias")
    return changes


def _check_config(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterFault("it is no LoRA", (f"`peft_type` is {kind!r:.80}",), "other types are not built yet")
    for option, what in _REFUSED.items():
        if config.get(option):
            raise AdapterFault(f"it uses {what}, which is not built yet", (f"`{option}` is {config[option]!r:.80}",))
    initial = config.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.lower().startswith(_CHANGES_BASE):
        raise AdapterFault(
            f"it was initialised with {initial}, which changes the base",
            (f'`init_lora_weights` is "{initial}"', "added to the unchanged base it would give a wrong model"),
            "convert it with PEFT (`path_initial_model_for_weight_conversion`) to a plain LoRA first",
        )


def _factors(module: str, parts: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> Factors | None:
    embedding = any(part.startswith("lora_embedding") for part in parts)
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [name for name in names if name not in parts]
    if missing or set(parts) - {*names, "lora_B.bias"}:
        facts = [f"`{tensor.name}` is there" for tensor in parts.values()]
        raise AdapterFault(f"module `{module}` has no {' and no '.join(missing) or 'single kind of pair'}", facts)
    a, b = parts[names[0]], parts[names[1]]
    _check_matrices(a, b)
    rank = a.shape[0]
    if b.shape[1] != rank or rank == 0:
        facts = [f"`{a.name}` is {list(a.shape)}", f"`{b.name}` is {list(b.shape)}"]
        raise AdapterFault(f"the factors of module `{module}` do not multiply", facts)
    expected = _number(config, "r", "rank_pattern", module)
    if expected is not None and expected != rank:
        facts = [f"`{a.name}` has rank {rank}", f"adapter_config.json says {expected:g}"]
        raise AdapterFault(f"the rank of module `{module}` is not what the config says", facts)
    alpha = _number(config, "lora_alpha", "alpha_pattern", module)
    if alpha is None:
        raise AdapterFault("adapter_config.json has no `lora_alpha`", (), "it is needed to scale B·A")
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    return Factors(a, b, rank, alpha, root, embedding, embedding)


def _check_matrices(*factors: SourceTensor) -> None:
    for tensor in factors:
        if len(tensor.shape) != 2:
            raise AdapterFault(
                f"its key `{tensor.name}` is of no linear or embedding layer, and others are not built yet",
                (f"its shape is {list(tensor.shape)}",),
            )
        if tensor.dtype not in FLOATS.values():
            facts = (f"its dtype is {tensor.dtype}", f"computed with are {', '.join(FLOATS.values())}")
            raise AdapterFault(f"its key `{tensor.name}` is of a dtype that is not computed with", facts)


def _number(config: Mapping[str, Any], option: str, patterns: str, module: str) -> float | None:
    value = config.get(option)
    table = config.get(patterns) or {}
    if not isinstance(table, Mapping):
        raise AdapterFault(f"`{patterns}` in adapter_config.json is not a table")
    for pattern, special in table.items():
        if _pattern_fits(str(pattern), module):
            value = special
            break
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise AdapterFault(f"`{option}` of module `{module}` is no finite number", (f"it is {value!r:.80}",))
    return value


def _pattern_fits(pattern: str, module: str) -> bool:
    """PEFT's rule: the pattern, a regular expression, is the end of the module's name, from a dot on or all of it.

    The pattern comes from a stranger, so one that could take more than milliseconds is refused: several repetitions,
    or too many ways through its alternatives.
    """
    if not _META & set(pattern):
        return _ends_with(module, pattern)
    repeats, groups = sum(map(pattern.count, "*+{")), max(1, pattern.count("("))
    ways = 2.0 ** min(pattern.count("?"), 20) * (1 + pattern.count("|") / groups) ** min(groups, 20)
    intricate = repeats > 1 or ways > _CHOICES[repeats] or _QUANTIFIED_GROUP.search(pattern)
    if len(pattern) > _LONGEST or len(module) > _LONGEST or intricate:
        raise AdapterFault("a pattern in adapter_config.json is too intricate", (f"`{pattern:.80}`",))
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise AdapterFault("a pattern in adapter_config.json is not valid", (f"`{pattern:.80}`: {error}",)) from None


def _ends_with(module: str, pattern: str) -> bool:
    """Whether the pattern, plain but for dots that stand for any character, is the module's last names."""
    start = len(module) - len(pattern)
    if start < 0 or (start and module[start - 1] != "."):
        return False
    return all(sign in (".", char) for sign, char in zip(pattern, module[start:], strict=True))


def locate(modules: Sequence[str], tensors: Mapping[str, object]) -> dict[str, str]:
    """For each module of an adapter the module of the base it means, both without the leaf.

    The base's tensors may be saved under other leading names than the model the adapter was trained on has in memory
    (`h.0.attn` for `transformer.h.0.attn`, `language_model.model.` for `model.language_model.`); modules with the same
    leading names are renamed alike, and no two modules to the same. Modules that fit nothing are left out.
    """
    have = {name.rpartition(".")[0] for name in tensors}
    found = {module: module for module in modules if module in have}
    left = [module for module in modules if module not in found]
    while left:
        taken = set(found.values())
        best: dict[str, str] = {}
        for old, new in _renamings(left, have):
            fits = {m: new + m[len(old) :] for m in left if m.startswith(old)}
            fits = {module: target for module, target in fits.items() if target in have and target not in taken}
            if len(fits) > len(best):
                best = fits
        if not best:
            break
        found |= best
        left = [module for module in left if module not in found]
    return found


def _renamings(modules: Sequence[str], have: set[str]) -> Iterator[tuple[str, str]]:
    """Leading names to take off and to put on instead: none for some, then some for none, then some for others that
    say at least as much (but for `model`, which says nothing)."""
    ours, theirs = _heads(modules), _heads(sorted(have))
    yield from ((old, "") for old in ours)
    yield from (("", new) for new in theirs)
    for old in ours:
        words = set(old.split(".")) - {"model"}
        yield from ((old, new) for new in theirs if words <= set(new.split(".")))


def _heads(modules: Sequence[str]) -> list[str]:
    """The leading names of the modules, up to three deep, without numbers, each with its dot."""
    found: dict[str, None] = {}
    for depth in range(1, 4):
        for module in modules:
            parts = module.split(".")[:depth]
            if not any(part.isdecimal() for part in parts):
                found[".".join(parts) + "."] = None
    return list(found)
