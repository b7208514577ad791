"""The commands that build, plan and explain, and write the files that stand beside each other."""

from __future__ import annotations

from typing import Annotated

import typer

from modelbuild import plain
from modelbuild.cli.words import AllowPath, Cache, Json, Memory, Names, Out, Set, option, options, show
from modelbuild.errors import UsageError
from modelbuild.options import DEFAULT_MEMORY


def build(
    context: typer.Context,
    names: Names = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    jobs: Annotated[int | None, option("jobs")] = None,
    memory: Memory = DEFAULT_MEMORY,
    link: Annotated[str | None, option("link")] = None,
    durability: Annotated[str, option("durability")] = "batch",
    no_cache: Annotated[bool, option("no_cache")] = False,
    require_cached: Annotated[bool, option("require_cached")] = False,
    keep_going: Annotated[bool, option("keep_going")] = False,
    allow_path: AllowPath = False,
    overrides: Set = None,
) -> None:
    """Build the targets into build/NAME/."""
    made = options(
        context, cache=cache, out=out, jobs=jobs, memory=memory, link=link, durability=durability, no_cache=no_cache,
        require_cached=require_cached, keep_going=keep_going, allow_path=allow_path, overrides=tuple(overrides or ()),
    )  # fmt: skip
    plain.build(made, names or (), as_json)


def plan(
    context: typer.Context,
    names: Names = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    memory: Memory = DEFAULT_MEMORY,
    allow_path: AllowPath = False,
    overrides: Set = None,
) -> None:
    """Show what a build would compute, copy and reuse, and why."""
    made = options(
        context, cache=cache, out=out, memory=memory, allow_path=allow_path, overrides=tuple(overrides or ())
    )
    plain.plan(made, names or (), as_json)


def why(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="An artifact that is built.")],
    tensor: Annotated[str | None, typer.Argument(help="One of its tensors.")] = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    allow_path: AllowPath = False,
    overrides: Set = None,
) -> None:
    """Show why an artifact, or one tensor of it, would be or was rebuilt."""
    from modelbuild.describe import why_with
    from modelbuild.report.plan import show_why
    from modelbuild.report.terminal import listener

    made = options(context, cache=cache, out=out, allow_path=allow_path, overrides=tuple(overrides or ()))
    result = why_with(made, name, tensor, listener())
    show(result.as_json(), show_why(result), as_json)


def lock(
    context: typer.Context,
    cache: Cache = None,
    allow_path: AllowPath = False,
    overrides: Set = None,
) -> None:
    """Resolve all sources and write Modelfile.lock."""
    from modelbuild.locking import lock_with
    from modelbuild.report.terminal import listener

    if overrides:
        raise UsageError("a lock is of the Modelfile as it is", hint="leave out --set")
    print(lock_with(options(context, cache=cache, allow_path=allow_path), listener()))


def init(context: typer.Context) -> None:
    """Write a commented Modelfile to start from."""
    from modelbuild.locking import write_template

    print(write_template(context.obj["file"]))
