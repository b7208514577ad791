"""Distributions with merge methods, as pip would install them: a module and its metadata in a folder.

fox = Distribution(folder, "modelbuild-fox", "1.0.0", {"fox": "fox_methods:METHOD"}, {"fox_methods": source(...)})
world.run("build", **fox.env)
"""

import os
import re
from pathlib import Path
from textwrap import dedent

DOCS = Path(__file__).parent.parent / "docs" / "methods.md"
REPOSITORY = str(Path(__file__).parent.parent)

TEMPLATE = """
from modelbuild.methods.base import Compute, Method, Parameter, Take
from modelbuild.methods.streamed import Streamed

def step(request):
    if float(request.shared["gain"]) == 0.0:
        return Take(-1)
    return Compute((("gain", float(request.shared["gain"])),), (request.base, request.inputs[0]))

class Operation(Streamed):
    def prepare(self, node, whole):
        import numba
        import numpy as np
        from modelbuild.kernels.convert import narrow, widen

        @numba.njit("void(float32[::1], float32[::1], float32)", nogil=True)
        def loop(base, model, gain):
            for i in range(base.size):
                base[i] = base[i] + gain * (model[i] - base[i])

        def kernel(start, stop, inputs, out, scratch):
            base, model = (widen(raw, used.dtype) for raw, used in zip(inputs, node.inputs))
            loop(base, model, np.float32(node.param("gain")))
            out[...] = narrow(base, node.dtype)

        return kernel

PARAMETERS = (Parameter("gain", "merge", "number", 0.5, "how far to the model"),)
METHOD = Method("NAME", "half way", "", 1, "required", (1, 1), PARAMETERS, step=step, operation=Operation)
"""


def source(name="fox", *replaced):
    """The module of a method that works, with pairs of texts `replaced` in it."""
    text = dedent(TEMPLATE).replace("NAME", name)
    for old, new in replaced:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    return text


class Distribution:
    """An installed distribution in a folder of its own; `env` puts it on the path of a process."""

    def __init__(self, folder, name, version, methods, modules):
        self.folder = Path(folder)
        self.name, self.version = name, version
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{method} = {value}\n" for method, value in methods.items())
        (info / "entry_points.txt").write_text(f"[modelbuild.methods]\n{lines}")
        for module, text in modules.items():
            (self.folder / f"{module}.py").write_text(text)

    @property
    def env(self):
        """The variables of a process in which it is installed."""
        return {"PYTHONPATH": os.pathsep.join([str(self.folder), REPOSITORY])}


def documented():
    """The module that docs/methods.md shows, and what its pyproject.toml says."""
    import tomli

    text = DOCS.read_text(encoding="utf-8").partition("## A method of your own")[2]
    project = tomli.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    module = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    return module, project
