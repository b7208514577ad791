"""Notes of the tokens that a Modelfile names and that no input has: meant as new ones, or slips of the pen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from modelbuild.sources.strictjson import show
from modelbuild.tokenizer.nouns import Tokenizer

_SPACES = ("Ġ", "▁")
"""How tokens spell a space: those of bytes, and those of sentencepiece."""

_LONG, _MOST = 60, 500
"""How long, and how many, the texts are that are compared."""


def new_tokens(named: Collection[str], tokenizers: Sequence[Tokenizer]) -> Iterator[str]:
    """A note for each token that is in none of the tokenizers, with the one that it was perhaps to be."""
    for token in named:
        if not any(token in tokenizer.tokens for tokenizer in tokenizers):
            meant = likely(token, tokenizers)
            hint = f"; did you mean {show(meant)}?" if meant is not None else ""
            yield f"no input has the token {show(token)}: it gets a row of its own{hint}"


def likely(token: str, tokenizers: Sequence[Tokenizer]) -> str | None:
    """The token that is probably meant: the same text as a vocabulary spells it, else an added one that looks alike."""
    for tokenizer in tokenizers:
        for space in _SPACES:
            for spelled in (token.replace(" ", space), space + token.replace(" ", space)):
                if spelled in tokenizer.tokens:
                    return spelled
    from difflib import get_close_matches  # few plans need it

    added = dict.fromkeys(text for tokenizer in tokenizers for text in tokenizer.added if len(text) < _LONG)
    found = get_close_matches(token[:_LONG], list(added)[:_MOST], n=1, cutoff=0.8)
    return found[0] if found else None
