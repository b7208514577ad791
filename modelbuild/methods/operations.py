"""From the name in a node to the operation that computes it, imported only when tiles are computed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelbuild.methods.base import Method, Operation


@cache
def operation(name: str) -> Operation:
    """The operation called `name`; KeyError if there is none."""
    if name == "cast":
        from modelbuild.methods._cast import Cast

        return Cast()
    if name == "rows":
        from modelbuild.methods._rows import Rows

        return Rows()
    if ":" in name:
        from modelbuild.methods.outside import loaded_operation

        return loaded_operation(name)
    if name in ("drawn", "router"):
        from modelbuild.methods._router import Drawn, Router

        return Drawn() if name == "drawn" else Router()
    if name == "states":
        from modelbuild.methods._states import States

        return States()
    try:
        method: Method = import_module(f"modelbuild.methods.{name}").METHOD
    except (ModuleNotFoundError, AttributeError):
        raise KeyError(name) from None
    if method.operation is None:
        raise KeyError(name)
    return method.operation()
