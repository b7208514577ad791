"""A world to build in: pico sources, a Modelfile, its cache and its outputs, all in one folder.

    world.model("chronos", seed=1).model("airo", seed=2)
    world.modelfile('''
        [base.chronos]
        source = "chronos"
        ...
    ''')
    result = world.build()
    again = world.edit("t = 0.3", "t = 0.4").build()
    assert world.bytes("mix") == world.from_nothing().bytes("mix")

Everything in a source gets an mtime of its own, years ago: what is young is hashed by every build and gets no stamp.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pico

import modelbuild

LONG_AGO = 1_500_000_000
"""The mtime of the first source file of all, in seconds; each later one is a second younger."""

_ticks = itertools.count(LONG_AGO)


class World:
    """A folder with sources, a Modelfile, `cache/` and `build/`. What changes it gives it back, so that calls chain."""

    def __init__(self, root):
        self.root = Path(root)
        self.cache = self.root / "cache"
        self.out = self.root / "build"
        self.path = self.root / "Modelfile"

    # --- sources ------------------------------------------------------------------------------------------------------

    def model(self, name, kind="llama", **options):
        """Writes the model `name`, in place of the one that was there; options are those of `pico.save_model`."""
        pico.save_model(self._empty(name), kind, **options)
        return self.age(name)

    def lora(self, name, base, **options):
        """Writes a LoRA for the model `base`; options are those of `pico.save_lora`."""
        pico.save_lora(self._empty(name), self.root / base, **options)
        return self.age(name)

    def tensor(self, source, name, change):
        """Puts `change(raw)` in the place of one tensor of a source, raw elements in and out."""
        for path in sorted((self.root / source).glob("*.safetensors")):
            tensors = pico.read_safetensors(path)
            if name in tensors:
                dtype, raw = tensors[name]
                pico.write_safetensors(path, tensors | {name: (dtype, change(raw.copy()))})
        return self.age(source)

    def age(self, source):
        """Gives every file and folder of a source an mtime that nothing had before, long ago."""
        for path in sorted([self.root / source, *(self.root / source).rglob("*")], reverse=True):
            os.utime(path, (when := next(_ticks), when))
        return self

    def _empty(self, name):
        shutil.rmtree(self.root / name, ignore_errors=True)
        return self.root / name

    # --- the Modelfile ------------------------------------------------------------------------------------------------

    @property
    def text(self):
        """The text of the Modelfile."""
        return self.path.read_text(encoding="utf-8")

    def modelfile(self, text):
        """Writes the Modelfile; the indentation that all lines share is left out."""
        self.path.write_text(dedent(text), encoding="utf-8")
        return self

    def edit(self, old, new):
        """Puts `new` in the place of `old`, which must stand in the Modelfile once."""
        assert self.text.count(old) == 1, f"{old!r} stands {self.text.count(old)} times in the Modelfile"
        return self.modelfile(self.text.replace(old, new))

    # --- what is done with it -----------------------------------------------------------------------------------------

    def build(self, *targets, **options):
        """Builds from Python; options are the fields of `modelbuild.options.Options`."""
        return modelbuild.build(str(self.path), targets, **{"durability": "none", **options})

    def plan(self, *targets, **options):
        """What a build would do."""
        return modelbuild.plan(str(self.path), targets, **options)

    def why(self, name, tensor=None, **options):
        """Why an artifact or one tensor of it would be, or was, rebuilt."""
        return modelbuild.why(str(self.path), name, tensor, **options)

    def run(self, *words, python=(), **env):
        """Runs `modelbuild WORDS` in this folder, in a process of its own; `python` are words for the interpreter."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("MODELBUILD_", "HF_"))}
        if "MODELBUILD_KERNEL_CACHE" in os.environ:
            ours["MODELBUILD_KERNEL_CACHE"] = os.environ["MODELBUILD_KERNEL_CACHE"]
        command = [sys.executable, *python, "-m", "modelbuild", *words]
        return subprocess.run(command, cwd=self.root, env={**ours, **env}, capture_output=True, text=True, check=False)

    def imports(self, *words):
        """The names of all modules that `modelbuild WORDS` imports."""
        ran = self.run(*words, python=["-X", "importtime"])
        assert ran.returncode == 0, ran.stderr
        return set(re.findall(r"^import time:[^|]*\|[^|]*\|\s*([\w.]+)$", ran.stderr, re.MULTILINE))

    # --- what came of it ----------------------------------------------------------------------------------------------

    def bytes(self, name):
        """The bytes of every file of an output, by its path within the output."""
        folder = self.out / name
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def tensors(self, name):
        """The tensors of an output, (dtype, raw elements) by name."""
        return pico.read_tensors(self.out / name)

    def copy(self):
        """The same sources and Modelfile in another folder, without a cache, outputs or a lock."""
        number = next(n for n in itertools.count(1) if not Path(f"{self.root}-{n}").exists())
        left_out = shutil.ignore_patterns("cache", "build", "Modelfile.lock")
        return World(shutil.copytree(self.root, f"{self.root}-{number}", ignore=left_out))

    def from_nothing(self, *targets, **options):
        """A copy in which the targets were built from nothing."""
        copy = self.copy()
        copy.build(*targets, **options)
        return copy
