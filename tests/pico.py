"""Pico models: complete models and adapters of a few kilobytes, made from a seed with numpy alone.

Tensor names, shapes and configs are those that transformers and PEFT write themselves; test_pico.py holds them to that.
Every tensor's values depend on the seed and its own name only, so two models that share a seed share their tensors.
Raw arrays hold bits: uint16 for BF16 and F16, float32 for F32.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, tuple[str, Array]]
Shapes = dict[str, tuple[int, ...]]

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
RAW = {
    "BF16": "<u2", "F16": "<u2", "F32": "<f4", "F64": "<f8", "BOOL": "|u1", "U8": "|u1", "I8": "|i1", "I16": "<i2",
    "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
KINDS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "bert", "gpt2", "gpt2-bare", "llava")
"""`gpt2-bare` is GPT-2 as the original repository names it, without the leading `transformer.`."""


def widen(dtype: str, raw: Array) -> NDArray[np.float32]:
    """Raw elements as float32, exactly. `dtype` is BF16, F16 or F32."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.float16).astype(np.float32) if dtype == "F16" else raw.astype(np.float32)


def narrow(dtype: str, values: Array) -> Array:
    """float32 values rounded (nearest even) to raw elements; a NaN stays a NaN, quiet, with its sign."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Array]]) -> Path:
    """Writes one file, tensors in the order given, as transformers would save it (`format: pt`)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs = []
    end = 0
    for name, (dtype, raw) in tensors.items():
        blobs.append(np.ascontiguousarray(raw).astype(RAW[dtype], copy=False).tobytes())
        header[name] = {"dtype": dtype, "shape": list(raw.shape), "data_offsets": [end, end + len(blobs[-1])]}
        end += len(blobs[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    return path


def read_safetensors(path: Path) -> Tensors:
    """The tensors of one file, raw."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found: Tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            raw = np.frombuffer(data[start + first : start + last], RAW[entry["dtype"]])
            found[name] = (entry["dtype"], raw.reshape(entry["shape"]))
    return found


def read_tensors(folder: Path) -> Tensors:
    """All tensors of the safetensors files in a folder, raw, by name."""
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in read_safetensors(path).items()}


def read_floats(folder: Path) -> dict[str, NDArray[np.float32]]:
    """All floating tensors of a folder, widened to float32."""
    return {k: widen(*v) for k, v in read_tensors(folder).items() if v[0] in DTYPES.values()}


def _llama_shapes(at: str, head: str | None, s: Mapping[str, int], kind: str) -> Shapes:
    h, wide, kv = s["hidden"], s["intermediate"], s["hidden"] // s["heads"] * s["kv_heads"]
    out: Shapes = {f"{at}embed_tokens.weight": (s["vocab"], h)}
    for n in range(s["layers"]):
        layer = f"{at}layers.{n}."
        for part, rows in (("q", h), ("k", kv), ("v", kv)):
            out[f"{layer}self_attn.{part}_proj.weight"] = (rows, h)
            if kind == "qwen2":
                out[f"{layer}self_attn.{part}_proj.bias"] = (rows,)
        out[f"{layer}self_attn.o_proj.weight"] = (h, h)
        if kind == "qwen3":
            out |= {f"{layer}self_attn.{part}_norm.weight": (h // s["heads"],) for part in "qk"}
        if kind == "mixtral":
            out[f"{layer}block_sparse_moe.gate.weight"] = (s["experts"], h)
            for e in range(s["experts"]):
                for part, shape in (("w1", (wide, h)), ("w2", (h, wide)), ("w3", (wide, h))):
                    out[f"{layer}block_sparse_moe.experts.{e}.{part}.weight"] = shape
        else:
            for part, shape in (("gate", (wide, h)), ("up", (wide, h)), ("down", (h, wide))):
                out[f"{layer}mlp.{part}_proj.weight"] = shape
        out[f"{layer}input_layernorm.weight"] = out[f"{layer}post_attention_layernorm.weight"] = (h,)
    out[f"{at}norm.weight"] = (h,)
    if head is not None:
        out[f"{head}.weight"] = (s["vocab"], h)
    return out


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _bert_shapes(s: Mapping[str, int]) -> Shapes:
    h, wide = s["hidden"], s["intermediate"]
    out: Shapes = {"embeddings.word_embeddings.weight": (s["vocab"], h)}
    out |= {"embeddings.position_embeddings.weight": (64, h), "embeddings.token_type_embeddings.weight": (2, h)}
    out |= _norm("embeddings.LayerNorm", h)
    for n in range(s["layers"]):
        layer = f"encoder.layer.{n}."
        for part in ("query", "key", "value"):
            out |= _linear(f"{layer}attention.self.{part}", h, h)
        out |= _linear(f"{layer}attention.output.dense", h, h) | _norm(f"{layer}attention.output.LayerNorm", h)
        out |= _linear(f"{layer}intermediate.dense", wide, h)
        out |= _linear(f"{layer}output.dense", h, wide) | _norm(f"{layer}output.LayerNorm", h)
    return out | _linear("pooler.dense", h, h)


def _gpt2_shapes(at: str, s: Mapping[str, int]) -> Shapes:
    h = s["hidden"]
    out: Shapes = {f"{at}wte.weight": (s["vocab"], h), f"{at}wpe.weight": (64, h)}
    for n in range(s["layers"]):
        layer = f"{at}h.{n}."
        out |= _norm(f"{layer}ln_1", h) | _norm(f"{layer}ln_2", h)
        for part, into, end in (
            ("attn.c_attn", h, 3 * h), ("attn.c_proj", h, h), ("mlp.c_fc", h, 4 * h), ("mlp.c_proj", 4 * h, h)
        ):  # fmt: skip
            out |= {f"{layer}{part}.weight": (into, end), f"{layer}{part}.bias": (end,)}
    return out | _norm(f"{at}ln_f", h)


def _vision_shapes(s: Mapping[str, int]) -> Shapes:
    h, wide, at = s["hidden"], s["intermediate"], "vision_tower.vision_model."
    out: Shapes = {f"{at}embeddings.class_embedding": (h,), f"{at}embeddings.patch_embedding.weight": (h, 3, 8, 8)}
    out |= {f"{at}embeddings.position_embedding.weight": (5, h)} | _norm(f"{at}pre_layrnorm", h)
    for n in range(s["vision_layers"]):
        layer = f"{at}encoder.layers.{n}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out |= _linear(f"{layer}self_attn.{part}", h, h)
        out |= _linear(f"{layer}mlp.fc1", wide, h) | _linear(f"{layer}mlp.fc2", h, wide)
        out |= _norm(f"{layer}layer_norm1", h) | _norm(f"{layer}layer_norm2", h)
    out |= _norm(f"{at}post_layernorm", h)
    return out | _linear("multi_modal_projector.linear_1", h, h) | _linear("multi_modal_projector.linear_2", h, h)


def shapes(kind: str, sizes: Mapping[str, int]) -> Shapes:
    """Every tensor of a model and its shape, in the order of the model's modules."""
    if kind == "bert":
        return _bert_shapes(sizes)
    if kind.startswith("gpt2"):
        return _gpt2_shapes("transformer." if kind == "gpt2" else "", sizes)
    if kind == "llava":
        text = _llama_shapes("language_model.model.", "language_model.lm_head", sizes, kind)
        return _vision_shapes(sizes) | text
    return _llama_shapes("model.", None if kind == "qwen2" else "lm_head", sizes, kind)


def _llama_config(kind: str, s: Mapping[str, int]) -> dict[str, Any]:
    config = {
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": s["hidden"],
        "intermediate_size": s["intermediate"], "max_position_embeddings": 64, "model_type": kind,
        "num_attention_heads": s["heads"], "num_hidden_layers": s["layers"], "num_key_value_heads": s["kv_heads"],
        "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": kind == "qwen2", "use_cache": True, "vocab_size": s["vocab"],
    }  # fmt: skip
    if kind == "mixtral":
        config |= {"num_experts_per_tok": 2, "num_local_experts": s["experts"]}
    if kind == "qwen3":
        config["head_dim"] = s["hidden"] // s["heads"]
    if kind in ("qwen2", "qwen3"):
        config |= {"layer_types": ["full_attention"] * s["layers"], "use_sliding_window": False}
    return config


def _config(kind: str, s: Mapping[str, int], dtype: str, dtype_key: str) -> dict[str, Any]:
    classes = {"bert": "BertModel", "gpt2": "GPT2LMHeadModel", "llava": "LlavaForConditionalGeneration"}
    model = kind.partition("-")[0]
    head = {"architectures": [classes.get(model, f"{model.capitalize()}ForCausalLM")], dtype_key: dtype}
    tail = {"transformers_version": "5.23.0"}
    if model == "bert":
        sizes: dict[str, Any] = {
            "hidden_size": s["hidden"],
            "intermediate_size": s["intermediate"],
            "vocab_size": s["vocab"],
        }
        sizes |= {"num_attention_heads": s["heads"], "num_hidden_layers": s["layers"], "type_vocab_size": 2}
        return head | {"model_type": "bert", "pad_token_id": 3, "max_position_embeddings": 64} | sizes | tail
    if model == "gpt2":
        sizes = {"n_embd": s["hidden"], "n_head": s["heads"], "n_layer": s["layers"], "vocab_size": s["vocab"]}
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "n_positions": 64, "tie_word_embeddings": True}
        return head | {"model_type": "gpt2"} | sizes | tokens | tail
    if model != "llava":
        return head | _llama_config(model, s) | tail
    vision: dict[str, Any] = {"hidden_size": s["hidden"], "image_size": 16, "intermediate_size": s["intermediate"]}
    vision |= {"model_type": "clip_vision_model", "num_attention_heads": s["heads"], "patch_size": 8}
    vision |= {"num_hidden_layers": s["vision_layers"], "projection_dim": s["hidden"]}
    text = {dtype_key: dtype} | _llama_config("llama", s)
    middle = {"image_token_index": 5, "model_type": "llava", "text_config": text, "vision_config": vision}
    return head | middle | {"vision_feature_layer": -2, "tie_word_embeddings": False} | tail


def save_tokenizer(folder: Path, vocab: int) -> None:
    """A word-level fast tokenizer of `vocab` tokens, the first four of them special; loads with AutoTokenizer."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = special + [chr(97 + n) if n < 26 else f"w{n}" for n in range(vocab - len(special))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(words)}, "unk_token": "<unk>"}
    fast = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": n, "content": word, **flags, "special": True} for n, word in enumerate(special)],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": model,
    }  # fmt: skip
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    slow = {**names, "model_max_length": 64, "tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(folder / "tokenizer.json", fast)
    _write_json(folder / "tokenizer_config.json", slow)
    _write_json(folder / "special_tokens_map.json", names)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _noise(name: str, shape: tuple[int, ...], seed: int, reseed: Mapping[str, int]) -> NDArray[np.float32]:
    seed = next((other for piece, other in reseed.items() if piece in name), seed)
    return np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, np.float32)


def _values(
    name: str, shape: tuple[int, ...], seed: int, tuned_from: int | None, reseed: Mapping[str, int]
) -> NDArray[np.float32]:
    if tuned_from is not None:
        start = _values(name, shape, tuned_from, None, {})
        return start + np.float32(0.01) * _noise(name, shape, seed, reseed)
    noise = np.float32(0.05) * _noise(name, shape, seed, reseed)
    is_scale = name.endswith(".weight") and re.search(r"norm|ln_|layrnorm", name, re.IGNORECASE)
    return noise + np.float32(1) if is_scale else noise


def save_model(
    folder: Path,
    kind: str = "llama",
    *,
    seed: int,
    layers: int = 2,
    hidden: int = 32,
    dtype: str = "bfloat16",
    shards: int = 1,
    vocab: int = 64,
    intermediate: int | None = None,
    heads: int = 4,
    kv_heads: int | None = None,
    experts: int = 4,
    tuned_from: int | None = None,
    reseed: Mapping[str, int] | None = None,
    dtypes: Mapping[str, str] | None = None,
    extra: Mapping[str, tuple[str, Array]] | None = None,
    drop: Iterable[str] = (),
    config: Mapping[str, Any | EllipsisType] | None = None,
    dtype_key: str = "dtype",
    tokenizer: bool = True,
) -> Path:
    """Writes a model of one of `KINDS` into `folder` (made if need be) and returns it.

    `tuned_from` is the seed of the model this one is a fine-tune of: its values plus a little noise. `reseed` gives
    tensors whose name holds a piece another seed, `dtypes` another dtype (`{"gate.weight": "float32"}`). `extra`
    adds or replaces raw tensors, `drop` leaves names out. `config` overrides keys of config.json; `...` deletes one.
    """
    few = kv_heads or (heads if kind in ("llama", "llava") else heads // 2)
    sizes = {"layers": layers, "hidden": hidden, "vocab": vocab, "intermediate": intermediate or 2 * hidden}
    sizes |= {"heads": heads, "kv_heads": few, "experts": experts, "vision_layers": 2}
    tensors: Tensors = {}
    for name, shape in shapes(kind, sizes).items():
        own = DTYPES[next((d for piece, d in (dtypes or {}).items() if piece in name), dtype)]
        tensors[name] = (own, narrow(own, _values(name, shape, seed, tuned_from, reseed or {})))
    tensors |= extra or {}
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, {k: v for k, v in tensors.items() if k not in set(drop)}, shards)
    settings = _config(kind, sizes, dtype, dtype_key) | dict(config or {})
    _write_json(folder / "config.json", {k: v for k, v in settings.items() if v is not ...})
    if kind != "bert":
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        _write_json(folder / "generation_config.json", tokens | {"transformers_version": "5.23.0"})
    if tokenizer:
        save_tokenizer(folder, vocab)
    return folder


def write_shards(folder: Path, tensors: Tensors, shards: int = 1) -> None:
    """Writes `model.safetensors`, or that many numbered shards of about as many tensors each, with their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(raw.nbytes for _, raw in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _module_in_memory(kind: str, module: str) -> str:
    """The name that transformers gives a module once loaded, which is the one PEFT saves."""
    if kind == "gpt2" and not module.startswith("transformer."):
        return f"transformer.{module}"
    if kind != "llava":
        return module
    if module == "language_model.lm_head":
        return "lm_head"
    module = module.replace("vision_tower.vision_model.", "vision_tower.")
    return "model." + module.replace("language_model.model.", "language_model.")


def _hits(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, int], module: str, default: int) -> int:
    return next((n for key, n in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")


def save_lora(
    folder: Path,
    base_folder: Path,
    *,
    seed: int,
    rank: int = 8,
    alpha: int = 16,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, int] | None = None,
    fan_in_fan_out: bool | None = None,
    modules_to_save: tuple[str, ...] = (),
    bias: str = "none",
    embedding: bool = False,
    dtype: str = "float32",
    reseed: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a PEFT LoRA for the model in `base_folder` into `folder` (made if need be) and returns it.

    `targets` and `modules_to_save` name modules as PEFT does: whole, or by their last parts. `fan_in_fan_out` is True
    by default for GPT-2. `bias` is none, all or lora_only. `embedding` adapts the input embedding too. Both factors
    are random, so every delta is about as large as the noise of a fine-tune. `reseed` and `config` are as in
    `save_model`.
    """
    base = read_tensors(base_folder)
    kind = json.loads((base_folder / "config.json").read_text())["model_type"]
    flipped = kind == "gpt2" if fan_in_fan_out is None else fan_in_fan_out
    adapted = {name.rpartition(".")[0] for name in base if _hits(name.rpartition(".")[0], targets)}
    tensors: Tensors = {}

    def put(key: str, own: str, shape: tuple[int, ...], scale: float) -> None:
        values = np.float32(scale) * _noise(key, shape, seed, reseed or {})
        tensors[f"base_model.model.{key}"] = (own, narrow(own, values))

    for name, (own, raw) in base.items():
        module, _, leaf = name.rpartition(".")
        loaded = _module_in_memory(kind, module)
        r = _by_pattern(rank_pattern or {}, loaded, rank)
        if embedding and leaf == "weight" and _hits(module, EMBEDDINGS):
            put(f"{loaded}.lora_embedding_A", DTYPES[dtype], (r, raw.shape[0]), 0.1)
            put(f"{loaded}.lora_embedding_B", DTYPES[dtype], (raw.shape[1], r), 0.05)
            tensors[f"base_model.model.{loaded}.base_layer.weight"] = (own, raw)
        elif module in adapted and leaf == "weight":
            rows, columns = raw.shape[::-1] if flipped else raw.shape
            put(f"{loaded}.lora_A.weight", DTYPES[dtype], (r, columns), 0.1)
            put(f"{loaded}.lora_B.weight", DTYPES[dtype], (rows, r), 0.05)
        elif leaf == "bias" and (bias == "all" or (bias == "lora_only" and module in adapted)):
            put(f"{loaded}.base_layer.bias" if module in adapted else f"{loaded}.bias", own, raw.shape, 0.05)
        elif _hits(loaded, modules_to_save):
            put(f"{loaded}.{leaf}", own, raw.shape, 0.05)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", dict(sorted(tensors.items())))
    settings = _lora_config(kind, rank, alpha, bias, rslora, flipped)
    present = {name.split(".")[-2] for name in base if "." in name}
    settings["target_modules"] = sorted({*targets, *(present.intersection(EMBEDDINGS) if embedding else ())})
    settings |= {"modules_to_save": list(modules_to_save) or None, "base_model_name_or_path": base_folder.name}
    settings |= {"rank_pattern": dict(rank_pattern or {}), "alpha_pattern": dict(alpha_pattern or {})}
    _write_json(folder / "adapter_config.json", dict(sorted({**settings, **(config or {})}.items())))
    return folder


def _lora_config(kind: str, rank: int, alpha: int, bias: str, rslora: bool, flipped: bool) -> dict[str, Any]:
    task = "FEATURE_EXTRACTION" if kind == "bert" else "CAUSAL_LM"
    nothing = (
        "auto_mapping", "exclude_modules", "layer_replication", "layers_pattern", "layers_to_transform",
        "megatron_config", "revision", "target_parameters", "trainable_token_indices",
    )  # fmt: skip
    return {
        "bias": bias, "fan_in_fan_out": flipped, "inference_mode": True, "init_lora_weights": True,
        "loftq_config": {}, "lora_alpha": alpha, "lora_bias": False, "lora_dropout": 0.0, "peft_type": "LORA",
        "peft_version": "0.21.2", "r": rank, "task_type": task, "use_dora": False, "use_rslora": rslora,
        **dict.fromkeys(nothing),
    }  # fmt: skip
