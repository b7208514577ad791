"""The vocabulary of a merge: one model's tokens, or those of all, ids and all. Nothing here depends on any order but
that of the models and of their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from modelbuild.tokenizer.nouns import FLAGS, Tokenizer


@dataclass(frozen=True, slots=True)
class Member:
    """A model that takes part: its name, its tokenizer, and how many rows it has for tokens."""

    name: str
    tokenizer: Tokenizer
    rows: int


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a merge by id, and where they go beyond `donor`'s, whose files are the start of the merge's.

    `new` names for each token that the donor has not the model it comes from, None for one that no model has, in the
    order of ids; `lost` are tokens of the donor for which it has no row. `added` are flags of new added tokens.
    """

    donor: Member
    tokens: Mapping[str, int]
    new: Mapping[str, Member | None] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_donors(self) -> bool:
        """Whether the donor's files say it all as they are."""
        return not self.new and not self.lost

    @property
    def size(self) -> int:
        """One more than the greatest id."""
        return max(self.tokens.values(), default=-1) + 1

    @cached_property
    def by_id(self) -> tuple[str, ...]:
        """The tokens in the order of their ids; what stands for no token gets a name that none has."""
        found = [""] * self.size
        for token, number in self.tokens.items():
            found[number] = found[number] or token
        return tuple(token or self._filler(number) for number, token in enumerate(found))

    def _filler(self, number: int) -> str:
        name = f"<unused row {number}>"
        while name in self.tokens:
            name = f"<{name}>"
        return name


def as_it_is(donor: Member, named: Iterable[str], others: Sequence[Member]) -> Vocabulary:
    """The donor's vocabulary, and `named` tokens that it has not; flags are those of the first model that adds them."""
    return _extend(donor, [(token, None) for token in named], others, strip=False)


def union(donor: Member, others: Sequence[Member], named: Iterable[str]) -> Vocabulary:
    """The donor's vocabulary with its ids, then the others' tokens in the order of `others` and their ids, then `named`
    tokens that no model has. Tokens for which a model has no row do not count as its own."""
    wanted: list[tuple[str, Member | None]] = []
    for member in others:
        own = member.tokenizer.within(member.rows)
        if own is not donor.tokenizer.tokens:
            wanted += [(token, member) for token, _ in sorted(own.items(), key=lambda pair: pair[1])]
    return _extend(donor, [*wanted, *((token, None) for token in named)], others, strip=True)


def _extend(
    donor: Member, wanted: Iterable[tuple[str, Member | None]], others: Sequence[Member], strip: bool
) -> Vocabulary:
    own = donor.tokenizer.within(donor.rows)
    lost = frozenset(donor.tokenizer.tokens.keys() - own.keys()) if strip else frozenset[str]()
    tokens = dict(own if strip else donor.tokenizer.tokens)
    new: dict[str, Member | None] = {}
    end = max(tokens.values(), default=-1) + 1
    for token, member in wanted:
        if token not in tokens:
            tokens[token] = end
            new[token] = member
            end += 1
    added = {token: flags for token, member in new.items() if (flags := _flags(token, member, others)) is not None}
    return Vocabulary(donor, tokens, new, lost, added)


def _flags(token: str, member: Member | None, others: Sequence[Member]) -> Mapping[str, Any] | None:
    """How a new token is matched, where it is an added one: as its model says; one that no model has is no special."""
    if member is not None:
        return member.tokenizer.added.get(token)
    found = (other.tokenizer.added[token] for other in others if token in other.tokenizer.added)
    return next(found, {**FLAGS, "special": False, "normalized": True})
