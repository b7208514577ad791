"""Names of artifacts: as short as they can be told apart, made of the ids of models."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

_WEAK = frozenset({"meta", "nous", "the", "my", "model", "models", "merge", "merged", "base", "hf", "lora", "open"})
"""Words that say little where they stand alone, and more words follow."""

_GENERIC = frozenset({"", "config", "mergekit", "mergekit_config", "mergekit-config", "mergekit_moe_config", "merge",
                      "merge_config", "merge-config", "readme", "recipe"})  # fmt: skip
_TAIL = re.compile(r"[/\\]+$")


def slug(text: str) -> str:
    """The text as a name: `a-z`, `0-9`, `_` and `-`, beginning with a letter or digit; "" if nothing is left."""
    letters = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^a-z0-9_]+", "-", letters).strip("-_")


def last_name(path: str) -> str:
    """The last part of a Hub id or of a path."""
    return re.split(r"[/\\]", _TAIL.sub("", path))[-1]


def of_recipe(candidates: Sequence[str]) -> str:
    """The name of what a recipe makes: the first candidate that says anything, else "merge"."""
    found = (slug(candidate) for candidate in candidates if slug(candidate) not in _GENERIC)
    return next(found, "merge")


def short(paths: Sequence[str], taken: Collection[str]) -> list[str]:
    """A name for each of these models, not `taken`: the first words of the last part of its id that no other has."""
    words = [_words(path) for path in paths]
    used = set(taken)
    found: list[str] = []
    for index, own in enumerate(words):
        others = [other for place, other in enumerate(words) if place != index]
        name = _shortest(own, others, used) or _with_owner(paths[index], own, used)
        used.add(name)
        found.append(name)
    return found


def free(name: str, taken: Collection[str]) -> str:
    """The name, with a number behind it if it is taken."""
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found


def _words(path: str) -> list[str]:
    """The words of a model's name, versions such as 3.1 in one piece."""
    words = [slug(word) for word in re.split(r"[-_ ]+", last_name(path))]
    return [word for word in words if word] or ["model"]


def _with_owner(path: str, own: list[str], used: Collection[str]) -> str:
    """The whole name behind that of its owner or folder."""
    owner = slug(last_name(path[: len(_TAIL.sub("", path)) - len(last_name(path))]))
    return free("-".join([owner, *own] if owner else own), used)


def _shortest(own: list[str], others: list[list[str]], used: Collection[str]) -> str | None:
    for count in range(1, len(own) + 1):
        start = own[:count]
        name = "-".join(start)
        if _says_something(start, own) and name not in used and not any(other[:count] == start for other in others):
            return name
    name = "-".join(own)
    return name if name not in used else None


def _says_something(start: list[str], own: list[str]) -> bool:
    return len(start) == len(own) or any(word not in _WEAK and len(re.findall("[a-z]", word)) > 2 for word in start)
