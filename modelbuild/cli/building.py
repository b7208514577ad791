"""The commands that build, plan and explain, and write the files that stand beside each other."""

from __future__ import annotations

from typing import Annotated

import typer

from modelbuild import plain
from modelbuild.cli.words import (
    AllowPath,
    Cache,
    Frozen,
    Json,
    Locked,
    Memory,
    Names,
    Offline,
    Out,
    Plugins,
    Set,
    no_recipe,
    option,
    options,
    show,
    targets,
)
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
    offline: Offline = False,
    locked: Locked = False,
    frozen: Frozen = False,
    record: Annotated[bool, option("record")] = False,
    plugins: Plugins = "",
    overrides: Set = None,
) -> None:
    """Build the targets into build/NAME/."""
    chosen = targets(context, names)
    made = options(
        context, cache=cache, out=out, jobs=jobs, memory=memory, link=link, durability=durability, no_cache=no_cache,
        require_cached=require_cached, keep_going=keep_going, allow_path=allow_path, offline=offline, locked=locked,
        frozen=frozen, record=record, plugins=plugins, overrides=tuple(overrides or ()),
    )  # fmt: skip
    plain.build(made, chosen, as_json)


def plan(
    context: typer.Context,
    names: Names = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    memory: Memory = DEFAULT_MEMORY,
    values: Annotated[str | None, option("values")] = None,
    allow_path: AllowPath = False,
    offline: Offline = False,
    locked: Locked = False,
    frozen: Frozen = False,
    plugins: Plugins = "",
    overrides: Set = None,
) -> None:
    """Show what a build would compute, copy and reuse, and why."""
    chosen = targets(context, names)
    made = options(
        context, cache=cache, out=out, memory=memory, allow_path=allow_path, offline=offline, locked=locked,
        frozen=frozen, plugins=plugins, overrides=tuple(overrides or ()),
    )  # fmt: skip
    plain.plan(made, chosen, as_json, values)


def why(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="An artifact that is built.")],
    tensor: Annotated[str | None, typer.Argument(help="One of its tensors.")] = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    allow_path: AllowPath = False,
    offline: Offline = False,
    locked: Locked = False,
    frozen: Frozen = False,
    plugins: Plugins = "",
    overrides: Set = None,
) -> None:
    """Show why an artifact, or one tensor of it, would be or was rebuilt."""
    from modelbuild.describe import why_with
    from modelbuild.report.plan import show_why
    from modelbuild.report.terminal import listener

    no_recipe(name, "why")
    made = options(
        context, cache=cache, out=out, allow_path=allow_path, offline=offline, locked=locked, frozen=frozen,
        plugins=plugins, overrides=tuple(overrides or ()),
    )  # fmt: skip
    result = why_with(made, name, tensor, listener())
    show(result.as_json(), show_why(result), as_json)


def lock(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Sources to update; default: all.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Look sources up anew.", envvar="MODELBUILD_UPDATE")] = False,
    as_json: Json = False,
    cache: Cache = None,
    allow_path: AllowPath = False,
    offline: Offline = False,
    plugins: Plugins = "",
    overrides: Set = None,
) -> None:
    """Resolve all sources and write Modelfile.lock; with --update [NAME], at what they are now."""
    from modelbuild.locking import lock_with
    from modelbuild.report.lock import show_lock
    from modelbuild.report.terminal import listener

    for name in names or ():
        no_recipe(name, "lock")
    if names and not update:
        raise UsageError("all sources are locked together", hint=f"`--update {names[0]}` looks up that one anew")
    made = options(
        context, cache=cache, allow_path=allow_path, offline=offline, plugins=plugins, overrides=tuple(overrides or ())
    )
    result = lock_with(made, listener(), (names or ()) if update else None)
    show(result.as_json(), show_lock(result), as_json)


def verify(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="An artifact that is built.")],
    against: Annotated[
        str | None,
        typer.Option("--against", help="Compare with hf:ORG/NAME instead.", envvar="MODELBUILD_AGAINST"),
    ] = None,
    as_json: Json = False,
    cache: Cache = None,
    out: Out = None,
    jobs: Annotated[int | None, option("jobs")] = None,
    memory: Memory = DEFAULT_MEMORY,
    allow_path: AllowPath = False,
    offline: Offline = False,
    locked: Locked = False,
    frozen: Frozen = False,
    plugins: Plugins = "",
) -> None:
    """Compare an artifact's files with the lock, or with what the Hub lists; exit 5 if they differ."""
    from modelbuild.report.lock import show_verification
    from modelbuild.report.terminal import listener
    from modelbuild.verifying import verify_with

    no_recipe(name, "verify")
    made = options(
        context, cache=cache, out=out, jobs=jobs, memory=memory, allow_path=allow_path, offline=offline, locked=locked,
        frozen=frozen, plugins=plugins,
    )  # fmt: skip
    result = verify_with(made, name, against, listener())
    show(result.as_json(), show_verification(result), as_json)


def init(context: typer.Context, as_json: Json = False) -> None:
    """Write a commented Modelfile to start from."""
    from modelbuild.locking import write_template

    text = write_template(context.obj["file"])
    show({"modelfile": context.obj["file"]}, text, as_json)
