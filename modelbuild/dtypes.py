"""The dtypes of tensors, under the names that the safetensors format has for them."""

from __future__ import annotations

ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of one element, by safetensors dtype name."""

GREATEST = 3.4028235e38
"""The greatest number that float32 holds, in which everything is computed."""

FLOATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The floating dtypes that are computed with: the Modelfile's name and the safetensors name."""
