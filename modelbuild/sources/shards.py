"""Which files of a folder are the model's weights, and whether an index tells the truth about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbuild.errors import BuildFailed, NotBuiltYet, SourceNotFound
from modelbuild.sources.buffers import is_recomputed
from modelbuild.sources.pickles import SUFFIXES
from modelbuild.sources.safetensors import Header
from modelbuild.sources.strictjson import show


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of weight files: the stem of their usual names, how names end, and the index of a sharded model."""

    stem: str
    suffixes: tuple[str, ...]
    index: str


SAFETENSORS = Kind("model", (".safetensors",), "model.safetensors.index.json")
PICKLES = Kind("pytorch_model", SUFFIXES, "pytorch_model.bin.index.json")
KINDS = (SAFETENSORS, PICKLES)
"""The kinds that are read, the preferred one first."""

INDEX = SAFETENSORS.index
"""The index of a sharded model."""

INDEXES = tuple(kind.index for kind in KINDS)

SHOWN = 5
"""How many of many names a message lists."""

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<index>\d+)-of-(?P<count>\d+)\.[a-z]+")
_OTHER_WEIGHTS = re.compile(r".*\.(?:ckpt|gguf|h5|msgpack|onnx|npz)(?:\.index\.json)?")
_TRAINING = re.compile(
    r"adapter_.*|(?:training_args|optimizer|scheduler|scaler|rng_state|random_states|arguments)(?:[_.-].*)?\.[a-z]+"
)
"""Files beside a model that are no model."""


def kind_of(names: Sequence[str]) -> Kind:
    """The kind of the weights in a folder: safetensors, unless there are only files of torch.save."""
    return next((kind for kind in KINDS if kind.index in names or _candidates(names, kind)), SAFETENSORS)


def weight_map(index: Mapping[str, Any], shown: str, kind: Kind = SAFETENSORS) -> dict[str, str]:
    """The tensor names of an index and their files, each a plain name of the kind; BuildFailed else."""
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise BuildFailed(f"{show(shown)} is not an index to rely on", facts=["it has no `weight_map` object"])
    for tensor, file in found.items():
        if not isinstance(file, str) or not is_shard_name(file, kind):
            facts = [f"it places {show(tensor)} in {show(str(file))}", "a shard is a file of the same folder"]
            raise BuildFailed(f"{show(shown)} is not an index to rely on", facts=facts)
    return found


def is_shard_name(name: str, kind: Kind = SAFETENSORS) -> bool:
    """Whether the name is that of a file of this kind and of nothing in another folder."""
    plain = name.isprintable() and not name.startswith(".") and "/" not in name and "\\" not in name
    return plain and name.endswith(kind.suffixes) and len(name) <= 255


def _candidates(names: Sequence[str], kind: Kind) -> list[str]:
    return sorted(name for name in names if is_shard_name(name, kind) and not _TRAINING.fullmatch(name))


def is_old_weights(name: str) -> bool:
    """Whether the name is that of a file of torch.save with the weights of a model or an adapter."""
    return is_shard_name(name, PICKLES) and (name == "adapter_model.bin" or not _TRAINING.fullmatch(name))


def choose_weights(names: Sequence[str], shown: str) -> tuple[str, ...]:
    """The weight files of a folder without an index, sorted: `model.safetensors`, else one numbered set of shards, else
    all that start with `model`, else the only one; and if there is no safetensors file, the same of those of
    torch.save, whose names start with `pytorch_model`.

    Raises BuildFailed where several answers are possible, NotBuiltYet where only other formats are there and
    SourceNotFound where no weights are.
    """
    kind = kind_of(names)
    files = _candidates(names, kind)
    single = kind.stem + kind.suffixes[0]
    if single in files:
        return (single,)
    models = [name for name in files if name.startswith(kind.stem)] or files
    numbered = [match for match in map(_NUMBERED.fullmatch, models) if match]
    sets = {(match["stem"], match["count"]) for match in numbered}
    if len(sets) == 1:
        return _complete([match.string for match in numbered], int(numbered[0]["count"]), shown)
    if not sets and models and (len(models) == 1 or models[0].startswith(kind.stem)):
        return tuple(models)
    if models:
        hint = f"name one of the files as the source, or add a `{kind.index}`"
        raise BuildFailed(f"{show(shown)} holds more than one model", facts=[listed(models)], hint=hint)
    raise _no_weights(names, shown)


def _complete(files: Sequence[str], count: int, shown: str) -> tuple[str, ...]:
    present = sorted(int(match["index"]) for match in map(_NUMBERED.fullmatch, files) if match)
    if present != list(range(1, count + 1)) and present != list(range(count)):
        facts = [f"there are {len(files)} of {count}: {listed(files)}"]
        raise SourceNotFound(f"{show(shown)} lacks shards", facts=facts)
    return tuple(files)


def _no_weights(names: Sequence[str], shown: str) -> BuildFailed | SourceNotFound:
    if any(name.startswith("adapter_model.") for name in names) or "adapter_config.json" in names:
        hint = "an adapter is written as [adapter.NAME]"
        return BuildFailed(f"{show(shown)} is an adapter, not a model", facts=["it has adapter files only"], hint=hint)
    others = sorted(name for name in names if _OTHER_WEIGHTS.fullmatch(name))
    if others:
        hint = "transformers saves a model it has loaded as safetensors"
        return NotBuiltYet(f"{show(shown)} has weights in {show(others[0])} only", facts=["not read yet"], hint=hint)
    return SourceNotFound(f"{show(shown)} has no safetensors file", facts=[f"it holds {listed(names)}"])


def check_index(index: Mapping[str, str], headers: Mapping[str, Header], shown: str, kind: Kind = SAFETENSORS) -> None:
    """Raises BuildFailed unless every shard holds exactly the tensors that the index places in it.

    Files of torch.save may hold more buffers that loading computes anew: many indexes of 2023 leave them out.
    """
    told = set(index.items())
    held = {
        (tensor.name, file)
        for file, header in headers.items()
        for tensor in header.tensors
        if kind is SAFETENSORS or tensor.name in index or not is_recomputed(tensor.name, tensor.shape)
    }
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
