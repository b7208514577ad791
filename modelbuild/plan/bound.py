"""The numerics class of what a merge method has outside libraries compute."""

from __future__ import annotations

from modelbuild.errors import BuildFailed
from modelbuild.formats.numerics import MissingLibrary, numerics_class
from modelbuild.methods.base import Method
from modelbuild.modelfile.spec import Merge, Spec


def class_of(spec: Spec, merge: Merge, method: Method) -> str | None:
    """The class of what the method's libraries compute here, None where it has none; BuildFailed where one is not
    installed.
    """
    libraries = method.libraries(merge.parameters)
    if not libraries:
        return None
    try:
        return numerics_class(libraries, algebra=True)
    except MissingLibrary as missing:
        raise BuildFailed(
            f"`{merge.name}` needs {missing.name}, which is not installed",
            where=spec.where("merge", merge.name, "method"),
            facts=(f"method `{method.name}` is computed by it",),
            hint=f"pip install {missing.name}",
        ) from None
