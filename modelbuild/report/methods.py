"""`methods` as data and text: every method with its parameters, as its file declares them."""

from __future__ import annotations

from typing import Any

from modelbuild.errors import UsageError
from modelbuild.methods.base import Method, Parameter
from modelbuild.methods.registry import method, methods
from modelbuild.modelfile.suggest import nearest


def method_data(name: str | None) -> list[dict[str, Any]]:
    """All methods, or the one called `name`; UsageError if there is none."""
    if name is None:
        return [_data(found) for found in methods().values()]
    found = method(name)
    if found is None:
        guess = nearest(name, methods())
        raise UsageError(f"there is no method `{name}`", hint=f"did you mean `{guess}`?" if guess else None)
    return [_data(found)]


def _data(found: Method) -> dict[str, Any]:
    return {
        "name": found.name,
        "summary": found.summary,
        "paper": found.paper or None,
        "version": found.version,
        "built": found.step is not None,
        "base": found.base,
        "takes": found.takes,
        "inputs": {"least": found.inputs[0], "most": found.inputs[1]},
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
    """The methods as text: a list, or one in full."""
    if len(data) > 1:
        width = max(len(found["name"]) for found in data)
        later = {True: "", False: " (not built yet)"}
        return "\n".join(f"{m['name']:{width}}  {m['summary']}{later[m['built']]}" for m in data)
    (found,) = data
    lines = [f"{found['name']}: {found['summary']}", f"base: {found['base']}; takes {found['takes']}"]
    lines += [found["paper"]] if found["paper"] else []
    lines += ["not built yet"] if not found["built"] else []
    for parameter in found["parameters"]:
        default = "required" if parameter["required"] else f"default {parameter['default']}"
        of = "of the merge" if parameter["scope"] == "merge" else f"of each of {found['takes']}"
        lines.append(f"  {parameter['name']} ({parameter['type']}, {of}, {default}): {parameter['help']}")
    return "\n".join(lines)
