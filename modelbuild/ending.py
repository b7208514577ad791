"""How a command ends: results on stdout, errors as text on stderr, the documented exit code, and never a traceback."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from modelbuild.errors import BuildFailed, Interrupted, ModelbuildError, of_system
from modelbuild.stamps import TRUE


def asked_for(flag: str, variable: str) -> bool:
    """Whether a flag stands on the command line or its variable is set; right before anything is parsed, too."""
    return flag in sys.argv or os.environ.get(variable, "").lower() in TRUE


def show(data: Any, text: str, as_json: bool) -> None:
    """Prints a result on stdout, as JSON or as text."""
    print(json.dumps(data, indent=2, ensure_ascii=False) if as_json else text)


def leave(error: ModelbuildError) -> NoReturn:
    """Prints an error and exits with its code; with `--json` stdout gets it as data too."""
    if asked_for("--json", "MODELBUILD_JSON"):
        from modelbuild.result import Result, error_info

        result = error.result or Result(0.0, (), (), error_info(error))
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    print(error.render(), file=sys.stderr)
    sys.exit(error.exit_code)


def end_with(work: Callable[[], Any]) -> NoReturn:
    """Does the work of a command and exits: with the number it gives, or the code of its error, whose text is told."""
    # A plan is a million objects that all stay: looking for garbage among them would take a third of its time.
    gc.disable()
    debug = asked_for("--debug", "MODELBUILD_DEBUG")
    try:
        result = work()
    except ModelbuildError as error:
        if debug:
            raise
        leave(error)
    except KeyboardInterrupt:
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
        leave(_unforeseen(error))
    sys.exit(result if isinstance(result, int) else 0)


def _unforeseen(error: Exception) -> BuildFailed:
    facts = [f"{type(error).__name__}: {error}"]
    return BuildFailed("modelbuild went wrong", facts=facts, hint="`--debug` shows where; please report it")
