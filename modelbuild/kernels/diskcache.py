"""Compiled kernels on disk: one file for each, with a digest of its content, in a folder for each kind of processor.

    ROOT / VERSIONS-SOURCES / PROCESSOR / MODULE.LOOP.kernel

A file is a SHA-256, a line of JSON with the name and signature of a function, and its object code, which the SHA-256 is
of. ROOT is `MODELBUILD_KERNEL_CACHE`, else `modelbuild/kernels` in the user's cache folder. VERSIONS-SOURCES names the
versions of modelbuild, Python, numba and llvmlite and the digest of this folder's sources; PROCESSOR the processor's
name and the digest of its features. A file is written whole or not at all and is the same whoever writes it, so any
number of processes may share the folder without a lock. A damaged or missing file is a miss, a folder that cannot be
written to is no cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from modelbuild import __version__
from modelbuild.kernels.native import Code, processor

DIGEST = 32
"""Bytes of the SHA-256 at the beginning of a file."""


def root() -> Path:
    """The folder of all compiled kernels of this user."""
    if chosen := os.environ.get("MODELBUILD_KERNEL_CACHE"):
        return Path(chosen)
    if sys.platform == "linux":
        # As platformdirs has it, whose import takes longer than loading all kernels.
        told = os.environ.get("XDG_CACHE_HOME", "")
        return Path(told if os.path.isabs(told) else os.path.expanduser("~/.cache")) / "modelbuild" / "kernels"
    import platformdirs

    return Path(platformdirs.user_cache_path("modelbuild")) / "kernels"


def folder() -> Path:
    """The folder of the kernels that this version compiles on this processor."""
    return root() / edition() / processor_name(*processor())


@cache
def edition() -> str:
    """Everything but the processor that compiled code depends on."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    python = f"py{sys.version_info[0]}{sys.version_info[1]}{sys.abiflags}"
    parts = (
        __version__,
        python,
        f"numba{installed('numba')}",
        f"llvmlite{installed('llvmlite')}",
        sources.hexdigest()[:16],
    )
    return "-".join(parts)


def installed(package: str) -> str:
    """The version of an installed package, which is not imported.

    It stands in the name of the folder beside the package. importlib.metadata would read it there too, but imports a
    reader of mail for that, which takes longer than loading all kernels; it is asked where the folder is not as usual.
    """
    spec = find_spec(package)
    if spec is not None and spec.origin:
        beside = os.listdir(os.path.dirname(os.path.dirname(spec.origin)))
        found = [name for name in beside if name.startswith(f"{package}-") and name.endswith(".dist-info")]
        if len(found) == 1:
            return found[0].removeprefix(f"{package}-").removesuffix(".dist-info")
    from importlib.metadata import version

    return version(package)


def processor_name(triple: str, name: str, features: str) -> str:
    """A folder's name for a kind of processor: its name and a digest of what it can do."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)[:40]
    return f"{plain}-{hashlib.sha256(f'{triple} {name} {features}'.encode()).hexdigest()[:16]}"


def encode(code: Code) -> bytes:
    """The content of a file: the digest, a line of JSON, the object code."""
    header = json.dumps({"symbol": code.symbol, "signature": code.signature}, sort_keys=True)
    payload = header.encode() + b"\n" + code.object
    return hashlib.sha256(payload).digest() + payload


def decode(content: bytes) -> Code | None:
    """The code in the content of a file, or None if it is damaged or none of ours."""
    digest, payload = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    header, _, machine_code = payload.partition(b"\n")
    try:
        fields = json.loads(header)
        return Code(str(fields["symbol"]), str(fields["signature"]), machine_code)
    except (ValueError, TypeError, KeyError):
        return None


def read(path: Path) -> Code | None:
    """The code in a file, or None if the file is missing, unreadable or damaged."""
    try:
        return decode(path.read_bytes())
    except OSError:
        return None


def write(path: Path, code: Code) -> None:
    """Puts a file with the code in its place in one step; does nothing where the folder cannot be written to."""
    import tempfile  # only who compiles writes

    temporary = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(encode(code))
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
