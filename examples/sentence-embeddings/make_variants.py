"""Makes from a real BERT encoder what one would train: a fine-tune and a LoRA, both from a seed.

usage: python make_variants.py MODEL TUNED ADAPTER      (three folders; the last two are made)

What is there already is left as it is, so that its digests stay known.
"""

import json
import shutil
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

RANK, ALPHA = 8, 16
TARGETS = ("query", "value")
STEP = 0.03
"""How far the fine-tune moves, in parts of a tensor's standard deviation."""

Tensors = dict[str, NDArray[np.float32]]


def noise(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Standard normal values that depend on the seed and the name alone."""
    return np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, np.float32)


def tuned(tensors: Tensors) -> Tensors:
    """The matrices of the encoder's layers moved a little; embeddings, biases and norms stay as they are."""
    moved = {
        name: values + np.float32(STEP * values.std()) * noise(name, values.shape, 1)
        for name, values in tensors.items()
        if name.startswith("encoder.") and values.ndim == 2
    }
    return {**tensors, **moved}


def lora(tensors: Tensors) -> Tensors:
    """The factors of a LoRA, named as PEFT names them; at weight 1 it moves its matrices by a tenth of their size."""
    factors = {}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.rpartition(".")[2] in TARGETS:
            rows, columns = values.shape
            for factor, shape, scale in (("lora_A", (RANK, columns), 0.05), ("lora_B", (rows, RANK), 0.02)):
                key = f"base_model.model.{module}.{factor}.weight"
                factors[key] = np.float32(scale) * noise(key, shape, 2)
    return factors


def adapter_config(base: str) -> dict[str, object]:
    """adapter_config.json as PEFT writes it."""
    return {
        "peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": base, "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": list(TARGETS), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None,
    }  # fmt: skip


def main() -> None:
    """Makes what is not there yet."""
    base, tuned_folder, adapter = map(Path, sys.argv[1:])
    tensors = load_file(base / "model.safetensors")
    if not (tuned_folder / "model.safetensors").exists():
        shutil.copytree(base, tuned_folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file(tuned(tensors), tuned_folder / "model.safetensors", metadata={"format": "pt"})
    if not (adapter / "adapter_model.safetensors").exists():
        adapter.mkdir(parents=True, exist_ok=True)
        config = json.dumps(adapter_config("sentence-transformers/all-MiniLM-L6-v2"), indent=2)
        (adapter / "adapter_config.json").write_text(config + "\n", encoding="utf-8")
        save_file(lora(tensors), adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    for folder in (base, tuned_folder, adapter):
        print(f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
