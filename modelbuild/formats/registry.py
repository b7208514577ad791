"""Every quantised format by name: one file each in this folder, found by its name, and those that are announced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

import modelbuild.formats
from modelbuild.formats.announced import ANNOUNCED
from modelbuild.formats.base import Format, Packer
from modelbuild.rooms import files_of


@cache
def formats() -> Mapping[str, Format]:
    """All formats by name, in the order of their names; a format's own file wins over its announcement."""
    found = {known.name: known for known in ANNOUNCED}
    for name in files_of(modelbuild.formats):
        declared = getattr(import_module(f"modelbuild.formats.{name}"), "FORMAT", None)
        if isinstance(declared, Format):
            found[declared.name] = declared
    return MappingProxyType(dict(sorted(found.items())))


@cache
def packer(name: str) -> Packer:
    """The packer of the format called `name`; KeyError if it has none."""
    found = formats()[name].packer
    if found is None:
        raise KeyError(name)
    return found()
