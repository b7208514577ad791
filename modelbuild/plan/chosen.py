"""Which tensors of a merge are merged, and which are taken from the donor: `only`, `copy`, and what is no language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelbuild.modelfile.spec import Merge
from modelbuild.plan.pattern import any_matches, matches
from modelbuild.plan.planned import Planned


def donor_name(merge: Merge) -> str:
    """The input that config, tokenizer and side files come from: the base, else the first model."""
    if merge.base is not None:
        return merge.base
    first = merge.models or merge.slices[0].models
    return first[0].name


def is_merged(merge: Merge, name: str, planned: Planned | None = None, own: str | None = None) -> bool:
    """Whether a tensor is merged, rather than taken from the donor as it is.

    Of a `planned` model, where it is called `own`, only the language model is unless `only` says otherwise.
    """
    if any_matches(merge.copy, name):
        return False
    if merge.only:
        return any_matches(merge.only, name)
    return planned is None or planned.language is None or (own or name) in planned.language


def deepest(merge: Merge, planned: Planned) -> int:
    """The layers of the deepest stack that is merged; of the deepest at all where none is."""
    places = planned.layout.places.items()
    merged = {place.stack for name, place in places if is_merged(merge, name, planned)}
    return max((planned.layout.stacks[stack] for stack in merged), default=planned.layout.depth)


def idle_patterns(merge: Merge, names: Iterable[str]) -> list[str]:
    """A sentence for each pattern of `only` and `copy` that is in no tensor's name: most likely a slip."""
    named = list(names)
    patterns = [("only", pattern) for pattern in merge.only] + [("copy", pattern) for pattern in merge.copy]
    return [
        f"`{pattern}` in `{key}` is in no tensor's name"
        for key, pattern in patterns
        if not any(matches(pattern, name) for name in named)
    ]


def left_to_donor(merge: Merge, inputs: Mapping[str, Planned]) -> tuple[str, ...]:
    """A sentence if only the language model within the inputs is merged, and the rest is the donor's."""
    donor = inputs[donor_name(merge)]
    if merge.only or len(inputs) < 2 or donor.language is None:
        return ()
    left = [name for name in donor.tensors if name not in donor.language]
    if not left:
        return ()
    towers = dict.fromkeys(_outermost(name, donor.language.module) for name in left)
    shown = ", ".join(f"`{tower}`" for tower in list(towers)[:4]) + (", …" if len(towers) > 4 else "")
    count = f"{len(left)} tensor{'s' if len(left) > 1 else ''}"
    merged = donor.language.root or "the language model"
    told = f"`{merged}`" if donor.language.root else merged
    return (f'only {told} is merged; {count} of {shown} are those of `{donor.name}`: `only = "*"` merges all',)


def _outermost(name: str, module: str) -> str:
    """The outermost module of a tensor that the language model is not in."""
    parts, own = name.split("."), module.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), min(len(parts), len(own)))
    return ".".join(parts[: shared + 1])
