"""`methods` as data and text: every method and format with its parameters, as its file declares them."""

from __future__ import annotations

from typing import Any

from modelbuild.errors import UsageError
from modelbuild.formats.registry import formats
from modelbuild.methods.base import Method, Parameter
from modelbuild.methods.registry import method, methods
from modelbuild.modelfile.suggest import nearest
from modelbuild.report.formats import format_data, show_format


def method_data(name: str | None) -> list[dict[str, Any]]:
    """All methods and formats, or the one called `name`; UsageError if there is none."""
    if name is None:
        return [*map(_data, methods().values()), *map(format_data, formats().values())]
    if name in formats():
        return [format_data(formats()[name])]
    found = method(name)
    if found is None:
        guess = nearest(name, [*methods(), *formats()])
        raise UsageError(f"there is no method `{name}`", hint=f"did you mean `{guess}`?" if guess else None)
    return [_data(found)]


def _data(found: Method) -> dict[str, Any]:
    return {
        "kind": "method",
        "name": found.name,
        "summary": found.summary,
        "paper": found.paper or None,
        "version": found.version,
        "built": found.step is not None,
        "base": found.base,
        "takes": found.takes,
        "inputs": {"least": found.inputs[0], "most": found.inputs[1]},
        "libraries": list(found.libraries),
        "parameters": [_parameter(parameter) for parameter in found.parameters],
    }


def _parameter(found: Parameter) -> dict[str, Any]:
    return {
        "name": found.name,
        "scope": found.scope,
        "type": found.type,
        "default": found.default,
        "required": found.default is None and not found.nullable,
        "low": found.low,
        "high": found.high,
        "help": found.help,
    }


def show_methods(data: list[dict[str, Any]]) -> str:
    """The methods and formats as text: a list, or one in full."""
    if len(data) > 1:
        width = max(len(found["name"]) for found in data)
        later = {True: "", False: " (not built yet)"}
        return "\n".join(f"{m['name']:{width}}  {m['summary']}{later[m['built']]}" for m in data)
    (found,) = data
    if found["kind"] == "format":
        return show_format(found)
    lines = [f"{found['name']}: {found['summary']}", f"base: {found['base']}; takes {found['takes']}"]
    lines += [found["paper"]] if found["paper"] else []
    lines += ["not built yet"] if not found["built"] else []
    lines += [f"computed by {', '.join(found['libraries'])}"] if found["libraries"] else []
    for parameter in found["parameters"]:
        default = "required" if parameter["required"] else f"default {parameter['default']}"
        of = "of the merge" if parameter["scope"] == "merge" else f"of each of {found['takes']}"
        lines.append(f"  {parameter['name']} ({parameter['type']}, {of}, {default}): {parameter['help']}")
    return "\n".join(lines)
