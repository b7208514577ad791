"""Chat templates: where a model's stands, which of several is the usual one, and how one is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modelbuild.sources.strictjson import Malformed, parse_object
from modelbuild.tokenizer.nouns import Unreadable
from modelbuild.tokenizer.read import OLD_TEMPLATE, SETTINGS, TEMPLATE

DEFAULT = "default"


def template_of(files: Mapping[str, bytes]) -> str | None:
    """The chat template that transformers takes from these files; None where there is none. Raises Unreadable."""
    if TEMPLATE in files:
        try:
            return files[TEMPLATE].decode("utf-8")
        except UnicodeDecodeError:
            raise Unreadable(f"its `{TEMPLATE}` is not UTF-8") from None
    for name in (SETTINGS, OLD_TEMPLATE):
        found = _default(_object(files, name).get("chat_template"))
        if found is not None:
            return found
    return None


def usual(templates: Sequence[str | None]) -> str | None:
    """The template that most have, of equally many the one that comes first; space around it does not count."""
    present = [template for template in templates if template is not None and template.strip()]
    if not present:
        return None
    counts = Counter(template.strip() for template in present)
    return max(present, key=lambda template: counts[template.strip()])


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """The files that say this template, of those that do not yet: chat_template.jinja, and wherever else one stands."""
    made = {TEMPLATE: template.encode("utf-8")}
    for name in (SETTINGS, OLD_TEMPLATE):
        before = _object(files, name)
        if "chat_template" in before:
            after = before | {"chat_template": _replaced(before["chat_template"], template)}
            made[name] = (json.dumps(after, indent=2, ensure_ascii=False) + "\n").encode()
    return made


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        return parse_object(files[name])
    except Malformed as error:
        raise Unreadable(f"its `{name}` {error}") from None


def _default(found: object) -> str | None:
    """The template itself, or the one called `default` of a list of named ones."""
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get(DEFAULT)
    return found if isinstance(found, str) else None


def _replaced(before: object, template: str) -> object:
    if not isinstance(before, list):
        return template
    others = [entry for entry in before if isinstance(entry, dict) and entry.get("name") != DEFAULT]
    return [{"name": DEFAULT, "template": template}, *others]
