"""What tests of quantised artifacts share: sizes that suit bitsandbytes, and transformers' own saves as oracle."""

import contextlib
import io
import json
import shutil
import warnings

import oracles
import pico
import pytest
from world import World

pytest.importorskip("bitsandbytes")

SIZES = {"hidden": 64, "intermediate": 128, "vocab": 64, "heads": 4, "layers": 2}
"""Every linear layer has a multiple of 32 outputs, which bitsandbytes asks for where there is AVX-512."""
MODES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "fp4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
"""The settings of transformers by the name of ours."""


def table(name, model, mode="nf4", **more):
    """A table [quantize.NAME]; `more` are further keys."""
    kind, _, doubled = mode.partition("-")
    lines = [f"[quantize.{name}]", f'model = "{model}"', 'format = "bnb"', f'type = "{kind}"']
    lines += ["double_quant = true"] if doubled else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in more.items()]
    return "\n".join(lines) + "\n"


class Quantizing(World):
    """A world of small models that bitsandbytes runs."""

    def small(self, name, kind="llama", seed=1, **options):
        """Writes a model of SIZES."""
        return self.model(name, kind, seed=seed, **{**SIZES, **options})

    def copy(self):
        """As World.copy."""
        return Quantizing(super().copy().root)

    def write(self, *tables):
        """Writes the Modelfile: a base for each folder with a model, then the tables."""
        names = [path.parent.name for path in sorted(self.root.glob("*/config.json"))]
        adapters = [path.parent.name for path in sorted(self.root.glob("*/adapter_config.json"))]
        sources = [f'[base.{name}]\nsource = "{name}"\n' for name in names]
        sources += [f'[adapter.{name}]\nsource = "{name}"\n' for name in adapters]
        return self.modelfile("".join([*sources, *tables]))

    def weights(self, name):
        """The bytes of an output's only weight file."""
        return (self.out / name / "model.safetensors").read_bytes()

    def config(self, name):
        """The config.json of an output."""
        return json.loads((self.out / name / "config.json").read_text())


def saved(source, out, mode="nf4", skip=None, dtype="auto"):
    """What transformers makes of the model in `source` and saves in `out`, on one thread; the folder."""
    import torch
    import transformers

    shutil.rmtree(out, ignore_errors=True)
    architecture = json.loads((source / "config.json").read_text())["architectures"][0]
    settings = transformers.BitsAndBytesConfig(**MODES[mode], llm_int8_skip_modules=skip)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            cls = getattr(transformers, architecture)
            cls.from_pretrained(source, quantization_config=settings, dtype=dtype).save_pretrained(out)
    finally:
        torch.set_num_threads(before)
    return out


def logits(folder, kind="llama"):
    """What the quantised model in a folder says to a few tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return oracles.logits(oracles.load(folder, kind, whole=False), kind)


def packed_names(folder):
    """The names of the weights of a folder that are packed."""
    found = pico.read_tensors(folder)
    return {name for name, (dtype, _) in found.items() if name.endswith(".weight") and dtype in ("U8", "I8")}
