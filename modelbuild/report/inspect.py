"""`inspect` as data and text: the tensors of a file, a folder or a built artifact."""

from __future__ import annotations

import os
from typing import Any

from modelbuild.errors import BuildFailed, SourceNotFound
from modelbuild.importing.load import load
from modelbuild.modelfile.spec import Adapter, Base
from modelbuild.options import Options
from modelbuild.sources.pickles import is_pickle_name, read_pickled_header
from modelbuild.sources.safetensors import Header, read_header
from modelbuild.sources.shards import SAFETENSORS, is_old_weights
from modelbuild.sources.stamps import open_regular
from modelbuild.sources.strictjson import show
from modelbuild.units import show_bytes


def inspection(options: Options, path: str) -> dict[str, Any]:
    """Every tensor of the safetensors files at `path`: a file, a folder, a built artifact, or a source by its name.

    In a folder without any, those of files of torch.save. Raises SourceNotFound where there is none, and BuildFailed
    for a file that is not what it says.
    """
    places = (path, os.path.join(options.out_root, path), *_named_source(options, path))
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise SourceNotFound(f"`{path}` is no file, folder or built artifact", hint="build it first, or check the name")
    names = sorted(os.listdir(found)) if os.path.isdir(found) else [""]
    chosen = [name for name in names if not name or name.endswith(".safetensors")]
    chosen = chosen or [name for name in names if is_old_weights(name)]
    files = [os.path.join(found, name) if name else found for name in chosen]
    if not files:
        raise SourceNotFound(f"`{path}` has no safetensors files")
    tensors = []
    for file in files:
        for tensor in _header(file).tensors:
            size = {"dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            tensors.append({"name": tensor.name, **size, "file": os.path.basename(file)})
    return {"path": path, "tensors": tensors, "bytes": sum(tensor["bytes"] for tensor in tensors)}


def _header(file: str) -> Header:
    name, size = os.path.basename(file), os.path.getsize(file)
    if not is_pickle_name(name):
        try:
            return read_header(file, size, name=name)
        except BuildFailed:
            if name.endswith(SAFETENSORS.suffixes):
                raise
            facts = ["weights are .safetensors files, or .bin, .pt or .pth files of torch.save"]
            raise BuildFailed(f"{show(name)} is no file of weights", facts=facts) from None
    descriptor = open_regular(os.path.realpath(file), name)
    try:
        return read_pickled_header(descriptor, size, name=name)
    finally:
        os.close(descriptor)


def _named_source(options: Options, name: str) -> list[str]:
    """Where the source that the Modelfile calls `name` lies, if there is a Modelfile and it names one."""
    if not os.path.isfile(options.modelfile):
        return []
    artifact = load(options.modelfile, trusted=options.trusted).artifacts.get(name)
    if not isinstance(artifact, (Base, Adapter)) or artifact.source is None or artifact.source.startswith("hf:"):
        return []
    folder = os.path.join(os.path.dirname(os.path.abspath(options.modelfile)), artifact.source)
    return [os.path.join(folder, getattr(artifact, "subfolder", None) or "")]


def show_inspection(data: dict[str, Any]) -> str:
    """The tensors, a line each, and their number and size."""
    width = max((len(tensor["name"]) for tensor in data["tensors"]), default=0)
    lines = [f"{t['name']:{width}}  {t['dtype']:5} {list(t['shape'])}" for t in data["tensors"]]
    return "\n".join([*lines, f"{len(data['tensors'])} tensors, {show_bytes(data['bytes'])}"])
