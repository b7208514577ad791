"""From the text of a Modelfile to a `Spec`, or to everything that is wrong with it."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import tomli

from modelbuild.errors import ModelfileError, UsageError, Where
from modelbuild.methods.outside import Outside
from modelbuild.modelfile.artifacts import read_adapter, read_base, read_publish, read_quantize, read_settings
from modelbuild.modelfile.check import check_cycles, check_names, check_references, check_targets
from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.keys import KINDS, SETTINGS, TOP, Toml
from modelbuild.modelfile.merges import read_merge
from modelbuild.modelfile.overrides import apply
from modelbuild.modelfile.positions import Positions
from modelbuild.modelfile.scan import Twice, scan
from modelbuild.modelfile.spec import Artifact, Merge, Path, Publish, Spec
from modelbuild.modelfile.suggest import described, shown
from modelbuild.modelfile.tables import Table

if TYPE_CHECKING:
    from modelbuild.methods.base import Method

LARGEST = 64 * 2**20
"""Bytes of the largest Modelfile that is read."""

INIT = "`modelbuild init` writes one to start from"
_OLLAMA = re.compile(r"(?:\s*(?:#.*)?\n)*\s*FROM\s+\S", re.IGNORECASE)
_HUGE = re.compile(r"[+-]?[0-9_]{4300,}")
_QUOTED = r"'([^']*)'"
_TUPLE = re.compile(r"\('[^']*'(?:, '[^']*')*,?\)")
_TWICE = ("Cannot overwrite", "Duplicate inline", "Cannot declare")
_OTHER_NAMES = {"model": "base", "models": "base", "source": "base", "sources": "base", "lora": "adapter"}


def load(path: str, *, overrides: Sequence[str] = (), display: str | None = None, trusted: Sequence[str] = ()) -> Spec:
    """The Modelfile at `path`, with `overrides` (`PATH=VALUE`) set; `display` is what messages call the file.

    Methods may come from outside where the distributions that offer them are `trusted`.

    Raises UsageError if it cannot be read or an override leads nowhere, and ModelfileError with every fault in it.
    """
    file = display or path
    try:
        with open(path, "rb") as opened:
            text = opened.read(LARGEST + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no file `{shown(file)}`", hint=INIT) from None
    except IsADirectoryError:
        inside = os.path.join(path, "Modelfile")
        hint = f"use `-f {shown(inside)}`" if os.path.isfile(inside) else None
        raise UsageError(f"`{shown(file)}` is a folder, not a Modelfile", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"`{shown(file)}` cannot be read: {reason}") from None
    if len(text) > LARGEST:
        raise ModelfileError(f"the file is larger than {LARGEST // 2**20} MiB", where=Where(file))
    return replace(parse_text(text, file, overrides, trusted=trusted), digest=hashlib.sha256(text).hexdigest())


def parse_text(
    text: bytes | str,
    file: str,
    overrides: Sequence[str] = (),
    places_of: Callable[[str, str, Mapping[Path, str]], Positions] = Positions,
    trusted: Sequence[str] = (),
) -> Spec:
    """As `load`, from the text itself; `places_of` gives the places of file, text and overrides."""
    decoded = _decode(text, file) if isinstance(text, bytes) else text
    raw = _toml(decoded, file)
    places = apply(raw, overrides)
    positions = places_of(file, decoded.replace("\r\n", "\n"), places)
    faults = Faults(positions)
    spec = _spec(faults, file, raw, positions, Outside(tuple(trusted)))
    faults.raise_all()
    return spec


def _decode(text: bytes, file: str) -> str:
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ModelfileError(
            "the file is UTF-16, and a Modelfile is UTF-8", where=Where(file, 1), hint="save it as UTF-8"
        )
    if text.startswith(codecs.BOM_UTF8):
        hint = "save it as UTF-8 without a byte order mark"
        raise ModelfileError("the file starts with a byte order mark", where=Where(file, 1, 1), hint=hint)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        before = text[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        facts = (f"byte 0x{text[error.start]:02x}",)
        raise ModelfileError("the file is not UTF-8", where=Where(file, line, column), facts=facts) from None


def _toml(text: str, file: str) -> Table:
    """What tomli makes of the text; its errors become ours."""
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        if _OLLAMA.match(text):
            hint = "modelbuild builds from [base.NAME] and [merge.NAME] tables; " + INIT
            raise ModelfileError("this is an Ollama Modelfile", where=Where(file, 1), hint=hint) from None
        where = Where(file, error.lineno, error.colno)
        if error.msg.startswith(_TWICE) and (twice := _twice(text.replace("\r\n", "\n"), file)) is not None:
            raise twice from None
        line = text.splitlines()[error.lineno - 1 : error.lineno]
        facts = tuple(shown(part.strip()) for part in line if part.strip())
        raise ModelfileError(f"not TOML: {_lower(error.msg)}", where=where, facts=facts) from None
    except RecursionError:
        raise ModelfileError("tables and lists are nested too deep", where=Where(file)) from None
    except ValueError:  # Python refuses to read integers of thousands of digits
        before = text[: found.start()] if (found := _HUGE.search(text)) else ""
        where = Where(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise ModelfileError("an integer has too many digits to be one", where=where) from None


def _twice(text: str, file: str) -> ModelfileError | None:
    """The fault of a key that stands twice, at its second place; None for a conflict that the scanner does not see."""
    try:
        scan(text)
    except Twice as twice:
        first, line = (text.count("\n", 0, offset) + 1 for offset in (twice.first, twice.offset))
        where = Where(file, line, twice.offset - text.rfind("\n", 0, twice.offset))
        facts = (f"it stands in line {first} already",)
        return ModelfileError(f"`{shown(twice.name)}` stands twice", where=where, facts=facts)
    except (AssertionError, IndexError, ValueError):
        return None  # the scanner went on behind the conflict, where the text need not be TOML
    return None


def _lower(message: str) -> str:
    """tomli's message as ours are written: tables by their names, not as Python's tuples."""
    plain = _TUPLE.sub(lambda found: f"`{'.'.join(re.findall(_QUOTED, found[0]))}`", message)
    return shown(plain[:1].lower() + plain[1:])


def _spec(faults: Faults, file: str, raw: Table, positions: Positions, outside: Outside) -> Spec:
    """The whole file; only worth having if no fault was noted."""
    _check_top(faults, raw)
    settings = read_settings(faults, _table(faults, raw, "settings"))
    tables = list(_tables(faults, raw, positions))
    check_names(faults, [(kind, name) for kind, name, _ in tables if kind != "publish"])
    artifacts = {
        name: _artifact(faults, kind, name, table, outside) for kind, name, table in tables if kind != "publish"
    }
    publish: dict[str, Publish] = {
        name: read_publish(faults, name, table) for kind, name, table in tables if kind == "publish"
    }
    check_references(faults, artifacts)
    check_cycles(faults, artifacts)
    check_targets(faults, artifacts, settings, publish)
    if not artifacts and not faults:
        faults.key((), "there is no artifact in this file", hint=INIT)
    return Spec(file, settings, artifacts, publish, positions, outside=_used(artifacts.values(), outside))


def _used(artifacts: Iterable[Artifact], outside: Outside) -> dict[str, Method]:
    """The methods from outside that merges name, which are imported by now."""
    named = sorted({artifact.method for artifact in artifacts if isinstance(artifact, Merge)})
    return {name: found for name in named if (found := outside.method(name)) is not None}


def _check_top(faults: Faults, raw: Table) -> None:
    """Only known keys stand at the top, and the format version is one that this modelbuild knows."""
    for name, value in raw.items():
        if name in TOP:
            continue
        if name in SETTINGS:
            faults.key((name,), f"`{name}` stands outside any table", hint="it belongs in `[settings]`")
        elif name in _OTHER_NAMES and isinstance(value, dict):
            message = f"there is no kind `{name}`"
            faults.key((name,), message, hint=f"here it is called `[{_OTHER_NAMES[name]}.NAME]`")
        elif isinstance(value, dict | list):
            faults.unknown((name,), f"there is no kind `{shown(name)}`", name, TOP, f"kinds are {', '.join(KINDS)}")
        else:
            faults.unknown((name,), f"`{shown(name)}` stands outside any table", name, TOP)
    version = raw.get("modelfile", 1)
    if isinstance(version, bool) or version != 1:
        facts = ("this modelbuild reads format version 1",)
        faults.value(("modelfile",), f"`modelfile` is the format version 1, not {described(version)}", *facts)


def _table(faults: Faults, raw: Table, name: str) -> Table:
    found = raw.get(name, {})
    if isinstance(found, dict):
        return found
    wanted = f"tables [{name}.NAME]" if name in KINDS else f"a table [{name}]"
    faults.expected((name,), f"`{name}`", wanted, found)
    return {}


def _tables(faults: Faults, raw: Table, positions: Positions) -> Iterator[tuple[str, str, Table]]:
    """Each `[KIND.NAME]` in the order of the file."""
    found = []
    for kind in KINDS:
        for name, table in _table(faults, raw, kind).items():
            if not isinstance(table, dict):
                _not_a_table(faults, kind, name, table)
            elif (dotted := _dotted(kind, table)) is not None:
                full = f"{shown(name)}.{shown(dotted)}"
                message = f"the name `{full}` has a dot, and names have no dots"
                faults.key((kind, name), message, hint=f"call it `[{kind}.{full.replace('.', '-').lower()}]`")
            else:
                found.append((positions.order((kind, name)), kind, name, table))
    return ((kind, name, table) for _, kind, name, table in sorted(found, key=lambda entry: entry[0]))


def _dotted(kind: str, table: Table) -> str | None:
    """The second half of a name with a dot in it, where `[KIND.NAME]` looks like `[KIND.FIRST.SECOND]`."""
    for inner, value in table.items():
        if inner not in KINDS[kind] and isinstance(value, dict) and any(key in KINDS[kind] for key in value):
            return inner
    return None


def _not_a_table(faults: Faults, kind: str, name: str, value: Toml) -> None:
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        faults.key((kind, name), f"[[{kind}.{shown(name)}]] is a list", hint=f"write `[{kind}.{shown(name)}]`")
    elif name in KINDS[kind]:
        faults.key((kind, name), f"`{name}` stands in [{kind}], which has no name", hint=f"write `[{kind}.NAME]`")
    else:
        faults.expected((kind, name), f"`{kind}.{shown(name)}`", f"a table [{kind}.NAME]", value)


def _artifact(faults: Faults, kind: str, name: str, table: Table, outside: Outside) -> Artifact:
    from modelbuild.formats.registry import formats
    from modelbuild.methods.registry import methods

    if kind == "merge":
        return read_merge(faults, name, table, methods(), outside)
    if kind == "quantize":
        return read_quantize(faults, name, table, formats())
    return read_adapter(faults, name, table) if kind == "adapter" else read_base(faults, name, table)
