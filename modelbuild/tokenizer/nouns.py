"""What is known of a model's tokenizer: its tokens and their ids, and the files it stands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from modelbuild.tokenizer.sentencepiece import SentencePiece

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
"""How an added token is matched, where its file does not say."""


class Unreadable(Exception):
    """A tokenizer that cannot be read; the message is a fact, `hint` what may be done."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer. `kind` is that of tokenizer.json: BPE, Unigram, WordPiece or WordLevel.

    `tokens` are all tokens with their ids, `added` those that are matched before anything else, with their flags.
    `byte_level` says that tokens are made of bytes in disguise, as GPT-2's are, instead of characters.
    `fast` is tokenizer.json, `spm` tokenizer.model, `settings` tokenizer_config.json, each where there is one.
    """

    kind: str
    tokens: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes]
    byte_level: bool = False
    fast: Mapping[str, Any] | None = None
    spm: SentencePiece | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> Mapping[int, str]:
        """The token of each id; of several the one that comes first."""
        found: dict[int, str] = {}
        for token, number in self.tokens.items():
            found.setdefault(number, token)
        return found

    def within(self, rows: int) -> Mapping[str, int]:
        """The tokens that a model with so many rows has a row for."""
        if all(number < rows for number in self.tokens.values()):
            return self.tokens
        return {token: number for token, number in self.tokens.items() if number < rows}
