"""Which safetensors files of a folder are the model, and whether an index tells the truth about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelbuild.errors import BuildFailed, NotBuiltYet, SourceNotFound
from modelbuild.sources.safetensors import Header
from modelbuild.sources.strictjson import show

INDEX = "model.safetensors.index.json"
"""The index of a sharded model."""

SHOWN = 5
"""How many of many names a message lists."""

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<index>\d+)-of-(?P<count>\d+)\.safetensors")
_OTHER_WEIGHTS = re.compile(r".*\.(?:bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|npz)(?:\.index\.json)?")


def weight_map(index: Mapping[str, Any], shown: str) -> dict[str, str]:
    """The tensor names of an index and their files, each a plain name ending in `.safetensors`; BuildFailed else."""
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise BuildFailed(f"{show(shown)} is not an index to rely on", facts=["it has no `weight_map` object"])
    for tensor, file in found.items():
        if not isinstance(file, str) or not is_shard_name(file):
            facts = [f"it places {show(tensor)} in {show(str(file))}", "a shard is a file of the same folder"]
            raise BuildFailed(f"{show(shown)} is not an index to rely on", facts=facts)
    return found


def is_shard_name(name: str) -> bool:
    """Whether the name is that of a safetensors file and of nothing in another folder."""
    plain = name.isprintable() and not name.startswith(".") and "/" not in name and "\\" not in name
    return plain and name.endswith(".safetensors") and len(name) <= 255


def choose_weights(names: Sequence[str], shown: str) -> tuple[str, ...]:
    """The safetensors files of a folder without an index, sorted: `model.safetensors`, else one numbered set of
    shards, else all that start with `model`, else the only one.

    Raises BuildFailed where several answers are possible, NotBuiltYet where only other formats are there and
    SourceNotFound where no weights are.
    """
    files = sorted(name for name in names if is_shard_name(name) and not name.startswith("adapter_"))
    if "model.safetensors" in files:
        return ("model.safetensors",)
    models = [name for name in files if name.startswith("model")] or files
    numbered = [match for match in map(_NUMBERED.fullmatch, models) if match]
    sets = {(match["stem"], match["count"]) for match in numbered}
    if len(sets) == 1:
        return _complete([match.string for match in numbered], int(numbered[0]["count"]), shown)
    if not sets and models and (len(models) == 1 or models[0].startswith("model")):
        return tuple(models)
    if models:
        hint = f"name one of the files as the source, or add a `{INDEX}`"
        raise BuildFailed(f"{show(shown)} holds more than one model", facts=[listed(models)], hint=hint)
    raise _no_weights(names, shown)


def _complete(files: Sequence[str], count: int, shown: str) -> tuple[str, ...]:
    present = sorted(int(match["index"]) for match in map(_NUMBERED.fullmatch, files) if match)
    if present != list(range(1, count + 1)) and present != list(range(count)):
        facts = [f"there are {len(files)} of {count}: {listed(files)}"]
        raise SourceNotFound(f"{show(shown)} lacks shards", facts=facts)
    return tuple(files)


def _no_weights(names: Sequence[str], shown: str) -> BuildFailed | SourceNotFound:
    if "adapter_model.safetensors" in names or "adapter_config.json" in names:
        hint = "an adapter is written as [adapter.NAME]"
        return BuildFailed(f"{show(shown)} is an adapter, not a model", facts=["it has adapter files only"], hint=hint)
    others = sorted(name for name in names if _OTHER_WEIGHTS.fullmatch(name))
    if others:
        hint = "transformers saves a model it has loaded as safetensors"
        return NotBuiltYet(f"{show(shown)} has weights in {show(others[0])} only", facts=["not read yet"], hint=hint)
    return SourceNotFound(f"{show(shown)} has no safetensors file", facts=[f"it holds {listed(names)}"])


def check_index(index: Mapping[str, str], headers: Mapping[str, Header], shown: str) -> None:
    """Raises BuildFailed unless every shard holds exactly the tensors that the index places in it."""
    held = {(tensor.name, file) for file, header in headers.items() for tensor in header.tensors}
    told = set(index.items())
    where = dict(held)
    missing = sorted(f"{show(name)} is not in {show(file)}" for name, file in told - held)
    extra = sorted(
        f"{show(name)} of {show(file)} is not in the index" for name, file in held - told if name not in index
    )
    moved = sorted(f"{show(name)} is in {show(where[name])} too" for name, _ in held - told if name in index)
    if missing or extra or moved:
        facts = (missing + extra + moved)[: SHOWN + 1]
        raise BuildFailed(f"the index of {show(shown)} does not agree with its shards", facts=facts)


def check_unique(headers: Mapping[str, Header], shown: str) -> None:
    """Raises BuildFailed if two files hold a tensor of the same name."""
    first: dict[str, str] = {}
    for file, header in headers.items():
        for tensor in header.tensors:
            if tensor.name in first:
                facts = [f"{show(tensor.name)} is in {show(first[tensor.name])} and in {show(file)}"]
                raise BuildFailed(f"{show(shown)} holds a tensor twice", facts=facts)
            first[tensor.name] = file


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    if not names:
        return "nothing"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(show, names[:SHOWN])) + more
