"""Makes the models of the demo from a seed: two small Llama-style fine-tunes of one base, and a LoRA.

usage: python make_models.py FOLDER

Needs numpy only. What is there already is left as it is, so that its digests stay known.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB, RANK = 28, 192, 512, 6, 2, 1000, 16
KV = HIDDEN // HEADS * KV_HEADS
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SPECIAL = ("<unk>", "<s>", "</s>")


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a model and its shape."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        for part, rows in (("q", HIDDEN), ("k", KV), ("v", KV), ("o", HIDDEN)):
            yield f"{layer}.self_attn.{part}_proj.weight", (rows, HIDDEN)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
        for part, shape in (
            ("gate", (INTERMEDIATE, HIDDEN)),
            ("up", (INTERMEDIATE, HIDDEN)),
            ("down", (HIDDEN, INTERMEDIATE)),
        ):
            yield f"{layer}.mlp.{part}_proj.weight", shape
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def noise(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Standard normal values that depend on the seed and the name alone."""
    return np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, np.float32)


def bfloat16(values: NDArray[np.float32]) -> bytes:
    """The values rounded to bfloat16, nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def save_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Writes tensors, given as dtype, shape and bytes, in the safetensors format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + len(data))}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def save_model(folder: Path, seed: int) -> None:
    """A fine-tune: the base that all share (seed 0), and a little that is its own."""
    tensors = {}
    for name, shape in shapes():
        values = (1.0 if "norm" in name else 0.0) + 0.05 * noise(name, shape, 0) + 0.005 * noise(name, shape, seed)
        tensors[name] = ("BF16", shape, bfloat16(values.astype(np.float32)))
    save_safetensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    """A word-level tokenizer: three special tokens, then w3, w4, …"""
    words = [*SPECIAL, *(f"w{n}" for n in range(len(SPECIAL), VOCAB))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": word, **flags, "special": True} for n, word in enumerate(SPECIAL)]
    model = {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(words)}, "unk_token": "<unk>"}
    parts = {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None}
    fast = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts, "model": model}
    write_json(folder / "tokenizer.json", fast)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    write_json(folder / "tokenizer_config.json", {**names, "tokenizer_class": "PreTrainedTokenizerFast"})


def save_lora(folder: Path, seed: int) -> None:
    """A LoRA over the attention, as PEFT saves one."""
    tensors = {}
    for name, shape in shapes():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in TARGETS:
            rows, columns = shape
            for factor, size in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
                key = f"base_model.model.{module}.{factor}.weight"
                tensors[key] = ("F32", size, (0.05 * noise(key, size, seed)).astype("<f4").tobytes())
    save_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "chronos", "r": RANK,
        "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": list(TARGETS), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None,
    }  # fmt: skip
    write_json(folder / "adapter_config.json", config)


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file as the Hub's libraries do."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Makes what is not there yet in the folder that the command line names."""
    root = Path(sys.argv[1])
    made = {"models/chronos": (save_model, 1), "models/airoboros": (save_model, 2), "adapters/limarp": (save_lora, 3)}
    for name, (save, seed) in made.items():
        folder = root / name
        if not (folder / "made").exists():
            folder.mkdir(parents=True, exist_ok=True)
            save(folder, seed)
            (folder / "made").touch()
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
