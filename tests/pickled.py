"""Files of torch.save for tests: pico sources written as such, and files that no torch would write.

    world.model("red", seed=1)
    as_pickles(world.root / "red", shards=2, legacy=True)
    write_zip(path, forged({"w": Tensor(numel=4, shape=(2, 2))}), {"data/0": bytes(16)})

A forged pickle names its storages by key and size as it likes; whether the file has them is for the file to say.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pico
import torch
from safetensors.torch import save_file

FOREVER = (1980, 1, 1, 0, 0, 0)


# --- real files -------------------------------------------------------------------------------------------------------


def as_torch(dtype, raw):
    """Raw elements as a torch tensor of its own memory."""
    array = np.array(raw)
    if dtype in ("BF16", "F16"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16 if dtype == "BF16" else torch.float16)
    return torch.from_numpy(array).to(torch.bool) if dtype == "BOOL" else torch.from_numpy(array)


def torch_tensors(folder):
    """All tensors of the safetensors files in a folder."""
    return {name: as_torch(*tensor) for name, tensor in pico.read_tensors(Path(folder)).items()}


def save(path, value, legacy=False):
    """torch.save, in the format since 1.6 or in the one before."""
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def as_saved(folder):
    """Writes the safetensors files of a folder as the library itself saves them: tensors in its order."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors = {name: as_torch(*tensor) for name, tensor in pico.read_safetensors(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def as_pickles(folder, legacy=False, change=lambda tensors: tensors):
    """Puts files of torch.save in the place of all safetensors files of a folder, file by file, and of the index.

    `change` takes the tensors of a file by name and gives what is saved.
    """
    folder = Path(folder)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {name: as_torch(*tensor) for name, tensor in pico.read_safetensors(path).items()}
        save(path.with_name(old_name(path.name)), change(tensors), legacy)
        path.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        told = json.loads(index.read_text())
        told["weight_map"] = {name: old_name(file) for name, file in told["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(told))
        index.unlink()


def old_name(name):
    """What a safetensors file was called before there were any."""
    stem = name.removesuffix(".safetensors")
    return f"{stem}.bin" if stem.startswith("adapter") else f"pytorch_{stem}.bin"


# --- forged files -----------------------------------------------------------------------------------------------------


class Tensor(NamedTuple):
    """A tensor as a pickle may describe it, truly or not."""

    numel: int
    shape: tuple
    strides: tuple | None = None
    offset: int = 0
    key: str = "0"
    storage: type = torch.FloatStorage
    view: tuple | None = None

    @property
    def stride(self):
        """The strides, by default those of bytes in order."""
        if self.strides is not None:
            return self.strides
        return tuple(int(np.prod(self.shape[n + 1 :], dtype=np.int64)) for n in range(len(self.shape)))


class _Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class _Rebuilt:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        t = self.tensor
        arguments = (_Storage(t), t.offset, tuple(t.shape), tuple(t.stride), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy = legacy

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        t = value.tensor
        return ("storage", t.storage, t.key, "cpu", t.numel, *([t.view] if self.legacy else []))


def forged(value, legacy=False):
    """The pickle of a value in which `Tensor`s, in dicts, stand for tensors."""

    def rebuilt(part):
        if isinstance(part, Tensor):
            return _Rebuilt(part)
        return {key: rebuilt(inner) for key, inner in part.items()} if isinstance(part, dict) else part

    file = io.BytesIO()
    _Pickler(file, legacy).dump(rebuilt(value))
    return file.getvalue()


def write_zip(path, data, storages, compressed=(), **members):
    """A zip file as torch.save lays it out, with the pickle `data` and these members; returns the path."""
    files = {"data.pkl": data, "byteorder": b"little", **members, "version": b"3\n", **storages}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(f"archive/{name}", FOREVER)
            info.compress_type = zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED
            archive.writestr(info, content)
    return path


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def write_legacy(path, data, storages, parts=None):
    """A file as torch.save laid it out before 1.6; `storages` are (numel, bytes) by key; returns the path.

    `parts` replaces whole pickles: 0 the magic number, 1 the version, 2 what it says of the machine, 3 the keys.
    """
    pickles = [LEGACY_MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}, sorted(storages)]
    found = [pickle.dumps(value, protocol=2) for value in pickles]
    for index, other in (parts or {}).items():
        found[index] = other
    body = b"".join(struct.pack("<q", numel) + content for _, (numel, content) in sorted(storages.items()))
    path.write_bytes(b"".join(found[:3]) + data + found[3] + body)
    return path


# --- gadgets ----------------------------------------------------------------------------------------------------------


class Call:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def gadgets(marker):
    """Pickles that would make the file `marker` if they were run, by what they ask for."""
    text = str(marker)
    touch = f"open({text!r}, 'w').close()"
    name = text.encode()
    found = {
        "os.system": Call(os.system, f"touch {text}"),
        "exec": Call(exec, touch),
        "eval": Call(eval, touch),
        "os.open": Call(os.open, text, os.O_CREAT),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(exec, touch))),
        "io.open": Call(open, text, "w"),
    }
    pickles = {key: pickle.dumps(value, protocol=2) for key, value in found.items()}
    # Opcodes that torch.save never writes: INST, OBJ, a name from the stack, and an object that is told its state.
    quoted = b"X" + struct.pack("<I", len(name)) + name
    mode = b"X" + struct.pack("<I", 1) + b"w"
    pickles["INST"] = b"\x80\x02(" + quoted + mode + b"iio\nopen\n."
    pickles["OBJ"] = b"\x80\x02(cio\nopen\n" + quoted + mode + b"o."
    pickles["STACK_GLOBAL"] = b"\x80\x04\x8c\x02io\x8c\x04open\x93" + quoted + mode + b"\x86R."
    pickles["REDUCE"] = b"\x80\x02cio\nopen\n" + quoted + mode + b"\x86R."
    return pickles
