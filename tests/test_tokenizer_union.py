"""The union of vocabularies: whose ids tokens have, and what the written tokenizer makes of text in transformers."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import (
    ENGLISH,
    GERMAN,
    JAPANESE,
    add_tokens,
    auto,
    byte_bpe,
    save_fast,
    some,
    spm,
    tokens,
    word_piece,
    words_of,
)

from modelbuild.tokenizer.merges import all_splits, extend, split, unreached
from modelbuild.tokenizer.nouns import Tokenizer, Unreadable
from modelbuild.tokenizer.read import read_tokenizer
from modelbuild.tokenizer.sentencepiece import CONTROL, USER_DEFINED, parse
from modelbuild.tokenizer.union import Member, as_it_is, union
from modelbuild.tokenizer.write import write


def member(folder, rows=None):
    """A tokenizer that was saved, as a member with as many rows as it has tokens."""
    found = read_tokenizer({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    return Member(folder.name, found, rows or max(found.tokens.values()) + 1)


def written(vocabulary, folder):
    """The files of a union in a folder: those of the donor with what changes."""
    made = write(vocabulary)
    folder.mkdir()
    for name, data in {**vocabulary.donor.tokenizer.files, **made.files}.items():
        if name not in made.dropped:
            (folder / name).write_bytes(data)
    return made


def joined(tmp_path, *folders, named=()):
    """The union of saved tokenizers, written and loaded by transformers."""
    members = [member(folder) for folder in folders]
    vocabulary = union(members[0], members[1:], named)
    written(vocabulary, tmp_path / "union")
    return vocabulary, auto(tmp_path / "union")


def plain(ids, **more):
    return Tokenizer("BPE", ids, {}, {}, **more)


def trained(folder, make, *args, **options):
    make(folder, *args, **options)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every kind of tokenizer, of three languages, each trained once."""
    root = tmp_path_factory.mktemp("made")
    for language, corpus, size in (("en", ENGLISH, 360), ("de", GERMAN, 360), ("ja", JAPANESE, 440)):
        byte_bpe(root / f"bytes-{language}", corpus, 340)
        spm(root / f"llama-{language}", corpus, size)
        spm(root / f"unigram-{language}", corpus, 130, "unigram")
    word_piece(root / "words-en", ENGLISH)
    word_piece(root / "words-de", GERMAN)
    return root


# --- which tokens, and their ids --------------------------------------------------------------------------------------

VOCABULARY = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 20), max_size=8)


@given(VOCABULARY, VOCABULARY, VOCABULARY)
def test_the_donor_keeps_its_ids_and_the_others_follow_in_their_order(one, two, three):
    donor, *others = [Member(name, plain(ids), 21) for name, ids in zip("abc", (one, two, three), strict=True)]
    found = union(donor, others, ())
    assert found.tokens.items() >= one.items()
    end = max(one.values(), default=-1) + 1
    new = [token for ids in (two, three) for token in sorted(ids, key=ids.get) if token not in one]
    assert list(found.new) == list(dict.fromkeys(new))
    assert [found.tokens[token] for token in found.new] == list(range(end, end + len(found.new)))
    assert found.is_donors == (not new)
    assert found.size == end + len(found.new)


@given(VOCABULARY, VOCABULARY, st.integers(1, 21), st.integers(1, 21))
def test_tokens_without_a_row_do_not_count(one, two, rows, others_rows):
    found = union(Member("a", plain(one), rows), [Member("b", plain(two), others_rows)], ())
    own = {token: number for token, number in one.items() if number < rows}
    assert found.tokens.keys() == own.keys() | {token for token, number in two.items() if number < others_rows}
    assert found.lost == one.keys() - own.keys()


def test_named_tokens_come_last_and_are_no_specials():
    found = union(Member("a", plain({"x": 0}), 1), [Member("b", plain({"y": 0}), 1)], ["y", "<new>"])
    assert found.tokens == {"x": 0, "y": 1, "<new>": 2}
    assert found.new["<new>"] is None
    assert not found.added["<new>"]["special"]


def test_a_named_token_of_another_model_is_matched_as_that_model_matches_it():
    flags = {"special": True, "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    other = Member("b", Tokenizer("BPE", {"<t>": 0}, {"<t>": flags}, {}), 1)
    found = as_it_is(Member("a", plain({"x": 0}), 1), ["<t>"], [other])
    assert found.tokens == {"x": 0, "<t>": 1}
    assert found.added == {"<t>": flags}


def test_ids_without_a_token_get_a_name_that_none_has():
    found = union(Member("a", plain({"x": 2, "<unused row 0>": 1}), 3), [], ())
    assert found.by_id == ("<<unused row 0>>", "<unused row 0>", "x")


# --- merges -----------------------------------------------------------------------------------------------------------


def test_bpe_joins_the_neighbours_whose_merge_comes_first():
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2}
    assert split("abcab", ranks) == ["abc", "ab"]
    assert split("", ranks) == []


def test_all_splits_are_of_two_known_tokens():
    assert list(all_splits("abc", {"a", "ab", "bc", "c"})) == [("a", "bc"), ("ab", "c")]


def test_the_first_models_merges_come_first_and_are_never_moved():
    merges = [("a", "b"), ("c", "d")]
    others = [("b", "c"), ("a", "b"), ("bc", "d")]
    known = {"a", "b", "c", "d", "ab", "cd", "bc", "bcd"}
    made = extend(merges, others, known, {"a", "b", "c", "d", "bc", "bcd", "ab"}, {"bc", "bcd"})
    assert made[:2] == merges
    assert [pair for pair in made if pair in others] == [("a", "b"), ("b", "c"), ("bc", "d")]


def test_a_new_token_is_reached_across_the_other_models_merges():
    """The first model always joins c and d, so b·cd must be a way to bcd; where there is no cd, nothing changes."""
    known, theirs, new = {"b", "c", "d", "cd", "bc", "bcd"}, {"b", "c", "d", "bc", "bcd"}, {"bc", "bcd"}
    made = extend([("c", "d")], [("b", "c"), ("bc", "d")], known, theirs, new)
    assert made == [("c", "d"), ("b", "c"), ("bc", "d"), ("b", "cd")]
    assert list(unreached(["bcd", "bc"], made)) == []
    assert list(unreached(["bcd"], made[:3])) == ["bcd"]


def bpe(alphabet, seed):
    """A random vocabulary and its merges over an alphabet."""
    import random

    rng = random.Random(seed)
    known, merges = list(alphabet), []
    for _ in range(8):
        pair = (rng.choice(known), rng.choice(known))
        if pair not in merges and "".join(pair) not in known:
            merges.append(pair)
            known.append("".join(pair))
    return known, merges


def union_of(one, two, seeds):
    (known, merges), (others, theirs) = bpe(one, seeds[0]), bpe(two, seeds[1])
    new = [token for token in others if token not in known]
    return known, merges, theirs, new, extend(merges, theirs, {*known, *others}, set(others), new)


SEEDS = st.tuples(st.integers(0, 999), st.integers(0, 999))


@given(st.text("abcxyz", max_size=12), SEEDS)
def test_models_of_different_scripts_split_their_own_text_as_before(text, seeds):
    _, merges, theirs, _, made = union_of("abc", "xyz", seeds)
    ranks, mine, other = ({pair: i for i, pair in enumerate(m)} for m in (made, merges, theirs))
    own = "".join(char for char in text if char in "abc")
    foreign = "".join(char for char in text if char in "xyz")
    assert split(own, ranks) == split(own, mine)
    assert split(foreign, ranks) == split(foreign, other)


@given(st.text("abc", max_size=10), SEEDS)
def test_the_first_models_split_is_only_ever_joined_further(text, seeds):
    _, merges, _, _, made = union_of("abc", "abc", seeds)
    ranks, mine = ({pair: i for i, pair in enumerate(m)} for m in (made, merges))
    parts = iter(split(text, mine))
    for token in split(text, ranks):
        built = ""
        while built != token:
            built += next(parts)
            assert token.startswith(built)


# --- as transformers reads it -----------------------------------------------------------------------------------------

KINDS = ("bytes", "llama", "unigram")


def texts_of(tokenizer):
    """The text of every token that is text."""
    special = {*tokenizer.all_special_tokens, *(t for t in tokenizer.get_vocab() if t.startswith("<0x"))}
    named = sorted((number, token) for token, number in tokenizer.get_vocab().items() if token not in special)
    return [text for _, token in named if (text := tokenizer.convert_tokens_to_string([token])) and "�" not in text]


@pytest.mark.parametrize("kind", KINDS)
def test_two_scripts_are_encoded_as_each_model_did(tmp_path, made, kind):
    english, japanese = made / f"{kind}-en", made / f"{kind}-ja"
    vocabulary, both = joined(tmp_path, english, japanese)
    assert both.get_vocab() == vocabulary.tokens
    assert len(vocabulary.new) > 20
    for folder, corpus in ((english, ENGLISH), (japanese, JAPANESE)):
        own = auto(folder)
        for text in [*corpus, *some(texts_of(own), 60)]:
            assert tokens(both, text) == tokens(own, text)
            assert both.decode(both(text)["input_ids"], skip_special_tokens=True).strip() == text.strip()
    mixed = "the dog reads 日本語の文章 in the garden"
    assert both.decode(both(mixed)["input_ids"], skip_special_tokens=True).strip() == mixed


@pytest.mark.parametrize("kind", KINDS)
def test_the_donors_ids_are_those_it_had(tmp_path, made, kind):
    _, both = joined(tmp_path, made / f"{kind}-en", made / f"{kind}-ja")
    assert both.get_vocab().items() >= auto(made / f"{kind}-en").get_vocab().items()
    for name in ("bos_token", "eos_token", "unk_token"):
        assert getattr(both, f"{name}_id") == getattr(auto(made / f"{kind}-en"), f"{name}_id")


def test_words_of_either_vocabulary_are_one_token_where_text_is_cut_into_words(tmp_path, made):
    """Two languages with the same letters: the merges of both cannot all come first, but whole words do."""
    vocabulary, both = joined(tmp_path, made / "bytes-en", made / "bytes-de")
    for folder in (made / "bytes-en", made / "bytes-de"):
        own = auto(folder)
        for text in texts_of(own):
            if len(tokens(own, text)) == 1:
                assert tokens(both, text) == tokens(own, text)
    assert json.loads((tmp_path / "union" / "tokenizer.json").read_text())["model"]["ignore_merges"] is True
    assert vocabulary.new


def test_words_are_tokens_whatever_class_the_donor_names(tmp_path, made):
    """transformers' GPT2Tokenizer takes vocabulary and merges from tokenizer.json, and no more."""
    donor = tmp_path / "donor"
    donor.mkdir()
    for path in (made / "bytes-en").iterdir():
        (donor / path.name).write_bytes(path.read_bytes())
    config = json.loads((donor / "tokenizer_config.json").read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    (donor / "tokenizer_config.json").write_text(json.dumps(config))
    _, both = joined(tmp_path, donor, made / "bytes-de")
    own = auto(made / "bytes-de")
    words = [text for text in texts_of(own) if len(tokens(own, text)) == 1]
    assert all(tokens(both, text) == tokens(own, text) for text in words)
    assert set(both("the dog")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("kind", ["llama", "unigram", "words"])
def test_tokens_of_the_donor_stay_one_token(tmp_path, made, kind):
    _, both = joined(tmp_path, made / f"{kind}-en", made / f"{kind}-de")
    own = auto(made / f"{kind}-en")
    for text in texts_of(own):
        if len(tokens(own, text)) == 1:
            assert tokens(both, text) == tokens(own, text)


def test_tokens_that_merges_of_others_split_are_counted(tmp_path, made):
    members = [member(made / f"llama-{language}") for language in ("en", "de")]
    vocabulary = union(members[0], members[1:], ())
    (note,) = written(vocabulary, tmp_path / "union").notes
    both, own = auto(tmp_path / "union"), auto(made / "llama-de")
    merges = [
        tuple(pair) for pair in json.loads((tmp_path / "union" / "tokenizer.json").read_text())["model"]["merges"]
    ]
    known = [token for token in vocabulary.new if token not in vocabulary.added]
    lost = list(unreached(known, merges))
    assert note.startswith(f"{len(lost)} of {len(vocabulary.new)} new tokens")
    assert lost
    words = [text for text in texts_of(own) if len(tokens(own, text)) == 1]
    split_now = [text for text in words if tokens(both, text) != tokens(own, text)]
    assert {tokens(own, text)[0] for text in split_now} <= set(lost)


SPACE = {"String": " "}
GEMMA = {"type": "Split", "pattern": SPACE, "behavior": "MergedWithPrevious", "invert": False}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}


@pytest.mark.parametrize(
    ("normalizer", "cutter", "cut"),
    [
        ({"type": "Replace", "pattern": SPACE, "content": "▁"}, GEMMA, False),
        ({"type": "NFC"}, GEMMA, True),
        (None, METASPACE, True),
        (None, {**METASPACE, "split": False}, False),
        (None, {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]}, False),
        (None, {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "Whitespace"}]}, True),
        (None, {"type": "ByteLevel", "use_regex": False}, False),
        (None, None, False),
    ],
)
def test_words_come_first_only_where_text_is_cut_into_words(made, normalizer, cutter, cut):
    """Gemma's tokenizer cuts at spaces once there are none: its text is one word."""
    donor, other = member(made / "llama-en"), member(made / "llama-de")
    fast = {**donor.tokenizer.fast, "normalizer": normalizer, "pre_tokenizer": cutter}
    donor = replace(donor, tokenizer=replace(donor.tokenizer, fast=fast))
    found = write(union(donor, [other], ()))
    assert bool(json.loads(found.files["tokenizer.json"])["model"].get("ignore_merges")) == cut
    assert any("new tokens are split" in note for note in found.notes) == (not cut)


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_words_that_are_known_to_neither_come_back_as_they_were(tmp_path, made, kind):
    _, both = joined(tmp_path, made / f"{kind}-en", made / f"{kind}-de")
    text = "zebra Ünïcødé 12345 犬 🦊"
    assert both.decode(both(text)["input_ids"], skip_special_tokens=True).strip() == text


# --- special tokens ---------------------------------------------------------------------------------------------------


@pytest.fixture
def chatty(tmp_path, made):
    """The German vocabulary with tokens of a chat format and one plain added token."""
    from tokenizers import AddedToken

    folder = tmp_path / "chatty"
    folder.mkdir()
    for path in (made / "llama-de").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    add_tokens(folder, AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True), "Donau")
    return folder


def test_special_tokens_of_all_models_are_special_tokens_of_the_union(tmp_path, made, chatty):
    vocabulary, both = joined(tmp_path, made / "llama-en", chatty)
    assert tokens(both, "<|im_start|>the dog<|im_end|>")[0::1][:1] == ["<|im_start|>"]
    assert both.decode(both("<|im_start|>dog")["input_ids"], skip_special_tokens=True).strip() == "dog"
    assert "Donau" in tokens(both, "the Donau")
    assert both.get_vocab() == vocabulary.tokens


def test_only_new_added_tokens_leave_the_donors_words_as_they_are(tmp_path, made, chatty):
    """Whatever the kinds of the two vocabularies: what is matched as a whole fits any."""
    donor, other = member(made / "bytes-de"), member(chatty)
    vocabulary = as_it_is(donor, ["<|im_start|>", "<|im_end|>"], [other])
    written(vocabulary, tmp_path / "union")
    both, own = auto(tmp_path / "union"), auto(made / "bytes-de")
    assert both.get_vocab() == {**own.get_vocab(), "<|im_start|>": 340, "<|im_end|>": 341}
    assert all(tokens(both, line) == tokens(own, line) for line in GERMAN)
    assert both("<|im_end|>")["input_ids"][-1] == 341


def test_the_tokenizer_model_of_a_union_is_what_its_tokenizer_json_is(tmp_path, made, chatty):
    import sentencepiece

    vocabulary, both = joined(tmp_path, made / "llama-en", chatty)
    data = (tmp_path / "union" / "tokenizer.model").read_bytes()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert {theirs.id_to_piece(n): n for n in range(len(theirs))} == vocabulary.tokens
    pieces = parse(data).pieces
    assert pieces[vocabulary.tokens["<|im_start|>"]].type == CONTROL
    assert pieces[vocabulary.tokens["Donau"]].type == USER_DEFINED
    own = auto(made / "llama-en")
    exact = [line for line in ENGLISH if tokens(both, line) == tokens(own, line)]
    assert exact
    for line in exact:
        assert theirs.encode(line, out_type=str) == tokens(both, line)


def test_japanese_and_english_are_the_same_in_both_files(tmp_path, made):
    import sentencepiece

    _, both = joined(tmp_path, made / "llama-en", made / "llama-ja")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "union" / "tokenizer.model"))
    for line in [*ENGLISH, *JAPANESE]:
        assert theirs.encode(line, out_type=str) == tokens(both, line)


@pytest.mark.parametrize("which", ["donor", "other", "both"])
def test_a_model_that_has_tokenizer_model_alone_takes_part(tmp_path, made, which):
    folders = []
    for name, chosen in (("llama-en", "donor"), ("llama-ja", "other")):
        folder = tmp_path / name
        folder.mkdir()
        for path in (made / name).iterdir():
            if path.name != "tokenizer.json" or which not in (chosen, "both"):
                (folder / path.name).write_bytes(path.read_bytes())
        folders.append(folder)
    vocabulary, both = joined(tmp_path, *folders)
    assert both.get_vocab() == vocabulary.tokens
    for name, corpus in (("llama-en", ENGLISH), ("llama-ja", JAPANESE)):
        own = auto(made / name)
        assert all(tokens(both, line) == tokens(own, line) for line in corpus)


def test_a_role_whose_token_has_no_row_is_left_out(tmp_path, made):
    folder = tmp_path / "padded"
    folder.mkdir()
    for path in (made / "bytes-en").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    add_tokens(folder, "<pad>")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>", "eos_token": "</s>"}))
    vocabulary = union(member(folder, 340), [member(made / "bytes-ja")], ())
    assert vocabulary.lost == {"<pad>"}
    written(vocabulary, tmp_path / "union")
    both = auto(tmp_path / "union")
    assert both.pad_token is None
    assert both.get_vocab() == vocabulary.tokens
    assert json.loads((tmp_path / "union" / "special_tokens_map.json").read_text()) == {"eos_token": "</s>"}


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_same_union_is_the_same_bytes(made):
    one, two = (union(member(made / "llama-en"), [member(made / "llama-ja")], ()) for _ in range(2))
    assert write(one).files == write(two).files


def test_slow_files_say_the_same_vocabulary(tmp_path, made):
    import transformers

    donor = tmp_path / "donor"
    donor.mkdir()
    for path in (made / "bytes-en").iterdir():
        (donor / path.name).write_bytes(path.read_bytes())
    model = json.loads((donor / "tokenizer.json").read_text())["model"]
    (donor / "vocab.json").write_text(json.dumps(model["vocab"]))
    (donor / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    vocabulary, both = joined(tmp_path, donor, made / "bytes-ja")
    union_folder = tmp_path / "union"
    assert json.loads((union_folder / "vocab.json").read_text()) == vocabulary.tokens
    (union_folder / "tokenizer.json").unlink()
    slow = transformers.GPT2Tokenizer.from_pretrained(union_folder)
    assert all(tokens(slow, line) == tokens(both, line) for line in [*ENGLISH, *JAPANESE])


def test_vocab_txt_has_a_line_for_each_id(tmp_path, made):
    donor = tmp_path / "donor"
    donor.mkdir()
    for path in (made / "words-en").iterdir():
        (donor / path.name).write_bytes(path.read_bytes())
    ordered = sorted(found := member(donor).tokenizer.tokens, key=found.get)
    (donor / "vocab.txt").write_text("\n".join(ordered) + "\n", encoding="utf-8")
    vocabulary, _ = joined(tmp_path, donor, made / "words-de")
    lines = (tmp_path / "union" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert {line: n for n, line in enumerate(lines[:-1])} == vocabulary.tokens


def test_files_that_cannot_say_the_vocabulary_are_left_out_with_a_note(tmp_path, made):
    donor = tmp_path / "donor"
    donor.mkdir()
    for path in (made / "llama-en").iterdir():
        (donor / path.name).write_bytes(path.read_bytes())
    (donor / "spiece.model").write_bytes(b"something")
    vocabulary = union(member(donor), [member(made / "llama-ja")], ())
    made_files = write(vocabulary)
    assert made_files.dropped == {"spiece.model"}
    assert "`spiece.model` cannot say the new vocabulary: left out" in made_files.notes


def test_a_tokenizer_model_with_other_ids_is_left_out(tmp_path, made):
    donor = tmp_path / "donor"
    donor.mkdir()
    for path in (made / "llama-en").iterdir():
        (donor / path.name).write_bytes(path.read_bytes())
    (donor / "tokenizer.model").write_bytes((made / "llama-de" / "tokenizer.model").read_bytes())
    made_files = write(union(member(donor), [member(made / "llama-ja")], ()))
    assert made_files.dropped == {"tokenizer.model"}
    assert "`tokenizer.model`: its pieces have other ids than the tokens" in made_files.notes


def test_gaps_between_ids_are_filled_in_a_unigram_vocabulary(tmp_path):
    from tokenizers import Tokenizer as Fast
    from tokenizers import models

    for name, pieces in (("a", [("<unk>", 0.0), ("x", -1.0)]), ("b", [("<unk>", 0.0), ("y", -2.0)])):
        save_fast(tmp_path / name, Fast(models.Unigram(pieces, unk_id=0)), ["<unk>"])
    donor = member(tmp_path / "a")
    donor = Member("a", Tokenizer(**{**vars(donor.tokenizer), "tokens": {"<unk>": 0, "x": 1, "z": 4}}), 5)
    made_files = write(union(donor, [member(tmp_path / "b")], ()))
    vocab = json.loads(made_files.files["tokenizer.json"])["model"]["vocab"]
    assert [entry[0] for entry in vocab] == ["<unk>", "x", "<unused row 2>", "<unused row 3>", "z", "y"]
    assert vocab[2][1] < -1e5
    assert vocab[5] == ["y", -2.0]


REFUSED = {
    "bytes and characters": ("bytes-en", "llama-de", "a BPE of bytes for a vocabulary, `llama-de` a BPE of characters"),
    "bpe and unigram": ("llama-en", "unigram-de", "a BPE of characters for a vocabulary, `unigram-de` a Unigram"),
    "words and unigram": ("words-en", "unigram-de", "a WordPiece for a vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_vocabularies_of_different_kinds_are_refused(made, name):
    one, two, told = REFUSED[name]
    with pytest.raises(Unreadable, match=told) as caught:
        write(union(member(made / one), [member(made / two)], ()))
    assert 'tokenizer = "base"' in caught.value.hint


@pytest.mark.parametrize("merges", [["a"], [["a"]], [["a", ""]], [3], "ab", [["a", "b", "c"]]])
def test_merges_that_are_none_are_refused(merges):
    def fast(vocab, merges):
        files = {"tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges}}).encode()}
        return read_tokenizer(files)

    donor, other = fast({"a": 0, "b": 1}, []), fast({"a": 0, "ab": 1}, merges)
    with pytest.raises(Unreadable, match="merges that are not of two tokens"):
        write(union(Member("a", donor, 2), [Member("b", other, 2)], ()))


def test_words_of_the_corpora_are_there_to_be_tested():
    assert len(words_of(ENGLISH)) > 50
    assert len(words_of(GERMAN)) > 50
