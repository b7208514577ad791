"""The modules that `llm_int8_skip_modules` of config.json has to name, so that transformers leaves alone what we did.

transformers leaves a module alone if an entry is the end of its name, or is, as a regular expression, its beginning up
to a dot. The list takes the place of what it leaves alone by itself, so heads stand in it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


def skip_entries(left: Sequence[str], packed: Sequence[str], heads: Sequence[str]) -> tuple[list[str], list[str]]:
    """Entries for the modules `left` that hit none of the `packed`, short ones first tried, after those of the heads.

    And the modules for which there is no such entry.
    """
    kept = [in_memory(module) for module in packed]
    entries = list(heads)
    lost = []
    for module in left:
        loaded = in_memory(module)
        if any(_hits(entry, loaded) for entry in entries):
            continue
        fitting = (end for end in _ends(loaded) if not any(_hits(end, other) for other in kept))
        entry = next(fitting, None)
        if entry is None or not _PLAIN.fullmatch(entry):
            lost.append(module)
        else:
            entries.append(entry)
    return entries, lost


def in_memory(module: str) -> str:
    """The end of the name that transformers gives a module once loaded, as far as it is not the file's."""
    module = module.replace("language_model.model.", "language_model.")
    return module.replace("vision_tower.vision_model.", "vision_tower.")


def _ends(module: str) -> Iterable[str]:
    parts = module.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))


def _hits(entry: str, module: str) -> bool:
    return module.endswith(entry) or bool(re.match(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))", module))
