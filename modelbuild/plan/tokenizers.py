"""The tokenizers of planned artifacts, and the side files of an artifact that gets another one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelbuild.errors import BuildFailed, Fault, SourceChanged, Where
from modelbuild.modelfile.chat_templates import TEMPLATES
from modelbuild.modelfile.spec import Merge, Spec
from modelbuild.plan.overrides import merged
from modelbuild.plan.planned import Planned, Side
from modelbuild.sources.strictjson import show
from modelbuild.tokenizer.nouns import Tokenizer, Unreadable
from modelbuild.tokenizer.read import LIMIT, is_tokenizer_file, read_tokenizer
from modelbuild.tokenizer.template import template_of, usual, with_template

_IDS = re.compile(r"(?:[a-z_]*_)?token_(?:id|ids|index)")
"""Keys of configs whose values are ids of tokens."""


class Tokenizers:
    """Reads the tokenizers of artifacts; those that are the same, only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, str], ...], Tokenizer | None] = {}

    def of(self, planned: Planned, where: Where | None) -> Tokenizer | None:
        """The tokenizer of an artifact; None where it has none. Raises BuildFailed for one that cannot be read."""
        digests = {name: file.sha256 for name, file in planned.side.files.items() if is_tokenizer_file(name)}
        digests |= {name: hashlib.sha256(data).hexdigest() for name, data in planned.side.made.items()}
        key = tuple(sorted(digests.items()))
        if key not in self._known:
            try:
                self._known[key] = read_tokenizer(tokenizer_files(planned.side))
            except Unreadable as error:
                raise unreadable(planned.name, error, where) from None
        return self._known[key]


def unreadable(name: str, error: Unreadable, where: Where | None) -> BuildFailed:
    """What is wrong with the tokenizer of the artifact `name`, as one of ours."""
    fault = Fault(f"the tokenizer of `{name}` cannot be merged", where, (str(error),), error.hint)
    return BuildFailed([fault])


def tokenizer_files(side: Side) -> dict[str, bytes]:
    """The bytes of a tokenizer's files by name. Raises SourceChanged for one that is not what was hashed."""
    found: dict[str, bytes] = {}
    for name, file in side.files.items():
        if not is_tokenizer_file(name):
            continue
        if file.size > LIMIT:
            raise BuildFailed(f"{show(name)} is too large", facts=[f"the limit is {LIMIT} bytes"])
        here = file if file.remote is None else file.remote.local()
        found[name] = Path(here.path).read_bytes()
        if hashlib.sha256(found[name]).hexdigest() != file.sha256:
            raise SourceChanged(f"{show(name)} changed during the build", hint="build again to use it as it is now")
    return found | dict(side.made)


def with_tokenizer(side: Side, other: Side) -> Side:
    """The side files with the tokenizer of another artifact, chat templates and all."""
    files = {name: file for name, file in side.files.items() if not is_tokenizer_file(name)}
    theirs = {name: file for name, file in other.files.items() if is_tokenizer_file(name)}
    made = {name: data for name, data in side.made.items() if not is_tokenizer_file(name)}
    made |= {name: data for name, data in other.made.items() if is_tokenizer_file(name)}
    return replace(side, files={**files, **theirs}, made=made)


def with_files(side: Side, made: Mapping[str, bytes], dropped: frozenset[str] = frozenset()) -> Side:
    """The side files with `made` ones in the place of those of these names, and without the `dropped`."""
    gone = {*made, *dropped}
    files = {name: file for name, file in side.files.items() if name not in gone}
    kept = {name: data for name, data in side.made.items() if name not in gone}
    return replace(side, files=files, made={**kept, **made})


def with_chat_template(spec: Spec, merge: Merge, planned: Planned, inputs: Mapping[str, Planned]) -> Planned:
    """The merge with the chat template that it asks for: the one that most inputs have, an input's, that of a format
    that has a name, or a text.

    `inputs` are those of the merge, the donor first. Raises BuildFailed where an input that is named has none.
    """
    wanted = merge.chat_template
    if wanted is None:
        return planned
    where = spec.where("merge", merge.name, "chat_template")
    try:
        have = {name: template_of(tokenizer_files(other.side)) for name, other in inputs.items()}
        if wanted == "auto":
            template = usual(list(have.values()))
        else:
            template = have[wanted] if wanted in have else TEMPLATES.get(wanted, wanted)
        if template is None and wanted != "auto":
            others = [f"`{name}` has one" for name, found in have.items() if found is not None]
            raise BuildFailed(f"`{wanted}` has no chat template", where=where, facts=others)
        files = tokenizer_files(planned.side)
        if template is None or template_of(files) == template:
            note = () if template is not None else ("no input has a chat template",)
            return replace(planned, notes=(*planned.notes, *note))
        return replace(planned, side=with_files(planned.side, with_template(files, template)))
    except Unreadable as error:
        raise unreadable(merge.name, error, where) from None


def with_ids(side: Side, before: Tokenizer, after: Mapping[str, int], other: Side) -> Side:
    """The side with the ids in config.json and generation_config.json made those of a new vocabulary.

    `other` is the artifact that the tokenizer comes from: what its configs name goes before what tokens are called.
    """
    config = _moved(side.config or {}, other.config or {}, before, after)
    generation = _moved(side.generation or {}, {**(other.config or {}), **(other.generation or {})}, before, after)
    return replace(
        side,
        config_overrides=merged(config, side.config_overrides),
        generation_overrides=merged(generation, side.generation_overrides),
    )


def _moved(
    config: Mapping[str, Any], other: Mapping[str, Any], before: Tokenizer, after: Mapping[str, int]
) -> dict[str, Any]:
    """The ids of a config that change, tables within tables."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            below = other.get(key)
            if inner := _moved(value, below if isinstance(below, Mapping) else {}, before, after):
                found[key] = inner
        elif _IDS.fullmatch(key) and _are_ids(value):
            now = other[key] if _are_ids(other.get(key)) else _renamed(value, before, after)
            if now != value:
                found[key] = now
    return found


def _are_ids(value: object) -> bool:
    return type(value) is int or (isinstance(value, (list, tuple)) and all(type(entry) is int for entry in value))


def _renamed(value: Any, before: Tokenizer, after: Mapping[str, int]) -> Any:
    """The ids that the same tokens have now; an id that stood for no token, or for one that is gone, stays."""
    if isinstance(value, (list, tuple)):
        return [_renamed(entry, before, after) for entry in value]
    token = before.by_id.get(value)
    return after.get(token, value) if token is not None else value
