"""Opening what a build starts from: a Modelfile, or a mergekit YAML read as the Modelfile that it means."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from modelbuild.errors import ModelfileError, UsageError, Where
from modelbuild.modelfile.parse import load as load_modelfile
from modelbuild.modelfile.parse import parse_text
from modelbuild.modelfile.positions import Positions
from modelbuild.modelfile.spec import Path, Spec
from modelbuild.modelfile.suggest import shown

if TYPE_CHECKING:
    from modelbuild.importing.translate import Imported

ENDINGS = (".yml", ".yaml")


def load(path: str, *, overrides: Sequence[str] = (), trusted: Sequence[str] = ()) -> Spec:
    """What the Modelfile at `path` says; a file that ends in .yml or .yaml is a mergekit recipe, read as a Modelfile.

    A Modelfile may use methods of the distributions that are `trusted`.

    Raises UsageError and ModelfileError as `modelfile.parse.load` does; faults of a recipe stand in the YAML file.
    """
    if not path.lower().endswith(ENDINGS):
        return load_modelfile(path, overrides=overrides, trusted=trusted)
    from modelbuild.importing.models import Folders
    from modelbuild.importing.names import last_name
    from modelbuild.importing.translate import translate
    from modelbuild.importing.yamltext import decoded

    data = read_bytes(path)
    home = os.path.dirname(os.path.abspath(path))
    names = [last_name(path).rpartition(".")[0], last_name(home)]
    # mergekit looks for models from where it is started.
    imported = translate(decoded(data, path), Where(path), names, Folders(home, (os.getcwd(),)))
    spec = parsed(imported, path, overrides)
    return replace(spec, digest=hashlib.sha256(data).hexdigest(), notes=imported.notes)


def parsed(imported: Imported, file: str, overrides: Sequence[str] = ()) -> Spec:
    """The spec of a Modelfile that was made from `file`; raises ModelfileError with every fault at its place there."""

    def positions(file: str, text: str, options: Mapping[Path, str]) -> Positions:
        return _Origins(file, text, options, imported.places)

    try:
        return parse_text(imported.text, file, overrides, positions)
    except ModelfileError as error:
        from modelbuild.importing.nouns import together

        raise together(error.faults, imported.suspects) from None


def read_bytes(path: str) -> bytes:
    """The bytes of a file; raises UsageError if it cannot be read."""
    from modelbuild.importing.yamltext import LARGEST

    try:
        with open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no file `{shown(path)}`") from None
    except IsADirectoryError:
        raise UsageError(f"`{shown(path)}` is a folder, not a recipe") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"`{shown(path)}` cannot be read: {reason}") from None


class _Origins(Positions):
    """The places of a Modelfile that was made from another file, which are in that one."""

    def __init__(
        self, file: str, text: str, options: Mapping[Path, str], origins: Mapping[Path, tuple[Where, Where]]
    ) -> None:
        super().__init__(file, text, options)
        self._origins = origins

    def __getitem__(self, path: Path) -> Where:
        if (option := self._option(path)) is not None:
            return option
        return self._origins[path][0]

    def value(self, path: Path) -> Where:
        """Where the value at `path` starts in the file that it comes from."""
        if self._option(path) is not None or path not in self._origins:
            return self.key(path)
        return self._origins[path][1]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)
