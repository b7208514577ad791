"""The options of the commands that are run most, once for both that read them: the command line and plain.py."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["text", "number", "switch", "list"]


class Flag(NamedTuple):
    """An option: its name among `Options`, its words, what it takes (a `list` may be repeated), and its help."""

    name: str
    words: tuple[str, ...]
    kind: Kind
    help: str

    @property
    def variable(self) -> str:
        """The variable that stands in for it."""
        return f"MODELBUILD_{self.words[0].lstrip('-').replace('-', '_').upper()}"


FLAGS = {
    flag.name: flag
    for flag in (
        Flag("modelfile", ("--file", "-f"), "text", "The Modelfile."),
        Flag("debug", ("--debug",), "switch", "Show tracebacks."),
        Flag("as_json", ("--json",), "switch", "Print one JSON document on stdout."),
        Flag("cache", ("--cache",), "text", "The cache folder; default: cache/ beside the Modelfile."),
        Flag("out", ("--out",), "text", "Build into DIR/NAME/; default: build/ beside the Modelfile."),
        Flag("jobs", ("--jobs", "-j"), "number", "Threads."),
        Flag("memory", ("--memory",), "text", "Budget for tensor data; libraries come on top."),
        Flag("link", ("--link",), "text", "How outputs show weights: ref, hard, copy."),
        Flag("durability", ("--durability",), "text", "Sync to disk: full, batch, none."),
        Flag("no_cache", ("--no-cache",), "switch", "Compute every tensor anew."),
        Flag("require_cached", ("--require-cached",), "switch", "Stop at the first tensor to compute."),
        Flag("keep_going", ("--keep-going",), "switch", "Build what can be built."),
        Flag("allow_path", ("--allow-path",), "switch", "Read sources outside the Modelfile's folder."),
        Flag("values", ("--values",), "text", "What each parameter of the merge NAME comes to."),
        Flag("offline", ("--offline",), "switch", "Ask nothing of the Hub; use what was downloaded."),
        Flag("locked", ("--locked",), "switch", "Stop if the lock would change (exit 3)."),
        Flag("frozen", ("--frozen",), "switch", "Take everything as the lock has it, or stop."),
        Flag("record", ("--record",), "switch", "Write what the outputs are into the lock."),
        Flag("plugins", ("--plugins",), "text", "Distributions whose merge methods may run: NAME[,NAME]."),
        Flag("overrides", ("--set",), "list", "Override a value: merge.x.t=0.4. May be repeated."),
    )
}
"""By name."""

BEFORE = ("modelfile", "debug")
"""The options that stand before the command."""

_PLAN = ("as_json", "cache", "out", "memory", "allow_path", "offline", "locked", "frozen", "plugins", "overrides")
COMMANDS = {
    "build": (*_PLAN, "jobs", "link", "durability", "no_cache", "require_cached", "keep_going", "record"),
    "plan": (*_PLAN, "values"),
}
"""The options that stand behind a command."""
