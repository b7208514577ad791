"""`[merge.NAME.tokens]`: where the rows of single tokens come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.modelfile.faults import Faults
from modelbuild.modelfile.keys import TOKEN
from modelbuild.modelfile.spec import Path
from modelbuild.modelfile.suggest import listed, shown
from modelbuild.modelfile.tables import Table, read_all, title


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """What the row of one token is: that of `token` (or of row `token_id`) in `model`, or zeros where `model` is None.

    With `force` every model gets it, else only models that lack the token.
    """

    model: str | None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


def choices(tokens: Mapping[str, Any]) -> dict[str, TokenChoice]:
    """The choices of a table that was checked, by token in the order of the file."""
    found = {}
    for token, value in tokens.items():
        entry: Mapping[str, Any] = {"model": value} if isinstance(value, str) else value
        found[token] = TokenChoice(
            entry.get("model"), entry.get("token", token), entry.get("token_id"), entry.get("force", False)
        )
    return found


def check_tokens(faults: Faults, path: Path, tokens: Table, inputs: Iterable[str]) -> None:
    """Notes what is wrong in the table at `path`; models must be among the merge's `inputs`."""
    known = list(inputs)
    for token, entry in tokens.items():
        where = (*path, token)
        name = f"the token `{shown(token)}`"
        if not token:
            faults.key(where, f"{title(path)} has a token without text")
        if isinstance(entry, str):
            _check_model(faults, where, path, entry, known)
            continue
        if not isinstance(entry, dict):
            hint = 'an entry is written `"NAME"` or `{ model = "NAME" }`'
            faults.expected(where, name, "an input or a table", entry, hint=hint)
            continue
        # A token may be nothing but space, which other strings may not.
        spaces = isinstance(entry.get("token"), str) and entry["token"].isspace()
        good = read_all(faults, where, {**entry, "token": "space"} if spaces else entry, TOKEN)
        if entry.get("zero") is False:
            faults.value((*where, "zero"), "`zero` is true, or not there")
        if ("model" in entry) == ("zero" in entry):
            faults.key(where, f"{name} takes either `model` or `zero = true`")
        if "token" in entry and "token_id" in entry:
            faults.key((*where, "token_id"), "`token` and `token_id` exclude each other")
        for key in ("token", "token_id"):
            if key in entry and "model" not in entry:
                faults.key((*where, key), f"`{key}` has no meaning without `model`")
        if "model" in good:
            _check_model(faults, (*where, "model"), path, good["model"], known)


def _check_model(faults: Faults, where: Path, path: Path, model: str, known: list[str]) -> None:
    if model not in known:
        message = f"`{shown(model)}` is no input of {title(path[:2])}"
        faults.unknown_value(where, message, model, known, f"its inputs are {listed(known)}")
