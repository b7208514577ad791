"""The commands that are run most, and how they are read where their words are plain.

The library for command lines takes longer to import than many a plan to make. Where every word of `build` or `plan` is
a known option or a name, and nothing asks for help, it is not needed; anything else, and any doubt, is the full command
line's to read and to complain about. Both read the same table (flags.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modelbuild.ending import end_with, show
from modelbuild.errors import UsageError
from modelbuild.flags import BEFORE, COMMANDS, FLAGS, Flag
from modelbuild.options import Options
from modelbuild.stamps import TRUE

FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
"""What a variable says to leave a switch alone."""

_VARIABLES = {flag.variable for flag in FLAGS.values()} | {"MODELBUILD_KERNEL_CACHE"}


class Words(NamedTuple):
    """A command with the names and options that it was given; options that were not are not there."""

    command: str
    names: tuple[str, ...]
    given: dict[str, Any]


def run(arguments: Sequence[str]) -> None:
    """Runs a command whose words are plain, and exits; returns where they are not."""
    words = read(arguments, os.environ)
    if words is not None:
        end_with(lambda: do(words))


def do(words: Words) -> None:
    """Builds or plans what the words say, and prints what came of it."""
    given = dict(words.given)
    given.pop("debug", None)
    as_json, values = given.pop("as_json", False), given.pop("values", None)
    if words.command == "plan":
        plan(Options(**given), words.names, as_json, values)
    else:
        build(Options(**given), words.names, as_json)


def build(options: Options, names: Sequence[str], as_json: bool) -> None:
    """Builds the targets and prints the result."""
    from modelbuild.build import run as run_build
    from modelbuild.report.terminal import listener, show_result

    result = run_build(options, names, listener())
    show(result.as_json(), show_result(result), as_json)


def plan(options: Options, names: Sequence[str], as_json: bool, values: str | None = None) -> None:
    """Prints what a build would compute, copy and reuse, and why; or the `values` of one merge's parameters."""
    if values is not None:
        _values(options, values, names, as_json)
        return
    from modelbuild.describe import plan_with
    from modelbuild.report.plan import show_plan
    from modelbuild.report.terminal import listener

    result = plan_with(options, names, listener())
    show(result.as_json(), show_plan(result), as_json)


def _values(options: Options, name: str, names: Sequence[str], as_json: bool) -> None:
    from modelbuild.report.terminal import listener
    from modelbuild.report.values import show_values
    from modelbuild.resolved import values_with

    if names:
        raise UsageError(f"`--values` is of one merge, `{name}`", hint=f"leave out `{names[0]}`")
    found = values_with(options, name, listener())
    show(found.as_json(), show_values(found), as_json)


def read(arguments: Sequence[str], environ: Mapping[str, str]) -> Words | None:
    """The words of a plain command; None for all others, wrong ones among them."""
    if any(name.startswith("MODELBUILD_") and name not in _VARIABLES for name in environ):
        return None
    rest = list(arguments)
    try:
        before = _take(rest, BEFORE, environ, names=None)
        command = rest.pop(0)
        names: list[str] = []
        given = before | _take(rest, COMMANDS[command], environ, names)
    except (_NotPlainError, LookupError):
        return None
    return Words(command, tuple(names), given)


class _NotPlainError(Exception):
    """A word that is for the full command line to read."""


def _take(rest: list[str], known: Sequence[str], environ: Mapping[str, str], names: list[str] | None) -> dict[str, Any]:
    """Takes options off the front of `rest`, and the names between them; without `names` up to the first word."""
    flags = {word: FLAGS[name] for name in known for word in FLAGS[name].words}
    given: dict[str, Any] = {}
    while rest and (rest[0].startswith("-") or names is not None):
        word = rest.pop(0)
        if word.startswith("-"):
            _put(given, flags[word], rest)
        elif "." in word or "/" in word:
            raise _NotPlainError  # a recipe in the place of the Modelfile, or no name at all
        elif names is not None:
            names.append(word)
    for flag in {*flags.values()}:
        if flag.name not in given and (text := environ.get(flag.variable)):
            given[flag.name] = _of_variable(flag, text)
    return given


def _put(given: dict[str, Any], flag: Flag, rest: list[str]) -> None:
    """Notes an option, with the value that follows it."""
    if flag.kind == "switch":
        given[flag.name] = True
        return
    value = rest.pop(0)
    if value.startswith("-"):
        raise _NotPlainError
    if flag.kind == "list":
        given[flag.name] = (*given.get(flag.name, ()), value)
    else:
        given[flag.name] = value if flag.kind == "text" else _number(value)


def _of_variable(flag: Flag, text: str) -> Any:
    if flag.kind == "text":
        return text
    if flag.kind == "number":
        return _number(text)
    if flag.kind == "switch" and text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise _NotPlainError


def _number(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise _NotPlainError
