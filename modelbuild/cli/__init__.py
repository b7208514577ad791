"""The command line: it parses words and prints results; everything else is the Python API's."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from modelbuild import __version__
from modelbuild.cli import building, cache, importing, looking
from modelbuild.cli.words import Debug, option
from modelbuild.ending import asked_for, end_with
from modelbuild.errors import Fault, Interrupted, ModelbuildError, NotBuiltYet, UsageError

app = typer.Typer(
    name="modelbuild",
    help="Build language-model weights the way a build system builds programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cache.app, name="cache")
for _command in (building.build, building.plan, building.why, building.lock, building.verify, building.init):
    app.command()(_command)
for _look in (looking.methods, looking.schema, looking.env, looking.clean, looking.inspect):
    app.command()(_look)
app.command("import")(importing.import_)


def _version(asked: bool) -> None:
    """Prints the version, where it is asked for, and ends the command."""
    if asked:
        print(f"modelbuild {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    file: Annotated[str, option("modelfile")] = "Modelfile",
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Build language-model weights the way a build system builds programs."""
    context.obj = {"file": file, "debug": debug}


def run() -> NoReturn:
    """Runs the command line and exits with the documented code; errors are text on stderr, never a traceback."""
    end_with(_parsed)


def _parsed() -> Any:
    """Parses the words and runs the command; what the parser has to say is raised as ours."""
    try:
        # Errors advise `--debug`, which is then put where it comes to mind: at the end. `asked_for` sees it anywhere.
        result = app([word for word in sys.argv[1:] if word != "--debug"], standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if hasattr(error, "format_message") and not asked_for("--debug", "MODELBUILD_DEBUG"):
            raise _of_usage(error) from None
        raise
    if result == Interrupted.exit_code:
        # The parser ends in silence when it is interrupted.
        raise KeyboardInterrupt
    return result


_BEFORE = {"-f": "-f FILE", "--file": "--file FILE"}
"""Options that stand before the command, and how."""


def _of_usage(error: Any) -> ModelbuildError:
    """What the parser of the command line says, as one of ours."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return UsageError("a command is missing", hint="`modelbuild --help` lists them")
    if (option := getattr(error, "option_name", None)) in _BEFORE and type(error).__name__ == "NoSuchOption":
        return UsageError(f"`{option}` stands before the command", hint=f"`modelbuild {_BEFORE[option]} COMMAND`")
    text, _, guess = error.format_message().partition(" Did you mean ")
    hint = f"did you mean {guess.replace(chr(39), '`')}" if guess else None
    return UsageError(text[:1].lower() + text[1:].rstrip("."), hint=hint)


def _later(name: str, help_text: str) -> None:
    """Registers a command that is part of the contract but not built yet: it says so, whatever its words."""

    def command(context: typer.Context) -> None:
        raise NotBuiltYet([Fault(f"`modelbuild {name}` is not built yet")])

    command.__doc__ = help_text
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(name, context_settings=settings)(command)


for _name, _help in (
    ("push", "Publish an artifact on the Hub (not built yet)."),
    ("graph", "Show the graph of artifacts (not built yet)."),
    ("plot", "Draw the layers of a merge (not built yet)."),
    ("diff", "Compare two models tensor by tensor (not built yet)."),
):
    _later(_name, _help)
