"""config.json and generation_config.json, made to agree with the weights and with what the Modelfile overrides.

A donor's file that agrees already is kept byte for byte. Keys keep their order, and `auto_map` stays: the code it names
is never copied, so transformers asks its user for it at the original repository, and the model card says so.
`_name_or_path` says where the donor was loaded from, often a folder of somebody's machine: a file that is written anew
lacks it, and a file in which it is such a folder is written anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelbuild.dtypes import FLOATS
from modelbuild.errors import SourceChanged
from modelbuild.plan.language import TEXT_SECTIONS

if TYPE_CHECKING:
    from modelbuild.plan.node import Node
    from modelbuild.plan.planned import Planned
    from modelbuild.sources.content import SourceFile

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
DTYPE_KEYS = ("dtype", "torch_dtype")
LAYER_INDEXES = frozenset({
    "mlp_only_layers", "moe_layers", "cross_attention_layers", "full_attn_idxs", "attn_layer_indices",
    "global_attn_indexes", "full_attention_layers", "kda_layers", "full_attn_layers",
})  # fmt: skip
"""Lists of layer numbers, as opposed to lists with one entry for each layer."""
NOT_PER_LAYER = frozenset({"architectures", "eos_token_id", "bos_token_id", "pad_token_id", "auto_map", "task_ids"})
"""Lists that are as long as there are layers by chance only."""
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared")
_NAMES = {code: name for name, code in FLOATS.items()}
_ORIGIN = "_name_or_path"
_FOLDER = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|file:")


def config_json(planned: Planned) -> bytes | None:
    """The config.json of an artifact; None where its donor has none and nothing overrides it.

    Raises SourceChanged where the donor's file is not the one that was planned with.
    """
    side = planned.side
    return agree(
        side.config,
        _read(side.config_file),
        dtype_counts=count_dtypes(planned.tensors.values()),
        stack=planned.layout.main,
        layers=side.layers,
        vocab=vocabulary({name: node.shape for name, node in planned.tensors.items()}) or side.vocabulary,
        overrides=side.config_overrides,
        untied=side.untied,
        chosen_vocabulary=side.vocabulary is not None,
    )


def generation_json(planned: Planned) -> bytes | None:
    """The generation_config.json of an artifact; None where its donor has none and nothing overrides it."""
    side = planned.side
    return override(side.generation, _read(side.generation_file), side.generation_overrides)


def agree(
    config: Mapping[str, Any] | None,
    original: bytes | None,
    *,
    dtype_counts: Mapping[str, int],
    stack: str | None = None,
    layers: Sequence[int] | None = None,
    vocab: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    untied: bool = False,
    chosen_vocabulary: bool = False,
) -> bytes | None:
    """config.json as bytes: `config`, whose file reads `original`, changed where it contradicts the weights.

    `dtype_counts` gives the elements of each safetensors dtype; `layers`, where slices chose, the donor's layer that
    each output layer of `stack` was; `vocab` the rows of the embedding, `chosen_vocabulary` where somebody chose
    them. `overrides` have the last word, tables merged.
    """
    if config is None and not overrides:
        return None
    changed = deepcopy(dict(config or {}))
    if config is not None:
        _set_dtype(changed, dtype_counts)
        if layers is not None:
            sections = _sections_of(changed, stack or "")
            for section in sections:
                _set_layers(section, layers)
            if len(sections) > 1 and not any(key in section for section in sections for key in LAYER_COUNTS):
                # Where a section leaves the count out, its class has one of its own.
                sections[-1][LAYER_COUNTS[0]] = len(layers)
        if vocab is not None:
            _set_vocabulary(changed, vocab, chosen_vocabulary)
        if untied:
            _untie(changed)
    return override(config, original, overrides or {}, changed)


def override(
    config: Mapping[str, Any] | None,
    original: bytes | None,
    overrides: Mapping[str, Any],
    changed: Mapping[str, Any] | None = None,
) -> bytes | None:
    """A JSON file with `overrides` merged in, table by table; the original bytes where that changes nothing.

    Where it does, or the file names a folder of a machine as its origin, the donor's `_name_or_path` is left out.
    `changed` is the value to start from where it is not `config` itself. None where there is neither file nor override.
    """
    if config is None and not overrides:
        return None
    start = config or {} if changed is None else changed
    same = config is not None and _text(_merge(start, overrides)) == _text(config)
    if original is not None and same and not _names_folder(config):
        return original
    return _text(_merge(_without_origin(start), overrides))


def count_dtypes(nodes: Iterable[Node]) -> dict[str, int]:
    """The number of elements of each safetensors dtype; a packed weight counts as what it was packed from."""
    counts: dict[str, int] = {}
    for node in (node.inputs[0] if node.outputs else node for node in nodes):
        counts[node.dtype] = counts.get(node.dtype, 0) + node.count
    return counts


def vocabulary(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """The rows of the input embedding, by the name it has in every architecture known; None if none has such a name."""
    for name, shape in shapes.items():
        parts = name.split(".")
        if len(parts) >= 2 and parts[-1] == "weight" and parts[-2] in _EMBEDDINGS and len(shape) == 2:
            return shape[0]
    return None


def names_remote_code(config: Mapping[str, Any] | None) -> bool:
    """Whether a model needs code from the repository it came from to load."""
    return bool(config and config.get("auto_map"))


def _read(file: SourceFile | None) -> bytes | None:
    if file is None:
        return None
    data = Path(file.path).read_bytes()
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise SourceChanged(f"`{file.name}` changed during the build", hint="build again to use it as it is now")
    return data


def _text(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(below, value)
        else:
            merged[key] = _plain(value)
    return merged


def _plain(value: object) -> object:
    """Immutable nouns as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _names_folder(value: object) -> bool:
    """Whether a `_name_or_path`, on any level, is a place on a machine rather than a name."""
    if isinstance(value, Mapping):
        origin = value.get(_ORIGIN)
        return (isinstance(origin, str) and bool(_FOLDER.match(origin))) or any(map(_names_folder, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_names_folder, value))


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without `_name_or_path`, and every table in it without."""
    kept = {key: value for key, value in config.items() if key != _ORIGIN}
    return {key: _without_origin(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _sections(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config itself, under the empty name, and every nested config."""
    yield "", config
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            yield key, value


def _sections_of(config: dict[str, Any], stack: str) -> list[dict[str, Any]]:
    """The sections that describe a stack: one that the stack's name speaks of (`vision`), else text and the top."""
    sections = dict(_sections(config))
    named = [part for key, part in sections.items() if key and key not in TEXT_SECTIONS and key[:-7] in stack]
    return named or [part for key, part in sections.items() if not key or key in TEXT_SECTIONS]


def _set_dtype(config: dict[str, Any], counts: Mapping[str, int]) -> None:
    """The dtype most weights have, wherever the donor named the one its own had."""
    floats = {code: counts[code] for code in _NAMES if counts.get(code)}
    sections = [part for key, part in _sections(config) if not key or key in TEXT_SECTIONS]
    named = [part[key] for part in sections for key in DTYPE_KEYS if key in part]
    if not floats or not named:
        return
    dtype = _NAMES[max(floats, key=lambda code: floats[code])]
    for _, section in _sections(config):
        for key in DTYPE_KEYS:
            if section.get(key, ...) == named[0]:
                section[key] = dtype


def _set_layers(section: dict[str, Any], layers: Sequence[int]) -> None:
    count_keys = [key for key in LAYER_COUNTS if isinstance(section.get(key), int)]
    if not count_keys:
        return
    old = section[count_keys[0]]
    if list(layers) == list(range(old)):
        return
    for key, value in section.items():
        if key in count_keys and value == old:
            section[key] = len(layers)
        elif key in LAYER_INDEXES and isinstance(value, list):
            section[key] = [index for index, layer in enumerate(layers) if layer in value]
        elif isinstance(value, list) and len(value) == old and key not in NOT_PER_LAYER:
            section[key] = [value[min(layer, old - 1)] for layer in layers]


def _set_vocabulary(config: dict[str, Any], rows: int, chosen: bool) -> None:
    """The rows of the embedding wherever they are named; those that were `chosen` for the text in any case."""
    sections = [section for key, section in _sections(config) if not key or key in TEXT_SECTIONS]
    named = [section for section in sections if isinstance(section.get("vocab_size"), int)]
    for section in named or (sections[1:2] if chosen else []):
        section["vocab_size"] = rows


def _untie(config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = False
    for key, section in _sections(config):
        if key in TEXT_SECTIONS and "tie_word_embeddings" in section:
            section["tie_word_embeddings"] = False
