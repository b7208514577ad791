"""Makes the models of the benchmarks in bench/data (ignored by git): bf16 Llama shapes of 1.1 B parameters, and a LoRA.

usage: python bench/models.py [--layers 22] [NAME...]

Six fine-tunes of one base, two models twice the size, and a rank-16 LoRA over all linear layers. Values repeat every
8 million, which no tool measured here can profit from.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from timing import DATA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bits = NDArray[np.uint16]

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB, RANK = 2048, 5632, 32, 4, 32000, 16
KV = HIDDEN // HEADS * KV_HEADS
BLOCK = 2**23


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor and its shape."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for n in range(layers):
        layer = f"model.layers.{n}"
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        for part, shape in (("q", (HIDDEN, HIDDEN)), ("k", (KV, HIDDEN)), ("v", (KV, HIDDEN)), ("o", (HIDDEN, HIDDEN))):
            yield f"{layer}.self_attn.{part}_proj.weight", shape
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
        for part in ("gate", "up"):
            yield f"{layer}.mlp.{part}_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def blocks(seed: int) -> tuple[Bits, Bits]:
    """BLOCK elements of a weight and of a norm: those of the base, the lowest three bits the model's own."""
    import numpy as np

    values = 0.02 * np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    own = np.random.default_rng(seed).integers(0, 8, BLOCK, np.uint16)
    return ((values.view(np.uint32) >> 16).astype(np.uint16) ^ own, (0x3F80 ^ own).astype(np.uint16))


def header(tensors: list[tuple[str, tuple[int, ...]]], dtype: str, size: int) -> bytes:
    """The header of a safetensors file."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        start, end = end, end + prod(shape) * size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save_model(folder: Path, seed: int, layers: int) -> None:
    """One model in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    weight, norm = blocks(seed)
    tensors = list(shapes(layers))
    at = 0
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header(tensors, "BF16", 2))
        for name, shape in tensors:
            left = prod(shape)
            while left:
                count = min(left, BLOCK - at)
                file.write((norm if "norm" in name else weight)[at : at + count])
                left, at = left - count, (at + count) % BLOCK
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 2048,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_lora(folder: Path, seed: int, layers: int) -> None:
    """A LoRA as PEFT saves one, over all linear layers but the head."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    factors = []
    for name, shape in shapes(layers):
        if name.endswith("_proj.weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors += [(f"{stem}.lora_A.weight", (RANK, shape[1])), (f"{stem}.lora_B.weight", (shape[0], RANK))]
    rng = np.random.default_rng(seed)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(header(factors, "F32", 4))
        for _, shape in factors:
            file.write(np.float32(0.01) * rng.standard_normal(shape, np.float32))
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "lora_dropout": 0.0,
        "target_modules": modules, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


KINDS = {
    "one": (save_model, 1, 1),
    "two": (save_model, 2, 1),
    "three": (save_model, 3, 1),
    "four": (save_model, 7, 1),
    "five": (save_model, 8, 1),
    "six": (save_model, 9, 1),
    "double": (save_model, 4, 2),
    "double-two": (save_model, 5, 2),
    "lora": (save_lora, 6, 1),
}
"""For each folder how it is made, from which seed, and how many times the layers it has."""


def folder_of(name: str, layers: int) -> Path:
    """Where a model lies."""
    return DATA / f"layers-{layers}" / name


def make(layers: int, *names: str) -> dict[str, Path]:
    """The folders of these models by name, made where they are not there yet.

    Another process makes them: on Linux the peak memory of a child starts at that of its parent.
    """
    found = {name: folder_of(name, layers) for name in names}
    if not all((folder / "made").exists() for folder in found.values()):
        subprocess.run([sys.executable, __file__, "--layers", str(layers), *names], check=True)
    return found


def main() -> None:
    """Makes what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("names", nargs="*", help="which to make; all by default")
    given = parser.parse_args()
    for name in given.names or KINDS:
        save, seed, times = KINDS[name]
        folder = folder_of(name, given.layers)
        if not (folder / "made").exists():
            print(f"making {folder.name}, {given.layers * times} layers", file=sys.stderr, flush=True)
            save(folder, seed, given.layers * times)
            (folder / "made").touch()


if __name__ == "__main__":
    main()
