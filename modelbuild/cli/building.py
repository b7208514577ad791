"""The commands that build, plan and explain, and write the files that stand beside each other."""

from __future__ import annotations

from typing import Annotated

import typer

from modelbuild.cli.words import AllowPath, Cache, Json, Memory, Names, Out, Set, options, show, targets
from modelbuild.errors import UsageError
from modelbuild.options import DEFAULT_MEMORY, Options


def build(
    context: typer.Context,
    names: Names = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Threads.", envvar="MODELBUILD_JOBS")] = None,
    memory: Memory = DEFAULT_MEMORY,
    link: Annotated[
        str | None, typer.Option("--link", help="How outputs show weights: ref, hard, copy.", envvar="MODELBUILD_LINK")
    ] = None,
    durability: Annotated[
        str, typer.Option("--durability", help="Sync to disk: full, batch, none.", envvar="MODELBUILD_DURABILITY")
    ] = "batch",
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute every tensor anew.", envvar="MODELBUILD_NO_CACHE")
    ] = False,
    require_cached: Annotated[
        bool,
        typer.Option(
            "--require-cached", help="Stop at the first tensor to compute.", envvar="MODELBUILD_REQUIRE_CACHED"
        ),
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Build what can be built.", envvar="MODELBUILD_KEEP_GOING")
    ] = False,
    allow_path: AllowPath = False,
    overrides: Set = None,
) -> None:
    """Build the targets into build/NAME/."""
    from modelbuild.build import run as run_build
    from modelbuild.report.terminal import listener, show_result

    chosen = targets(context, names)
    made = options(
        context, cache=cache, out=out, jobs=jobs, memory=memory, link=link, durability=durability, no_cache=no_cache,
        require_cached=require_cached, keep_going=keep_going, allow_path=allow_path, overrides=tuple(overrides or ()),
    )  # fmt: skip
    result = run_build(made, chosen, listener())
    show(result.as_json(), show_result(result), as_json)


def plan(
    context: typer.Context,
    names: Names = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    memory: Memory = DEFAULT_MEMORY,
    values: Annotated[
        str | None,
        typer.Option(
            "--values", metavar="NAME", help="What each parameter of a merge comes to.", envvar="MODELBUILD_VALUES"
        ),
    ] = None,
    allow_path: AllowPath = False,
    overrides: Set = None,
) -> None:
    """Show what a build would compute, copy and reuse, and why."""
    from modelbuild.describe import plan_with
    from modelbuild.report.plan import show_plan
    from modelbuild.report.terminal import listener

    chosen = targets(context, names)
    made = options(
        context, cache=cache, out=out, memory=memory, allow_path=allow_path, overrides=tuple(overrides or ())
    )
    if values is not None:
        _values(made, values, chosen, as_json)
        return
    result = plan_with(made, chosen, listener())
    show(result.as_json(), show_plan(result), as_json)


def _values(made: Options, name: str, chosen: list[str], as_json: bool) -> None:
    from modelbuild.report.terminal import listener
    from modelbuild.report.values import show_values
    from modelbuild.resolved import values_with

    if chosen:
        raise UsageError(f"`--values` is of one merge, `{name}`", hint=f"leave out `{chosen[0]}`")
    found = values_with(made, name, listener())
    show(found.as_json(), show_values(found), as_json)


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
