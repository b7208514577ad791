"""A JSON Schema of the Modelfile, for editors: made by pydantic from the same declarations that the checks read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, Literal, TypeAlias

from modelbuild.methods.registry import methods
from modelbuild.modelfile import keys
from modelbuild.modelfile.keys import Key, Keys, Toml

if TYPE_CHECKING:
    from pydantic import BaseModel

    from modelbuild.methods.base import Method

Fields: TypeAlias = "dict[str, tuple[Toml, Toml]]"
"""A pydantic type and a pydantic field by the key that they are for."""


def json_schema(outside: Mapping[str, Method] = MappingProxyType({})) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a Modelfile, with every kind, key, method, parameter, format and type.

    Methods from `outside` are among them.
    """
    schema = _modelfile({**methods(), **outside}).model_json_schema()
    _tidy(schema)
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Modelfile"}
    return {**about, "description": "A Modelfile of modelbuild, format version 1", **schema}


@cache
def modelfile_model() -> type[BaseModel]:
    """The pydantic model of a whole Modelfile: the form of every table, without what only the file as a whole shows."""
    return _modelfile(methods())


def _modelfile(known: Mapping[str, Method]) -> type[BaseModel]:
    from pydantic import Field

    combined: Toml = _model("Combined", _fields(keys.COMBINED))
    extract = _model("Extract", _fields(keys.EXTRACT))
    tables: dict[str, Toml] = {
        "base": _model("Base", _fields(keys.BASE)),
        "adapter": _model("Adapter", _fields(keys.ADAPTER, extract=extract, combine=list[combined])),
        "merge": _merge(known),
        "quantize": _quantize(),
        "publish": _model("Publish", _fields(keys.PUBLISH)),
    }
    name = Annotated[str, Field(pattern=f"^{keys.NAME}$")]
    fields: Fields = {"modelfile": (Literal[1], _optional("format version"))}
    fields["settings"] = (_model("Settings", _fields(keys.SETTINGS)), _optional("defaults of the whole file"))
    fields |= {
        kind: (dict.__class_getitem__((name, table)), _optional(f"tables [{kind}.NAME]"))
        for kind, table in tables.items()
    }
    return _model("Modelfile", fields)


def _model(name: str, fields: Fields) -> type[BaseModel]:
    """A pydantic model that takes these keys and no others. Keys are aliases, since some are words of Python."""
    from pydantic import ConfigDict, create_model

    aliases = {f"field_{index}": key for index, key in enumerate(fields)}
    config = ConfigDict(extra="forbid", strict=True, alias_generator=aliases.__getitem__)
    named: dict[str, Any] = dict(zip(aliases, fields.values(), strict=True))
    model: type[BaseModel] = create_model(name, __config__=config, **named)
    return model


def _optional(help: str) -> Toml:
    """The field of a key that need not be there; TOML has no null, so the schema shows no default."""
    from pydantic import Field

    return Field(default=None, description=help)


def _fields(declared: Keys, **types: Toml) -> Fields:
    """The fields of the declared keys; `types` says what those take whose declaration leaves it open."""
    from pydantic import Field

    return {
        key.name: (
            types.get(key.name) or _type(key),
            Field(description=key.help) if key.required else _optional(key.help),
        )
        for key in declared.values()
    }


def _type(key: Key) -> Toml:
    """The type that pydantic knows for a key."""
    from pydantic import Field

    if key.choices:
        return Literal[key.choices]
    text = Annotated[str, Field(min_length=1, pattern=f"^{key.pattern}$" if key.pattern else None)]
    layer = Annotated[int, Field(ge=0)]
    pair = Annotated[list[float], Field(min_length=2, max_length=2)]
    types: dict[keys.Type, Toml] = {
        "string": text,
        "size": text,
        "boolean": bool,
        "integer": Annotated[int, Field(ge=key.low, le=key.high)],
        "number": float,
        "strings": list[str],
        "patterns": str | Annotated[list[str], Field(min_length=key.least)],
        "ends": text | Annotated[list[text], Field(min_length=2, max_length=2)],
        "layers": Annotated[list[layer], Field(min_length=2, max_length=2)],
        "points": Annotated[list[pair], Field(min_length=1)],
        "table": dict[str, Any],
    }
    return types[key.type]


@cache
def _value() -> type[BaseModel]:
    """What a parameter may be: a constant, a gradient, points, or choices among such values."""
    from pydantic import ConfigDict, Field, RootModel

    points: Toml = _model("Points", _fields(keys.POINTS))
    gradient: Toml = Annotated[list[float], Field(min_length=1)]
    choices: Toml = Annotated[list[ForwardRef("Choice")], Field(min_length=1)]  # type: ignore[misc]
    texts: Toml = Annotated[list[str], Field(min_length=1)]
    forms: Toml = bool | float | str | gradient | texts | points | choices

    class Value(RootModel[forms]):
        model_config = ConfigDict(strict=True)

    choice = _model("Choice", _fields(keys.CHOICE, value=Value))
    Value.model_rebuild(_types_namespace={"Choice": choice})
    choice.model_rebuild()
    return Value


def _parameters(known: Mapping[str, Method], scopes: Iterable[str], reserved: Keys) -> Fields:
    """The fields of all parameters of all methods that belong to these scopes and are no key of the table."""
    helps: dict[str, list[str]] = {}
    for method in known.values():
        for parameter in method.parameters:
            if parameter.scope in scopes and parameter.name not in reserved:
                helps.setdefault(parameter.name, []).append(f"{method.name}: {parameter.help}")
    return {name: (_value(), _optional("; ".join(texts))) for name, texts in helps.items()}


def _merge(known: Mapping[str, Method]) -> type[BaseModel]:
    from pydantic import Field

    def entries(name: str, declared: Keys, scopes: Iterable[str], **types: Toml) -> Toml:
        table = _model(name, _fields(declared, **types) | _parameters(known, scopes, declared))
        return Annotated[list[table], Field(min_length=1)]  # type: ignore[valid-type]

    models = entries("Model", keys.MODEL, ("input",))
    fields = _fields(
        keys.MERGE,
        method=Literal[tuple(known)],
        models=models,
        adapters=entries("Folded", keys.FOLDED, ("input",)),
        slices=entries("Slice", keys.SLICE, ("merge", "input"), models=models),
        tokens=dict[str, str | _model("Token", _fields(keys.TOKEN))],  # type: ignore[misc]
    )
    return _model("Merge", fields | _parameters(known, ("merge", "input"), keys.MERGE))


def _quantize() -> type[BaseModel]:
    from modelbuild.formats.registry import formats

    types = tuple(dict.fromkeys(name for known in formats().values() for name in known.types))
    fields = _fields(keys.QUANTIZE, format=Literal[tuple(formats())], type=Literal[types])
    for known in formats().values():
        for option in known.options:
            key = Key(option.name, option.type, option.help, low=option.low)
            kind: Toml = Literal[option.choices] if option.choices else _type(key)
            fields[option.name] = (kind, _optional(option.help))
    return _model("Quantize", fields)


def _tidy(schema: Toml) -> None:
    """Makes a schema ours, in place.

    Titles and `"default": null` go, since titles repeat the names and TOML has no null; names that do not match are
    refused, as they are by the model.
    """
    rest: list[Toml] = [schema]
    while rest:
        entry = rest.pop()
        if isinstance(entry, dict):
            if entry.get("default", 0) is None:
                del entry["default"]
            if isinstance(entry.get("title"), str):
                del entry["title"]
            if "patternProperties" in entry:
                entry["additionalProperties"] = False
            rest += entry.values()
        elif isinstance(entry, list):
            rest += entry
