"""The fixed keys of a Modelfile's tables, declared once: read by the checks, the JSON Schema and the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Toml: TypeAlias = Any
"""Anything that a TOML file may have for a value, as tomli gives it."""

Type: TypeAlias = Literal[
    "string", "integer", "number", "boolean", "size", "strings", "patterns", "ends", "layers", "table", "tables",
    "value", "points",
]  # fmt: skip
"""What a key takes.

strings: a list of strings; patterns: a string or a list of strings; ends: a name or [BEFORE, AFTER]; layers: [START,
END]; value: what a parameter of a merge may be; points: a list of [LAYER, VALUE].
"""

DTYPES = ("bfloat16", "float16", "float32")
NAME = r"[a-z0-9][a-z0-9_-]*"
SHA256 = r"[0-9a-f]{64}"
REPOSITORY = r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+"
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table: what it takes, what it is for, and what else its value must be.

    `pattern` is a regular expression for the whole string and `example` a value that fits it; `low` and `high` bound
    an integer, inclusive; `least` is the least number of entries of a list.
    """

    name: str
    type: Type
    help: str
    required: bool = False
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    example: str = ""
    low: int | None = None
    high: int | None = None
    least: int = 0


Keys: TypeAlias = Mapping[str, Key]


def _keys(*keys: Key) -> dict[str, Key]:
    return {key.name: key for key in keys}


_DESCRIPTION = Key("description", "string", "one sentence for the model card")
_KEEP = Key("keep", "boolean", "whether its tensors stay in the cache; by default when they cost more to make")
_SOURCE = Key("source", "string", "hf:ORG/NAME[@REVISION], or a folder or file relative to the Modelfile")
_REVISION = Key("revision", "string", "branch, tag or commit of a Hub source; the lock pins the commit")
_SHA256 = Key(
    "sha256", "string", "pins a source that is a single file", pattern=SHA256, example="64 hexadecimal digits"
)

SETTINGS = _keys(
    Key("dtype", "string", "dtype of every merge that names none", choices=DTYPES),
    Key("seed", "integer", "the only source of randomness of a build", low=0, high=LARGEST_SEED),
    Key("shard_size", "size", "largest output shard; KB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024"),
    Key("shards", "string", "how outputs are cut; by modules from 1 GB on if absent", choices=("modules", "order")),
    Key("default", "strings", "targets of a bare `modelbuild build`"),
)
BASE = _keys(
    Key("source", "string", _SOURCE.help, required=True),
    _REVISION,
    _SHA256,
)
ADAPTER = _keys(
    _SOURCE,
    _REVISION,
    _SHA256,
    Key("subfolder", "string", "folder of the adapter within its source"),
    Key("extract", "table", "the low-rank difference of two models: { model, base, rank }"),
    Key("combine", "tables", "the exact sum of adapters: a list of { adapter, weight }", least=1),
    Key("rank", "integer", "rank that `combine` is cut to", low=1),
    _DESCRIPTION,
    _KEEP,
)
EXTRACT = _keys(
    Key("model", "string", "the model that was trained", required=True),
    Key("base", "string", "the model that it was trained from", required=True),
    Key("rank", "integer", "rank of the difference", required=True, low=1),
)
COMBINED = _keys(
    Key("adapter", "string", "an adapter", required=True),
    Key("weight", "number", "its share of the sum; 1 if absent"),
)
MERGE = _keys(
    Key("method", "string", "the merge method; `modelbuild methods` lists them", required=True),
    Key("base", "string", "the model that config, tokenizer and side files come from, and task vectors start at"),
    Key("router", "string", "the model that the routers of a mixture of experts are taken from"),
    Key("models", "tables", "the models that are merged, in order", least=1),
    Key("adapters", "tables", "the adapters that are folded into the base, in order; with method lora", least=1),
    Key("slices", "tables", "stretches of output layers, in order; instead of models", least=1),
    Key("ends", "ends", "the model that what is before and after the layers comes from, or one for each; with slices"),
    Key("dtype", "string", "dtype of every floating tensor of the merge", choices=DTYPES),
    Key("seed", "integer", "the source of randomness of this merge", low=0, high=LARGEST_SEED),
    Key("base_precision", "string", "round the base through this type before adapters are added", choices=("nf4",)),
    Key("tokenizer", "string", "base, union, or the name of an input"),
    Key("tokens", "table", "where single tokens of the vocabulary come from"),
    Key("pad_to_multiple_of", "integer", "pad the vocabulary to a multiple of this", low=1),
    Key("chat_template", "string", "auto, the name of an input or of a known format, or the template's text"),
    Key("only", "patterns", "patterns of what is merged; the rest is the donor's", least=1),
    Key("copy", "patterns", "patterns of what is taken from the donor as it is", least=1),
    Key("config", "table", "overrides of config.json"),
    Key("generation", "table", "overrides of generation_config.json"),
    _DESCRIPTION,
    _KEEP,
)
MODEL = _keys(
    Key("model", "string", "a base or a merge", required=True),
    Key("layers", "layers", "range of the model's layers, END excluded; in a slice"),
)
FOLDED = _keys(Key("adapter", "string", "an adapter", required=True))
SLICE = _keys(
    Key("models", "tables", "the models of this slice", required=True, least=1),
    Key("layers", "layers", "range of layers of each model that names none, END excluded"),
)
QUANTIZE = _keys(
    Key("model", "string", "the base or merge that is quantised", required=True),
    Key("format", "string", "gguf, bnb, compressed-tensors or mlx", required=True),
    Key("type", "string", "the type within the format, such as Q4_K_M, nf4 or fp8", required=True),
    Key("skip", "patterns", "patterns of what is left alone"),
    _DESCRIPTION,
    _KEEP,
)
PUBLISH = _keys(
    Key("repo", "string", "ORG/NAME on the Hub", required=True, pattern=REPOSITORY, example="ORG/NAME"),
    Key("private", "boolean", "whether a new repository is private"),
    Key("license", "string", "license of the model card"),
    Key("language", "strings", "languages of the model card"),
    Key("tags", "strings", "tags of the model card"),
    Key("notes", "string", "text for the model card"),
)
TOKEN = _keys(
    Key("model", "string", "the model whose row it is"),
    Key("token", "string", "another token of that model, whose row it is"),
    Key("token_id", "integer", "the row of that model, by number", low=0, high=2**31 - 1),
    Key("zero", "boolean", "true: the row is zeros"),
    Key("force", "boolean", "whether models that have the token get this row too"),
)
CHOICE = _keys(
    Key("match", "string", "piece of a tensor's name, * standing for anything; absent: fits everything"),
    Key("value", "value", "the value where it matches", required=True),
)
POINTS = _keys(
    Key("points", "points", "[LAYER, VALUE] pairs, layers strictly increasing", required=True, least=1),
    Key("rest", "number", "the value for tensors outside the layers; 0 if absent"),
    Key("shape", "string", "how values run between points", choices=("linear", "cosine", "step")),
)

KINDS: Mapping[str, Keys] = {
    "base": BASE,
    "adapter": ADAPTER,
    "merge": MERGE,
    "quantize": QUANTIZE,
    "publish": PUBLISH,
}
"""The tables `[KIND.NAME]`; all but publish are artifacts."""
TOP = ("modelfile", "settings", *KINDS)
"""What may stand at the top of a Modelfile."""
