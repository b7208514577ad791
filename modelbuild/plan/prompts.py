"""Prompts as tokens: what each expert of a mixture is for and not for, as numbers of rows of the base's embedding.

The tokens are part of the plan, so that whatever made them, only what they are counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbuild.digest import identity
from modelbuild.errors import BuildFailed, Where
from modelbuild.formats.numerics import MissingLibrary, library_version
from modelbuild.plan.planned import Planned
from modelbuild.plan.tokenizers import tokenizer_files
from modelbuild.sources.strictjson import show

LIBRARY = "tokenizers"


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of an expert's prompts, and of those that it is not for."""

    wanted: tuple[tuple[int, ...], ...]
    unwanted: tuple[tuple[int, ...], ...]

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """All prompts, those first that it is for."""
        return (*self.wanted, *self.unwanted)


def encode(
    base: Planned, rows: int, prompts: Sequence[tuple[Sequence[str], Sequence[str]]], where: Where | None
) -> list[Encoded]:
    """The prompts of each expert as the base's tokenizer.json reads them, each behind the token that begins a text.

    Raises BuildFailed without a tokenizer, without the library, for a text of no tokens, and for a token without a row
    of the `rows` that the embedding has.
    """
    files = tokenizer_files(base.side)
    if "tokenizer.json" not in files:
        facts = ["there is no tokenizer.json in it", "prompts are read by it"]
        raise BuildFailed(f"`{base.name}` has no tokenizer for prompts", where=where, facts=facts)
    tokenizer = _tokenizer(base.name, files["tokenizer.json"], where)
    start = _first(files)

    def tokens(text: str) -> tuple[int, ...]:
        found = tuple(tokenizer.encode(start + text, add_special_tokens=False).ids)
        if not found:
            raise BuildFailed(f"a prompt has no tokens: {show(text)}", where=where)
        if max(found) >= rows:
            facts = [f"{show(text)} has token {max(found)}", f"the embedding has {rows} rows"]
            raise BuildFailed(f"the tokenizer of `{base.name}` has tokens without a row", where=where, facts=facts)
        return found

    return [Encoded(tuple(map(tokens, wanted)), tuple(map(tokens, unwanted))) for wanted, unwanted in prompts]


def _tokenizer(name: str, data: bytes, where: Where | None) -> Any:
    check_installed([LIBRARY], name, where)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # what the library raises has no class of its own
        fact = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BuildFailed(f"the tokenizer of `{name}` cannot be read", where=where, facts=[fact]) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def identity_of_tokenizer(base: Planned) -> str:
    """What tells, in a few digits, whether prompts are read by the same files as before."""
    files = tokenizer_files(base.side)
    return identity("prompts/1", files["tokenizer.json"], _first(files))[:12]


def check_installed(libraries: Sequence[str], name: str, where: Where | None) -> None:
    """Raises BuildFailed where one of the packages that routers by prompts take is not installed."""
    for library in libraries:
        try:
            library_version(library)
        except MissingLibrary:
            fact = f"the routers of a mixture are made from prompts by it, with the weights of `{name}`"
            message = f"routers by prompts need {library}, which is not installed"
            raise BuildFailed(message, where=where, facts=[fact], hint="pip install 'modelbuild[moe]'") from None


def _first(files: Mapping[str, bytes]) -> str:
    """The token that begins a text, as the tokenizer's settings name it; empty where they name none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            found = json.loads(files.get(name, b"{}"))
        except ValueError:
            continue
        token = found.get("bos_token") if isinstance(found, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return ""
