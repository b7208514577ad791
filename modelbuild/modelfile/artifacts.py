"""Bases, adapters, quantised models, what is published and the settings: from their tables to nouns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.keys import (
    ADAPTER,
    BASE,
    COMBINED,
    EXTRACT,
    PUBLISH,
    QUANTIZE,
    REPOSITORY,
    SETTINGS,
    Key,
    Type,
)
from modelbuild.modelfile.spec import Adapter, Base, Extract, Path, Publish, Quantize, Settings
from modelbuild.modelfile.suggest import did_you_mean, listed, shown
from modelbuild.modelfile.tables import Table, fits, read, read_all, title, unknown_key
from modelbuild.modelfile.values import read_patterns
from modelbuild.units import parse_size

if TYPE_CHECKING:
    from modelbuild.formats.base import Format, Option


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+]+):")
_HUB_PAGE = re.compile(rf"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/({REPOSITORY})/?")


def read_settings(faults: Faults, raw: Table) -> Settings:
    """The settings that the table says."""
    good = read_all(faults, ("settings",), raw, SETTINGS)
    if "shard_size" in good:
        good["shard_size"] = parse_size(good["shard_size"])
    return Settings(**{**good, "default": tuple(good.get("default", ()))})


def read_base(faults: Faults, name: str, raw: Table) -> Base:
    """The base that the table says."""
    path: Path = ("base", name)
    good = read_all(faults, path, raw, BASE)
    _check_source(faults, path, good)
    return Base(name, **{"source": "", **good})


def read_adapter(faults: Faults, name: str, raw: Table) -> Adapter:
    """The adapter that the table says: exactly one of fetched, extracted and combined."""
    path: Path = ("adapter", name)
    good = read_all(faults, path, raw, ADAPTER)
    ways = [key for key in ("source", "extract", "combine") if key in raw]
    if len(ways) != 1:
        message = f"{title(path)} needs exactly one of `source`, `extract` and `combine`"
        place = (*path, ways[1]) if ways else path
        faults.key(place, message, f"it has {listed(ways)}" if ways else "it has none")
    _check_source(faults, path, good)
    for key, needed in (
        ("revision", "source"), ("sha256", "source"), ("subfolder", "source"), ("rank", "combine"),
    ):  # fmt: skip
        if ways and key in raw and needed not in raw:
            faults.key((*path, key), f"`{key}` has no meaning without `{needed}`")
    extract, combine = (
        _extract(faults, path, good.pop("extract", None)),
        _combine(faults, path, good.pop("combine", None)),
    )
    return Adapter(name, extract=extract, combine=combine, **good)


def _extract(faults: Faults, path: Path, raw: Table | None) -> Extract | None:
    if raw is None:
        return None
    good = read_all(faults, (*path, "extract"), raw, EXTRACT)
    return Extract(good.get("model", ""), good.get("base", ""), good.get("rank", 1))


def _combine(faults: Faults, path: Path, raw: list[Table] | None) -> tuple[tuple[str, float], ...] | None:
    if raw is None:
        return None
    entries = [
        read_all(faults, (*path, "combine", index), entry, COMBINED)
        for index, entry in enumerate(raw)
        if isinstance(entry, dict)
    ]
    return tuple((entry.get("adapter", ""), float(entry.get("weight", 1.0)) + 0.0) for entry in entries)


def _check_source(faults: Faults, path: Path, good: Table) -> None:
    """A source is `hf:ORG/NAME[@REVISION]` or a path; a revision is the Hub's, and is named once."""
    source = good.get("source")
    if source is None:
        return
    where = (*path, "source")
    scheme = _SCHEME.match(source)
    if source.startswith("hf:"):
        repository, at, revision = source[3:].partition("@")
        if not re.fullmatch(REPOSITORY, repository) or (at and not revision):
            faults.expected(where, "a Hub source", "hf:ORG/NAME or hf:ORG/NAME@REVISION", source)
        elif at and "revision" in good:
            message = "the revision is named twice"
            faults.key((*path, "revision"), message, f"`source` names `{shown(revision)}` after the @")
        return
    if scheme and not re.match(r"[A-Za-z]:", source):
        page = _HUB_PAGE.fullmatch(source)
        hint = f'write `source = "hf:{page[1]}"`' if page else None
        faults.expected(where, "a source", "hf:ORG/NAME[@REVISION], or a folder or file", source, hint=hint)
    elif "\0" in source:
        faults.expected(where, "a source", "a path that a file system can have", source)
    if "revision" in good:
        hint = f'for the Hub, write `source = "hf:{source}"`' if re.fullmatch(REPOSITORY, source) else None
        faults.key((*path, "revision"), "`revision` has no meaning for a local source", hint=hint)


def read_quantize(faults: Faults, name: str, raw: Table, formats: Mapping[str, Format]) -> Quantize:
    """The quantised model that the table says; its options are those of its format."""
    path: Path = ("quantize", name)
    good = read(faults, path, raw, QUANTIZE)
    known = formats.get(good.get("format", ""))
    if "format" in good and known is None:
        message = f"there is no format `{shown(good['format'])}`"
        hint = did_you_mean(good["format"], formats) or f"the formats are {listed(formats)}"
        faults.value((*path, "format"), message, hint=hint)
    if known is not None and good.get("type", known.types[0]) not in known.types:
        message = f"format `{known.name}` has no type `{shown(good['type'])}`"
        faults.unknown_value((*path, "type"), message, good["type"], known.types, f"it has {', '.join(known.types)}")
    skip = read_patterns(faults, (*path, "skip"), good.pop("skip", ()))
    options = _options(faults, path, raw, [known] if known else list(formats.values()))
    plain = {"model": "", "format": "", "type": "", **good}
    return Quantize(name, skip=skip, options=options, **plain)


def _options(faults: Faults, path: Path, raw: Table, formats: list[Format]) -> dict[str, Any]:
    """The options of the format, or of any format where it is not known."""
    names = [option.name for known in formats for option in known.options]
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if name in QUANTIZE:
            continue
        option = next((option for known in formats if (option := known.option(name)) is not None), None)
        if option is None:
            unknown_key(faults, (*path, name), dict.fromkeys([*QUANTIZE, *names]))
            continue
        kind: Type = option.type
        if fits(faults, (*path, name), value, Key(name, kind, option.help, low=option.low)) and _allowed(
            faults, (*path, name), value, option, raw.get("type")
        ):
            found[name] = value
    return found


def _allowed(faults: Faults, path: Path, value: Any, option: Option, kind: Any) -> bool:
    """Whether the option may have the value, and has a meaning for the type."""
    if option.choices and value not in option.choices:
        faults.value(path, f"`{option.name}` is one of {', '.join(map(str, option.choices))}, not {value}")
        return False
    if option.types and isinstance(kind, str) and kind not in option.types:
        faults.key(path, f"`{option.name}` has no meaning for `{shown(kind)}`", f"it is for {listed(option.types)}")
        return False
    return True


def read_publish(faults: Faults, name: str, raw: Table) -> Publish:
    """What the table says about publishing."""
    good = read_all(faults, ("publish", name), raw, PUBLISH)
    good |= {key: tuple(good.get(key, ())) for key in ("language", "tags")}
    return Publish(name, **{"repo": "", **good})
