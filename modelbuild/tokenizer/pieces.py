"""The scores of a union: of a Unigram vocabulary, and of the pieces of a sentencepiece model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from modelbuild.tokenizer.nouns import Tokenizer
from modelbuild.tokenizer.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Piece, SentencePiece
from modelbuild.tokenizer.union import Member, Vocabulary

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER = -1e6
"""The score of what stands for no token: nothing chooses it."""


def scores(vocabulary: Vocabulary) -> Iterator[tuple[str, float]]:
    """Token and score of every id, in order: the donor's scores, then each new token's own model's."""
    known: dict[str, Mapping[str, float]] = {}
    for token in vocabulary.by_id:
        owner = vocabulary.new.get(token) or vocabulary.donor
        if owner.name not in known:
            known[owner.name] = _scores_of(owner.tokenizer)
        added = token in vocabulary.added or token in vocabulary.donor.tokenizer.added
        yield token, known[owner.name].get(token, 0.0 if added else _NEVER)


def _scores_of(tokenizer: Tokenizer) -> Mapping[str, float]:
    if tokenizer.fast is not None:
        return dict(reversed(tokenizer.fast["model"]["vocab"]))
    assert tokenizer.spm is not None
    return {piece.text: piece.score for piece in tokenizer.spm.pieces}


def extended(vocabulary: Vocabulary) -> tuple[SentencePiece | None, str]:
    """The donor's sentencepiece model with pieces for all further ids, or None and why it cannot have them."""
    donor = vocabulary.donor.tokenizer
    model = donor.spm
    if model is None:
        return None, "it is not a sentencepiece model"
    if (model.kind == BPE) != (donor.kind == "BPE"):
        return None, f"its kind is not that of the {donor.kind} vocabulary in tokenizer.json"
    if any(vocabulary.tokens.get(piece.text) != number for number, piece in enumerate(model.pieces)):
        return None, "its pieces have other ids than the tokens"
    normal = [token for token in vocabulary.new if token not in vocabulary.added]
    if any(_is_byte(token, vocabulary.new[token]) for token in normal):
        return None, "it was trained without single bytes"
    ranks = _ranks(vocabulary, model, normal) if model.kind == BPE else dict(scores(vocabulary))
    added = {**donor.added, **vocabulary.added}
    pieces = []
    for token in vocabulary.by_id[len(model.pieces) :]:
        if token in added:
            pieces.append(Piece(token, 0.0, CONTROL if added[token]["special"] else USER_DEFINED))
        else:
            kind = NORMAL if token in vocabulary.tokens else UNUSED
            pieces.append(Piece(token, ranks.get(token, _NEVER), kind))
    return model.with_pieces(pieces), ""


def _is_byte(token: str, owner: Member | None) -> bool:
    if owner is None or owner.tokenizer.spm is None:
        return _BYTE.fullmatch(token) is not None
    number = owner.tokenizer.tokens[token]
    pieces = owner.tokenizer.spm.pieces
    return number < len(pieces) and pieces[number].type == BYTE


def _ranks(vocabulary: Vocabulary, model: SentencePiece, normal: list[str]) -> dict[str, float]:
    """Scores of new pieces of BPE: below all of the donor's, in the order in which their own models rank them."""
    lowest = min((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    owners = {owner.name: owner for token in normal if (owner := vocabulary.new[token]) is not None}
    ordered: list[str] = []
    for owner in owners.values():
        own = {} if owner.tokenizer.spm is None else {piece.text: piece.score for piece in owner.tokenizer.spm.pieces}
        theirs = [token for token in normal if vocabulary.new[token] is owner]
        ordered += sorted(theirs, key=lambda token, own=own: -own.get(token, 0.0))  # type: ignore[misc]
    return {token: lowest - 1 - place for place, token in enumerate(ordered)}
