"""What a merge overrides in config.json and generation_config.json, laid over what its inputs do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modelbuild.modelfile.spec import Merge
from modelbuild.plan.planned import Side


def overridden(side: Side, merge: Merge) -> Side:
    """The side files with what the merge overrides in config.json and generation_config.json."""
    return replace(
        side,
        config_overrides=merged(side.config_overrides, merge.config),
        generation_overrides=merged(side.generation_overrides, merge.generation),
    )


def merged(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """`new` laid over `old`, tables within tables merged."""
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result
