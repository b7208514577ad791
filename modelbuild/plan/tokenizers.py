"""The tokenizers of planned artifacts, and the side files of an artifact that gets another one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from modelbuild.errors import BuildFailed, Fault, SourceChanged, Where
from modelbuild.modelfile.chat_templates import TEMPLATES
from modelbuild.modelfile.spec import Merge, Spec
from modelbuild.plan.planned import Planned, Side
from modelbuild.sources.hub.fetch import bring_all
from modelbuild.sources.strictjson import show
from modelbuild.tokenizer.nouns import Tokenizer, Unreadable
from modelbuild.tokenizer.read import LIMIT, READ, SAY_TOKENS, TEMPLATES_IN, is_tokenizer_file, read_tokenizer
from modelbuild.tokenizer.template import template_of, unknown_tokens, usual, with_template


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


def tokenizer_files(side: Side, read: Collection[str] = READ) -> dict[str, bytes]:
    """A tokenizer's files by name: the bytes of those that are `read`, of others none, which are as good as there.

    Those on the Hub are brought, and no others. Raises SourceChanged for a file that is not what was hashed, and what
    `hub.fetch.bring` raises.
    """
    files = {name: file for name, file in side.files.items() if is_tokenizer_file(name)}
    wanted = {name: file for name, file in files.items() if name in read}
    for name, file in wanted.items():
        if file.size > LIMIT:
            raise BuildFailed(f"{show(name)} is too large", facts=[f"the limit is {LIMIT} bytes"])
    found = dict.fromkeys(files, b"")
    for name, file in zip(wanted, bring_all(list(wanted.values())), strict=True):
        found[name] = Path(file.path).read_bytes()
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
        have = {name: template_of(tokenizer_files(other.side, TEMPLATES_IN)) for name, other in inputs.items()}
        if wanted == "auto":
            template = usual(list(have.values()))
        else:
            template = have[wanted] if wanted in have else TEMPLATES.get(wanted, wanted)
        if template is None and wanted != "auto":
            others = [f"`{name}` has one" for name, found in have.items() if found is not None]
            raise BuildFailed(f"`{wanted}` has no chat template", where=where, facts=others)
        files = tokenizer_files(planned.side, TEMPLATES_IN)
        if template is None or template_of(files) == template:
            note = () if template is not None else ("no input has a chat template",)
            return replace(planned, notes=(*planned.notes, *note))
        side = with_files(planned.side, with_template(files, template))
        unknown = ", ".join(show(token) for token in unknown_tokens(template, tokenizer_files(side, SAY_TOKENS)))
        told = (f"the chat template has {unknown}, not a token of the vocabulary: split into pieces as any text",)
        return replace(planned, side=side, notes=(*planned.notes, *(told if unknown else ())))
    except Unreadable as error:
        raise unreadable(merge.name, error, where) from None
