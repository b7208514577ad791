"""modelbuild: build language-model weights the way a build system builds programs."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from modelbuild.build import build
    from modelbuild.describe import plan, why
    from modelbuild.errors import ModelbuildError
    from modelbuild.result import Result

__all__ = ["ModelbuildError", "Result", "__version__", "build", "plan", "why"]

_HOMES = {
    "build": "modelbuild.build",
    "plan": "modelbuild.describe",
    "why": "modelbuild.describe",
    "ModelbuildError": "modelbuild.errors",
    "Result": "modelbuild.result",
}


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first used: `import modelbuild` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'modelbuild' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """This package, whose `build` and `plan` stay functions when the submodules of the same names are imported."""

    def _keep(self, submodule: ModuleType) -> None:
        """Importing a submodule sets it as an attribute of its package; not here."""

    build = property(lambda self: __getattr__("build"), _keep)
    plan = property(lambda self: __getattr__("plan"), _keep)


if not TYPE_CHECKING:
    sys.modules[__name__].__class__ = _Package
