"""Manifests as text, read strictly: what is not exactly what was written is garbage.

The text is JSON, `{"checksum":"<XXH3 of the body>","manifest":<body>}` and a newline, so a flipped bit in an offset is
seen as surely as one in a tensor.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any, TypeGuard

from modelbuild.cache.folders import is_file_name
from modelbuild.cache.nouns import Manifest, StoredFile, StoredTensor
from modelbuild.checksum import checksum

FORMAT = "modelbuild manifest 1"

_HEAD, _MIDDLE, _END = b'{"checksum":"', b'","manifest":', b"}\n"
_HEX = re.compile(r"[0-9a-f]{32}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Garbage(ValueError):
    """Text that is not a manifest, or not that of the artifact that was asked for."""


def dump_manifest(manifest: Manifest) -> bytes:
    """The manifest as text; equal manifests give equal text."""
    body = {
        "format": FORMAT,
        "key": manifest.key,
        "name": manifest.name,
        "complete": manifest.complete,
        "files": [[f.name, f.size, f.mtime_ns, f.checksum, f.sha256] for f in manifest.files],
        "tensors": [
            [t.key, t.name, t.dtype, list(t.shape), t.file, t.offset, t.nbytes, t.checksum] for t in manifest.tensors
        ],
    }
    data = json.dumps(body, separators=(",", ":")).encode()
    return _HEAD + checksum(data).encode() + _MIDDLE + data + _END


def parse_manifest(data: bytes, key: str) -> Manifest:
    """The manifest of the artifact `key` from its text. Raises Garbage, with the reason, for anything else."""
    start = len(_HEAD) + 32 + len(_MIDDLE)
    body = data[start : -len(_END)]
    whole = _HEAD + checksum(body).encode() + _MIDDLE + body + _END
    if data != whole:
        raise Garbage("its checksum does not fit" if data.startswith(_HEAD) else "it is not a manifest")
    try:
        manifest = _manifest(json.loads(body))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Garbage(f"it cannot be read: {error}") from None
    if manifest.key != key:
        raise Garbage("it is that of another artifact")
    return manifest


def _manifest(body: dict[str, Any]) -> Manifest:
    if body["format"] != FORMAT:
        raise Garbage("it is of another version")
    files = tuple(_file(*row) for row in body["files"])
    tensors = tuple(_tensor(*row) for row in body["tensors"])
    sizes = {file.name: file.size for file in files}
    if len(sizes) != len(files) or len({tensor.name for tensor in tensors}) != len(tensors):
        raise Garbage("a name stands in it twice")
    if any(t.file not in sizes or t.offset + t.nbytes > sizes[t.file] for t in tensors):
        raise Garbage("a tensor lies outside its file")
    check_overlap(tensors)
    return Manifest(body["key"], body["name"], body["complete"] is True, files, tensors)


def check_overlap(tensors: tuple[StoredTensor, ...]) -> None:
    """Raise Garbage when two tensors share bytes of a file."""
    spans = sorted((t.file, t.offset, t.nbytes) for t in tensors if t.nbytes)
    for (file, offset, nbytes), (other, start, _) in pairwise(spans):
        if file == other and offset + nbytes > start:
            raise Garbage("two tensors overlap")


def _count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _file(name: str, size: int, mtime_ns: int, digest: str, sha256: str | None) -> StoredFile:
    sound = is_file_name(name) and _count(size) and type(mtime_ns) is int and _HEX.match(digest)
    if not sound or not (sha256 is None or _SHA256.match(sha256)):
        raise Garbage(f"its entry for the file {name!r} makes no sense")
    return StoredFile(name, size, mtime_ns, digest, sha256)


def _tensor(
    key: str, name: str, dtype: str, shape: list[int], file: str, offset: int, nbytes: int, digest: str
) -> StoredTensor:
    texts = all(type(text) is str for text in (key, name, dtype, file))
    if not texts or not all(_count(n) for n in (*shape, offset, nbytes)) or not _HEX.match(digest):
        raise Garbage(f"its entry for the tensor {name!r} makes no sense")
    return StoredTensor(key, name, dtype, tuple(shape), file, offset, nbytes, digest)
