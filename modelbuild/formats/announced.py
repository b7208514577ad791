"""Quantised formats that are part of the Modelfile format and not built by this version: their types and options."""

from __future__ import annotations

from modelbuild.formats.base import Format, Option

_GGUF_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q2_K_S", "IQ4_XS", "IQ4_NL", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M",
    "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip
_GROUP_SIZE = Option("group_size", "integer", "weights that share one scale", 1)

ANNOUNCED = (
    Format(
        "gguf",
        "one file for llama.cpp and what is built on it",
        _GGUF_TYPES,
        (Option("imatrix", "string", "file with the importance of each column, relative to the Modelfile"),),
    ),
    Format(
        "compressed-tensors",
        "the layout of vLLM and llm-compressor",
        ("fp8", "fp8-block", "w8a8", "w8a16", "w4a16", "mxfp4", "mxfp8", "nvfp4"),
        (_GROUP_SIZE, Option("symmetric", "boolean", "no zero points")),
    ),
    Format(
        "mlx",
        "for Apple's MLX",
        ("3bit", "4bit", "6bit", "8bit", "mxfp4", "nvfp4"),
        (_GROUP_SIZE,),
    ),
)
"""Every quantised format that is not built yet."""
