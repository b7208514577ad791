"""Local models and adapters: found, checked against their indexes, identified; strangers' files are not believed."""

import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modelbuild.errors import (
    BuildFailed,
    ModelbuildError,
    NotBuiltYet,
    SourceChanged,
    SourceNotFound,
    UsageError,
    VerificationFailed,
    Where,
)
from modelbuild.modelfile.spec import Adapter, Base
from modelbuild.sources import find, hashing, headers, resolve
from modelbuild.sources.content import SourceAdapter, SourceModel
from modelbuild.sources.fence import hub_caches
from modelbuild.sources.memory import Memory
from modelbuild.sources.resolve import Request, resolve_sources
from modelbuild.sources.sidefiles import is_side_file

INDEX = "model.safetensors.index.json"
WHERE = Where("Modelfile", 7, 1)


def shard(path: Path, tensors: Mapping[str, bytes]) -> bytes:
    """Writes U8 tensors, in the order given."""
    header, end = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))
    return path.read_bytes()


def indexed(folder: Path, weight_map: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def sharded(folder: Path) -> None:
    """Two shards: a, b in the second, c in the first."""
    shard(folder / "model-00002-of-00002.safetensors", {"a": b"aa", "b": b"b"})
    shard(folder / "model-00001-of-00002.safetensors", {"c": b"ccc"})
    two, one = "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"
    indexed(folder, {"a": two, "b": two, "c": one})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The Modelfile's folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder.resolve()


def later() -> int:
    """A clock that is ten seconds ahead: files made by a test are old enough to trust by then."""
    return time.time_ns() + 10_000_000_000


def resolved(artifact: Base | Adapter, home: Path, **options: Any) -> SourceModel | SourceAdapter:
    request = Request(artifact, WHERE)
    return resolve_sources([request], home, Memory(home / "cache", later), **options)[artifact.name]


def model(home: Path, source: str = "m", **options: Any) -> SourceModel:
    base = Base("x", source, sha256=options.pop("sha256", None))
    found = resolved(base, home, **options)
    assert isinstance(found, SourceModel)
    return found


def adapter(home: Path, source: str = "a", subfolder: str | None = None, **options: Any) -> SourceAdapter:
    named = Adapter("y", source, subfolder=subfolder, sha256=options.pop("sha256", None))
    found = resolved(named, home, **options)
    assert isinstance(found, SourceAdapter)
    return found


def fault(kind: type[ModelbuildError], home: Path, source: str = "m", **options: Any) -> str:
    """The rendered error of resolving the model; it stands at the place in the Modelfile."""
    with pytest.raises(kind) as caught:
        model(home, source, **options)
    assert type(caught.value) is kind
    assert caught.value.faults[0].where == WHERE
    return caught.value.render()


def test_a_folder_with_one_file_is_a_model(home: Path) -> None:
    data = shard(home / "m" / "model.safetensors", {"w": b"1234", "v": b"56"})
    (home / "m" / "config.json").write_text('{"hidden_size": 2}')
    (home / "m" / "generation_config.json").write_text('{"top_p": 0.5}')
    (home / "m" / "tokenizer.json").write_text("{}")
    found = model(home)
    assert (found.name, found.origin, found.commit) == ("x", "local:m", None)
    assert found.config == {"hidden_size": 2}
    assert found.generation == {"top_p": 0.5}
    assert list(found.tensors) == ["w", "v"]
    tensor = found.tensors["v"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes, tensor.sha256) == ("U8", (2,), 2, None)
    assert data[tensor.offset : tensor.offset + 2] == b"56"
    assert tensor.file.sha256 == hashlib.sha256(data).hexdigest()
    assert tensor.file.path == str(home / "m" / "model.safetensors")
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert [file.name for file in found.files] == names
    assert list(found.side_files) == ["tokenizer.json"]


def test_a_model_may_lack_configs(home: Path) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    found = model(home)
    assert (found.config, found.generation, found.side_files) == (None, None, {})


def test_a_single_file_is_a_model_without_what_lies_beside_it(home: Path) -> None:
    shard(home / "m" / "any.safetensors", {"w": b"1"})
    (home / "m" / "config.json").write_text("{}")
    found = model(home, "m/any.safetensors")
    assert found.origin == "local:m/any.safetensors"
    assert [file.name for file in found.files] == ["any.safetensors"]
    assert found.config is None


def test_tensors_of_shards_come_by_file_name_then_by_offset(home: Path) -> None:
    sharded(home / "m")
    found = model(home)
    assert list(found.tensors) == ["c", "a", "b"]
    assert found.tensors["a"].file.name == "model-00002-of-00002.safetensors"
    assert INDEX in [file.name for file in found.files]


def test_shards_without_an_index_are_one_model(home: Path) -> None:
    sharded(home / "m")
    (home / "m" / INDEX).unlink()
    assert list(model(home).tensors) == ["c", "a", "b"]


def test_the_index_decides_over_other_files(home: Path) -> None:
    sharded(home / "m")
    shard(home / "m" / "consolidated.safetensors", {"other": b"1"})
    shard(home / "m" / "model.safetensors", {"other": b"1"})
    assert list(model(home).tensors) == ["c", "a", "b"]


def test_model_safetensors_decides_where_there_is_no_index(home: Path) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    shard(home / "m" / "model.fp16.safetensors", {"w": b"2"})
    shard(home / "m" / "consolidated.safetensors", {"w": b"3"})
    assert [file.name for file in model(home).files] == ["model.safetensors"]


def test_the_only_safetensors_file_of_a_folder_is_the_model(home: Path) -> None:
    shard(home / "m" / "merged.safetensors", {"w": b"1"})
    assert [file.name for file in model(home).files] == ["merged.safetensors"]


def test_several_files_that_are_no_set_are_refused(home: Path) -> None:
    shard(home / "m" / "one.safetensors", {"w": b"1"})
    shard(home / "m" / "two.safetensors", {"v": b"1"})
    text = fault(BuildFailed, home)
    assert "`m` holds more than one model" in text
    assert "`one.safetensors`, `two.safetensors`" in text


def test_a_set_of_shards_that_is_not_complete_is_refused(home: Path) -> None:
    shard(home / "m" / "model-00001-of-00003.safetensors", {"w": b"1"})
    shard(home / "m" / "model-00003-of-00003.safetensors", {"v": b"1"})
    assert "there are 2 of 3" in fault(SourceNotFound, home)


def test_a_tensor_in_two_files_is_refused(home: Path) -> None:
    shard(home / "m" / "model-00001-of-00002.safetensors", {"w": b"1"})
    shard(home / "m" / "model-00002-of-00002.safetensors", {"w": b"1"})
    text = fault(BuildFailed, home)
    assert "`w` is in `model-00001-of-00002.safetensors` and in `model-00002-of-00002.safetensors`" in text


@pytest.mark.parametrize(
    ("weight_map", "fact"),
    [
        ({"a": "s.safetensors", "gone": "s.safetensors"}, "`gone` is not in `s.safetensors`"),
        ({"a": "t.safetensors"}, "`a` is not in `t.safetensors`"),
        ({"b": "t.safetensors", "c": "t.safetensors", "a": "t.safetensors"}, "`a` is not in `t.safetensors`"),
        ({"b": "t.safetensors"}, "`c` of `t.safetensors` is not in the index"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(home: Path, weight_map: dict[str, str], fact: str) -> None:
    shard(home / "m" / "s.safetensors", {"a": b"1"})
    shard(home / "m" / "t.safetensors", {"b": b"1", "c": b"1"})
    indexed(home / "m", weight_map)
    text = fault(BuildFailed, home)
    assert "the index of `m` does not agree with its shards" in text
    assert fact in text


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "x.bin", "", ".x.safetensors",
     "a\\x.safetensors", "x\n.safetensors", 7, None, ["x.safetensors"]],
)  # fmt: skip
def test_an_index_that_names_anything_but_a_file_beside_it_is_refused(home: Path, name: object) -> None:
    shard(home / "x.safetensors", {"a": b"1"})
    shard(home / "m" / "sub" / "x.safetensors", {"a": b"1"})
    indexed(home / "m", {"a": name})
    assert "is not an index to rely on" in fault(BuildFailed, home)


@pytest.mark.parametrize("index", ['{"weight_map": []}', "{}", '{"weight_map": {}}'])
def test_an_index_without_a_map_is_refused(home: Path, index: str) -> None:
    shard(home / "m" / "model.safetensors", {"a": b"1"})
    (home / "m" / INDEX).write_text(index)
    assert "no `weight_map`" in fault(BuildFailed, home)


def test_an_index_that_maps_a_tensor_twice_is_refused(home: Path) -> None:
    shard(home / "m" / "s.safetensors", {"a": b"1"})
    (home / "m" / INDEX).write_text('{"weight_map": {"a": "s.safetensors", "a": "s.safetensors"}}')
    assert "it has the key `a` twice" in fault(BuildFailed, home)


def test_a_shard_that_is_not_there_is_named(home: Path) -> None:
    shard(home / "m" / "s.safetensors", {"a": b"1"})
    indexed(home / "m", {"a": "s.safetensors", "b": "t.safetensors"})
    text = fault(SourceNotFound, home)
    assert "t.safetensors" in text
    assert "s.safetensors`" not in text.replace("t.safetensors", "")


def test_a_damaged_shard_is_named_with_the_fault(home: Path) -> None:
    sharded(home / "m")
    path = home / "m" / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    text = fault(BuildFailed, home)
    assert "`m/model-00002-of-00002.safetensors` is not a safetensors file to rely on" in text
    assert "it is cut short" in text


@pytest.mark.parametrize("name", ["model.ckpt", "tf_model.h5", "model.gguf"])
def test_other_formats_are_not_built_yet(home: Path, name: str) -> None:
    (home / "m").mkdir()
    (home / "m" / name).write_bytes(b"")
    assert f"`m` has weights in `{name}` only" in fault(NotBuiltYet, home)
    assert f"`m/{name}` is not a safetensors file" in fault(NotBuiltYet, home, f"m/{name}")


def test_an_adapter_is_not_a_model(home: Path) -> None:
    shard(home / "m" / "adapter_model.safetensors", {"a": b"1"})
    assert "`m` is an adapter, not a model" in fault(BuildFailed, home)


def test_an_empty_folder_is_not_a_model(home: Path) -> None:
    (home / "m").mkdir()
    assert "it holds nothing" in fault(SourceNotFound, home)


def test_a_missing_source_is_told_with_the_nearest_name(home: Path) -> None:
    (home / "models" / "chronos").mkdir(parents=True)
    text = fault(SourceNotFound, home, "models/chrnos")
    assert text == (
        "error: `models/chrnos` is not there\n  --> Modelfile:7:1\n   |  `models` has no `chrnos`\n\n"
        "hint: did you mean `chronos`?"
    )
    assert "the Modelfile's folder has no `model`" in fault(SourceNotFound, home, "model/chronos")
    assert fault(SourceNotFound, home, "zzz").endswith("has no `zzz`")


def test_a_missing_source_is_never_taken_for_a_recipe_nor_its_folder_for_a_file(home: Path) -> None:
    (home / "moe.yml").touch()
    (home / "weights.bin").touch()
    assert "hint" not in fault(SourceNotFound, home, "moe")
    assert "hint" not in fault(SourceNotFound, home, "weight.bin/chronos")
    assert fault(SourceNotFound, home, "weight.bin").endswith("hint: did you mean `weights.bin`?")


def test_a_link_to_nothing_is_told(home: Path) -> None:
    (home / "m").symlink_to("gone")
    assert "`m` is a link to nothing" in fault(SourceNotFound, home)


@pytest.mark.parametrize("source", ["a\0b", "m" * 5000, ""])
def test_what_is_no_path_is_a_source_not_found_or_no_model(home: Path, source: str) -> None:
    with pytest.raises(ModelbuildError) as caught:
        model(home, source)
    assert caught.value.exit_code in (1, 4)


def test_a_source_outside_the_folder_needs_leave(home: Path, tmp_path: Path) -> None:
    shard(tmp_path / "m" / "model.safetensors", {"w": b"1"})
    for source in ("../m", str(tmp_path / "m"), "../m/model.safetensors"):
        text = fault(UsageError, home, source)
        assert "lies outside the Modelfile's folder" in text
        assert text.endswith("hint: `--allow-path` lets it be read")
        assert model(home, source, allow_path=True).origin == f"local:{source}"


def test_what_exists_outside_the_folder_is_not_told(home: Path) -> None:
    assert "lies outside" in fault(UsageError, home, "../no-such-thing")
    assert "lies outside" in fault(UsageError, home, "/no/such/thing")


def test_an_absolute_path_inside_the_folder_is_inside(home: Path) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    assert model(home, str(home / "m")).origin == f"local:{home / 'm'}"


def test_a_folder_with_the_same_beginning_is_outside(home: Path, tmp_path: Path) -> None:
    shard(tmp_path / "home2" / "model.safetensors", {"w": b"1"})
    assert "lies outside" in fault(UsageError, home, "../home2")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", INDEX])
def test_links_that_leave_the_folder_need_leave(home: Path, tmp_path: Path, name: str) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    indexed(home / "m", {"w": "model.safetensors"})
    (home / "m" / "config.json").write_text("{}")
    (home / "m" / "tokenizer.json").write_text("{}")
    os.replace(home / "m" / name, tmp_path / "elsewhere")
    (home / "m" / name).symlink_to(tmp_path / "elsewhere")
    assert f"`m/{name}` lies outside the Modelfile's folder" in fault(UsageError, home)
    assert model(home, allow_path=True).tensors["w"].nbytes == 1


def test_links_inside_the_folder_are_followed(home: Path) -> None:
    shard(home / "blobs" / "abc", {"w": b"1"})
    (home / "m").mkdir()
    (home / "m" / "model.safetensors").symlink_to("../blobs/abc")
    found = model(home)
    assert found.files[0].name == "model.safetensors"
    assert found.files[0].path == str(home / "blobs" / "abc")


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_hub_cache_is_inside(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    hub = tmp_path / "hf" / "hub"
    shard(hub / "models--o--n" / "blobs" / "abc", {"w": b"1"})
    snapshot = hub / "models--o--n" / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv(variable, str(hub if variable == "HF_HUB_CACHE" else tmp_path / "hf"))
    assert model(home, str(snapshot)).tensors["w"].nbytes == 1
    (home / "m").symlink_to(snapshot)
    assert model(home).tensors["w"].nbytes == 1


def test_the_hub_cache_is_where_its_client_looks() -> None:
    assert hub_caches({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"})[:2] == ("/a", "/b/hub")
    assert hub_caches({"XDG_CACHE_HOME": "/x"})[0] == "/x/huggingface/hub"
    assert hub_caches({}) == (os.path.realpath(os.path.expanduser("~/.cache/huggingface/hub")),)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_pipes_and_folders_in_the_place_of_files_are_refused(home: Path, name: str, kind: str) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    (home / "m" / name).unlink(missing_ok=True)
    os.mkfifo(home / "m" / name) if kind == "pipe" else (home / "m" / name).mkdir()
    text = fault(BuildFailed, home)
    assert f"`m/{name}` is not a file" in text
    assert f"it is a {kind}" in text


def test_a_file_that_may_not_be_read_is_a_source_not_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "Permission denied" in fault(SourceNotFound, home)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (b'{"a": 1, "a": 2}', "it has the key `a` twice"),
        (b"[1]", "it does not hold a JSON object"),
        (b"\xff", "it is not UTF-8 at byte 0"),
        (b"", "it is not JSON"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "it nests deeper than 100 levels"),
        (b'{"a": ' * 100_000, "it nests deeper than 100 levels"),
        (b'{"a": "\\ud800"}', "it holds half of a surrogate pair"),
    ],
)
def test_configs_are_read_strictly(home: Path, text: bytes, fact: str) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    (home / "m" / "config.json").write_bytes(text)
    found = fault(BuildFailed, home)
    assert "`m/config.json`" in found
    assert fact in found


def test_a_config_may_hold_infinity_as_those_of_mamba_do(home: Path) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    (home / "m" / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "name": "\\u00e9\\ud83d\\ude00"}')
    assert model(home).config == {"time_step_limit": [0.0, float("inf")], "name": "é😀"}


def test_a_config_that_is_too_large_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    (home / "m" / "config.json").write_text("{}" + " " * 100)
    monkeypatch.setattr(find, "JSON_LIMIT", 100)
    assert "`m/config.json` is too large" in fault(BuildFailed, home)


def test_a_config_edited_between_reading_and_hashing_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    (home / "m" / "config.json").write_text("{}")

    def edit_first(*arguments: Any) -> Any:
        (home / "m" / "config.json").write_text('{"a": 1}')
        return hashing.digests(*arguments)

    monkeypatch.setattr(resolve, "digests", edit_first)
    assert "`m/config.json` changed while it was being read" in fault(SourceChanged, home)


def test_weights_edited_between_hashing_and_their_header_are_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    real = hashing.digests

    def edit_after(*arguments: Any) -> Any:
        found = real(*arguments)
        time.sleep(0.02)
        shard(home / "m" / "model.safetensors", {"v": b"2"})
        return found

    monkeypatch.setattr(resolve, "digests", edit_after)
    assert "`m/model.safetensors` changed" in fault(SourceChanged, home)


def test_a_pinned_digest_is_held_to(home: Path) -> None:
    digest = hashlib.sha256(shard(home / "m" / "model.safetensors", {"w": b"1"})).hexdigest()
    assert model(home, sha256=digest.upper()).files[0].sha256 == digest
    assert model(home, "m/model.safetensors", sha256=digest).files[0].sha256 == digest
    single = fault(VerificationFailed, home, "m/model.safetensors", sha256="0" * 64)
    assert "error: `m/model.safetensors` is not the file that `sha256` pins" in single
    text = fault(VerificationFailed, home, sha256="0" * 64)
    assert "error: `m/model.safetensors` is not the file that `sha256` pins" in text
    assert f"expected {'0' * 64}" in text
    assert digest in text


def test_a_pinned_digest_of_many_files_is_refused(home: Path) -> None:
    sharded(home / "m")
    assert "`m` has 2 weight files" in fault(BuildFailed, home, sha256="0" * 64)


COPIED = [
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json", "LICENSE", "LICENSE.txt",
    "Notice", "NOTICE.md", "USE_POLICY.md", "LICENSE-MODEL", "additional_chat_templates/tool.jinja",
]  # fmt: skip
LEFT = [
    "README.md", "modeling_x.py", "tokenization_x.py", "LICENSE.py", "LICENSE.safetensors", "config.json",
    "generation_config.json", "model.safetensors", INDEX, "pytorch_model.bin", "training_args.bin", ".gitattributes",
    "1_Pooling/modeling.py", "additional_chat_templates/x.py", "additional_chat_templates/sub/x.jinja",
    "2_Dense/model.safetensors", "onnx/tokenizer.json", "../tokenizer.json", "eval.json", "trainer_state.json",
]  # fmt: skip


def test_side_files_are_those_of_the_list(home: Path) -> None:
    for name in (*COPIED, *LEFT[:-4], "eval.json", "onnx/tokenizer.json"):
        path = home / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    indexed(home / "m", {"w": "model.safetensors"})
    assert sorted(model(home).side_files) == sorted(COPIED)


@pytest.mark.parametrize("name", LEFT)
def test_code_weights_and_what_modelbuild_writes_are_no_side_files(name: str) -> None:
    assert not is_side_file(name)


def an_adapter(folder: Path, tensors: Mapping[str, bytes]) -> None:
    shard(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text('{"r": 8}')


def test_an_adapter_has_the_digest_of_each_tensor(home: Path) -> None:
    an_adapter(home / "a", {"lora_A": b"1234", "lora_B": b"", "bias": b"56"})
    (home / "a" / "tokenizer.json").write_text("{}")
    found = adapter(home)
    assert (found.name, found.origin, found.config) == ("y", "local:a", {"r": 8})
    digests = {name: tensor.sha256 for name, tensor in found.tensors.items()}
    expected = {"lora_A": b"1234", "lora_B": b"", "bias": b"56"}
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()}
    assert [file.name for file in found.files] == ["adapter_config.json", "adapter_model.safetensors"]


def test_an_adapter_may_lie_in_a_subfolder(home: Path) -> None:
    an_adapter(home / "a" / "checkpoint-9", {"lora_A": b"1"})
    assert adapter(home, subfolder="checkpoint-9").origin == "local:a/checkpoint-9"
    with pytest.raises(SourceNotFound) as caught:
        adapter(home)
    assert caught.value.faults[0].hint == '`subfolder = "checkpoint-9"` may be meant'
    with pytest.raises(UsageError):
        adapter(home, subfolder="../../x")


def test_an_adapter_needs_both_files(home: Path) -> None:
    an_adapter(home / "a", {"lora_A": b"1"})
    with pytest.raises(BuildFailed, match="is a file"):
        adapter(home, "a/adapter_model.safetensors")
    (home / "a" / "adapter_config.json").unlink()
    with pytest.raises(SourceNotFound, match=r"has no `adapter_config\.json`"):
        adapter(home)
    os.unlink(home / "a" / "adapter_model.safetensors")
    with pytest.raises(SourceNotFound, match=r"has no `adapter_model\.safetensors`"):
        adapter(home)


def test_an_adapter_pin_is_held_to(home: Path) -> None:
    an_adapter(home / "a", {"lora_A": b"1"})
    with pytest.raises(VerificationFailed):
        adapter(home, sha256="0" * 64)


def test_a_retrained_adapter_keeps_the_digests_of_tensors_that_did_not_change(home: Path) -> None:
    an_adapter(home / "a", {"p": b"12", "q": b"34"})
    before = adapter(home)
    an_adapter(home / "a", {"p": b"12", "q": b"35"})
    after = adapter(home)
    assert before.files != after.files
    assert before.tensors["p"].sha256 == after.tensors["p"].sha256
    assert before.tensors["q"].sha256 != after.tensors["q"].sha256


@pytest.fixture
def weights_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weight files that were opened."""
    names: list[str] = []
    for module in (hashing, headers):
        real = module.open_regular

        def spy(path: str, name: str, real: Any = real) -> int:
            if name.endswith(".safetensors"):
                names.append(name)
            return real(path, name)  # type: ignore[no-any-return]

        monkeypatch.setattr(module, "open_regular", spy)
    return names


def both(home: Path) -> dict[str, SourceModel | SourceAdapter]:
    requests = [Request(Base("x", "m"), WHERE), Request(Adapter("y", "a"), WHERE)]
    return resolve_sources(requests, home, Memory(home / "cache", later))


def test_with_a_warm_memory_no_weight_file_is_opened(home: Path, weights_opened: list[str]) -> None:
    sharded(home / "m")
    an_adapter(home / "a", {"lora_A": b"1", "lora_B": b"2"})
    first = both(home)
    assert weights_opened != []
    weights_opened.clear()
    assert both(home) == first
    assert weights_opened == []


def test_a_moved_file_needs_its_digest_but_not_its_header_again(
    home: Path, weights_opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    model(home)
    (home / "n").mkdir()
    (home / "n" / "model.safetensors").write_bytes((home / "m" / "model.safetensors").read_bytes())
    weights_opened.clear()
    model(home, "n")
    assert weights_opened == ["n/model.safetensors"]


def test_a_memory_that_was_deleted_or_damaged_changes_nothing(home: Path) -> None:
    sharded(home / "m")
    an_adapter(home / "a", {"lora_A": b"1", "lora_B": b"2"})
    first = both(home)
    for path in sorted((home / "cache").rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    assert both(home) == first
    for path in sorted((home / "cache").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert both(home) == first


def test_all_sources_are_hashed_together(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    an_adapter(home / "a", {"lora_A": b"1"})
    calls: list[int] = []
    real = hashing.digests
    monkeypatch.setattr(resolve, "digests", lambda files, *more: calls.append(len(files)) or real(files, *more))
    assert list(both(home)) == ["x", "y"]
    assert calls == [3]


def test_each_error_stands_at_its_own_source(home: Path) -> None:
    shard(home / "m" / "model.safetensors", {"w": b"1"})
    requests = [Request(Base("x", "m"), WHERE), Request(Base("z", "gone"), Where("Modelfile", 11, 1))]
    with pytest.raises(SourceNotFound) as caught:
        resolve_sources(requests, home, Memory(home / "cache"))
    assert caught.value.faults[0].where == Where("Modelfile", 11, 1)
