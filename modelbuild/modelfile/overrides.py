"""`--set PATH=VALUE`: changing one value of a Modelfile for one build."""

from __future__ import annotations

import re
from collections.abc import Sequence

import tomli

from modelbuild.errors import UsageError, Where
from modelbuild.modelfile.keys import KINDS, Toml
from modelbuild.modelfile.spec import Path
from modelbuild.modelfile.suggest import described, did_you_mean, shown
from modelbuild.modelfile.tables import Table

_BARE = re.compile(r"""[^\s"'\[\]{},=#]+""")


def apply(raw: Table, overrides: Sequence[str]) -> dict[Path, str]:
    """Sets each override in `raw`; gives the place of each by the path that it set.

    Raises UsageError for one that is not PATH=VALUE or that leads through something that is not there.
    """
    places: dict[Path, str] = {}
    for override in overrides:
        place = f"--set {shown(override)}"
        parts, value = _parse(override, place)
        path = _assign(raw, parts, value, Where(place))
        places[path] = place
    return places


def _parse(override: str, place: str) -> tuple[list[str], Toml]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        hint = "for example `--set merge.NAME.t=0.4`"
        raise UsageError(f"`{shown(override)}` is not PATH=VALUE", where=Where(place), hint=hint)
    return _path(path.strip(), place), _value(text.strip(), place)


def _path(text: str, place: str) -> list[str]:
    try:
        table: Toml = tomli.loads(f"{text} = 0")
    except (ValueError, RecursionError):
        table = {}
    parts: list[str] = []
    while isinstance(table, dict):
        if len(table) != 1:
            hint = "for example `merge.NAME.models.0.weight`"
            raise UsageError(f"`{shown(text)}` is not a path", where=Where(place), hint=hint)
        parts.append(next(iter(table)))
        table = table[parts[-1]]
    return parts


def _value(text: str, place: str) -> Toml:
    try:
        parsed = tomli.loads(f"value = {text}")
        if len(parsed) == 1:
            return parsed["value"]
    except (ValueError, RecursionError):
        if _BARE.fullmatch(text):
            return text
    facts = ("it is read as TOML; one word may stand without quotes",)
    raise UsageError(f"`{shown(text)}` is not a value", where=Where(place), facts=facts)


def _assign(raw: Table, parts: list[str], value: Toml, where: Where) -> Path:
    """Puts the value at the path, through tables and lists that are there; gives the path with list indexes."""
    at: Toml = raw
    path: Path = ()
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        key = _index(at, part, path, where) if isinstance(at, list) else part
        path = (*path, key)
        if last:
            at[key] = value
            break
        if isinstance(at, dict) and key not in at:
            if depth == 1 and path[0] in KINDS:
                _no_such_artifact(at, path, where)
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict | list):
            raise UsageError(f"`{_dotted(path)}` is {described(at)}: nothing is inside it", where=where)
    return path


def _index(at: list[Toml], part: str, path: Path, where: Where) -> int:
    if part.isascii() and part.isdigit() and int(part[:9]) < len(at):
        return int(part[:9])
    fact = f"its entries are numbered 0 to {len(at) - 1}" if at else "it is empty"
    raise UsageError(f"`{_dotted(path)}` has no entry `{shown(part)}`", where=where, facts=(fact,))


def _no_such_artifact(at: Table, path: Path, where: Where) -> None:
    message = f"there is no [{_dotted(path)}] in the Modelfile"
    raise UsageError(message, where=where, hint=did_you_mean(str(path[-1]), at))


def _dotted(path: Path) -> str:
    return shown(".".join(str(part) for part in path))
