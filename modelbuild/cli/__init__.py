"""The command line: it parses words and prints results; everything else is the Python API's."""

from __future__ import annotations

import gc
import sys
from typing import Annotated, Any, NoReturn

import typer

from modelbuild.cli import building, cache, importing, looking
from modelbuild.cli.words import Debug, asked_for, leave
from modelbuild.errors import BuildFailed, Fault, Interrupted, ModelbuildError, NotBuiltYet, UsageError, of_system

app = typer.Typer(
    name="modelbuild",
    help="Build language-model weights the way a build system builds programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cache.app, name="cache")
for _command in (building.build, building.plan, building.why, building.lock, building.init):
    app.command()(_command)
for _look in (looking.methods, looking.schema, looking.env, looking.clean, looking.inspect):
    app.command()(_look)
app.command("import")(importing.import_)


@app.callback()
def main(
    context: typer.Context,
    file: Annotated[str, typer.Option("-f", "--file", help="The Modelfile.", envvar="MODELBUILD_FILE")] = "Modelfile",
    debug: Debug = False,
) -> None:
    """Build language-model weights the way a build system builds programs."""
    context.obj = {"file": file, "debug": debug}


def run() -> NoReturn:
    """Runs the command line and exits with the documented code; errors are text on stderr, never a traceback."""
    # A plan is a million objects that all stay: looking for garbage among them would take a third of its time.
    gc.disable()
    debug = asked_for("--debug", "MODELBUILD_DEBUG")
    try:
        result = app(standalone_mode=False)
    except ModelbuildError as error:
        if debug:
            raise
        leave(error)
    except (KeyboardInterrupt, typer.Abort):
        leave(Interrupted("interrupted"))
    except BrokenPipeError:
        raise
    except OSError as error:
        if debug:
            raise
        leave(of_system(error))
    except Exception as error:
        if debug:
            raise
        leave(_of_usage(error) if hasattr(error, "format_message") else _unforeseen(error))
    if result == Interrupted.exit_code:
        # The parser ends in silence when it is interrupted.
        leave(Interrupted("interrupted"))
    sys.exit(result if isinstance(result, int) else 0)


LATER = ("--locked", "--frozen", "--offline", "--record", "--update")
"""Options that are part of the command line but not built yet."""


def _of_usage(error: Any) -> ModelbuildError:
    """What the parser of the command line says, as one of ours."""
    if (option := getattr(error, "option_name", None)) in LATER:
        return NotBuiltYet(f"`{option}` is not built yet")
    if type(error).__name__ == "NoArgsIsHelpError":
        return UsageError("a command is missing", hint="`modelbuild --help` lists them")
    text, _, guess = error.format_message().partition(" Did you mean ")
    hint = f"did you mean {guess.replace(chr(39), '`')}" if guess else None
    return UsageError(text[:1].lower() + text[1:].rstrip("."), hint=hint)


def _unforeseen(error: Exception) -> BuildFailed:
    facts = [f"{type(error).__name__}: {error}"]
    return BuildFailed("modelbuild went wrong", facts=facts, hint="`--debug` shows where; please report it")


def _later(name: str, help_text: str) -> None:
    """Registers a command that is part of the contract but not built yet: it says so, whatever its words."""

    def command(context: typer.Context) -> None:
        raise NotBuiltYet([Fault(f"`modelbuild {name}` is not built yet")])

    command.__doc__ = help_text
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(name, context_settings=settings)(command)


for _name, _help in (
    ("verify", "Compare an artifact with the lock or the Hub (not built yet)."),
    ("push", "Publish an artifact on the Hub (not built yet)."),
    ("graph", "Show the graph of artifacts (not built yet)."),
    ("plot", "Draw the layers of a merge (not built yet)."),
    ("diff", "Compare two models tensor by tensor (not built yet)."),
):
    _later(_name, _help)
