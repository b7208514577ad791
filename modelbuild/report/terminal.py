"""What a person sees: lines on stderr, a progress bar where stderr is a terminal, and results as text."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modelbuild.units import show_bytes

if TYPE_CHECKING:
    from modelbuild.result import ArtifactResult, Result

QUIET_SECONDS = 30.0
"""How often a long step says where it is when there is no terminal to draw on."""


PATIENCE_SECONDS = 0.3
"""How long a step takes before a bar is shown for it."""


class Listener:
    """Whom a build tells what it does; this one keeps silent. Calls may come from many threads."""

    def say(self, text: str) -> None:
        """A sentence the user should see."""

    def begin(self, name: str, what: str, total: int) -> None:
        """A step of `total` bytes starts."""

    def advance(self, nbytes: int) -> None:
        """So many bytes more are done."""

    def end(self) -> None:
        """The step is over."""

    def hashed(self, nbytes: int) -> None:
        """So many bytes more of sources were hashed; nobody knows how many there are in all."""

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class PlainListener(Listener):
    """Plain lines on stderr: each sentence, and now and then how far a long step is."""

    def __init__(self) -> None:
        self._name = self._what = ""
        self._total = self._done = 0
        self._told = 0.0

    def say(self, text: str) -> None:
        """Prints the sentence."""
        print(text, file=sys.stderr, flush=True)

    def begin(self, name: str, what: str, total: int) -> None:
        """Remembers the step; short ones pass without a word."""
        self._name, self._what, self._total, self._done = name, what, total, 0
        self._told = time.monotonic()

    def advance(self, nbytes: int) -> None:
        """Prints a line when the last one is long ago."""
        self._done += nbytes
        if time.monotonic() - self._told > QUIET_SECONDS:
            self._told = time.monotonic()
            self.say(f"{self._what} {self._name}: {show_bytes(self._done)} of {show_bytes(self._total)}")


class BarListener(Listener):
    """A progress bar on a terminal, for steps that take long enough to look at one; others need no library for bars."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._title = ""
        self._total = self._done = 0
        self._begun = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Prints the sentence above the bar."""
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, name: str, what: str, total: int) -> None:
        """Remembers the step, whose bar is shown when it has taken a while."""
        self.end()
        self._title, self._total, self._done, self._begun = f"{what} {name}", total, 0, time.monotonic()

    def advance(self, nbytes: int) -> None:
        """Moves the bar, if it is time for one."""
        with self._lock:
            self._done += nbytes
            if self._task is not None:
                self._bar.update(self._task, advance=nbytes)
            elif self._title and time.monotonic() - self._begun > PATIENCE_SECONDS:
                self._bar = self._bar or _new_bar()
                self._bar.start()
                self._task = self._bar.add_task(self._title, total=self._total, completed=self._done)

    def end(self) -> None:
        """Takes the bar away."""
        with self._lock:
            self._title = ""
            if self._task is not None:
                self._bar.remove_task(self._task)
                self._task = None
                self._bar.stop()


def _new_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def listener() -> Listener:
    """A bar where stderr is a terminal, else plain lines."""
    return BarListener() if sys.stderr.isatty() else PlainListener()


def show_result(result: Result) -> str:
    """A build's result as text: one line for each artifact, its reasons below."""
    return "\n".join(line for artifact in result.artifacts for line in artifact_lines(artifact))


def artifact_lines(artifact: ArtifactResult) -> list[str]:
    """What became of one artifact, in one line, with reasons and notes below."""
    counts = artifact.tensors
    if artifact.status == "fresh" and not counts.computed + counts.copied:
        lines = [f"{artifact.name}: nothing to do ({counts.total} tensors, {artifact.path})"]
    elif artifact.status in ("failed", "skipped"):
        lines = [f"{artifact.name}: {artifact.status}"]
    else:
        parts = [(counts.computed, "computed"), (counts.copied, "copied"), (counts.reused, "reused")]
        told = ", ".join(f"{count} {what}" for count, what in parts if count) or "none"
        place = f" → {artifact.path}" if artifact.path else ""
        sizes = f"{show_bytes(artifact.read)} read, {show_bytes(artifact.written)} written, {artifact.seconds:.1f} s"
        lines = [f"{artifact.name}: {artifact.status}{place} ({told} of {counts.total} tensors; {sizes})"]
    lines += [f"  because {reason}" for reason in shorten(artifact.reasons)]
    return lines + [f"  note: {note}" for note in artifact.notes]


def shorten(reasons: Sequence[str], most: int = 5) -> list[str]:
    """The first reasons, and how many more there are."""
    more = [f"{len(reasons) - most} other changes"] if len(reasons) > most else []
    return [*reasons[:most], *more]
