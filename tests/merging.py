"""What tests of merges share: a world that names its own sources, refusals as text, and exact float32 arithmetic."""

import json
import shutil

import numpy as np
import pico
import pytest
from world import World

from modelbuild.errors import ModelbuildError


class MergeWorld(World):
    """A world whose Modelfile starts with a table for each folder of a model or adapter in it."""

    def put(self, name, folder):
        """Copies a model or adapter that was made elsewhere."""
        shutil.copytree(folder, self.root / name, dirs_exist_ok=True)
        return self.age(name)

    def merge(self, text):
        """Writes the Modelfile: the sources, then `text`."""
        return self.modelfile(self.sources() + text)

    def sources(self):
        """The tables of the sources, by name."""
        found = []
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and folder.name not in ("cache", "build"):
                kind = "adapter" if (folder / "adapter_config.json").exists() else "base"
                found.append(f'[{kind}.{folder.name}]\nsource = "{folder.name}"\n')
        return "".join(found)

    def made(self, text, name="m"):
        """The tensors of the merge `name` of a Modelfile, raw."""
        self.merge(text).build()
        return self.tensors(name)

    def refusal(self, text=None, code=1):
        """What the user reads when the build fails, without the folder; nothing may have been written."""
        if text is not None:
            self.merge(text)
        with pytest.raises(ModelbuildError) as caught:
            self.build()
        assert caught.value.exit_code == code, caught.value.render()
        assert not self.out.exists()
        return caught.value.render().replace(f"{self.root}/", "")

    def source(self, name):
        """The tensors of a source, raw."""
        return pico.read_tensors(self.root / name)

    def floats(self, name):
        """The floating tensors of an artifact that was built, else of a source, as float32."""
        return pico.read_floats(self.folder(name))

    def config(self, name):
        """The config.json of an artifact that was built, else of a source."""
        return json.loads((self.folder(name) / "config.json").read_text())

    def folder(self, name):
        """Where an artifact that was built, else a source, lies."""
        return self.out / name if (self.out / name).exists() else self.root / name


def same(one, other):
    """Whether two raw tensors are the same bytes of the same dtype and shape."""
    return one[0] == other[0] and one[1].shape == other[1].shape and one[1].tobytes() == other[1].tobytes()


def different(ours, theirs):
    """The names of the raw tensors that two models do not have alike."""
    return [n for n in {**ours, **theirs} if n not in ours or n not in theirs or not same(ours[n], theirs[n])]


def rounded(values, dtype="BF16"):
    """float32 values as a raw tensor."""
    return dtype, pico.narrow(dtype, np.asarray(values, np.float32))


def widened(tensor):
    """A raw tensor as float32 values."""
    return pico.widen(*tensor)


def fma(a, b, c):
    """a·b + c of float32 arrays, rounded once.

    The product of two float32 is exact in float64. The sum is rounded to odd there: where it is not exact and its last
    bit is even, it moves one step towards what was lost, so that the second rounding, to float32, cannot go astray.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.broadcast_to(np.asarray(c, np.float64), product.shape)
    total = np.asarray(product + addend)
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    even = total.view(np.uint64) % np.uint64(2) == 0
    towards = np.where(lost > 0, np.inf, -np.inf)
    return np.where((lost != 0) & even, np.nextafter(total, towards), total).astype(np.float32)


def chain(left, right):
    """left·right of float32 matrices as a chain of fused multiply-adds over k in order; right for K up to 192."""
    product = np.zeros((left.shape[0], right.shape[1]), np.float32)
    for k in range(left.shape[1]):
        product = fma(left[:, k : k + 1], right[k : k + 1, :], product)
    return product
