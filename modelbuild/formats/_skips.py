"""The modules that `llm_int8_skip_modules` of config.json has to name, so that transformers leaves alone what we did.

transformers leaves a module alone if an entry is the end of its name, or is, as a regular expression, its beginning up
to a dot. The list takes the place of what it leaves alone by itself, so heads stand in it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
"""Names that mean next to nothing else as regular expressions."""

Hit: TypeAlias = "Callable[[str], bool]"
"""Whether transformers leaves a module of this name alone for an entry."""


def skip_entries(left: Sequence[str], packed: Sequence[str], heads: Sequence[str]) -> tuple[list[str], list[str]]:
    """Entries for the modules `left` that hit none of the `packed`, short ones first tried, after those of the heads.

    And the modules for which there is no such entry.
    """
    kept = [in_memory(module) for module in packed]
    entries: dict[str, Hit] = {head: _hit(head) for head in heads}
    lost = []
    for module in left:
        loaded = in_memory(module)
        if not _PLAIN.fullmatch(loaded):
            lost.append(module)
        elif not any(hit(loaded) for hit in entries.values()):
            tried = ((end, _hit(end)) for end in _ends(loaded))
            found = next(((end, hit) for end, hit in tried if not any(map(hit, kept))), None)
            if found is None:
                lost.append(module)
            else:
                entries[found[0]] = found[1]
    return list(entries), lost


def in_memory(module: str) -> str:
    """The end of the name that transformers gives a module once loaded, as far as it is not the file's."""
    module = module.replace("language_model.model.", "language_model.")
    return module.replace("vision_tower.vision_model.", "vision_tower.")


def _ends(module: str) -> Iterable[str]:
    parts = module.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))


def _hit(entry: str) -> Hit:
    beginning = re.compile(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))")
    return lambda module: module.endswith(entry) or beginning.match(module) is not None
