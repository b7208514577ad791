"""`chat_template`: which template an output has, where it stands, and what transformers makes of it."""

import json

import pytest
from merging import MergeWorld
from vocabularies import auto, model, word_level

from modelbuild.modelfile.chat_templates import TEMPLATES
from modelbuild.tokenizer.nouns import Unreadable
from modelbuild.tokenizer.template import template_of, unknown_tokens, usual, with_template

LERP = '[merge.m]\nmethod = "lerp"\nbase = "a"\nmodels = [{ model = "b", t = 0.5 }, ]\n'
SHORT, LONG = "{{ 'short' }}", "{% for m in messages %}{{ m['content'] }}{% endfor %}"
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture
def world(tmp_path):
    return MergeWorld(tmp_path)


def models(world, **templates):
    """Models of one vocabulary, each with a template or None."""
    for seed, (name, template) in enumerate(templates.items(), start=1):
        size = word_level(world.root / name, ["hello"], **({"chat_template": template} if template else {}))
        model(world, name, size, seed=seed)
    return world


def linear(*names, template):
    entries = ", ".join(f'{{ model = "{name}", weight = 1.0 }}' for name in names)
    return f"[merge.m]\nmethod = \"linear\"\nmodels = [{entries}]\nchat_template = '''{template}'''\n"


def says(folder):
    return auto(folder).apply_chat_template(CHAT, tokenize=False)


# --- which ------------------------------------------------------------------------------------------------------------


def test_auto_is_the_template_that_most_inputs_have(world):
    models(world, a=LONG, b=SHORT, c=f"{SHORT}\n", d=None)
    world.merge(linear("a", "b", "c", "d", template="auto")).build()
    assert says(world.out / "m") == "short"


def test_of_equally_many_auto_takes_the_donors_and_changes_no_byte(world):
    models(world, a=SHORT, b=LONG)
    world.merge(linear("a", "b", template="auto")).build()
    name = "tokenizer_config.json"
    assert (world.out / "m" / name).read_bytes() == (world.root / "a" / name).read_bytes()
    assert not (world.out / "m" / "chat_template.jinja").exists()


def test_auto_without_any_template_says_so(world):
    models(world, a=None, b=None)
    result = world.merge(linear("a", "b", template="auto")).build()
    assert result.notes == ("m: no input has a chat template",)


def test_a_name_is_that_inputs_template(world):
    models(world, a=SHORT, b=LONG)
    world.merge(linear("a", "b", template="b")).build()
    assert says(world.out / "m") == "hello"


def test_a_text_is_the_template_itself(world):
    models(world, a=SHORT, b=None)
    world.merge(linear("a", "b", template="{{ 'mine' }}")).build()
    assert says(world.out / "m") == "mine"
    assert (world.out / "m" / "chat_template.jinja").read_text() == "{{ 'mine' }}"
    assert json.loads((world.out / "m" / "tokenizer_config.json").read_text())["chat_template"] == "{{ 'mine' }}"


def test_a_merge_of_a_merge_sees_its_template(world):
    models(world, a=SHORT, b=LONG)
    first = linear("a", "b", template="b").replace("merge.m", "merge.first")
    world.merge(first + LERP.replace('base = "a"', 'base = "first"') + 'chat_template = "first"\n').build()
    assert says(world.out / "m") == "hello"


def test_an_adapters_output_takes_a_template_too(world):
    models(world, a=SHORT).lora("s", "a", seed=3)
    text = '[merge.m]\nmethod = "lora"\nbase = "a"\nadapters = [{ adapter = "s" }]\n'
    world.merge(text + "chat_template = \"{{ 'lora' }}\"\n").build()
    assert says(world.out / "m") == "lora"


def test_the_template_goes_with_the_tokenizer_that_is_chosen(world):
    models(world, a=SHORT, b=LONG)
    world.merge(LERP + 'tokenizer = "b"\n').build()
    assert says(world.out / "m") == "hello"
    world.edit('tokenizer = "b"\n', 'tokenizer = "b"\nchat_template = "a"\n').build()
    assert says(world.out / "m") == "short"


def test_a_changed_template_builds_no_weights(world):
    models(world, a=SHORT, b=LONG)
    world.merge(LERP).build()
    again = world.modelfile(world.text + "chat_template = \"{{ 'new' }}\"\n").build()
    assert again["m"].tensors.computed == 0
    assert says(world.out / "m") == "new"


def test_an_input_without_a_template_is_refused_naming_those_that_have_one(world):
    models(world, a=SHORT, b=None)
    assert world.refusal(LERP + 'chat_template = "b"\n') == (
        "error: `b` has no chat template\n  --> Modelfile:9:1\n   |  `a` has one"
    )


CHATML = "the chat template has {}, not a token of the vocabulary: split into pieces as any text"


def test_tokens_of_a_template_that_the_vocabulary_has_not_are_told(world):
    models(world, a=SHORT, b=None)
    notes = world.merge(LERP + 'chat_template = "chatml"\n').plan().notes
    assert notes == ("m: " + CHATML.format("`<|im_start|>`, `<|im_end|>`"),)


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("chosen", ["base", "union"])
def test_a_template_in_the_settings_makes_nothing_a_token(world, quote, chosen):
    """The donor has the text of the token in its own template, the other model as a token."""
    own = "{{ " + quote + "<|im_end|>" + quote + " }}"
    size = word_level(world.root / "a", ["hello"], chat_template=own)
    model(world, "a", size, seed=1)
    size = word_level(world.root / "b", ["hello"], special=("<unk>", "<|im_end|>"), chat_template=own + " ")
    model(world, "b", size, seed=2)
    notes = world.merge(LERP + f'tokenizer = "{chosen}"\nchat_template = "b"\n').plan().notes
    assert [note for note in notes if "template" in note] == (
        ["m: " + CHATML.format("`<|im_end|>`")] if chosen == "base" else []
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json", "vocab.txt", "tokenizer.model"])
def test_a_token_is_known_from_any_file_that_says_tokens(name):
    token = "<|fim|>"
    data = f"x\n{token}\n" if name in ("vocab.txt", "tokenizer.model") else json.dumps({token: 3})
    assert unknown_tokens("{{ '<|fim|>' }}<end_of_turn>", {name: data.encode()}) == ["<end_of_turn>"]
    assert unknown_tokens("<|fim|>", {"merges.txt": data.encode()}) == ["<|fim|>"]


def test_a_name_of_nothing_is_a_fault_of_the_modelfile(world):
    models(world, a=SHORT, b=None)
    told = world.refusal(LERP + 'chat_template = "chatnl"\n', code=2)
    assert '`chat_template` is "auto", an input, a known format or a text, not "chatnl"' in told
    assert "the inputs of [merge.m] are `a`, `b`" in told
    assert "did you mean `chatml`?" in told


TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "bye"},
]
FORMATS = {
    "chatml": "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
    "<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nbe kind<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nbye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] be kind [/INST][INST] hello [/INST] hi</s>[INST] bye [/INST]",
    "alpaca": "be kind\n\n### Instruction:\nhello\n\n### Response:\nhi</s>\n\n### Instruction:\nbye\n\n### Response:\n",
    "exaone": "[|system|]be kind[|endofturn|]\n[|user|]hello\n[|assistant|]hi[|endofturn|]\n[|user|]bye\n[|assistant|]",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_has_a_name_is_written_as_it_reads(world, name):
    size = word_level(world.root / "a", ["hello", "<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    model(world, "a", size, seed=1)
    text = '[merge.m]\nmethod = "passthrough"\nmodels = [{ model = "a" }]\n'
    world.merge(text + f'chat_template = "{name}"\n').build()
    made = auto(world.out / "m").apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert made == FORMATS[name]


def test_every_known_format_is_tried():
    assert set(FORMATS) == set(TEMPLATES)


def test_an_input_goes_before_a_format_of_its_name(world):
    models(world, chatml=SHORT)
    text = '[merge.m]\nmethod = "passthrough"\nmodels = [{ model = "chatml" }]\nchat_template = "chatml"\n'
    world.merge(text).build()
    assert says(world.out / "m") == "short"


# --- where it stands --------------------------------------------------------------------------------------------------


def config(template):
    return {"tokenizer_config.json": json.dumps({"x": 1, "chat_template": template}).encode()}


def test_the_jinja_file_goes_before_the_settings():
    assert template_of({**config("settings"), "chat_template.jinja": b"file"}) == "file"
    assert template_of(config("settings")) == "settings"
    assert template_of({"chat_template.json": b'{"chat_template": "old"}'}) == "old"
    assert template_of({}) is None


def test_of_several_templates_the_default_is_meant():
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert template_of(config(named)) == "d"
    assert template_of(config(named[:1])) is None
    made = with_template(config(named), "new")
    assert json.loads(made["tokenizer_config.json"])["chat_template"] == [
        {"name": "default", "template": "new"}, {"name": "tool_use", "template": "t"}
    ]  # fmt: skip


def test_a_template_is_written_everywhere_one_stands():
    files = {**config("old"), "chat_template.json": b'{"chat_template": "older"}'}
    made = with_template(files, "neü")
    assert set(made) == {"chat_template.jinja", "tokenizer_config.json", "chat_template.json"}
    assert {template_of({name: data}) for name, data in made.items()} == {"neü"}
    assert set(with_template({"tokenizer_config.json": b"{}"}, "x")) == {"chat_template.jinja"}


@pytest.mark.parametrize("files", [{"chat_template.jinja": b"\xff"}, {"tokenizer_config.json": b"[]"}])
def test_what_cannot_be_read_is_said(files):
    with pytest.raises(Unreadable):
        template_of(files)


def test_the_usual_template_of_none_is_none():
    assert usual([]) is usual([None, "  "]) is None
    assert usual(["a", "b", "b "]) == "b"
    assert usual([None, "a", "b"]) == "a"
