"""README.md: the model card, with front matter that the Hub reads.

Names, descriptions and notes come from whoever wrote the Modelfile, so they are quoted for YAML and escaped for
Markdown: they can add neither a key, nor HTML, nor a link behind other words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from modelbuild.artifact.config import names_remote_code
from modelbuild.artifact.provenance import Made, numerics_of, public_modelfile, public_override, sources
from modelbuild.artifact.recipe import closure, public_source
from modelbuild.formats.registry import formats
from modelbuild.modelfile.spec import Adapter, Base, Merge, Publish, Quantize
from modelbuild.sources.content import SourceAdapter, SourceModel

FILE = "README.md"
RELATIONS = {"merge": "merge", "adapter": "adapter", "quantize": "quantized"}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-._/][A-Za-z0-9]+)*")
_YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_REPOSITORY = re.compile(r"hf:([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)(?:@.*)?")


def card(made: Made) -> bytes:
    """The model card as bytes: front matter, what the artifact was made of and how, and how to build it again."""
    publish = made.plan.spec.publish.get(made.name)
    parts = [_front_matter(made, publish), f"# {escape(made.name)}", *_words(made, publish)]
    parts += ["## What it is made of", _ingredients(made), *_steps(made), *_remote_code(made)]
    if made.modelfile:
        parts += ["## The Modelfile", fence(public_modelfile(made.modelfile, made.plan.spec), "toml")]
    parts += ["## Build it again", _rebuild(made)]
    return ("\n\n".join(parts) + "\n").encode()


def quote(text: str) -> str:
    """`text` as a YAML scalar: plain where nothing in it could mean anything, else double-quoted."""
    if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", quoted)


def escape(text: str) -> str:
    """`text` as one line of Markdown that shows exactly those characters."""
    line = " ".join(text.split())
    line = "".join(character for character in line if character.isprintable())
    line = re.sub(r"([\\`*_\[\]<>&#|~!$])", r"\\\1", line)
    return re.sub(r"^([-+=:]|\d+(?=[.)]))", _break_block, line)


def fence(text: str, language: str = "") -> str:
    """`text` in a code fence that is longer than any run of backquotes in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def _break_block(found: re.Match[str]) -> str:
    """A list or underline mark at the start of a line, made harmless."""
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def _front_matter(made: Made, publish: Publish | None) -> str:
    kind = made.plan.artifacts[made.name].kind
    known = [found[1] for source in sources(made.plan, made.name) if (found := _REPOSITORY.fullmatch(source.origin))]
    lines = [f"library_name: {'peft' if kind == 'adapter' else 'transformers'}"]
    if known:
        lines += [*_sequence("base_model", known), f"base_model_relation: {RELATIONS.get(kind, 'merge')}"]
    if publish is not None and publish.license is not None:
        lines.append(f"license: {quote(publish.license)}")
    lines += _sequence("language", publish.language if publish is not None else ())
    lines += _sequence("tags", [kind, "modelbuild", *(publish.tags if publish is not None else ())])
    return "\n".join(["---", *lines, "---"])


def _sequence(key: str, items: Iterable[str]) -> list[str]:
    unique = list(dict.fromkeys(items))
    return [f"{key}:", *(f"- {quote(item)}" for item in unique)] if unique else []


def _words(made: Made, publish: Publish | None) -> Sequence[str]:
    artifact = made.plan.spec.artifacts[made.name]
    description = None if isinstance(artifact, Base) else artifact.description
    notes = publish.notes if publish is not None else None
    return [_paragraphs(text) for text in (description, notes) if text and text.strip()]


def _paragraphs(text: str) -> str:
    return "\n\n".join(escape(part) for part in re.split(r"\n\s*\n", text) if part.strip())


def _ingredients(made: Made) -> str:
    return "\n".join(f"- {_ingredient(source)}" for source in sources(made.plan, made.name))


def _ingredient(source: SourceModel | SourceAdapter) -> str:
    kind = "model" if isinstance(source, SourceModel) else "adapter"
    found = _REPOSITORY.fullmatch(source.origin)
    if found:
        where = f"[{escape(found[1])}](https://huggingface.co/{found[1]})"
    else:
        where = escape(public_source(source.origin).removeprefix("local:"))
    commit = f" at commit {escape(source.commit)}" if source.commit else ""
    return f"{escape(source.name)}: the {kind} {where}{commit}"


def _steps(made: Made) -> list[str]:
    """One line for each artifact that was made on the way, in building order."""
    lines = []
    for name in closure(made.plan.spec, made.name):
        artifact = made.plan.spec.artifacts[name]
        if isinstance(artifact, Merge):
            names = dict.fromkeys(escape(other) for other in made.plan.spec.references(name))
            lines.append(f"- {escape(name)}: {escape(artifact.method)} of {', '.join(names)}")
            used = made.plan.spec.method(artifact.method)
            if used is not None and (used.distribution or used.libraries(artifact.parameters)):
                lines += _computed_by(made, name, "router" if used.mixture else used.operation_name)
        elif isinstance(artifact, Quantize):
            lines.append(
                f"- {escape(name)}: {escape(artifact.model)} as {escape(artifact.format)} {escape(artifact.type)}"
            )
            lines += _computed_by(made, name, artifact.format)
        elif isinstance(artifact, Adapter) and artifact.source is None:
            names = dict.fromkeys(escape(other) for other in made.plan.spec.references(name))
            lines.append(f"- {escape(name)}: an adapter made from {', '.join(names)}")
    return ["## How", "\n".join(lines)] if lines else []


def _computed_by(made: Made, name: str, operation: str) -> list[str]:
    """The numerics class of what a method or format itself has an outside library compute of an artifact."""
    return [f"  computed by {escape(found)}" for found in numerics_of(made.plan.artifacts[name], operation)]


def _remote_code(made: Made) -> list[str]:
    if not names_remote_code(made.plan.artifacts[made.name].side.config):
        return []
    return ["The config names custom code (`auto_map`). It was not copied: take it from the original repository."]


def _rebuild(made: Made) -> str:
    options = "".join(f" --set {_shell(public_override(text))}" for text in made.overrides)
    extras = sorted({extra for name in closure(made.plan.spec, made.name) if (extra := _extra(made, name))})
    package = f"'modelbuild[{','.join(extras)}]=={made.version}'" if extras else f"modelbuild=={made.version}"
    outside = _outside(made)
    packages = " ".join([package, *(f"{name}=={release}" for name, release in outside.items())])
    options += f" --plugins {','.join(outside)}" if outside else ""
    commands = f"pip install {packages}\nmodelbuild build {made.name}{options}"
    digests = "The digest of every source and of every file is in `modelbuild.json`."
    return f"Beside the Modelfile above and its sources:\n\n{fence(commands, 'sh')}\n\n{digests}"


def _outside(made: Made) -> dict[str, str]:
    """The distributions that methods from outside came with, by name, each with its release."""
    merges = (made.plan.spec.artifacts[name] for name in closure(made.plan.spec, made.name))
    used = [made.plan.spec.method(merge.method) for merge in merges if isinstance(merge, Merge)]
    return {m.distribution: m.release for m in sorted(filter(None, used), key=lambda m: m.name) if m.distribution}


def _extra(made: Made, name: str) -> str:
    """The extra of modelbuild that making an artifact takes; empty if it takes none."""
    artifact = made.plan.spec.artifacts[name]
    if isinstance(artifact, Merge):
        used = made.plan.spec.method(artifact.method)
        return used.extra if used is not None and used.libraries(artifact.parameters) else ""
    return formats()[artifact.format].extra if isinstance(artifact, Quantize) else ""


def _shell(text: str) -> str:
    """A word of a POSIX shell command."""
    if re.fullmatch(r"[A-Za-z0-9_./:=@%+,-]+", text):
        return text
    return "'" + text.replace("'", "'\"'\"'").replace("\n", " ") + "'"
