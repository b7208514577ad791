"""config.json agrees with the weights, and is left alone byte for byte where it does already."""

import hashlib
import json
import os
from types import MappingProxyType

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import save_model

from modelbuild.artifact.config import (
    agree,
    config_json,
    count_dtypes,
    generation_json,
    names_remote_code,
    override,
    vocabulary,
)
from modelbuild.errors import SourceChanged
from modelbuild.plan.node import Node
from modelbuild.plan.planned import Planned, Side
from modelbuild.sources.content import SourceFile, Stamp

BF16 = {"BF16": 100, "F32": 3, "I64": 1000}


def changed(config, **options):
    options = {"dtype_counts": BF16, **options}
    return json.loads(agree(config, json.dumps(config).encode(), **options))


def test_a_config_that_agrees_is_kept_byte_for_byte():
    original = b'{"hidden_size":8,  "dtype": "bfloat16", "vocab_size": 64, "tie_word_embeddings": true}'
    config = json.loads(original)
    assert agree(config, original, dtype_counts=BF16, vocab=64, layers=None) is original


def test_a_changed_config_keeps_the_order_of_its_keys_and_is_written_as_transformers_does():
    config = {"zeta": 1, "dtype": "float32", "alpha": "é"}
    assert agree(config, b"", dtype_counts=BF16) == (
        b'{\n  "zeta": 1,\n  "dtype": "bfloat16",\n  "alpha": "\\u00e9"\n}\n'
    )


@pytest.mark.parametrize(
    "place", ["/home/me/model", "~/model", "C:\\\\models\\\\x", "./model", "../model", "file:///m"]
)
def test_a_folder_of_a_machine_is_left_out_of_a_config_that_would_be_kept(place):
    original = f'{{"_name_or_path": "{place}", "a": 1, "text_config": {{"_name_or_path": "{place}"}}}}'.encode()
    assert agree(json.loads(original), original, dtype_counts=BF16) == b'{\n  "a": 1,\n  "text_config": {}\n}\n'
    assert override(json.loads(original), original, {}) == b'{\n  "a": 1,\n  "text_config": {}\n}\n'


def test_the_name_of_a_donor_stays_where_its_config_is_kept_and_goes_where_it_is_not():
    original = b'{"_name_or_path":  "org/model", "dtype": "bfloat16"}'
    assert agree(json.loads(original), original, dtype_counts=BF16) is original
    assert changed({"_name_or_path": "org/model", "dtype": "float32"}) == {"dtype": "bfloat16"}
    assert changed({"_name_or_path": "org/model"}, overrides={"_name_or_path": "me/mine"}) == {
        "_name_or_path": "me/mine"
    }


def test_without_config_and_overrides_there_is_no_file():
    assert agree(None, None, dtype_counts=BF16) is None
    assert override(None, None, {}) is None


def test_overrides_alone_make_a_file():
    assert agree(None, None, dtype_counts=BF16, overrides={"a": 1}) == b'{\n  "a": 1\n}\n'


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_most_weights_have_stands_under_the_donors_key(key):
    assert changed({key: "float32"}) == {key: "bfloat16"}
    assert changed({key: "bfloat16"}, dtype_counts={"F16": 3, "BF16": 2}) == {key: "float16"}


def test_integers_do_not_vote_on_the_dtype():
    assert changed({"dtype": "bfloat16"}, dtype_counts={"I64": 5}) == {"dtype": "bfloat16"}


def test_a_config_without_a_dtype_gets_none():
    assert changed({"hidden_size": 8}) == {"hidden_size": 8}


def test_nested_dtypes_that_were_the_same_follow_and_others_stay():
    config = {
        "dtype": "float32",
        "text_config": {"dtype": "float32"},
        "vision_config": {"torch_dtype": "float16"},
        "audio_config": {"x": 1},
    }
    assert changed(config) == {
        "dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16"},
        "vision_config": {"torch_dtype": "float16"},
        "audio_config": {"x": 1},
    }
    assert changed({"text_config": {"torch_dtype": "float32"}}) == {"text_config": {"torch_dtype": "bfloat16"}}


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_slices_change_the_layer_count_under_the_donors_key(key):
    assert changed({key: 4}, stack="model.layers", layers=[0, 1, 1, 2, 3, 3]) == {key: 6}


def test_without_slices_the_layer_count_is_the_donors_business():
    """Weights may hold layers that the count leaves out, such as those for predicting several tokens."""
    assert changed({"num_hidden_layers": 61}, stack="model.layers", layers=None) == {"num_hidden_layers": 61}


def test_lists_with_an_entry_for_each_layer_follow_the_layers():
    config = {"num_hidden_layers": 3, "layer_types": ["full", "sliding", "none"], "no_rope_layers": [1, 0, 1]}
    assert changed(config, stack="model.layers", layers=[2, 1, 1, 0]) == {
        "num_hidden_layers": 4,
        "layer_types": ["none", "sliding", "sliding", "full"],
        "no_rope_layers": [1, 0, 0, 1],
    }


def test_lists_follow_even_where_the_count_stays():
    config = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    assert changed(config, stack="model.layers", layers=[1, 0])["layer_types"] == ["b", "a"]


def test_lists_of_layer_numbers_name_the_output_layers():
    config = {"num_hidden_layers": 4, "mlp_only_layers": [0, 3], "cross_attention_layers": [1]}
    assert changed(config, stack="model.layers", layers=[0, 1, 2, 1, 2, 3]) == {
        "num_hidden_layers": 6,
        "mlp_only_layers": [0, 5],
        "cross_attention_layers": [1, 3],
    }


def test_a_list_that_is_as_long_by_chance_stays():
    config = {"num_hidden_layers": 2, "eos_token_id": [1, 2], "architectures": ["A", "B"]}
    kept = changed(config, stack="model.layers", layers=[0, 0, 1])
    assert kept == {"num_hidden_layers": 3, "eos_token_id": [1, 2], "architectures": ["A", "B"]}


def test_a_layer_beyond_the_donors_takes_the_last_entry():
    config = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    assert changed(config, stack="model.layers", layers=[0, 1, 5])["layer_types"] == ["a", "b", "b"]


def test_slices_of_the_language_model_leave_the_vision_tower_alone():
    config = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}}
    language = changed(config, stack="language_model.model.layers", layers=[0, 1, 1])
    assert language == {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 2}}
    vision = changed(config, stack="vision_tower.vision_model.encoder.layers", layers=[0])
    assert vision == {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 1}}


def test_the_vocabulary_is_the_rows_of_the_embedding():
    assert changed({"vocab_size": 64}, vocab=70) == {"vocab_size": 70}
    assert changed({"text_config": {"vocab_size": 64}}, vocab=70) == {"text_config": {"vocab_size": 70}}
    assert changed({"hidden_size": 1}, vocab=70) == {"hidden_size": 1}


def test_an_untied_head_is_said_so_everywhere():
    assert changed({"tie_word_embeddings": True}, untied=True) == {"tie_word_embeddings": False}
    assert changed({"a": 1}, untied=True) == {"a": 1, "tie_word_embeddings": False}
    nested = changed({"text_config": {"tie_word_embeddings": True}}, untied=True)
    assert nested == {"text_config": {"tie_word_embeddings": False}, "tie_word_embeddings": False}


def test_overrides_have_the_last_word_and_merge_tables():
    config = {"dtype": "float32", "rope": {"type": "linear", "factor": 2}}
    overrides = MappingProxyType({"dtype": "float16", "rope": {"factor": 4}, "new": (1, 2), "deep": {"x": (1,)}})
    assert changed(config, overrides=overrides) == {
        "dtype": "float16",
        "rope": {"type": "linear", "factor": 4},
        "new": [1, 2],
        "deep": {"x": [1]},
    }


def test_an_override_that_says_what_is_there_already_changes_no_byte():
    original = b'{ "a": 1 }'
    assert override({"a": 1}, original, {"a": 1}) is original


def test_true_is_not_one():
    assert override({"a": 1}, b'{"a": 1}', {"a": True}) == b'{\n  "a": true\n}\n'


def test_the_donors_own_config_is_never_changed():
    config = {"dtype": "float32", "num_hidden_layers": 2, "text_config": {"vocab_size": 1}, "t": ["a", "b"]}
    before = json.dumps(config)
    agree(config, None, dtype_counts=BF16, stack="s", layers=[0], vocab=9, overrides={"text_config": {"x": 1}})
    assert json.dumps(config) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=12), JSON, max_size=6), st.dictionaries(st.text(max_size=12), JSON, max_size=3))
def test_any_config_takes_any_override_and_keeps_the_rest(config, overrides):
    written = json.loads(agree(config, None, dtype_counts={}, overrides=overrides) or b"{}")
    for key, value in overrides.items():
        if not (isinstance(value, dict) and isinstance(config.get(key), dict)):
            assert written[key] == value
    for key, value in config.items():
        if key not in overrides:
            assert written[key] == value


@given(st.lists(st.integers(0, 7), min_size=1, max_size=20))
def test_layer_lists_are_always_as_long_as_the_layer_count(layers):
    config = {"num_hidden_layers": 8, "layer_types": list("abcdefgh")}
    patched = changed(config, stack="model.layers", layers=layers)
    assert patched["num_hidden_layers"] == len(layers)
    assert patched["layer_types"] == ["abcdefgh"[layer] for layer in layers]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("model.embed_tokens.weight", 10),
        ("transformer.wte.weight", 10),
        ("wte.weight", 10),
        ("embeddings.word_embeddings.weight", 10),
        ("language_model.model.embed_tokens.weight", 10),
        ("model.layers.0.weight", None),
        ("embed_tokens", None),
    ],
)
def test_the_embedding_is_found_by_its_name(name, rows):
    assert vocabulary({"first": (3, 3), name: (10, 4)}) == rows


def node(dtype, shape):
    return Node("k", "source", 1, (), (), dtype, shape)


def test_dtypes_are_counted_in_elements():
    assert count_dtypes([node("BF16", (2, 3)), node("F32", (4,)), node("BF16", (1,))]) == {"BF16": 7, "F32": 4}


def test_remote_code_is_seen():
    assert names_remote_code({"auto_map": {"AutoModel": "x.Y"}})
    assert not names_remote_code({"auto_map": {}})
    assert not names_remote_code(None)


def source_file(path, sha256=None):
    data = path.read_bytes()
    stamp = Stamp(0, 0, len(data), 0, 0)
    return SourceFile(path.name, str(path), len(data), sha256 or hashlib.sha256(data).hexdigest(), stamp)


def planned_from(folder, **side):
    configs = {
        "config": json.loads((folder / "config.json").read_text()),
        "config_file": source_file(folder / "config.json"),
        "generation": json.loads((folder / "generation_config.json").read_text()),
        "generation_file": source_file(folder / "generation_config.json"),
    }
    tensors = {"model.embed_tokens.weight": node("BF16", (64, 32))}
    tensors |= {f"model.layers.{n}.mlp.up_proj.weight": node("BF16", (64, 32)) for n in range(2)}
    return Planned("m", "merge", tensors, Side(**{**configs, **side}))


def test_an_artifact_like_its_donor_has_its_donors_files(tmp_path):
    folder = save_model(tmp_path / "m", seed=1)
    planned = planned_from(folder)
    assert config_json(planned) == (folder / "config.json").read_bytes()
    assert generation_json(planned) == (folder / "generation_config.json").read_bytes()


def test_an_artifact_of_slices_has_a_config_that_transformers_builds(tmp_path):
    from transformers import AutoConfig

    folder = save_model(tmp_path / "m", "qwen2", seed=1)
    planned = planned_from(folder, layers=(0, 1, 1), config_overrides={"max_position_embeddings": 128}, untied=True)
    (folder / "config.json").write_bytes(config_json(planned))
    loaded = AutoConfig.from_pretrained(folder)
    assert loaded.num_hidden_layers == 3
    assert loaded.layer_types == ["full_attention"] * 3
    assert loaded.max_position_embeddings == 128
    assert loaded.tie_word_embeddings is False


def test_a_generation_override_is_written(tmp_path):
    folder = save_model(tmp_path / "m", seed=1)
    written = json.loads(generation_json(planned_from(folder, generation_overrides={"top_k": 5})))
    assert written["top_k"] == 5
    assert written["bos_token_id"] == 1


def test_a_config_that_changed_since_the_plan_is_not_built_in(tmp_path):
    folder = save_model(tmp_path / "m", seed=1)
    planned = planned_from(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(SourceChanged, match=r"config\.json"):
        config_json(planned)
