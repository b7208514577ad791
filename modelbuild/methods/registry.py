"""Every merge method by name: one file each in this folder, found by its file name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

import modelbuild.methods
from modelbuild.methods.base import Method
from modelbuild.rooms import files_of


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name, in the order of their names."""
    found = {}
    for name in files_of(modelbuild.methods):
        declared = getattr(import_module(f"modelbuild.methods.{name}"), "METHOD", None)
        if isinstance(declared, Method):
            found[declared.name] = declared
    return MappingProxyType(dict(sorted(found.items())))


def method(name: str) -> Method | None:
    """The method called `name`, or None if there is none."""
    return methods().get(name)
