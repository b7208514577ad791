"""Provenance and model card: deterministic, without host, path or time, and proof against what people write."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from modelbuild.artifact.card import card, escape, fence, quote
from modelbuild.artifact.provenance import Made, provenance, public_modelfile, public_override, sources
from modelbuild.cache.nouns import StoredFile
from modelbuild.modelfile.spec import Adapter, Base, Constant, Input, Merge, Publish, Quantize, Settings, Spec
from modelbuild.plan.node import Node, operation_node, source_node
from modelbuild.plan.planned import Plan, Planned, Side
from modelbuild.sources.content import SourceAdapter, SourceFile, SourceModel, SourceTensor, Stamp

TEXT = st.text(st.characters(codec="utf-8"))


def source_file(name, digest):
    return SourceFile(name, f"/srv/someone/{name}", 10, digest * 64, Stamp(1, 2, 10, 4, 5))


def model(name, origin, digest, commit=None):
    file = source_file("model.safetensors", digest)
    tensor = SourceTensor("w", "BF16", (5,), file, 0, 10)
    return SourceModel(name, origin, commit, {"w": tensor}, (file, source_file("config.json", "c")))


def made(**options):
    """An adapter at a weight, then a merge with another model: the smallest whole story."""
    artifacts = {
        "top": Merge("top", "lerp", base="low", models=(Input("second", (), None, {"t": Constant(0.5)}),)),
        "low": Merge("low", "lora", base="first", adapters=(Input("small", ()),)),
        "first": Base("first", "hf:org/first"),
        "second": Base("second", "/srv/someone/second"),
        "small": Adapter("small", source="small"),
        "unused": Base("unused", "hf:org/unused"),
    }
    artifacts |= options.pop("artifacts", {})
    models = {
        "first": model("first", "hf:org/first", "a", "f" * 40),
        "second": model("second", "local:/srv/someone/second", "b"),
        "unused": model("unused", "hf:org/unused", "d"),
    }
    adapter_file = source_file("adapter_model.safetensors", "e")
    adapters = {"small": SourceAdapter("small", "local:small", None, {}, (adapter_file,))}
    nodes = [source_node(models[name].tensors["w"]) for name in ("first", "second")]
    low = operation_node("lora", 3, (), (nodes[0],), "BF16", (5,))
    top = operation_node(
        "lerp", 2, (("t", 0.5),), (low, nodes[1]), "BF16", (5,), numerics=options.pop("numerics", None)
    )
    planned = Planned("top", options.pop("kind", "merge"), {"w": top}, Side(config=options.pop("config", None)))
    publish = {"top": options.pop("publish")} if "publish" in options else {}
    spec = Spec("Modelfile", options.pop("settings", Settings()), artifacts, publish, {})
    return Made(Plan(spec, ("top",), {"top": planned}, models, adapters), "top", "0.1.0", **options)


def front_matter(text):
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n.*", text, re.DOTALL)[1])


def test_provenance_says_everything_that_made_the_artifact():
    weights = [StoredFile("model.safetensors", 20, 123456789, "aa", "bb")]
    document = json.loads(
        provenance(made(weights=weights, files={"tokenizer.json": "2" * 64, "config.json": "1" * 64}))
    )
    assert list(document) == [
        "format", "modelbuild", "name", "kind", "key", "settings", "overrides", "recipe", "sources", "methods",
        "operations", "numerics", "weights", "files",
    ]  # fmt: skip
    assert (document["format"], document["modelbuild"], document["name"]) == (1, "0.1.0", "top")
    assert document["key"] == made().plan.artifacts["top"].key
    assert document["settings"] == {"seed": 0, "shard_size": 5_000_000_000}
    assert [step["name"] for step in document["recipe"]] == ["first", "small", "low", "second", "top"]
    assert document["operations"] == {"lerp": 2, "lora": 3}
    assert sorted(document["methods"]) == ["lerp", "lora"]
    assert document["numerics"] == []
    assert document["weights"] == [{"name": "model.safetensors", "size": 20, "xxh3": "aa", "sha256": "bb"}]
    assert list(document["files"]) == ["config.json", "tokenizer.json"]


def test_provenance_pins_every_file_of_the_sources_used_and_of_no_other():
    document = json.loads(provenance(made()))
    assert list(document["sources"]) == ["first", "second", "small"]
    assert document["sources"]["first"] == {
        "origin": "hf:org/first",
        "commit": "f" * 40,
        "files": [
            {"name": "config.json", "size": 10, "sha256": "c" * 64},
            {"name": "model.safetensors", "size": 10, "sha256": "a" * 64},
        ],
    }
    assert document["sources"]["second"]["origin"] == "local:second"
    assert "commit" not in document["sources"]["second"]


def test_neither_file_holds_a_path_or_a_time_of_this_machine():
    modelfile = '[base.second]\nsource = "/srv/someone/second"\n'
    whole = made(
        modelfile=modelfile,
        overrides=['base.second.source="/srv/someone/second"'],
        weights=[StoredFile("m.safetensors", 1, 987654321, "aa")],
    )
    for text in (provenance(whole).decode(), card(whole).decode()):
        assert "someone" not in text
        assert "987654321" not in text
    assert 'source = "second"' in card(whole).decode()


def test_the_same_artifact_gives_the_same_bytes_in_any_order_of_tables():
    one = made()
    spec = one.plan.spec
    turned = replace(spec, artifacts=dict(reversed(spec.artifacts.items())))
    two = replace(one, plan=replace(one.plan, spec=turned, models=dict(reversed(one.plan.models.items()))))
    assert provenance(one) == provenance(two)
    assert card(one) == card(two)


def test_overrides_and_numerics_classes_are_recorded():
    document = json.loads(provenance(made(overrides=["merge.top.t=0.5"], numerics="torch-2.13/x86-64/1")))
    assert document["overrides"] == ["merge.top.t=0.5"]
    assert document["numerics"] == ["torch-2.13/x86-64/1"]


def test_settings_that_were_chosen_are_recorded():
    document = json.loads(provenance(made(settings=Settings(dtype="float16", seed=3, shard_size=100))))
    assert document["settings"] == {"dtype": "float16", "seed": 3, "shard_size": 100}


def test_a_deep_plan_needs_no_stack():
    node = Node("0", "source", 1, (), (), "BF16", (1,))
    for depth in range(5000):
        node = operation_node("cast", 1, (("n", depth),), (node,), "BF16", (1,))
    whole = made()
    planned = Planned("top", "merge", {"w": node}, Side())
    deep = replace(whole, plan=replace(whole.plan, artifacts={"top": planned}))
    assert json.loads(provenance(deep))["operations"] == {"cast": 1}


def test_sources_are_those_of_the_closure_by_name():
    assert [source.name for source in sources(made().plan, "top")] == ["first", "second", "small"]


def test_overrides_keep_their_form():
    assert public_override("merge.x.t=0.4") == "merge.x.t=0.4"
    assert public_override('base.x.source="/a/b/c"') == 'base.x.source="c"'
    assert public_override("odd") == "odd"


def test_the_text_of_a_modelfile_changes_only_where_a_source_is_absolute():
    spec = made().plan.spec
    text = "# /srv/someone/second stays in no source\n[base.x]\nsource = 'models/x'\n"
    assert public_modelfile(text, spec) == text


def test_the_front_matter_is_what_the_hub_reads():
    publish = Publish("top", "me/top", license="llama2", language=("en", "no"), tags=("llama-2", "merge"))
    assert front_matter(card(made(publish=publish)).decode()) == {
        "library_name": "transformers",
        "base_model": ["org/first"],
        "base_model_relation": "merge",
        "license": "llama2",
        "language": ["en", "no"],
        "tags": ["merge", "modelbuild", "llama-2"],
    }


def test_a_card_of_local_models_alone_names_no_base_model():
    first = model("first", "local:first", "a")
    whole = made()
    local = replace(whole, plan=replace(whole.plan, models={**whole.plan.models, "first": first}))
    assert front_matter(card(local).decode()) == {"library_name": "transformers", "tags": ["merge", "modelbuild"]}


def test_an_adapter_is_one_for_peft():
    shown = front_matter(card(made(kind="adapter")).decode())
    assert shown["library_name"] == "peft"
    assert shown["base_model_relation"] == "adapter"


def test_the_card_tells_the_story_and_how_to_build_it_again():
    text = card(made(modelfile="[merge.top]\n", overrides=["merge.top.t=0.5"])).decode()
    assert "- first: the model [org/first](https://huggingface.co/org/first) at commit " + "f" * 40 in text
    assert "- small: the adapter small" in text
    assert "- low: lora of first, small\n- top: lerp of low, second" in text
    assert "```toml\n[merge.top]\n```" in text
    assert "modelbuild build top --set merge.top.t=0.5" in text
    assert text.endswith("\n")
    assert "auto_map" not in text


def test_a_quantised_model_and_a_made_adapter_are_steps_too():
    artifacts = {
        "top": Quantize("top", "low", "gguf", "Q4_K_M"),
        "small": Adapter("small", combine=(("one", 1.0), ("two", 1.0))),
        "one": Adapter("one", source="one"),
        "two": Adapter("two", source="two"),
    }
    text = card(made(artifacts=artifacts)).decode()
    assert "- small: an adapter made from one, two" in text
    assert "- top: low as gguf Q4\\_K\\_M" in text


def test_custom_code_is_mentioned_where_the_config_names_it():
    assert "`auto_map`" in card(made(config={"auto_map": {"AutoModel": "code.Model"}})).decode()


def test_a_shell_sees_an_override_as_one_word():
    text = card(made(overrides=["merge.top.t=0.5; rm -rf $HOME", "a.b='x'"])).decode()
    assert "--set 'merge.top.t=0.5; rm -rf $HOME'" in text


def test_the_hubs_own_reader_accepts_the_card():
    from huggingface_hub import ModelCard

    publish = Publish("top", "me/top", license="apache-2.0", language=("en",), tags=('"]: evil', "日本語"))
    data = ModelCard(card(made(publish=publish)).decode()).data
    assert data.license == "apache-2.0"
    assert data.base_model == ["org/first"]
    assert data.tags == ["merge", "modelbuild", '"]: evil', "日本語"]


@given(TEXT)
def test_any_text_is_one_yaml_scalar(text):
    assert yaml.safe_load(f"a: {quote(text)}\nb: 1") == {"a": text, "b": 1}


@pytest.mark.parametrize(
    "word", ["yes", "No", "null", "TRUE", "1e3", "0x1", "", "- a", "a: b", "~", "2024-01-01", "1_0"]
)
def test_words_that_yaml_reads_as_something_else_are_quoted(word):
    assert quote(word).startswith('"')
    assert yaml.safe_load(quote(word)) == word


def shown(text):
    """What a reader sees of one escaped line in a card, and the kinds of inline marks it made."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(f"{escape(text)}\n")
    inline = [token for token in tokens if token.type == "inline"]
    children = [child for token in inline for child in token.children]
    return "".join(child.content for child in children), {child.type for child in children}, len(tokens)


@given(TEXT)
def test_any_text_is_shown_as_it_is_and_marks_nothing(text):
    visible = "".join(character for character in " ".join(text.split()) if character.isprintable())
    content, kinds, count = shown(text)
    assert content.strip() == visible.strip()
    assert kinds <= {"text", "text_special"}
    assert count in (0, 3)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[click](http://evil.example)",
        "![image](x)",
        "# heading",
        "- item",
        "1. item",
        "1) item",
        "+ item",
        "> quote",
        "| a | b |",
        "`code`",
        "***",
        "___",
        "---",
        "===",
        "~~gone~~",
        "&lt;",
        "a\n---\nb",
        "a\n\n# b",
    ],
)
def test_markdown_in_a_name_is_only_text(text):
    content, kinds, count = shown(text)
    assert content == " ".join(text.split())
    assert kinds <= {"text", "text_special"}
    assert count == 3


def test_descriptions_and_notes_keep_their_paragraphs_and_lose_their_marks():
    artifact = Merge("top", "lerp", base="low", models=(Input("second", ()),), description="---\nlicense: mine\n---")
    publish = Publish("top", "me/top", notes="First.\n\n<b>Second.</b>")
    text = card(made(artifacts={"top": artifact}, publish=publish)).decode()
    assert "license" not in front_matter(text)
    assert "\n\nFirst.\n\n\\<b\\>Second.\\</b\\>\n\n" in text


@given(TEXT)
def test_no_text_breaks_out_of_its_fence(text):
    tokens = MarkdownIt("commonmark").parse(f"{fence(text)}\n\nafter\n")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
