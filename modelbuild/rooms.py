"""What files a room of the project has: methods, adapter types and formats are found by their file's name."""

from __future__ import annotations

import os
from types import ModuleType


def files_of(room: ModuleType) -> list[str]:
    """The names of a package's modules, sorted.

    Not by pkgutil, which would import a parser of Python.
    """
    names = {name.partition(".")[0] for folder in room.__path__ for name in os.listdir(folder)}
    return sorted(names - {"__init__", "__pycache__", ""})
