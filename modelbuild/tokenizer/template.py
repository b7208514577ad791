"""Chat templates: where a model's stands, which of several is the usual one, and how one is written."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modelbuild.sources.strictjson import Malformed, parse_object
from modelbuild.tokenizer.nouns import Unreadable
from modelbuild.tokenizer.read import OLD_TEMPLATE, SAY_TOKENS, SETTINGS, SPM, TEMPLATE, WORDS

DEFAULT = "default"

_LIKE_TOKENS = re.compile(r"<\|[^|<>\s{}'\"]+\|>|<(?:start|end)_of_turn>")
"""What tokens of chat formats look like, and little else does."""


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


def unknown_tokens(template: str, files: Mapping[str, bytes]) -> list[str]:
    """What is written as a token of a chat format in a template, and stands in none of a tokenizer's files as one."""
    written = dict.fromkeys(_LIKE_TOKENS.findall(template))
    return [token for token in written if not any(_names(name, data, token) for name, data in files.items())]


def _names(name: str, data: bytes, token: str) -> bool:
    if name in (WORDS, SPM):
        return token.encode() in data
    # Within a template, the quotes around a token are escaped, or single ones.
    return name in SAY_TOKENS and any(json.dumps(token, ensure_ascii=a).encode() in data for a in (True, False))


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
