"""The `modelbuild` command: a build with nothing to do is decided from its stamp, before anything heavy is imported."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def main() -> None:
    """Runs the command line in `sys.argv`; whoever stops listening, or interrupts, gets no traceback."""
    try:
        _main()
        for stream in _streams():
            stream.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def _main() -> None:
    from modelbuild import stamps

    # A terminal that knows ASCII only, or a path that is no text, is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if (text := stamps.answer(sys.argv[1:])) is not None:
        print(text)
        return
    # numpy is here to hold numbers: threads for its linear algebra would be started, spin, and find nothing to do.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from modelbuild import plain

    plain.run(sys.argv[1:])
    from modelbuild.cli import run

    run()


def _streams() -> list[TextIO]:
    """stdout and stderr, as far as they were open when the process started."""
    given: tuple[TextIO | None, ...] = (sys.stdout, sys.stderr)
    return [stream for stream in given if stream is not None]


def command() -> None:
    """Runs the command line, and ends the process at once.

    Everything is written and closed by then; taking a million objects apart first would only cost time.
    """
    code = 0
    try:
        main()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        code = end.code or 0
    for stream in _streams():
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    command()
