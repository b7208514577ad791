"""Real tokenizers, small: trained on the spot from a few sentences, as their libraries train and save them."""

import io
import json
import random

import pico

ENGLISH = """
the quick brown fox jumps over the lazy dog and the dog sleeps under the old tree
a good merge of two models keeps what each of them knows and adds nothing else
she reads the newspaper in the morning and walks along the river in the evening
there is nothing either good or bad but thinking makes it so
when the weather is warm the children play in the garden until the sun goes down
language models are trained on text and every token has a row of its own
""".strip().splitlines()

GERMAN = """
der schnelle braune fuchs springt über den faulen hund und der hund schläft weiter
eine gute mischung von zwei modellen behält was jedes von ihnen weiß
sie liest morgens die zeitung und geht abends am fluss entlang spazieren
wenn das wetter warm ist spielen die kinder im garten bis die sonne untergeht
sprachmodelle werden mit texten trainiert und jedes zeichen hat seine eigene zeile
""".strip().splitlines()

JAPANESE = """
吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。
何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。
吾輩はここで始めて人間というものを見た。しかもあとで聞くとそれは書生という人間中で一番獰悪な種族であったそうだ。
国境の長いトンネルを抜けると雪国であった。夜の底が白くなった。信号所に汽車が止まった。
日本語の文章を読むための言語モデルを作る。言語モデルは文章を読む。
""".strip().splitlines()

SPECIAL = ["<unk>", "<s>", "</s>"]


def words_of(corpus):
    """The words of a corpus, each once, in order."""
    return list(dict.fromkeys(word for line in corpus for word in line.split()))


def byte_bpe(folder, corpus, size=400, special=("<unk>", "<s>", "</s>"), **settings):
    """A BPE of bytes, as GPT-2's; the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return save_fast(folder, tokenizer, special, **settings)


def spm(folder, corpus, size=200, kind="bpe", *, fast=True, slow=True, **options):
    """A sentencepiece model: Llama's kind of BPE, with single bytes, or a unigram one; the number of its tokens."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=written, model_type=kind, vocab_size=size, minloglevel=2,
        byte_fallback=kind == "bpe", character_coverage=1.0, hard_vocab_limit=False, num_threads=1,
        normalization_rule_name="identity", **options,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    config = {**names, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2))
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    if kind == "bpe" and fast:
        auto(folder).save_pretrained(folder)
    elif fast:
        unigram_json(folder, model)
    if not slow:
        (folder / "tokenizer.model").unlink()
    return model.get_piece_size()


def unigram_json(folder, model):
    """tokenizer.json of a unigram model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [(model.id_to_piece(n), model.get_score(n)) for n in range(model.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    save_fast(folder, tokenizer, SPECIAL)


def word_piece(folder, corpus, size=120):
    """BERT's kind of vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        corpus, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return save_fast(folder, tokenizer, special, **names)


def save_fast(folder, tokenizer, special, **settings):
    """Writes tokenizer.json and its settings; the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=False))
    config = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return tokenizer.get_vocab_size()


def add_tokens(folder, *tokens):
    """Adds tokens to a saved tokenizer, as transformers does; the number of tokens then."""
    tokenizer = auto(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def auto(folder):
    """The tokenizer in a folder, as transformers loads it."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def tokens(tokenizer, text):
    """The text as tokens, without those that stand for its start or end."""
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def some(words, count, seed=0):
    """A few of many words, always the same."""
    words = list(words)
    return random.Random(seed).sample(words, min(count, len(words)))


def model(world, name, size, **options):
    """Writes the model `name` with that many rows beside the tokenizer that is in its folder."""
    pico.save_model(world.root / name, vocab=size, tokenizer=False, **{"layers": 1, "hidden": 8, **options})
    return world.age(name)


def word_level(folder, words, special=("<unk>",), rows=None, **settings):
    """A vocabulary of whole words in this order, specials first; how many rows a model of it has."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    named = [*special, *words]
    fast = {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": word, **flags, "special": True} for n, word in enumerate(special)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(named)}, "unk_token": "<unk>"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    config = {"unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return rows or len(named)


def world_of(world, names, **options):
    """A model for each name, with the words that are given for it; options are those of `pico.save_model`."""
    for seed, (name, words) in enumerate(names.items(), start=1):
        size = word_level(world.root / name, words.split() if isinstance(words, str) else words)
        model(world, name, size, **{"seed": seed, "dtype": "float32", **options})
    return world
