"""Words that several commands share: their options, and how results are printed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelbuild.ending import show as show
from modelbuild.flags import FLAGS
from modelbuild.options import Options


def option(name: str) -> Any:
    """The option `name` of the table that both readers of command lines share."""
    flag = FLAGS[name]
    return typer.Option(*flag.words, help=flag.help, envvar=flag.variable)


Names = Annotated[list[str] | None, typer.Argument(help="Artifacts; default: those that nothing else uses.")]
Json = Annotated[bool, option("as_json")]
Cache = Annotated[str | None, option("cache")]
Out = Annotated[str | None, option("out")]
AllowPath = Annotated[bool, option("allow_path")]
Offline = Annotated[bool, option("offline")]
Set = Annotated[list[str] | None, option("overrides")]
Memory = Annotated[str, option("memory")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.", envvar="MODELBUILD_DRY_RUN")]
Locked = Annotated[bool, option("locked")]
Frozen = Annotated[bool, option("frozen")]
Debug = Annotated[bool, option("debug")]


def options(context: typer.Context, **given: Any) -> Options:
    """The options of a command that were given, and the Modelfile's path."""
    return Options(modelfile=context.obj["file"], **{key: value for key, value in given.items() if value is not None})
