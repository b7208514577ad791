"""The files of a tokenizer whose vocabulary is no model's own: the donor's, with tokens added.

Everything but the vocabulary stays the donor's: how text is normalised, cut into words, and put together again. The
same vocabulary gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.tokenizer.bpe import Joined, join
from modelbuild.tokenizer.nouns import Tokenizer, Unreadable
from modelbuild.tokenizer.pieces import extended, scores
from modelbuild.tokenizer.read import ADDED, FAST, MERGES, NAMED, OTHERS, SETTINGS, SPECIAL, SPM, VOCAB, WORDS
from modelbuild.tokenizer.sentencepiece import serialise
from modelbuild.tokenizer.union import Vocabulary


@dataclass(frozen=True, slots=True)
class Written:
    """A tokenizer's files as they are written, those of the donor that are left out, and what to tell of both."""

    files: Mapping[str, bytes]
    dropped: frozenset[str]
    notes: tuple[str, ...]


def write(vocabulary: Vocabulary) -> Written:
    """The files that change. Raises Unreadable where the models' vocabularies are of different kinds."""
    donor = vocabulary.donor.tokenizer
    _check_kinds(vocabulary)
    joined = join(vocabulary) if donor.kind == "BPE" else Joined([])
    made: dict[str, bytes] = {}
    notes = list(joined.notes)
    dropped = {name for name in donor.files if name in OTHERS or name.endswith(".tiktoken")}
    if donor.fast is not None:
        made[FAST] = _long_text(_fast(vocabulary, joined))
    made |= _settings(vocabulary, joined)
    before = json.loads(donor.files.get(ADDED, b"{}"))
    listed = [token for token in before if token not in vocabulary.lost] + list(vocabulary.added)
    if (before or donor.fast is None) and listed:
        made[ADDED] = _text(_in_order({token: vocabulary.tokens[token] for token in listed}))
    made |= _slow(vocabulary, joined, dropped, notes)
    if dropped:
        notes.append(f"{', '.join(f'`{name}`' for name in sorted(dropped))} cannot say the new vocabulary: left out")
    return Written(made, frozenset(dropped), tuple(notes))


def _check_kinds(vocabulary: Vocabulary) -> None:
    """New tokens that are not matched as a whole must be of the donor's kind."""
    donor = vocabulary.donor
    for token, member in vocabulary.new.items():
        if member is None or member is donor or token in vocabulary.added:
            continue
        kinds = [_kind(found.tokenizer) for found in (donor, member)]
        if kinds[0] != kinds[1]:
            hint = 'choose one of them: tokenizer = "base" or the name of an input'
            raise Unreadable(f"`{donor.name}` has {kinds[0]} for a vocabulary, `{member.name}` {kinds[1]}", hint)


def _kind(tokenizer: Tokenizer) -> str:
    if tokenizer.kind == "BPE":
        return "a BPE of bytes" if tokenizer.byte_level else "a BPE of characters"
    return f"a {tokenizer.kind}"


def _added(vocabulary: Vocabulary) -> dict[str, Mapping[str, Any]]:
    """The flags of all added tokens of the output, the donor's before the new ones."""
    own = vocabulary.donor.tokenizer.added
    return {token: flags for token, flags in own.items() if token not in vocabulary.lost} | dict(vocabulary.added)


def _fast(vocabulary: Vocabulary, joined: Joined) -> dict[str, Any]:
    donor = vocabulary.donor.tokenizer
    fast = dict(donor.fast or {})
    model = fast["model"] = dict(fast["model"])
    if donor.kind == "Unigram":
        model["vocab"] = [[token, score] for token, score in scores(vocabulary)]
    else:
        model["vocab"] = _in_order(vocabulary.tokens)
    if donor.kind == "BPE":
        spaced = any(" " in part for pair in joined.merges for part in pair)
        plain = spaced or not all(isinstance(merge, str) for merge in model.get("merges", ()))
        model["merges"] = [list(pair) if plain else " ".join(pair) for pair in joined.merges]
        if joined.words_first:
            model["ignore_merges"] = True
    added = sorted(_added(vocabulary).items(), key=lambda pair: vocabulary.tokens[pair[0]])
    fast["added_tokens"] = [{"id": vocabulary.tokens[token], "content": token, **flags} for token, flags in added]
    return fast


def _settings(vocabulary: Vocabulary, joined: Joined) -> dict[str, bytes]:
    """tokenizer_config.json and special_tokens_map.json, where they change."""
    donor = vocabulary.donor.tokenizer
    settings = _without_roles(donor.settings, vocabulary)
    if "added_tokens_decoder" in settings or (donor.fast is None and vocabulary.added):
        listed = {vocabulary.tokens[token]: {"content": token, **flags} for token, flags in _added(vocabulary).items()}
        settings["added_tokens_decoder"] = {str(number): listed[number] for number in sorted(listed)}
    if joined.words_first and donor.fast is not None:
        # Classes of their own build the model anew, from its vocabulary and merges alone.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    found = {SETTINGS: _text(settings)} if settings != donor.settings else {}
    if SPECIAL in donor.files:
        before = json.loads(donor.files[SPECIAL])
        after = _without_roles(before, vocabulary)
        if after != before:
            found[SPECIAL] = _text(after)
    return found


def _without_roles(table: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The table without the roles (`pad_token`) of tokens that the output has not."""

    def is_lost(token: object) -> bool:
        content = token.get("content") if isinstance(token, dict) else token
        return isinstance(content, str) and content in vocabulary.lost and content not in vocabulary.tokens

    return {name: value for name, value in table.items() if not (name in NAMED and is_lost(value))}


def _slow(vocabulary: Vocabulary, joined: Joined, dropped: set[str], notes: list[str]) -> dict[str, bytes]:
    """The files that say a vocabulary without tokenizer.json; those that cannot are `dropped`, if it is there."""
    donor = vocabulary.donor.tokenizer
    made: dict[str, bytes] = {}
    if VOCAB in donor.files:
        made[VOCAB] = _long_text(_in_order(vocabulary.tokens))
    if MERGES in donor.files:
        if any(" " in part for pair in joined.merges for part in pair):
            dropped |= {VOCAB, MERGES} & donor.files.keys()
            made.pop(VOCAB, None)
        else:
            lines = ["#version: 0.2", *(" ".join(pair) for pair in joined.merges)]
            made[MERGES] = ("\n".join(lines) + "\n").encode()
    if WORDS in donor.files:
        made[WORDS] = ("\n".join(vocabulary.by_id) + "\n").encode()
    plain = vocabulary.new.keys() - vocabulary.added.keys()
    if SPM in donor.files and (donor.fast is None or donor.spm is None or plain):
        model, reason = extended(vocabulary)
        if model is not None:
            made[SPM] = serialise(model)
        else:
            dropped.add(SPM)
            notes.append(f"`{SPM}`: {reason}")
    if donor.fast is None and dropped:
        raise Unreadable(
            f"`{vocabulary.donor.name}` has no tokenizer.json, and its other files cannot say the new vocabulary",
            "load it with transformers and save it: that writes one",
        )
    return made


def _in_order(tokens: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(tokens.items(), key=lambda pair: pair[1]))


def _text(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _long_text(value: object) -> bytes:
    """A vocabulary on one line: indented, that would take longer than all the rest."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
