"""What a file of torch.save contains: names, dtypes, shapes, and where each tensor's bytes lie. No weight is read.

The pickle in such a file is a program. It is run by `torch.load(weights_only=True)` alone, which calls nothing but the
few functions that put tensors together, and never on the file itself:

- A zip file (torch 1.6 and later) is read by `archive.py`. torch gets a skeleton of it: the same pickle, and for each
  storage an empty member. It is loaded to the meta device, which needs no bytes; where torch found a storage's member
  in the skeleton says which one it is, and so where its bytes lie in the real file.
- An older file has its storages behind its pickles, each after its length. torch reads the real pickles and lengths,
  but of the storages only where they lie (`legacy.py`): their memory is asked for and never touched.

Every place is then checked against the file: a storage has to have as many bytes as the pickle says, inside the file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from modelbuild.errors import BuildFailed
from modelbuild.sources.archive import Member, read_exactly, read_members
from modelbuild.sources.legacy import LegacyFile
from modelbuild.sources.safetensors import Header
from modelbuild.sources.statedict import Place, entries
from modelbuild.sources.strictjson import Malformed, show

if TYPE_CHECKING:
    import torch

PICKLE_LIMIT = 16 * 2**20
"""Bytes that the pickles of a file may have: about 100,000 tensors."""

OLDEST = (2, 11)
"""The first torch that loads to the meta device without reading weights; `weights_only` could be fooled before 2.10
(GHSA-63cw-57p8-fm3p)."""

SUFFIXES = (".bin", ".pt", ".pth")
"""How the names of files of torch.save end."""

_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_OTHERS = {
    b"GGUF": "a GGUF file",
    b"tjgg": "a ggml file",
    b"lmgg": "a ggml file",
    b"version https://git-lfs": "the text that git leaves in the place of a large file: `git lfs pull` fetches it",
    b"\x1f\x8b": "a compressed file",
    b"\x89HDF": "an HDF5 file",
}


class _Refused(Exception):
    """The pickle asks for something that is not a tensor's; the message is its name."""


def read_pickled_header(file: int, size: int, *, name: str) -> Header:
    """The tensors of a file of torch.save, of `size` bytes, behind the descriptor `file`; messages call it `name`.

    Raises BuildFailed for what is no such file, is damaged or lies, and where its pickle asks for more than tensors.
    """
    _check_torch()
    try:
        return _read(file, size)
    except Malformed as error:
        raise BuildFailed(f"{show(name)} is not a file of weights to rely on", facts=[f"it {error}"]) from None
    except _Refused as error:
        asked = f"its pickle asks for {show(str(error))}"
        facts = [asked, "only tensors in plain containers are loaded, so that no file can run code"]
        hint = "get these weights as safetensors, or let who trusts the file save its state dict alone"
        raise BuildFailed(f"{show(name)} holds more than weights", facts=facts, hint=hint) from None
    except OSError as error:
        raise BuildFailed(f"{show(name)} could not be read", facts=[str(error.strerror)]) from error


def is_pickle_name(name: str) -> bool:
    """Whether a file of this name is read as one of torch.save."""
    return name.endswith(SUFFIXES)


def _check_torch() -> None:
    hint = f"pip install 'torch>={OLDEST[0]}.{OLDEST[1]}'"
    try:
        from torch import __version__ as installed
    except ImportError as error:
        raise BuildFailed("files of torch.save need torch to be read", facts=[str(error)], hint=hint) from None
    found = _VERSION.match(installed)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        facts = [f"torch {installed} is installed", "a file can get around the `weights_only` of torch before 2.10"]
        raise BuildFailed(f"files of torch.save need torch {OLDEST[0]}.{OLDEST[1]} or later", facts=facts, hint=hint)


def _read(file: int, size: int) -> Header:
    start = read_exactly(file, min(size, 512), 0)
    if start[:4] == b"PK\x03\x04":
        return _read_zip(file, size)
    if start[257:262] == b"ustar":
        raise Malformed("is a tar file of torch 0.1, which `weights_only` does not read")
    if start[:1] == b"\x80":
        return _read_legacy(file, size)
    other = next((told for mark, told in _OTHERS.items() if start.startswith(mark)), None)
    raise Malformed(f"is {other}" if other else "does not start as torch.save starts a file")


# --- zip --------------------------------------------------------------------------------------------------------------


def _read_zip(file: int, size: int) -> Header:
    members = read_members(file, size)
    folder = _folder(members)
    order = members.get(f"{folder}/byteorder")
    if order is not None and (told := _text(file, order)) != b"little":
        raise Malformed(f"has its numbers in the byte order {show(told[:20].decode(errors='replace'))}")
    skeleton, places = _skeleton(_text(file, members[f"{folder}/data.pkl"]), folder, members)

    def find(storage: torch.UntypedStorage) -> Place:
        at = getattr(storage, "_checkpoint_offset", None)
        if storage.device.type != "meta" or at not in places:
            raise Malformed("holds a tensor that is not stored in it")
        return Place(places[at].offset, places[at].size)

    found, notes = entries(_load(skeleton, "meta"), find)
    return Header(found, {}, 0, notes, size)


def _folder(members: Mapping[str, Member]) -> str:
    """The one folder that everything in a file of torch.save lies in."""
    folders = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in members):
        raise Malformed("is a TorchScript program, not a state dict")
    if len(folders) != 1 or "/" in folders[0]:
        raise Malformed("is a zip file, but not one of torch.save")
    return folders[0]


def _text(file: int, member: Member) -> bytes:
    if member.size > PICKLE_LIMIT:
        raise Malformed(f"has {member.size} bytes in {show(member.name)}; the limit is {PICKLE_LIMIT}")
    text = read_exactly(file, member.size, member.offset)
    import zlib

    if member.crc and zlib.crc32(text) != member.crc:
        raise Malformed(f"is damaged: {show(member.name)} does not have its checksum")
    return text


def _skeleton(pickle: bytes, folder: str, members: Mapping[str, Member]) -> tuple[BinaryIO, dict[int, Member]]:
    """A file of torch.save with this pickle and empty storages, and which storage each place in it stands for."""
    import zipfile

    stored = {name: member for name, member in members.items() if name.startswith(f"{folder}/data/")}
    file = io.BytesIO()
    places: dict[int, Member] = {}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
        for name, member in stored.items():
            archive.writestr(f"archive{name.removeprefix(folder)}", b"")
            places[file.tell()] = member
    file.seek(0)
    return file, places


# --- older ------------------------------------------------------------------------------------------------------------


def _read_legacy(file: int, size: int) -> Header:
    stand_in = LegacyFile(file, size, PICKLE_LIMIT)
    try:
        loaded = _load(stand_in, "cpu")
    except Malformed:
        if stand_in.short:
            raise Malformed("is cut short: it ends inside its storages") from None
        raise
    stand_in.check_end()

    def find(storage: torch.UntypedStorage) -> Place:
        return Place(stand_in.position(storage.data_ptr(), storage.nbytes()), storage.nbytes())

    found, notes = entries(loaded, find)
    return Header(found, {}, 0, notes, size)


def _load(file: Any, device: str) -> object:
    """What torch makes of the file; Malformed for whatever it does not read."""
    import pickle
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except pickle.UnpicklingError as error:
            asked = _GLOBAL.search(str(error))
            if asked is not None:
                raise _Refused(asked[1]) from None
            raise Malformed(f"is not understood by torch: {_line(error, -1)}") from None
        except Malformed:
            raise
        except NotImplementedError as error:
            raise Malformed(f"holds a tensor that is no plain one: {_line(error, 0)}") from None
        except Exception as error:
            raise Malformed(f"is not understood by torch: {_line(error, 0)}") from None


def _line(error: Exception, index: int) -> str:
    """A line of torch's message, without the pointer to its documentation."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "documentation" not in line]
    return show(lines[index] if lines else type(error).__name__)
