"""`import`: a recipe in a file, a model card or on the Hub becomes a Modelfile, checked before it is written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from modelbuild.errors import UsageError, Where
from modelbuild.importing.card import ENDINGS as CARDS
from modelbuild.importing.card import recipe, title
from modelbuild.importing.fetch import fetch
from modelbuild.importing.load import ENDINGS, parsed, read_bytes
from modelbuild.importing.models import Folders
from modelbuild.importing.names import last_name
from modelbuild.importing.translate import Imported, translate
from modelbuild.importing.yamltext import decoded
from modelbuild.modelfile.keys import REPOSITORY
from modelbuild.modelfile.suggest import shown

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Written:
    """What an import came to: where the Modelfile is (None for stdout), its text, and what was left out."""

    path: str | None
    imported: Imported

    def as_json(self) -> dict[str, Any]:
        """The import as `import --json` prints it."""
        found = self.imported
        return {"modelfile": self.path, "name": found.name, "text": found.text, "notes": list(found.notes)}


def import_recipe(source: str, out: str, *, name: str | None = None, block: int | None = None) -> Written:
    """Writes the Modelfile of the recipe in `source` to `out`, "-" for nowhere; `name` is what the recipe makes.

    `block` is the number of the recipe in a card with several. Raises UsageError if `out` is there already, and
    ModelfileError, before anything is written, with all that is wrong with the recipe, at its place there.
    """
    if out != STDOUT and os.path.lexists(out):
        raise _there(out)
    home = os.path.dirname(os.path.abspath(out)) if out != STDOUT else os.getcwd()
    if source.startswith("hf:"):
        path, file = fetch(source)
        display, near = f"{source}/{file}", []
    else:
        path, display, near = source, source, [os.path.dirname(os.path.abspath(source))]
    _refuse_address(source)
    text = decoded(read_bytes(path), display)
    origin = Where(display)
    candidates = [last_name(source.partition("@")[0] if source.startswith("hf:") else os.path.splitext(source)[0])]
    if display.lower().endswith(CARDS):
        candidates += [title(text)]
        found = recipe(text, display, block)
        text, origin = found.text, found.origin
    elif block is not None:
        raise UsageError("`--block` chooses a recipe of a card", facts=(f"`{shown(display)}` is none",))
    candidates = [name] if name is not None else [*candidates, *map(last_name, near)]
    imported = translate(text, origin, candidates, Folders(home, (*near, os.getcwd())))
    parsed(imported, display)
    return Written(None if out == STDOUT else _write(out, imported.text), imported)


_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/")


def _refuse_address(source: str) -> None:
    """Raises UsageError for what names a repository as a browser does, or mergekit, and is no file."""
    page = _HUB.match(source)
    words = source[page.end() :].split("/")[:2] if page else source.split("/")
    name = "/".join(words)
    is_file = os.path.lexists(source) or name.lower().endswith((*ENDINGS, *CARDS))
    if re.fullmatch(REPOSITORY, name) and words[0].strip(".") and (page or not is_file):
        hint = f"a repository on the Hub is `hf:{shown(name)}`"
        raise UsageError(f"there is no file `{shown(source)}`", hint=hint)


def _write(path: str, text: str) -> str:
    try:
        with open(path, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise _there(path) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written", facts=(error.strerror or str(error),)) from error
    return path


def _there(path: str) -> UsageError:
    return UsageError(f"{path} is there already", hint="`--out FILE` writes another, `--out -` prints it")
