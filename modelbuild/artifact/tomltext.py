"""A recipe as Modelfile text: what one artifact needs and nothing else, in building order, without comments.

Cards show this rather than the file itself, so that a comment or an unrelated artifact changes no output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelbuild.artifact.recipe import recipe
from modelbuild.modelfile.spec import Spec


def modelfile_text(spec: Spec, name: str) -> str:
    """A Modelfile that builds the artifact `name` as `spec` does; the same for the same recipe."""
    parts = []
    settings = {"dtype": spec.settings.dtype, "seed": spec.settings.seed or None, "shard_size": _size(spec)}
    given = {key: value for key, value in settings.items() if value is not None}
    if given:
        parts.append("\n".join(["[settings]", *_pairs(given)]))
    for data in recipe(spec, name):
        fields = {key: value for key, value in data.items() if key not in ("kind", "name")}
        slices = fields.pop("slices", ())
        lines = [f"[{data['kind']}.{data['name']}]", *_pairs(fields)]
        for part in slices:
            lines += ["", f"[[{data['kind']}.{data['name']}.slices]]", *_pairs(part)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _size(spec: Spec) -> str | None:
    size = spec.settings.shard_size
    return f"{size}B" if size != 5_000_000_000 else None


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    plain = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if plain else json.dumps(key, ensure_ascii=True)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for the character DEL and for pairs of surrogates.
        text = json.dumps(value, ensure_ascii=False)
        return text.replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pairs(value)) + " }" if value else "{}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)
