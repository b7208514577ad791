"""`methods` as data and text: every method and format with its parameters, as its file declares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from modelbuild.errors import UsageError
from modelbuild.formats.registry import formats
from modelbuild.methods.base import Method, Parameter
from modelbuild.methods.outside import Offer, Outside, unknown
from modelbuild.methods.registry import method, methods
from modelbuild.modelfile.suggest import nearest
from modelbuild.report.formats import format_data, show_format


def method_data(name: str | None, trusted: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All methods and formats, or the one called `name`; UsageError if there is none.

    Methods of `trusted` distributions are among them; what others that are installed offer is listed, not imported.
    """
    outside = Outside(tuple(trusted))
    if name is None:
        ours, theirs = methods().values(), outside.all().values()
        offers = map(_offered, outside.untrusted)
        return [*map(_data, ours), *map(_data, theirs), *offers, *map(format_data, formats().values())]
    if name in formats():
        return [format_data(formats()[name])]
    found = method(name) or outside.method(name)
    if found is None:
        facts, hint = unknown(name, outside)
        guess = nearest(name, [*methods(), *outside.offers, *formats()])
        hint = hint or (f"did you mean `{guess}`?" if guess else None)
        raise UsageError(f"there is no method `{name}`", facts=facts, hint=hint)
    return [_data(found)]


def _offered(offer: Offer) -> dict[str, Any]:
    """What is known of a method whose code was not run."""
    distribution = {"name": offer.distribution, "version": offer.release, "trusted": False}
    return {"kind": "method", "name": offer.method, "summary": None, "built": False, "distribution": distribution}


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
        "libraries": list(found.libraries({})),
        "parameters": [_parameter(parameter) for parameter in found.parameters],
        "distribution": _distribution(found),
    }


def _distribution(found: Method) -> dict[str, Any] | None:
    """The distribution that a method from outside came with; None for modelbuild's own."""
    if not found.distribution:
        return None
    return {"name": found.distribution, "version": found.release, "trusted": True}


def _parameter(found: Parameter) -> dict[str, Any]:
    return {
        "name": found.name,
        "scope": found.scope,
        "type": found.type,
        "default": found.default,
        "required": found.default is None and not found.nullable,
        "low": found.low,
        "high": found.high,
        "choices": list(found.choices),
        "help": found.help,
    }


def _line(found: dict[str, Any]) -> str:
    """What a list says of a method or format after its name."""
    distribution = found.get("distribution")
    if distribution is None:
        return f"{found['summary']}{'' if found['built'] else ' (not built yet)'}"
    if distribution["trusted"]:
        return f"{found['summary']} (from {_title(found)})"
    return f"(offered by {_title(found)}, not trusted: `--plugins {distribution['name']}`)"


def _title(found: dict[str, Any]) -> str:
    return f"{found['distribution']['name']} {found['distribution']['version']}"


def show_methods(data: list[dict[str, Any]]) -> str:
    """The methods and formats as text: a list, or one in full."""
    if len(data) > 1:
        width = max(len(found["name"]) for found in data)
        return "\n".join(f"{found['name']:{width}}  {_line(found)}" for found in data)
    (found,) = data
    if found["kind"] == "format":
        return show_format(found)
    lines = [f"{found['name']}: {found['summary']}", f"base: {found['base']}; takes {found['takes']}"]
    lines += [found["paper"]] if found["paper"] else []
    lines += [f"from {_title(found)}"] if found["distribution"] else []
    lines += ["not built yet"] if not found["built"] else []
    lines += [f"computed by {', '.join(found['libraries'])}"] if found["libraries"] else []
    for parameter in found["parameters"]:
        of = "of the merge" if parameter["scope"] == "merge" else f"of each of {found['takes']}"
        lines.append(f"  {parameter['name']} ({_values(parameter)}, {of}, {_default(parameter)}): {parameter['help']}")
    return "\n".join(lines)


def _values(parameter: dict[str, Any]) -> str:
    """What a parameter may be: its type, its range or its choices."""
    if parameter["choices"]:
        return " or ".join(json.dumps(choice) for choice in parameter["choices"])
    low, high = parameter["low"], parameter["high"]
    above = "" if low is None else f" from {low:g}"
    return f"{parameter['type']}{above}{'' if high is None else f' to {high:g}'}"


def _default(parameter: dict[str, Any]) -> str:
    """What holds where a parameter is absent, as a Modelfile would say it."""
    if parameter["required"]:
        return "required"
    return "optional" if parameter["default"] is None else f"default {json.dumps(parameter['default'])}"
