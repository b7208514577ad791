"""The commands of `modelbuild cache`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from modelbuild.cli.words import Cache, DryRun, Json, options, show
from modelbuild.errors import UsageError

app = typer.Typer(help="Look at the cache, and keep it small and sound.", no_args_is_help=True)


def _with_cache(context: typer.Context, cache: str | None, work: Callable[..., Any]) -> Any:
    from modelbuild.cache.store import open_store

    store = open_store(options(context, cache=cache).cache_root)
    try:
        return work(store)
    finally:
        store.close()


@app.command("dir")
def cache_dir(context: typer.Context, cache: Cache = None, as_json: Json = False) -> None:
    """Print the cache folder."""
    root = options(context, cache=cache).cache_root
    show({"path": root}, root, as_json)


@app.command("size")
def cache_size(context: typer.Context, cache: Cache = None, as_json: Json = False) -> None:
    """Print how much is in the cache."""
    from modelbuild.cache.collect import size
    from modelbuild.report.cache import show_size, size_data

    data = size_data(_with_cache(context, cache, size))
    show(data, show_size(data), as_json)


@app.command("ls")
def cache_ls(context: typer.Context, cache: Cache = None, as_json: Json = False) -> None:
    """List the artifacts in the cache, least recently used first."""
    from modelbuild.cache.collect import listing
    from modelbuild.report.cache import listing_data, show_listing

    data = listing_data(_with_cache(context, cache, listing))
    show(data, show_listing(data), as_json)


@app.command("gc")
def cache_gc(
    context: typer.Context,
    cache: Cache = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Collect down to SIZE.", envvar="MODELBUILD_MAX_SIZE")
    ] = None,
    max_age: Annotated[
        float | None,
        typer.Option("--max-age", help="Collect what was unused for DAYS.", envvar="MODELBUILD_MAX_AGE"),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove least recently used artifacts, never what the last builds need or what is pinned."""
    from modelbuild.cache.collect import gc
    from modelbuild.report.cache import gc_data, show_gc
    from modelbuild.units import parse_size

    try:
        limit = parse_size(max_size) if max_size is not None else None
    except ValueError as error:
        raise UsageError(f"`--max-size {max_size}`: {error}") from None
    if max_age is not None and not 0 <= max_age < math.inf:
        raise UsageError(f"`--max-age {max_age}` is not a number of days")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    data = gc_data(_with_cache(context, cache, lambda store: gc(store, limit, max_age, dry_run, waiting=say)))
    show(data, show_gc(data), as_json)


@app.command("verify")
def cache_verify(context: typer.Context, cache: Cache = None, as_json: Json = False) -> None:
    """Read every byte in the cache; what is damaged is set aside and made anew by the next build. Exit 5 if any is."""
    from modelbuild.cache.collect import verify

    problems = list(_with_cache(context, cache, verify))
    show({"problems": problems}, "\n".join(problems) or "the cache is sound", as_json)
    raise typer.Exit(5 if problems else 0)


@app.command("pin")
def cache_pin(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="An artifact's key, or the start of one, as `cache ls` shows it.")],
    cache: Cache = None,
    off: Annotated[bool, typer.Option("--off", help="Let it go again.", envvar="MODELBUILD_OFF")] = False,
    as_json: Json = False,
) -> None:
    """Keep an artifact whatever the limits of `gc`."""
    from modelbuild.tidy import pin

    text = _with_cache(context, cache, lambda store: pin(store, key, not off))
    show({"notes": [text]}, text, as_json)
