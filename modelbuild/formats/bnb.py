"""bnb: bitsandbytes, NF4, FP4 (https://arxiv.org/abs/2305.14314) and LLM.int8 (https://arxiv.org/abs/2208.07339).

What it packs, and what comes of it, are those of transformers' `load_in_4bit`, `load_in_8bit` and `save_pretrained`:

    nf4, fp4   X.weight          U8 [n/2, 1]   two weights a byte
               X.weight.absmax   F32 [blocks]  the scale of each block; with double_quant U8, itself quantised by
               X.weight.nested_absmax F32, X.weight.nested_quant_map F32 [256] and an offset in the state
               X.weight.quant_map F32 [16]     the values of the type
               X.weight.quant_state.bitsandbytes__nf4  U8, JSON: type, block size, dtype and shape
    int8       X.weight I8 [rows, columns], X.SCB F32 [rows] the greatest of each row, X.weight_format U8 []

A block is `block_size` weights of the flattened tensor. The offset of double_quant is the mean of the scales, which
depends on how many threads add them up: it is taken on one. Its digits make the state longer or shorter: a late output.
int8 goes by way of float16, so what is greater than 65504 becomes infinite.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

from modelbuild.formats._skips import skip_entries
from modelbuild.formats.base import Format, Model, Option, Output, Pack, Packer, Packing, Unfit
from modelbuild.formats.linears import find_linears, head_names

VERSION = 1
BLOCK_SIZE = 64
NESTED = 256
"""Scales that share a scale of their own with double_quant."""

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
STATE = 512
"""Bytes that a state has at most."""

_ROWS = 32
"""What the outputs of a 4-bit layer must be a multiple of for bitsandbytes to run it on a processor with AVX-512."""


def plan(model: Model) -> Packing:
    """Decides every tensor of a model; raises Unfit."""
    found = find_linears(model.tensors, model.config)
    skipped = [module for module in found.linear if model.skipped(f"{module}.weight")]
    chosen = [module for module in found.linear if module not in set(skipped)]
    if not chosen:
        reason = "`skip` leaves all of its linear layers alone" if skipped else "it has no linear layers"
        raise Unfit("has nothing to quantise", [reason])
    entries: list[str] | None = None
    if skipped or found.unsure:
        entries, lost = skip_entries([*found.left, *found.unsure, *skipped], chosen, head_names(model.config))
        if lost:
            facts = [f"`{module}`" for module in lost[:5]]
            raise Unfit("has layers that config.json cannot name without others", facts, "skip all of their kind")
    block = int(model.options.get("block_size", BLOCK_SIZE))
    _check_blocks(model, chosen, 1 if model.type == "int8" else block)
    packed = {f"{m}.weight": _pack(model, f"{m}.weight", m in found.transposed, block) for m in chosen}
    return Packing(packed, tuple(f"{m}.weight" for m in skipped), {
        "quantization_config": quantization_config(model.type, _doubled(model), entries)
    }, (*_doubts(found.unsure), *_notes(model, chosen, found.transposed, block)))  # fmt: skip


def quantization_config(kind: str, double_quant: bool, skip: list[str] | None = None) -> dict[str, Any]:
    """What transformers writes into config.json for these settings, in its order of keys."""
    four = kind != "int8"
    return {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kind if four else "fp4",
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skip,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }


def state_json(kind: str, block: int, dtype: str, shape: tuple[int, ...]) -> bytes:
    """The state of a 4-bit weight without double_quant; the shape is that of the layer, [outputs, inputs]."""
    state = {"quant_type": kind, "blocksize": block, "dtype": DTYPES[dtype], "shape": list(shape)}
    return json.dumps(state).encode()


def _doubled(model: Model) -> bool:
    return bool(model.options.get("double_quant", False))


def _pack(model: Model, name: str, transposed: bool, block: int) -> Pack:
    dtype, stored = model.tensors[name]
    shape = stored[::-1] if transposed else stored
    if model.type == "int8":
        outputs = (Output("weight", "I8", shape), Output("SCB", "F32", shape[:1]), Output("weight_format", "U8", ()))
        return Pack((("type", "int8"), ("transposed", transposed)), outputs)
    doubled = _doubled(model)
    params = (("type", model.type), ("double_quant", doubled), ("block_size", block), ("transposed", transposed))
    return Pack(params, tuple(_four_bit(model.type, doubled, block, dtype, shape)))


def _four_bit(kind: str, doubled: bool, block: int, dtype: str, shape: tuple[int, ...]) -> list[Output]:
    count = prod(shape)
    blocks = -(-count // block)
    found = [Output("weight", "U8", (-(-count // 2), 1)), Output("weight.quant_map", "F32", (16,))]
    state = f"weight.quant_state.bitsandbytes__{kind}"
    if not doubled:
        length = len(state_json(kind, block, dtype, shape))
        return [*found, Output("weight.absmax", "F32", (blocks,)), Output(state, "U8", (length,))]
    nested = [
        Output("weight.absmax", "U8", (blocks,)),
        Output("weight.nested_absmax", "F32", (-(-blocks // NESTED),)),
        Output("weight.nested_quant_map", "F32", (NESTED,)),
    ]
    return [*found, *nested, Output(state, "U8", (STATE,), late=True)]


def _check_blocks(model: Model, modules: list[str], block: int) -> None:
    shapes = {f"{module}.weight": model.tensors[f"{module}.weight"][1] for module in modules}
    odd = [f"`{name}` is {list(shape)}" for name, shape in shapes.items() if prod(shape) % block or not prod(shape)]
    if odd:
        more = [f"and {len(odd) - 5} more"] if len(odd) > 5 else []
        facts = [*odd[:5], *more, f"a block is {block} weights"] if block > 1 else [*odd[:5], *more]
        raise Unfit("has weights that do not divide into blocks", facts, "leave them alone: skip = [PATTERN]")


def _doubts(unsure: tuple[str, ...]) -> tuple[str, ...]:
    more = f", and {len(unsure) - 1} more" if unsure[1:] else ""
    return tuple(f"`{name}`{more}: no telling if it is a linear layer; left alone" for name in unsure[:1])


def _notes(model: Model, modules: list[str], transposed: frozenset[str], block: int) -> tuple[str, ...]:
    if model.type == "int8":
        return ()
    stored = {module: model.tensors[f"{module}.weight"][1] for module in modules}
    shapes = {module: shape[::-1] if module in transposed else shape for module, shape in stored.items()}
    odd = [module for module, (rows, columns) in shapes.items() if rows % _ROWS or columns % block]
    if not odd:
        return ()
    rows, columns = shapes[odd[0]]
    more = f", and {len(odd) - 1} more are like it" if odd[1:] else ""
    limits = f"outputs in multiples of {_ROWS} and inputs in multiples of {block}"
    what = f"`{odd[0]}` has {rows} outputs and {columns} inputs{more}"
    return (f"{what}: on a processor with AVX-512, bitsandbytes runs only {limits}",)


def _packer() -> Packer:
    from modelbuild.formats._bnb_packer import BnbPacker

    return BnbPacker()


FORMAT = Format(
    name="bnb",
    summary="bitsandbytes, loaded by transformers",
    types=("nf4", "fp4", "int8"),
    options=(
        Option("double_quant", "boolean", "quantise the scales too", types=("nf4", "fp4"), default=False),
        Option(
            "block_size", "integer", "weights that share one scale", low=1, types=("nf4", "fp4"), default=BLOCK_SIZE,
            choices=(32, 64, 128, 256, 512, 1024, 2048, 4096),
        ),
    ),
    version=VERSION,
    libraries=("bitsandbytes", "torch"),
    extra="bnb",
    plan=plan,
    packer=_packer,
)  # fmt: skip
