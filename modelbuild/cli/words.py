"""Words that several commands share: their options, and how results and errors are printed."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from modelbuild.errors import ModelbuildError, UsageError
from modelbuild.options import Options
from modelbuild.stamps import TRUE

Names = Annotated[list[str] | None, typer.Argument(help="Artifacts; default: those that nothing else uses.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", envvar="MODELBUILD_JSON")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="The cache folder; default: cache/ beside the Modelfile.", envvar="MODELBUILD_CACHE"),
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Build into DIR/NAME/; default: build/ beside the Modelfile.", envvar="MODELBUILD_OUT"),
]
AllowPath = Annotated[
    bool,
    typer.Option("--allow-path", help="Read sources outside the Modelfile's folder.", envvar="MODELBUILD_ALLOW_PATH"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value: merge.x.t=0.4. May be repeated.", envvar="MODELBUILD_SET"),
]
Memory = Annotated[
    str, typer.Option("--memory", help="Budget for tensor data; libraries come on top.", envvar="MODELBUILD_MEMORY")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.", envvar="MODELBUILD_DRY_RUN")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="MODELBUILD_DEBUG")]


def asked_for(flag: str, variable: str) -> bool:
    """Whether a flag stands on the command line or its variable is set; right before anything is parsed, too."""
    return flag in sys.argv or os.environ.get(variable, "").lower() in TRUE


def leave(error: ModelbuildError) -> NoReturn:
    """Prints an error and exits with its code; with `--json` stdout gets it as data too."""
    if asked_for("--json", "MODELBUILD_JSON"):
        from modelbuild.result import Result, error_info

        result = error.result or Result(0.0, (), (), error_info(error))
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    print(error.render(), file=sys.stderr)
    sys.exit(error.exit_code)


def targets(context: typer.Context, names: list[str] | None) -> list[str]:
    """The names of the targets; a mergekit YAML that stands before them takes the place of the Modelfile."""
    from modelbuild.importing.load import ENDINGS

    found = list(names or ())
    if found and found[0].endswith(ENDINGS):
        given = context.parent.get_parameter_source("file") if context.parent is not None else None
        if given is not None and given.name == "COMMANDLINE":
            facts = (f"`-f {context.obj['file']}` names a Modelfile", f"`{found[0]}` stands in its place")
            raise UsageError("there are two files to start from", facts=facts, hint="leave one out")
        context.obj["file"] = found.pop(0)
    return found


def show(data: Any, text: str, as_json: bool) -> None:
    """Prints a result on stdout, as JSON or as text."""
    print(json.dumps(data, indent=2, ensure_ascii=False) if as_json else text)


def options(context: typer.Context, **given: Any) -> Options:
    """The options of a command that were given, and the Modelfile's path."""
    return Options(modelfile=context.obj["file"], **{key: value for key, value in given.items() if value is not None})
