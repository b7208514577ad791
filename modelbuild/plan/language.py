"""Which part of a model is the language model: read from tensor names and config.json, with no list of architectures.

The token embedding stands beside the layers that read it: `model.language_model.embed_tokens` and
`model.language_model.layers` say that `model.language_model` is the module of a language model. Whether there is more
than that (a vision tower, an audio encoder, what projects from them), the config says by a section for it, or another
stack by its name. An encoder and a decoder of text, or a stack that no embedding stands beside, are no such thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from modelbuild.plan.layout import Layout, comes_last

if TYPE_CHECKING:
    from modelbuild.plan.planned import Planned

TEXT_SECTIONS = frozenset({"text_config", "llm_config", "language_config", "thinker_config"})
"""The sections of a config that describe a language model within a larger one."""

_SENSES = ("vision", "visual", "vit", "image", "img", "audio", "speech", "video")
"""Words in the names of stacks that read something else than text."""

_SIZES = ("hidden_size", "num_hidden_layers", "depth", "embed_dim", "width", "num_layers", "layers", "d_model")
"""Keys that make a section of a config the config of a model."""

_EMBEDDINGS = ("embed_tokens", "tok_embeddings", "word_embeddings", "wte", "embed_in", "shared")
_HEADS = ("lm_head", "embed_out", "output_layer", "output", "head")


@dataclass(frozen=True, slots=True)
class Language:
    """The language model within a model: the layers' `stack`, the module around them, and the outermost module that has
    nothing else in it (`root`, empty for the whole model).

    `heads` are the tensors that turn what comes out into tokens. `strict` where other things stand in the module too:
    then its own are the layers, the embedding and what comes after the layers. `alone` where nothing but language is.
    """

    stack: str | None
    module: str
    root: str
    heads: frozenset[str]
    embedding: str
    strict: bool
    alone: bool

    def __contains__(self, name: str) -> bool:
        """Whether a tensor belongs to the language model."""
        if self.alone or name in self.heads or name == self.embedding:
            return True
        if not self.strict:
            return _inside(name, self.root)
        if self.stack is not None and _inside(name, self.stack):
            return True
        rest = name[len(self.module) + 1 :] if self.module else name
        return _inside(name, self.module) and rest.count(".") <= 1 and comes_last(rest)


def language_of(names: Iterable[str], layout: Layout, config: Mapping[str, Any] | None) -> Language | None:
    """The language model within a model of these tensors; None where its names do not show one."""
    known = list(names)
    # A layer that predicts further tokens may have an embedding of its own.
    embeddings = [name for name in known if _is_embedding(name) and name not in layout.places]
    modules = {_parent(_parent(name)) for name in embeddings}
    if len(modules) != 1:
        return None
    (module,) = modules
    beside = [stack for stack in layout.stacks if _parent(stack) == module]
    within = beside or [stack for stack in layout.stacks if _inside(stack, module)]
    others = [stack for stack in layout.stacks if stack not in within]
    if not within or len(beside) > 1:
        return None
    alone = not _has_other_senses(others, config)
    if others and alone:
        return None
    root = "" if alone else _root(module, others)
    heads = {name for name in known if _is_head(name, module, root, others)}
    stack = beside[0] if beside else None
    strict = not alone and any(_inside(other, module) for other in others)
    return Language(stack, module, root, frozenset(heads), embeddings[0], strict, alone)


def _is_embedding(name: str) -> bool:
    parts = name.split(".")
    return len(parts) >= 2 and parts[-1] == "weight" and parts[-2] in _EMBEDDINGS


def _is_head(name: str, module: str, root: str, others: Sequence[str]) -> bool:
    """Whether a tensor is a head: in the module of the language model or its root, beside it, or outside of all."""
    parts = name.split(".")
    if len(parts) < 2 or parts[-2] not in _HEADS or any(_inside(name, _tower(other, module)) for other in others):
        return False
    return _parent(_parent(name)) in {module, root, _parent(module), ""}


def _tower(stack: str, module: str) -> str:
    """The outermost module around a stack that the language model is not in."""
    parts = stack.split(".")
    for end in range(1, len(parts) + 1):
        if not _inside(module, (start := ".".join(parts[:end]))):
            return start
    return stack


def _has_other_senses(stacks: Sequence[str], config: Mapping[str, Any] | None) -> bool:
    """Whether other stacks than those of language read something else: by config.json, or by their names."""
    for key, section in (config or {}).items():
        is_model = isinstance(section, Mapping) and any(size in section for size in _SIZES)
        if key.endswith("_config") and key not in TEXT_SECTIONS and is_model:
            return True
    return any(part.startswith(_SENSES) for stack in stacks for part in stack.replace("_", ".").split("."))


def _root(module: str, others: Sequence[str]) -> str:
    """The outermost module around `module` that holds none of the other stacks."""
    root = module
    while (outer := _parent(root)) and not any(_inside(other, outer) for other in others):
        root = outer
    return root


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _inside(name: str, module: str) -> bool:
    """Whether a name is that of a module, or of something in it; all are in the module without a name."""
    return not module or name == module or name.startswith(f"{module}.")


# --- one naming for all inputs ----------------------------------------------------------------------------------------


def named_alike(inputs: Mapping[str, Planned], donor: str) -> dict[str, Planned]:
    """The inputs of a merge with the tensors of their language models under the names that the donor has for them.

    That is done where the modules around them are called otherwise: a fine-tune of text is merged into the language
    part of a vision-language model, or the other way round, and a model without a leading name (`h.0.attn` for
    `transformer.h.0.attn`) with one that has it. Others stay as they are.
    """
    return {name: planned if name == donor else _renamed(planned, inputs[donor]) for name, planned in inputs.items()}


def _renamed(planned: Planned, donor: Planned) -> Planned:
    own, there = planned.language, donor.language
    if own is None or there is None:
        return planned
    if (own.module, own.root) == (there.module, there.root) or (
        own.module == there.module and own.heads == there.heads
    ):
        return planned
    names = {name: _translated(name, own, there) for name in planned.tensors if name in own}
    if len(set(names.values())) < len(names) or not set(names.values()) & set(donor.tensors):
        return planned
    # What is not language keeps its name, unless that has another meaning now.
    kept = {name: name for name in planned.tensors if name not in names and name not in names.values()}
    ordered = {name: names.get(name) or kept.get(name) for name in planned.tensors}
    tensors = {new: planned.tensors[name] for name, new in ordered.items() if new is not None}
    aliases = {new: name for name, new in ordered.items() if new is not None and new != name}
    return replace(planned, tensors=tensors, aliases=aliases)


def _translated(name: str, own: Language, there: Language) -> str:
    """The name that a tensor of one language model has in another."""
    if name in own.heads:
        module, _, last = name.rpartition(".")
        if there.heads:
            return f"{_parent(min(there.heads))}.{last}"
        # A tied model stores no head: one would stand beside the module, or outside where that is all there is.
        return _joined(there.root if there.root != there.module else "", f"{module.rpartition('.')[2]}.{last}")
    if _inside(name, own.module):
        return _joined(there.module, name[len(own.module) + 1 :] if own.module else name)
    return _joined(there.root, name[len(own.root) + 1 :] if own.root else name)


def _joined(module: str, rest: str) -> str:
    return f"{module}.{rest}" if module else rest
