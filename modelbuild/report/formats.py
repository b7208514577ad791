"""Formats as `methods` shows them: their types and options, as their files declare them."""

from __future__ import annotations

from typing import Any

from modelbuild.formats.base import Format, Option


def format_data(found: Format) -> dict[str, Any]:
    """A format as data."""
    return {
        "kind": "format",
        "name": found.name,
        "summary": found.summary,
        "version": found.version,
        "built": found.built,
        "types": list(found.types),
        "libraries": list(found.libraries),
        "extra": found.extra or None,
        "parameters": [_option(option) for option in found.options],
    }


def show_format(data: dict[str, Any]) -> str:
    """A format in full, as text."""
    lines = [f"{data['name']}: {data['summary']}", f"types: {', '.join(data['types'])}"]
    if data["extra"]:
        lines.append(f"computed by {', '.join(data['libraries'])}: pip install 'modelbuild[{data['extra']}]'")
    lines += ["not built yet"] if not data["built"] else []
    for option in data["parameters"]:
        known = "" if option["default"] is None else f", default {str(option['default']).lower()}"
        kinds = f", for {', '.join(option['types'])}" if option["types"] else ""
        lines.append(f"  {option['name']} ({option['type']}{kinds}{known}): {option['help']}")
    return "\n".join(lines)


def _option(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "type": option.type,
        "types": list(option.types),
        "default": option.default,
        "choices": list(option.choices),
        "help": option.help,
    }
