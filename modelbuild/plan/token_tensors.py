"""Which tensors of a model have a row for each token: embeddings, heads and their biases; and heads that are tied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modelbuild.plan.fit import is_vocabulary
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Planned

_HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")
_WHOLE_HEADS = ("output.weight", "head.weight")
"""Heads by their whole names, since modules within a model are called so too."""
_OTHERS = (
    "output", "output_layer", "head", "shared", "embeddings", "embedding", "emb", "token_embedding", "predictions",
    "final_logits_bias", "lm_head",
)  # fmt: skip
"""Parts of names that such tensors have in some architectures, and others in others: their rows must agree too."""

_NOT = ("position", "token_type", "norm", "Norm", "dense")
"""What stands in the names of tensors among those whose rows are no tokens, however many there are."""


def embedding(planned: Planned) -> str | None:
    """The input embedding's name; None where none is known by its name."""
    named = [name for name, node in planned.tensors.items() if name.endswith(".weight") and len(node.shape) == 2]
    for name in named:
        if is_vocabulary(name) and not is_head(name):
            return name
    parts = ("shared", "embeddings", "embedding", "emb", "token_embedding")
    return next((name for name in named if name.split(".")[-2] in parts and name not in planned.layout.places), None)


def is_head(name: str) -> bool:
    """Whether a tensor is an output head, by its name."""
    return name in _WHOLE_HEADS or any(name == head or name.endswith(f".{head}") for head in _HEADS)


def token_tensors(planned: Planned) -> list[str]:
    """The names of the tensors that have a row for each token, outside the layers."""
    own = embedding(planned)
    if own is None:
        return []
    rows = planned.tensors[own].shape[0]
    return [name for name, node in planned.tensors.items() if name == own or _has_rows(planned, name, node, rows)]


def _has_rows(planned: Planned, name: str, node: Node, rows: int) -> bool:
    if not node.shape or name in planned.layout.places:
        return False
    parts = name.split(".")
    if any(word in part for part in parts[-2:] for word in _NOT):
        return False
    return is_vocabulary(name) or (node.shape[0] == rows and any(part in _OTHERS for part in parts))


def with_heads(inputs: Mapping[str, Planned], donor: str) -> dict[str, Planned]:
    """The inputs such that all have a head, or none has: a tied one is its model's embedding.

    If any model has a head of its own, so does the result, whose donor is then untied. Where all are tied, heads that
    are stored all the same are the donor's business.
    """
    names = {name: _head(planned) for name, planned in inputs.items()}
    head = next((name for name in names.values() if name is not None), None)
    if head is None:
        return dict(inputs)
    ties = {name: _ties(planned, names[name]) for name, planned in inputs.items()}
    if not all(ties.values()):
        made = {name: _with_head(planned, head) if ties[name] else planned for name, planned in inputs.items()}
    elif names[donor] is None:
        made = {name: _without(planned, names[name]) for name, planned in inputs.items()}
    else:
        made = {name: planned if names[name] else _with_head(planned, head) for name, planned in inputs.items()}
    if ties[donor] and not all(ties.values()):
        made[donor] = replace(made[donor], side=replace(made[donor].side, untied=True))
    return made


def _head(planned: Planned) -> str | None:
    own = embedding(planned)
    shape = planned.tensors[own].shape if own is not None else None
    return next((n for n, node in planned.tensors.items() if is_head(n) and node.shape == shape), None)


def _ties(planned: Planned, head: str | None) -> bool:
    """Whether the head is the embedding: it is not there, and config.json does not promise one, or it is not used."""
    config = planned.side.config or {}
    text = config.get("text_config")
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, Mapping) else None)
    if embedding(planned) is None or planned.side.untied:
        return False
    return said is not False if head is None else said is True


def _with_head(planned: Planned, head: str) -> Planned:
    own = embedding(planned)
    assert own is not None
    return replace(planned, tensors={**planned.tensors, head: planned.tensors[own]})


def _without(planned: Planned, head: str | None) -> Planned:
    return replace(planned, tensors={name: node for name, node in planned.tensors.items() if name != head})
