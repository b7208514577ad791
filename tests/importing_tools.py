"""What tests of imports share: golden files, and an import without the disk."""

import re
from pathlib import Path

from modelbuild.errors import Where
from modelbuild.importing.load import parsed
from modelbuild.importing.models import Folders
from modelbuild.importing.translate import translate

FILE = "config.yml"


def imported(text, name="made", folders=None):
    """The import of a recipe, as if no model were on the disk; its Modelfile is parsed as well."""
    found = translate(text, Where(FILE), [name], folders or Folders("/nonexistent"))
    return found, parsed(found, FILE)


def blocks(name):
    """(title, recipe, what is expected of it) of each block of a golden file.

    What is expected comes after the last `---` that stands before `# ` or `error: `.
    """
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    for block in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        title, _, rest = block.partition("\n")
        parts = re.split(r"^---\n(?=# made|# smart-parts|error: |\Z)", rest, flags=re.MULTILINE)
        yield title, parts[0], parts[1].rstrip("\n") if len(parts) > 1 else ""
