"""`modelbuild import`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from modelbuild.cli.words import Json, show
from modelbuild.errors import UsageError


def import_(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="FILE|hf:ORG/NAME", help="A mergekit YAML, a model card, or a repository.")
    ],
    modelfile: Annotated[
        str | None,
        typer.Option(
            "--modelfile", "--out", metavar="FILE", help="Where to write, - for stdout; default: -f.",
            envvar="MODELBUILD_MODELFILE",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What the recipe makes is called.", envvar="MODELBUILD_NAME")
    ] = None,
    block: Annotated[
        int | None, typer.Option("--block", help="Which recipe of a card with several.", envvar="MODELBUILD_BLOCK")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Turn a mergekit YAML, or the one in a model card, into a Modelfile."""
    from modelbuild.importing.names import slug
    from modelbuild.importing.story import import_recipe

    if name is not None and slug(name) != name:
        hint = f"for example `{slug(name)}`" if slug(name) else None
        raise UsageError(f"`{name}` is not a name", facts=("names are made of a-z, 0-9, _ and -",), hint=hint)
    done = import_recipe(source, modelfile or context.obj["file"], name=name, block=block)
    for note in done.imported.notes:
        print(f"note: {note}", file=sys.stderr)
    text = f"wrote {done.path}" if done.path is not None else done.imported.text.removesuffix("\n")
    show(done.as_json(), text, as_json)
