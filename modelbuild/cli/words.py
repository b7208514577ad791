"""Words that several commands share: their options, and how results are printed."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from modelbuild.ending import show as show
from modelbuild.errors import UsageError
from modelbuild.flags import FLAGS
from modelbuild.modelfile.suggest import shown
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
Plugins = Annotated[str, option("plugins")]
Debug = Annotated[bool, option("debug")]


def targets(context: typer.Context, names: list[str] | None) -> list[str]:
    """The names of the targets; a mergekit YAML that stands before them takes the place of the Modelfile."""
    from modelbuild.importing.load import ENDINGS

    found = list(names or ())
    if found and found[0].lower().endswith(ENDINGS):
        given = context.parent.get_parameter_source("file") if context.parent is not None else None
        if given is not None and given.name == "COMMANDLINE":
            facts = (f"`-f {context.obj['file']}` names a Modelfile", f"`{found[0]}` stands in its place")
            raise UsageError("there are two files to start from", facts=facts, hint="leave one out")
        context.obj["file"] = found.pop(0)
    for name in found:
        _no_file(name, context.info_name or "build")
    return found


def _no_file(name: str, command: str) -> None:
    """Refuses a file that is there where a name is wanted: names have neither dots nor slashes."""
    if not ("." in name or "/" in name) or not os.path.isfile(name):
        return
    from modelbuild.importing.card import ENDINGS as CARDS

    is_card = name.lower().endswith(CARDS)
    does = "writes its recipe as a Modelfile" if is_card else "starts from it"
    words = f"import {shown(name)}" if is_card else f"-f {shown(name)} {command}"
    raise UsageError(f"`{shown(name)}` is a file; `{command}` takes names", hint=f"`modelbuild {words}` {does}")


def no_recipe(word: str | None, command: str) -> None:
    """Refuses a mergekit YAML where a name is wanted, and says how `command` starts from one."""
    from modelbuild.importing.load import ENDINGS

    if word is not None and word.lower().endswith(ENDINGS):
        hint = f"`modelbuild -f {shown(word)} {command}` starts from it"
        raise UsageError(f"`{shown(word)}` is a file; `{command}` takes names", hint=hint)


def options(context: typer.Context, **given: Any) -> Options:
    """The options of a command that were given, and the Modelfile's path."""
    return Options(modelfile=context.obj["file"], **{key: value for key, value in given.items() if value is not None})
