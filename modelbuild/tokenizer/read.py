"""Reads a tokenizer from its files: tokenizer.json, else vocab.json, vocab.txt or tokenizer.model, all untrusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelbuild.sources.strictjson import Malformed, parse_object, show
from modelbuild.tokenizer import sentencepiece
from modelbuild.tokenizer.nouns import FLAGS, Tokenizer, Unreadable

FAST, SETTINGS, SPECIAL, ADDED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip
SPM, VOCAB, MERGES, WORDS = "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"

OTHERS = frozenset({
    "bpe.codes", "normalizer.json", "sentencepiece.bpe.model", "sentencepiece.model", "source.spm", "spiece.model",
    "spm.model", "target.spm", "tekken.json", "tokenizer.model.v3", "vocab.bpe",
})  # fmt: skip
"""Files of tokenizers that are copied, and not read."""
READ = frozenset({FAST, SETTINGS, SPECIAL, ADDED, SPM, VOCAB, MERGES, WORDS})
"""Files of which a vocabulary is read; the others need only be named."""
SAY_TOKENS = READ - {SPECIAL, MERGES}
"""Files that say which tokens there are, and their ids."""
TEMPLATES_IN = frozenset({TEMPLATE, SETTINGS, OLD_TEMPLATE})
"""Files that a chat template may stand in."""
FILES = READ | TEMPLATES_IN | OTHERS

LIMIT = 200_000_000
"""Bytes that a file of a tokenizer may have."""

GREATEST_ID = 2**31 - 1
KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def is_tokenizer_file(name: str) -> bool:
    """Whether a side file is part of the tokenizer: its vocabulary, settings or chat templates."""
    return name in FILES or name.endswith(".tiktoken") or name.startswith("additional_chat_templates/")


def read_tokenizer(files: Mapping[str, bytes]) -> Tokenizer | None:
    """The tokenizer in these files; None where none of them holds a vocabulary. Raises Unreadable."""
    settings = _object(files, SETTINGS)
    added = _named(_object(files, ADDED), settings, _object(files, SPECIAL)) | dict(_listed(settings))
    if FAST in files:
        return _fast(files, settings, added)
    if VOCAB in files:
        tokens = _ids(_object(files, VOCAB), VOCAB)
        return _plain("BPE" if MERGES in files else "WordLevel", tokens, files, settings, added, MERGES in files)
    if WORDS in files:
        return _plain("WordPiece", _words(files[WORDS]), files, settings, added)
    if SPM in files:
        model = _spm(files)
        assert model is not None
        tokens = {piece.text: number for number, piece in enumerate(model.pieces)}
        kinds = {sentencepiece.UNIGRAM: "Unigram", sentencepiece.BPE: "BPE"}
        if model.kind not in kinds:
            raise Unreadable(f"its `{SPM}` is neither of kind BPE nor unigram")
        return _plain(kinds[model.kind], tokens, files, settings, _roles(model) | added)
    if other := [name for name in files if name in OTHERS or name.endswith(".tiktoken")]:
        raise Unreadable(f"its tokenizer is in {show(other[0])} only", "save it with transformers, as tokenizer.json")
    return None


def role_of(tokenizer: Tokenizer, role: str) -> str | None:
    """The token that has a role (`eos_token`) in a tokenizer; None where none has."""
    special = _object(tokenizer.files, SPECIAL)
    return _content(tokenizer.settings.get(role)) or _content(special.get(role))


def _fast(files: Mapping[str, bytes], settings: Mapping[str, Any], slow: Mapping[str, Any]) -> Tokenizer:
    fast = _object(files, FAST)
    model = fast.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in KINDS:
        raise Unreadable(f"its `{FAST}` has no model of kind {', '.join(KINDS)}")
    kind = model.get("type", "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "")
    tokens = _pieces(model.get("vocab")) if kind == "Unigram" else _ids(model.get("vocab"), FAST)
    added = dict(_entries(fast.get("added_tokens")))
    # Where the other files contradict tokenizer.json they are out of date, and transformers goes by this one too.
    has = {*tokens.values(), *(entry["id"] for entry in added.values())}
    slow = {content: entry for content, entry in slow.items() if content in tokens or entry["id"] not in has}
    for content, entry in {**slow, **added}.items():
        number = tokens.setdefault(content, entry["id"])
        if content in added and number != entry["id"]:
            raise Unreadable(f"its `{FAST}` gives the token {show(content)} the ids {number} and {entry['id']}")
    flags = {content: _flags(entry) for content, entry in {**slow, **added}.items()}
    return Tokenizer(kind, tokens, flags, files, _is_byte_level(fast), fast, _spm(files), settings)


def _plain(
    kind: str,
    tokens: dict[str, int],
    files: Mapping[str, bytes],
    settings: Mapping[str, Any],
    added: Mapping[str, Any],
    byte_level: bool = False,
) -> Tokenizer:
    for content, entry in added.items():
        tokens.setdefault(content, entry["id"])
    flags = {content: _flags(entry) for content, entry in added.items()}
    return Tokenizer(kind, tokens, flags, files, byte_level, None, _spm(files), settings)


def _spm(files: Mapping[str, bytes]) -> sentencepiece.SentencePiece | None:
    """tokenizer.model; None where there is none, or it is not sentencepiece's beside a tokenizer.json."""
    if SPM not in files:
        return None
    try:
        return sentencepiece.parse(files[SPM])
    except Malformed as error:
        if FAST in files:
            # tiktoken's vocabularies go by the same name.
            return None
        raise Unreadable(f"its `{SPM}` {error}", "save it with transformers, as tokenizer.json") from None


def _roles(model: sentencepiece.SentencePiece) -> dict[str, Mapping[str, Any]]:
    """The pieces that are matched before anything else: those that no text becomes, and those that the user defined."""
    special = (sentencepiece.UNKNOWN, sentencepiece.CONTROL)
    return {
        piece.text: {"content": piece.text, "id": number, "special": piece.type in special}
        for number, piece in enumerate(model.pieces)
        if piece.type in (*special, sentencepiece.USER_DEFINED)
    }


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    if name not in files:
        return {}
    try:
        return parse_object(files[name])
    except Malformed as error:
        raise Unreadable(f"its `{name}` {error}") from None


def _ids(vocab: object, name: str) -> dict[str, int]:
    if not isinstance(vocab, dict) or not all(_is_id(number) for number in vocab.values()):
        raise Unreadable(f"its `{name}` has no vocabulary of tokens and ids")
    return dict(vocab)


def _pieces(vocab: object) -> dict[str, int]:
    entries = vocab if isinstance(vocab, list) else []
    good = [entry for entry in entries if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)]
    if not entries or len(good) != len(entries) or not all(_is_finite(score) for _, score in good):
        raise Unreadable(f"its `{FAST}` has no vocabulary of pieces and scores")
    return {piece: number for number, (piece, _) in reversed(list(enumerate(good)))}


def _words(data: bytes) -> dict[str, int]:
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise Unreadable(f"its `{WORDS}` is not UTF-8") from None
    words = lines[:-1] if lines[-1] == "" else lines
    return {word.rstrip("\r"): number for number, word in enumerate(words)}


def _entries(added: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The added tokens of tokenizer.json, by their text."""
    for entry in added if isinstance(added, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not _is_id(entry.get("id")):
            raise Unreadable(f"its `{FAST}` has an added token without text or id")
        yield entry["content"], entry


def _listed(settings: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The added tokens of tokenizer_config.json, by their text."""
    listed = settings.get("added_tokens_decoder")
    for number, entry in listed.items() if isinstance(listed, dict) else ():
        if not (number.isascii() and number.isdecimal() and len(number) <= 10 and _is_id(int(number))):
            raise Unreadable(f"its `{SETTINGS}` has an added token whose id is {show(number)}")
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise Unreadable(f"its `{SETTINGS}` has an added token without text")
        yield entry["content"], {**entry, "id": int(number)}


def _named(
    added: Mapping[str, Any], settings: Mapping[str, Any], special: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """The tokens of added_tokens.json; those that have a role are special."""
    roles = {_content(table.get(name)) for table in (settings, special) for name in NAMED}
    extra = special.get("additional_special_tokens")
    roles |= {_content(token) for token in extra} if isinstance(extra, list) else set()
    return {
        token: {"content": token, "id": number, "special": token in roles}
        for token, number in _ids(dict(added), ADDED).items()
    }


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {name: bool(entry.get(name, default)) for name, default in FLAGS.items()}


def _is_byte_level(fast: Mapping[str, Any]) -> bool:
    parts = [fast.get("pre_tokenizer"), fast.get("decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get("type") == "ByteLevel":
                return True
            for nested in ("pretokenizers", "decoders"):
                parts += part[nested] if isinstance(part.get(nested), list) else []
    return False


def _is_id(number: object) -> bool:
    return type(number) is int and 0 <= number <= GREATEST_ID


def _is_finite(score: object) -> bool:
    return isinstance(score, (int, float)) and not isinstance(score, bool) and score - score == 0
