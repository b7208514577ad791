"""Tokenizers are read as their libraries read them, and whatever is wrong with a file is said, never a traceback."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import ENGLISH, JAPANESE, add_tokens, auto, byte_bpe, spm, word_piece

from modelbuild.sources.strictjson import Malformed
from modelbuild.tokenizer import sentencepiece
from modelbuild.tokenizer.nouns import Unreadable
from modelbuild.tokenizer.read import is_tokenizer_file, read_tokenizer


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(folder):
    return read_tokenizer(files_of(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A BPE with single bytes, as Llama's: tokenizer.model and tokenizer.json."""
    folder = tmp_path_factory.mktemp("llama")
    spm(folder, ENGLISH, 360)
    return folder


@pytest.fixture(scope="module")
def piece_model(llama):
    return (llama / "tokenizer.model").read_bytes()


# --- the same as the libraries ----------------------------------------------------------------------------------------


def test_a_bpe_of_bytes_has_transformers_tokens_and_ids(tmp_path):
    byte_bpe(tmp_path, ENGLISH)
    found = read(tmp_path)
    assert found.tokens == auto(tmp_path).get_vocab()
    assert (found.kind, found.byte_level) == ("BPE", True)
    assert {token for token, flags in found.added.items() if flags["special"]} == {"<unk>", "<s>", "</s>"}


def test_added_tokens_are_tokens_with_their_flags(tmp_path):
    from tokenizers import AddedToken

    byte_bpe(tmp_path, ENGLISH)
    add_tokens(tmp_path, AddedToken("<|go|>", special=True, lstrip=True), AddedToken("plain", normalized=True))
    found = read(tmp_path)
    assert found.tokens == auto(tmp_path).get_vocab()
    assert found.added["<|go|>"] == {
        "single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": True
    }  # fmt: skip
    assert found.added["plain"]["normalized"]
    assert not found.added["plain"]["special"]


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_a_token_that_is_out_of_date_takes_no_other_ones_id(tmp_path, name):
    """Left over from before a token was renamed; tokenizer.json knows better."""
    from tokenizers import AddedToken

    byte_bpe(tmp_path, ENGLISH)
    size = add_tokens(tmp_path, AddedToken("<|now|>", special=True))
    stale = {"<|before|>": size - 1, "<|more|>": size}
    if name == "tokenizer_config.json":
        listed = {str(number): {"content": token, "special": True} for token, number in stale.items()}
        stale = json.loads((tmp_path / name).read_text()) | {"added_tokens_decoder": listed}
    (tmp_path / name).write_text(json.dumps(stale))
    found = read(tmp_path)
    assert found.by_id[size - 1] == "<|now|>"
    assert found.tokens["<|more|>"] == size
    assert "<|before|>" not in {**found.tokens, **found.added}


def test_a_sentencepiece_model_alone_is_read_as_with_its_tokenizer_json(tmp_path, llama):
    (tmp_path / "tokenizer.model").write_bytes((llama / "tokenizer.model").read_bytes())
    alone, both = read(tmp_path), read(llama)
    assert alone.tokens == both.tokens == auto(llama).get_vocab()
    assert alone.kind == both.kind == "BPE"
    assert not alone.byte_level
    assert {"<unk>", "<s>", "</s>"} <= alone.added.keys()


def test_a_unigram_model_is_read_with_and_without_tokenizer_json(tmp_path):
    spm(tmp_path, JAPANESE, 130, "unigram")
    both = read(tmp_path)
    assert both.kind == "Unigram"
    (tmp_path / "tokenizer.json").unlink()
    assert read(tmp_path).tokens == both.tokens


def test_word_pieces_are_read_from_tokenizer_json_and_from_vocab_txt(tmp_path):
    word_piece(tmp_path, ENGLISH)
    fast = read(tmp_path)
    assert fast.kind == "WordPiece"
    ordered = sorted(fast.tokens, key=fast.tokens.get)
    assert read_tokenizer({"vocab.txt": "\n".join([*ordered, ""]).encode()}).tokens == fast.tokens


def test_vocab_json_with_merges_is_a_bpe_of_bytes(tmp_path):
    byte_bpe(tmp_path, ENGLISH)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    slow = {"vocab.json": json.dumps(model["vocab"]).encode(), "merges.txt": b"#version: 0.2\na b\n"}
    found = read_tokenizer({**slow, "added_tokens.json": b'{"<x>": 400}'})
    assert (found.kind, found.byte_level) == ("BPE", True)
    assert found.tokens == {**model["vocab"], "<x>": 400}


def test_roles_make_the_tokens_of_added_tokens_json_special():
    files = {"vocab.json": b'{"a": 0}', "added_tokens.json": b'{"<pad>": 1, "word": 2, "<x>": 3}'}
    files["special_tokens_map.json"] = b'{"pad_token": {"content": "<pad>"}, "additional_special_tokens": ["<x>"]}'
    found = read_tokenizer(files)
    assert {token for token, flags in found.added.items() if flags["special"]} == {"<pad>", "<x>"}


def test_tokens_beyond_the_rows_do_not_count():
    found = read_tokenizer({"vocab.json": b'{"a": 0, "b": 1, "c": 2}'})
    assert found.within(2) == {"a": 0, "b": 1}
    assert found.within(3) is found.tokens
    assert found.by_id == {0: "a", 1: "b", 2: "c"}


def test_files_without_a_vocabulary_are_no_tokenizer():
    assert read_tokenizer({}) is None
    assert read_tokenizer({"chat_template.jinja": b"x", "tokenizer_config.json": b"{}"}) is None


def test_a_tiktoken_file_beside_tokenizer_json_is_left_aside():
    fast = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    found = read_tokenizer({"tokenizer.json": json.dumps(fast).encode(), "tokenizer.model": b"IQ== 0\nIg== 1\n"})
    assert found.spm is None
    assert found.tokens == {"a": 0}


def test_which_side_files_are_the_tokenizers():
    theirs = ("tokenizer.json", "chat_template.jinja", "qwen.tiktoken", "additional_chat_templates/tool_use.jinja")
    assert all(map(is_tokenizer_file, theirs))
    assert not any(map(is_tokenizer_file, ("LICENSE", "preprocessor_config.json", "modules.json")))


# --- files from strangers ---------------------------------------------------------------------------------------------


def fast(**model):
    return json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], **model}}).encode()


BAD = {
    "no JSON": ({"tokenizer.json": b"{"}, "is not JSON"),
    "a token twice": ({"vocab.json": b'{"a": 0, "a": 1}'}, "has the key `a` twice"),
    "no model": ({"tokenizer.json": b"{}"}, "has no model of kind"),
    "a model of another kind": ({"tokenizer.json": fast(type="Markov")}, "has no model of kind"),
    "an id that is no number": ({"tokenizer.json": fast(vocab={"a": "0"})}, "no vocabulary of tokens and ids"),
    "an id that is true": ({"tokenizer.json": fast(vocab={"a": True})}, "no vocabulary of tokens and ids"),
    "a negative id": ({"tokenizer.json": fast(vocab={"a": -1})}, "no vocabulary of tokens and ids"),
    "an id beyond all rows": ({"tokenizer.json": fast(vocab={"a": 2**31})}, "no vocabulary of tokens and ids"),
    "pieces without scores": ({"tokenizer.json": fast(type="Unigram", vocab=[["a"]])}, "pieces and scores"),
    "no pieces": ({"tokenizer.json": fast(type="Unigram", vocab=[])}, "pieces and scores"),
    "an added token without an id": (
        {"tokenizer.json": json.dumps({
            "model": {"type": "BPE", "vocab": {}}, "added_tokens": [{"content": "x"}]
        }).encode()},
        "an added token without text or id",
    ),
    "an added token with two ids": (
        {"tokenizer.json": json.dumps({
            "model": {"type": "BPE", "vocab": {"x": 1}}, "added_tokens": [{"content": "x", "id": 2}]
        }).encode()},
        "gives the token `x` the ids 1 and 2",
    ),
    "a listed token whose id is a word": (
        {"vocab.json": b'{"a": 0}', "tokenizer_config.json": b'{"added_tokens_decoder": {"x": {"content": "y"}}}'},
        "whose id is `x`",
    ),
    "a listed token without text": (
        {"vocab.json": b'{"a": 0}', "tokenizer_config.json": b'{"added_tokens_decoder": {"1": {}}}'}, "without text",
    ),
    "no sentencepiece model": ({"tokenizer.model": b"IQ== 0\n"}, "is not a sentencepiece model"),
    "words that are not UTF-8": ({"vocab.txt": b"\xff\n"}, "is not UTF-8"),
    "another tokenizer's file": ({"tekken.json": b"{}"}, "is in `tekken.json` only"),
    "tiktoken": ({"qwen.tiktoken": b""}, "is in `qwen.tiktoken` only"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_said(name):
    files, told = BAD[name]
    with pytest.raises(Unreadable, match=told):
        read_tokenizer(files)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["model", "type", "vocab", "merges", "added_tokens", "content", "id", "BPE", "0", "added_tokens_decoder"]
    ), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@given(
    JSON, st.sampled_from(["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
)
def test_any_json_is_a_tokenizer_or_unreadable(value, name):
    files = {"vocab.json": b'{"a": 0}', name: json.dumps(value).encode()}
    try:
        found = read_tokenizer(files)
    except Unreadable:
        return
    assert all(isinstance(token, str) and 0 <= number < 2**31 for token, number in found.tokens.items())


# --- sentencepiece ----------------------------------------------------------------------------------------------------


def test_pieces_are_those_that_sentencepiece_reads(piece_model):
    import sentencepiece as library

    theirs = library.SentencePieceProcessor(model_proto=piece_model)
    ours = sentencepiece.parse(piece_model)
    assert ours.kind == sentencepiece.BPE
    assert [piece.text for piece in ours.pieces] == [theirs.id_to_piece(n) for n in range(len(theirs))]
    assert [piece.score for piece in ours.pieces] == [theirs.get_score(n) for n in range(len(theirs))]
    for n, piece in enumerate(ours.pieces):
        assert (piece.type == sentencepiece.CONTROL) == theirs.is_control(n)
        assert (piece.type == sentencepiece.BYTE) == theirs.is_byte(n)
        assert (piece.type == sentencepiece.UNKNOWN) == theirs.is_unknown(n)


def test_a_model_that_is_written_is_read_as_it_was(piece_model):
    model = sentencepiece.parse(piece_model)
    written = sentencepiece.serialise(model)
    assert sentencepiece.parse(written) == model
    assert sentencepiece.serialise(sentencepiece.parse(written)) == written


def test_added_pieces_are_used_by_sentencepiece(piece_model):
    import sentencepiece as library

    model = sentencepiece.parse(piece_model)
    lowest = min(piece.score for piece in model.pieces)
    more = [sentencepiece.Piece("犬", lowest - 1), sentencepiece.Piece("猫", lowest - 2)]
    more.append(sentencepiece.Piece("猫犬", lowest - 3))
    theirs = library.SentencePieceProcessor(model_proto=sentencepiece.serialise(model.with_pieces(more)))
    assert theirs.encode("the 猫犬犬", out_type=str)[-3:] == ["▁", "猫犬", "犬"]
    before = library.SentencePieceProcessor(model_proto=piece_model)
    assert [before.encode(line) for line in ENGLISH] == [theirs.encode(line) for line in ENGLISH]


PIECE = b"\x0a\x03\x0a\x01a"

BAD_MODELS = {
    "empty": b"",
    "no pieces": b"\x12\x02\x18\x02",
    "cut short": PIECE[:-1],
    "a piece twice": PIECE * 2,
    "a piece without text": b"\x0a\x02\x18\x01",
    "text that is not UTF-8": b"\x0a\x03\x0a\x01\xff",
    "a type that there is not": b"\x0a\x05\x0a\x01a\x18\x09",
    "a score that is infinite": b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\x7f",
    "a score of another type": b"\x0a\x05\x0a\x01a\x10\x01",
    "a piece that is a number": b"\x08\x01",
    "a group": b"\x0b",
    "a number that does not end": b"\x0a" + b"\xff" * 11,
    "field 0": b"\x02\x01a",
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_what_is_no_sentencepiece_model_is_refused(name):
    with pytest.raises(Malformed):
        sentencepiece.parse(BAD_MODELS[name])


@settings(deadline=None)
@given(st.data())
def test_a_damaged_model_is_read_or_refused(piece_model, data):
    damaged = bytearray(piece_model[:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        model = sentencepiece.parse(damaged)
    except Malformed:
        return
    assert sentencepiece.parse(sentencepiece.serialise(model)) == model
