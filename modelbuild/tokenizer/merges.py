"""The merges of several BPE vocabularies as one list, and which tokens it reaches.

BPE starts at single characters and joins the neighbours whose merge comes first in the list, until none is left. The
first model's merges come first, as they are. So a text is split as the first model splits it, unless a merge of another
model goes on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

Merge: TypeAlias = "tuple[str, str]"


def all_splits(token: str, known: Collection[str]) -> Iterator[Merge]:
    """Every way to join two known tokens to `token`, the shortest left part first."""
    for place in range(1, len(token)):
        if token[:place] in known and token[place:] in known:
            yield token[:place], token[place:]


def extend(
    merges: Sequence[Merge],
    others: Iterable[Merge],
    known: Collection[str],
    theirs: Collection[str],
    new: Collection[str],
    joined: bool = True,
) -> list[Merge]:
    """`merges`, then those of another model, `others`, that are not among them.

    Where the first merges split a text as the other model does not, its own merges cannot go on. So each of its `new`
    tokens can also be joined of two `known` tokens of which one is not among `theirs`: that changes nothing about text
    in which only tokens of theirs occur. `joined` False says that a merge's token is not its two halves as they stand.
    """
    found = dict.fromkeys(merges)
    done: set[str] = set()
    for left, right in others:
        if left in known and right in known:
            found.setdefault((left, right))
        token = left + right
        if joined and token in new and token not in done:
            done.add(token)
            for pair in all_splits(token, known):
                if pair[0] not in theirs or pair[1] not in theirs:
                    found.setdefault(pair)
    return list(found)


def unreached(tokens: Iterable[str], merges: Sequence[Merge]) -> Iterator[str]:
    """Those of the tokens that BPE does not make of their own text, one after the other as they are found."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return (token for token in tokens if len(split(token, ranks)) > 1)


def split(text: str, ranks: dict[Merge, int]) -> list[str]:
    """The text as BPE splits it; `ranks` are the places of the merges in their list."""
    never = len(ranks)
    parts = list(text)
    pairs = [ranks.get(pair, never) for pair in pairwise(parts)]
    while pairs and (rank := min(pairs)) < never:
        place = pairs.index(rank)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del pairs[place]
        for near in (place - 1, place):
            if 0 <= near < len(pairs):
                pairs[near] = ranks.get((parts[near], parts[near + 1]), never)
    return parts
