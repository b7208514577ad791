"""The commands that look at things and tidy up."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from modelbuild.cli.words import Cache, DryRun, Json, Out, Plugins, options, show
from modelbuild.options import Options


def methods(
    name: Annotated[str | None, typer.Argument(help="A method or format.")] = None,
    as_json: Json = False,
    plugins: Plugins = "",
) -> None:
    """List merge methods and quantised formats, or show one with its parameters."""
    from modelbuild.report.methods import method_data, show_methods

    data = method_data(name, Options(plugins=plugins).trusted)
    show(data, show_methods(data), as_json)


def schema(as_json: Json = False, plugins: Plugins = "") -> None:
    """Print a JSON Schema of the Modelfile, for editors; it is JSON with and without --json."""
    from modelbuild.methods.outside import Outside
    from modelbuild.modelfile.schema import json_schema

    print(json.dumps(json_schema(Outside(Options(plugins=plugins).trusted).all()), indent=2))


def env(as_json: Json = False) -> None:
    """Print facts for a bug report."""
    from modelbuild.report.env import environment

    data = environment()
    show(data, "\n".join(f"{key}: {value}" for key, value in data.items()), as_json)


def clean(
    context: typer.Context,
    out: Out = None,
    cache: Cache = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    plugins: Plugins = "",
) -> None:
    """Remove from the output folder what the Modelfile no longer names."""
    from modelbuild.tidy import clean as tidy

    lines = tidy(options(context, out=out, cache=cache, plugins=plugins), dry_run)
    if lines or as_json:
        show({"notes": lines}, "\n".join(lines), as_json)


def inspect(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="A file, a folder, or an artifact that was built.")],
    as_json: Json = False,
    out: Out = None,
    plugins: Plugins = "",
) -> None:
    """Show the tensors of a model, adapter or artifact: names, dtypes, shapes, sizes."""
    from modelbuild.report.inspect import inspection, show_inspection

    data = inspection(options(context, out=out, plugins=plugins), path)
    show(data, show_inspection(data), as_json)
