"""The BPE of a union: whose merges there are, and whether all of its words are reached by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.tokenizer.merges import Merge, all_splits, extend, unreached
from modelbuild.tokenizer.nouns import Tokenizer, Unreadable
from modelbuild.tokenizer.read import FAST, MERGES
from modelbuild.tokenizer.union import Vocabulary

_SPACE = {"String": " "}


@dataclass(frozen=True, slots=True)
class Joined:
    """The merges of a union. `words_first` says that a word which is a token is that token, whatever merges make of
    it; `notes` tell of tokens that are reached neither way."""

    merges: list[Merge]
    words_first: bool = False
    notes: tuple[str, ...] = ()


def join(vocabulary: Vocabulary) -> Joined:
    """The donor's merges and those of the models that add tokens."""
    donor = vocabulary.donor.tokenizer
    own = [pair for pair in merges_of(donor) if not vocabulary.lost.intersection((*pair, "".join(pair)))]
    known = {token for token in vocabulary.tokens if token not in donor.added and token not in vocabulary.added}
    merges = own
    members = {member.name: member for token, member in vocabulary.new.items() if member and token in known}
    for member in members.values():
        theirs = member.tokenizer.within(member.rows)
        new = {token for token, owner in vocabulary.new.items() if owner is member and token in known}
        joined = not _option(donor, "continuing_subword_prefix")
        merges = extend(merges, merges_of(member.tokenizer), known, theirs, new, joined)
    if _option(donor, "ignore_merges"):
        return Joined(merges)
    lost = unreached([token for token in vocabulary.new if token in known], merges)
    if _is_cut_into_words(donor):
        return Joined(merges, any(True for _ in lost))
    if not (count := sum(1 for _ in lost)):
        return Joined(merges)
    told = "new tokens are split even where they stand alone: merges of other models come first"
    note = f"{count} of {len(vocabulary.new)} {told}"
    return Joined(merges, False, (note,))


def merges_of(tokenizer: Tokenizer) -> list[Merge]:
    """The merges of a BPE tokenizer, in order. Raises Unreadable for what are none."""
    if tokenizer.fast is not None:
        found = tokenizer.fast["model"].get("merges")
        return [_pair(merge, FAST) for merge in (found if isinstance(found, list) else [None])]
    if MERGES in tokenizer.files:
        lines = tokenizer.files[MERGES].decode("utf-8", "replace").split("\n")
        return [_pair(line, MERGES) for line in lines if line and not line.startswith("#version")]
    assert tokenizer.spm is not None
    ranked = sorted(enumerate(tokenizer.spm.pieces), key=lambda entry: (-entry[1].score, entry[0]))
    return [pair for _, piece in ranked for pair in all_splits(piece.text, tokenizer.tokens)]


def _pair(merge: object, name: str) -> Merge:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2:
        left, right = parts
        if isinstance(left, str) and isinstance(right, str) and left and right:
            return left, right
    raise Unreadable(f"its `{name}` has merges that are not of two tokens")


def _option(tokenizer: Tokenizer, name: str) -> Any:
    return (tokenizer.fast or {}).get("model", {}).get(name)


def _is_cut_into_words(tokenizer: Tokenizer) -> bool:
    """Whether text is cut into words before merges are looked for."""
    fast = tokenizer.fast or {}
    return any(_cuts(cutter, fast.get("normalizer")) for cutter in _parts(fast.get("pre_tokenizer"), "pretokenizers"))


def _cuts(cutter: Mapping[str, Any], normalizer: object) -> bool:
    kind, pattern = cutter.get("type"), cutter.get("pattern")
    if kind == "Metaspace":
        return cutter.get("split") is not False
    if kind == "ByteLevel":
        return cutter.get("use_regex") is not False
    if kind == "Split" and pattern == _SPACE:
        # Gemma's: where no space is left to cut at, nothing is cut.
        return not any(part.get("pattern") == _SPACE for part in _parts(normalizer, "normalizers"))
    return kind not in ("Digits", "Punctuation")


def _parts(part: object, nested: str) -> Iterator[Mapping[str, Any]]:
    """A part of a tokenizer, or those of a sequence of them."""
    if isinstance(part, Mapping):
        below = part.get(nested)
        if part.get("type") == "Sequence" and isinstance(below, list):
            yield from (inner for entry in below for inner in _parts(entry, nested))
        else:
            yield part
