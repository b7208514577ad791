"""Merges that add up rows of different tokens: as many rows in each model, and other tokens in them.

Shapes do not tell. Where no vocabulary is chosen, the tokenizers of models whose rows meet are compared, and what
differs is noted: often it is a few tokens of a chat format, and meant; else the merge is nonsense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelbuild.errors import ModelbuildError
from modelbuild.modelfile.spec import Merge
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Planned
from modelbuild.plan.token_tensors import embedding, token_tensors
from modelbuild.plan.tokenizers import Tokenizers
from modelbuild.sources.strictjson import show
from modelbuild.tokenizer.nouns import Tokenizer
from modelbuild.tokenizer.read import FAST, SPM, VOCAB, WORDS


def other_tokens(merge: Merge, inputs: Mapping[str, Planned], tensors: Mapping[str, Node], donor: str) -> Iterator[str]:
    """A note for each input whose rows are in the output, and whose tokens are not those of the donor's tokenizer.

    Nothing is said where a vocabulary was chosen, nor of tokenizers that are missing or cannot be read.
    """
    if merge.tokenizer is not None or merge.tokens or merge.pad_to_multiple_of is not None:
        return
    reader = Tokenizers()
    own = inputs[donor]
    for name in _used(inputs, tensors):
        if name == donor or embedding(own) is None or _vocabulary(inputs[name]) == _vocabulary(own):
            continue
        if (found := [_tokenizer(reader, planned) for planned in (own, inputs[name])]) and all(found):
            yield from _told(own, inputs[name], *found)  # type: ignore[arg-type]


def _used(inputs: Mapping[str, Planned], tensors: Mapping[str, Node]) -> list[str]:
    """The inputs that rows for tokens come from."""
    named = {name for planned in inputs.values() for name in token_tensors(planned)}
    made = {node.key for name in named if name in tensors for node in _beneath(tensors[name])}
    return [name for name, other in inputs.items() if any(other.tensors[n].key in made for n in token_tensors(other))]


def _beneath(node: Node) -> Iterator[Node]:
    """The node of a merge's output, and what it is made from: inputs, or casts of inputs."""
    yield node
    for below in node.inputs:
        yield below
        yield from below.inputs


def _vocabulary(planned: Planned) -> tuple[str, object] | None:
    """The file that says the vocabulary, by which transformers goes, and what identifies its bytes."""
    side = planned.side
    for name in (FAST, VOCAB, WORDS, SPM):
        if name in side.made or name in side.files:
            return name, side.made.get(name) or side.files[name].sha256
    return None


def _tokenizer(reader: Tokenizers, planned: Planned) -> Tokenizer | None:
    try:
        return reader.of(planned, None)
    except ModelbuildError:
        return None


def _told(own: Planned, other: Planned, mine: Tokenizer, theirs: Tokenizer) -> Iterator[str]:
    rows = min(planned.tensors[embedding(planned) or ""].shape[0] for planned in (own, other))
    both = sorted(number for number in mine.by_id.keys() & theirs.by_id.keys() if number < rows)
    different = [number for number in both if mine.by_id[number] != theirs.by_id[number]]
    if different:
        first = different[0]
        example = f"row {first} is {show(mine.by_id[first])} in `{own.name}` and {show(theirs.by_id[first])}"
        count = f"{len(different)} of {len(both)} rows are for other tokens"
        hint = 'choose a vocabulary: tokenizer = "union", "base" or the name of an input'
        yield f"{count} in `{other.name}`: {example} in `{other.name}`; {hint}"
